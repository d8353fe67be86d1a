//! What `nightmonk bench -o json` says, by the names that it says it with.

use serde::{Deserialize, Serialize};

/// One test.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub(crate) struct Figures {
    pub(crate) test: String,
    pub(crate) n_prompt: usize,
    pub(crate) n_gen: usize,
    pub(crate) n_depth: usize,
    pub(crate) width: usize,
    pub(crate) threads: usize,
    pub(crate) isa: String,
    pub(crate) activations: String,
    pub(crate) load: String,
    pub(crate) kv_type: String,
    pub(crate) tokens_per_second: f64,
    pub(crate) samples: Vec<f64>,
    pub(crate) bytes_per_token: f64,
    pub(crate) read_bandwidth: f64,
    pub(crate) fraction_of_bandwidth: f64,
    pub(crate) flops_per_token: f64,
    pub(crate) peak_flops: f64,
    pub(crate) fraction_of_peak: f64,
    pub(crate) peak_rss_bytes: u64,
    pub(crate) load_seconds: f64,
}

/// The middle of the samples, as `nightmonk bench` takes it; nothing of nothing.
pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        len if len.is_multiple_of(2) => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
        _ => Some(sorted[middle]),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A decode test at `n_depth` and `width` with this speed.
    pub(crate) fn decode(n_depth: usize, width: usize, tokens_per_second: f64) -> Figures {
        Figures {
            test: "tg16".into(),
            n_prompt: 0,
            n_gen: 16,
            n_depth,
            width,
            threads: 2,
            isa: "avx512".into(),
            activations: "bf16x2".into(),
            load: "resident".into(),
            kv_type: "f16".into(),
            tokens_per_second,
            samples: vec![tokens_per_second, tokens_per_second + 0.5],
            bytes_per_token: 1.25e9,
            read_bandwidth: 2.5e10,
            fraction_of_bandwidth: tokens_per_second / 20.0,
            flops_per_token: 1.5e9,
            peak_flops: 2e11,
            fraction_of_peak: 0.125,
            peak_rss_bytes: 1 << 33,
            load_seconds: 1.5,
        }
    }

    #[test]
    fn the_median_is_the_middle_of_the_samples_in_any_order() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
