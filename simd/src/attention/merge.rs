//! Runs become one output.

use crate::elementwise::exp;

/// Merges the parts of one row, in run order: each is what [`attend_run`](super::attend_run) wrote, `[head_dim + 2]`
/// with maximum, sum and accumulators.
///
/// `out` = Σ acc·exp(max - M) / Σ sum·exp(max - M), with M the greatest maximum. Anything non-finite in a part, or no
/// visible position at all, makes the output NaN or infinite: never a silent zero. An attention sink is a part with its logit as
/// maximum, 1 as sum and zeros.
///
/// # Panics
/// If a part is not `out.len() + 2` long.
pub fn merge_runs<'a>(parts: impl Iterator<Item = &'a [f32]> + Clone, out: &mut [f32]) {
    let mut max = f32::NEG_INFINITY;
    for part in parts.clone() {
        assert_eq!(part.len(), out.len() + 2, "maximum, sum and accumulators");
        // `f32::max` would drop a NaN.
        if part[0] > max || part[0].is_nan() {
            max = part[0];
        }
        if max.is_nan() {
            break;
        }
    }
    out.fill(0.0);
    let mut sum = 0.0;
    for part in parts {
        let scale = exp(part[0] - max);
        sum += part[1] * scale;
        for (out, x) in out.iter_mut().zip(&part[2..]) {
            *out += x * scale;
        }
    }
    // A quotient by infinity would be zero.
    let sum = if sum.is_finite() { sum } else { f32::NAN };
    for out in out {
        *out /= sum;
    }
}
