//! Normalisation.

use super::{per_isa, sum_of_lanes};

per_isa! {
    /// `out = x / sqrt(mean(x²) + eps) * weight`.
    ///
    /// The reciprocal of the root is rounded, then multiplied with: as the models were trained.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn rms_norm(x: &'a [f32], weight: &'a [f32], eps: f32, out: &'a mut [f32]) {
        assert_eq!((x.len(), out.len()), (weight.len(), weight.len()), "lengths");
        let (chunks, rest) = x.as_chunks::<16>();
        let mut sums = [0.0; 16];
        for chunk in chunks {
            for i in 0..16 {
                sums[i] += chunk[i] * chunk[i];
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *sum += x * x;
        }
        let mean = sum_of_lanes(sums) / x.len() as f32;
        let scale = 1.0 / (mean + eps).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }
}
