//! What counts say: how evenly a layer's experts are used.

use super::LayerCounts;

impl LayerCounts {
    /// Choices in all: tokens times experts a token.
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Entropy of the distribution over experts, in bits: that of n experts used evenly is log2(n). 0 without choices.
    pub fn entropy_bits(&self) -> f64 {
        let total = self.total() as f64;
        let used = self.counts.iter().filter(|count| **count > 0);
        used.map(|count| *count as f64 / total).map(|p| p * (1.0 / p).log2()).sum()
    }

    /// Entropy as a fraction of the most that so many experts can have; 1 for a single expert.
    pub fn entropy_fraction(&self) -> f64 {
        match self.counts.len() {
            0 | 1 => 1.0,
            experts => self.entropy_bits() / (experts as f64).log2(),
        }
    }

    /// Experts that no token went through.
    pub fn unused(&self) -> usize {
        self.counts.iter().filter(|count| **count == 0).count()
    }

    /// Fraction of the choices that fall on the most used `percent` of the experts, rounded up to whole experts. 0
    /// without choices.
    pub fn coverage(&self, percent: usize) -> f64 {
        let mut counts = self.counts.clone();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let experts = (counts.len() * percent.min(100)).div_ceil(100);
        let covered = counts[..experts].iter().fold(0, |sum: u64, count| sum.saturating_add(*count));
        covered as f64 / self.total().max(1) as f64
    }

    /// How much more than evenly the experts are used, in at most `bins` groups of neighbours: 1 is evenly, 0 not at all.
    pub fn relative_use(&self, bins: usize) -> Vec<f64> {
        let experts = self.counts.len();
        let bins = bins.clamp(1, experts.max(1));
        let evenly = self.total().max(1) as f64 / experts.max(1) as f64;
        let bin = |bin| {
            let group = &self.counts[bin * experts / bins..(bin + 1) * experts / bins];
            let sum: f64 = group.iter().map(|count| *count as f64).sum();
            sum / group.len().max(1) as f64 / evenly
        };
        (0..bins).map(bin).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(counts: &[u64]) -> LayerCounts {
        LayerCounts { layer: 0, experts_per_token: 1, counts: counts.into() }
    }

    #[test]
    fn entropy_is_that_of_shannon() {
        for (counts, bits, fraction) in [
            (&[5, 5, 5, 5][..], 2.0, 1.0),
            (&[8, 4, 2, 2], 1.75, 0.875),
            (&[0, 7, 0, 0], 0.0, 0.0),
            (&[3, 3, 0, 0], 1.0, 0.5),
            (&[9], 0.0, 1.0),
        ] {
            let layer = layer(counts);
            assert!((layer.entropy_bits() - bits).abs() < 1e-12, "{counts:?}: {}", layer.entropy_bits());
            assert!((layer.entropy_fraction() - fraction).abs() < 1e-12, "{counts:?}: {}", layer.entropy_fraction());
        }
    }

    #[test]
    fn coverage_counts_the_most_used_experts_rounded_up() {
        let layer = layer(&[1, 0, 6, 1, 2, 0, 0, 10]);
        assert_eq!([10, 25, 50, 100].map(|percent| layer.coverage(percent)), [0.5, 0.8, 0.95, 1.0]);
        assert_eq!((layer.coverage(0), layer.unused()), (0.0, 3));
    }

    #[test]
    fn relative_use_is_one_where_experts_are_used_evenly_and_bins_are_means() {
        assert_eq!(layer(&[3, 3, 3, 3]).relative_use(4), [1.0; 4]);
        assert_eq!(layer(&[0, 2, 4, 2]).relative_use(100), [0.0, 1.0, 2.0, 1.0]);
        assert_eq!(layer(&[0, 2, 4, 2]).relative_use(2), [0.5, 1.5]);
        assert_eq!(layer(&[0, 3, 0, 3, 3]).relative_use(2).len(), 2); // groups of two and of three
    }

    #[test]
    fn nothing_counted_is_no_number_that_is_not_one() {
        let layer = layer(&[0, 0]);
        assert_eq!((layer.entropy_bits(), layer.coverage(50)), (0.0, 0.0));
        assert_eq!(layer.relative_use(2), [0.0, 0.0]);
    }
}
