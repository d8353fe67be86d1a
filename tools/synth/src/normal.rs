//! Random weights at the speed of a disk: normal numbers in BF16 by a table of 65,536 quantiles, indexed by a
//! counter-based generator, and that generator's bytes for MXFP4.
//!
//! The quantiles end at 4.2 standard deviations, and their exponents spread as a normal distribution's do, which is what
//! a lossless packing of them meets.

use half::bf16;

pub(crate) struct Normal {
    quantiles: Vec<[u8; 2]>,
}

impl Normal {
    pub(crate) fn new(standard_deviation: f64) -> Self {
        let quantile = |i: u32| {
            let x = standard_deviation * inverse_cdf((f64::from(i) + 0.5) / 65_536.0);
            bf16::from_f64(x).to_le_bytes()
        };
        Self { quantiles: (0..65_536).map(quantile).collect() }
    }

    /// Values `start..` of tensor `tensor`; `start` is a multiple of 4.
    pub(crate) fn fill(&self, seed: u64, tensor: u64, start: u64, out: &mut [u8]) {
        let key = mix(seed ^ mix(tensor));
        for (block, out) in (start / 4..).zip(out.chunks_mut(8)) {
            let random = mix(key.wrapping_add(block.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
            for (value, out) in out.chunks_exact_mut(2).enumerate() {
                out.copy_from_slice(&self.quantiles[(random >> (16 * value)) as usize & 0xffff]);
            }
        }
    }
}

/// Two numbers of MXFP4 in each byte, all equally likely: bytes `start..` of tensor `tensor`; `start` is a multiple of 8.
pub(crate) fn nibbles(seed: u64, tensor: u64, start: u64, out: &mut [u8]) {
    let key = mix(seed ^ mix(tensor));
    for (block, out) in (start / 8..).zip(out.chunks_mut(8)) {
        let random = mix(key.wrapping_add(block.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        out.copy_from_slice(&random.to_le_bytes()[..out.len()]);
    }
}

/// Scales with which such numbers, whose root mean square is 2.9, have one of 0.018: 2^-8 or 2^-7.
pub(crate) fn scales(seed: u64, tensor: u64, start: u64, out: &mut [u8]) {
    nibbles(seed, tensor, start, out);
    for out in out {
        *out = 119 + (*out & 1);
    }
}

/// 1.0 in BF16, over and over.
pub(crate) fn ones(out: &mut [u8]) {
    out.chunks_exact_mut(2).for_each(|out| out.copy_from_slice(&bf16::ONE.to_le_bytes()));
}

/// SplitMix64's finalizer.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Quantile of the standard normal distribution: bisection on its distribution function, which is slow and plain; the
/// table is made once.
fn inverse_cdf(p: f64) -> f64 {
    let (mut low, mut high) = (-8.0, 8.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if cdf(middle) < p { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

/// Distribution function by the series φ(x)·(x + x³/3 + x⁵/15 + …).
fn cdf(x: f64) -> f64 {
    let mut term = x;
    let mut sum = x;
    let mut odd = 1.0;
    while term.abs() > 1e-17 {
        odd += 2.0;
        term *= x * x / odd;
        sum += term;
    }
    0.5 + sum * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (p, x) in [(0.5, 0.0), (0.841_344_746_1, 1.0), (0.975, 1.959_963_985), (0.999_968_328_76, 4.0)] {
            assert!((inverse_cdf(p) - x).abs() < 1e-6, "{p}");
            assert!((inverse_cdf(1.0 - p) + x).abs() < 1e-6, "{p}");
        }
    }

    #[test]
    fn values_have_the_mean_and_the_deviation_and_do_not_depend_on_where_a_piece_begins() {
        let normal = Normal::new(0.02);
        let mut all = vec![0; 2 * 100_000];
        normal.fill(1, 7, 0, &mut all);
        let values: Vec<f64> = all.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 3e-4 && (variance.sqrt() - 0.02).abs() < 2e-4, "{mean} {variance}");
        let mut piece = vec![0; 2 * 1000];
        normal.fill(1, 7, 4000, &mut piece);
        assert_eq!(piece, all[8000..10_000]);
    }

    #[test]
    fn nibbles_are_all_there_and_do_not_depend_on_where_a_piece_begins() {
        let mut all = vec![0; 10_003];
        nibbles(1, 7, 0, &mut all);
        let mut counts = [0; 16];
        all.iter().flat_map(|byte| [byte & 15, byte >> 4]).for_each(|nibble| counts[usize::from(nibble)] += 1);
        assert!(counts.iter().all(|count| (1100..1400).contains(count)), "{counts:?}");
        let mut piece = vec![0; 1000];
        nibbles(1, 7, 4000, &mut piece);
        assert_eq!(piece, all[4000..5000]);
        scales(1, 7, 0, &mut all);
        assert!(all.iter().all(|scale| (119..=120).contains(scale)));
    }
}
