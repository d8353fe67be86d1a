//! The exponential function and what is made of it.

use super::{per_isa, sum_of_lanes};

/// `e^x`, within 1 unit in the last place over the whole range, subnormal results included.
///
/// `exp(-∞)` is 0, what is too large becomes ∞, a NaN stays a NaN. There is no branch in it, so that loops over it
/// vectorise.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Beyond these bounds the result is infinite or rounds to zero; a NaN passes.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -105.0 { -105.0 } else { x };
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const TO_INTEGER: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + TO_INTEGER;
    let n = shifted - TO_INTEGER;
    let exponent = (shifted.to_bits() as i32).wrapping_sub(TO_INTEGER.to_bits() as i32);
    // x = n * ln 2 + r; the upper part of ln 2 has 9 bits, so that its product with n is exact.
    let r = x - n * 0.693_359_4;
    let r = r - n * -2.121_944_4e-4;
    // e^r on ±(ln 2) / 2, the minimax polynomial of Cephes' expf.
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * (r * r) + r + 1.0;
    // 2^n in two factors: n may be beyond the exponents of normal numbers on either side.
    let half = exponent >> 1;
    p * power_of_two(half) * power_of_two(exponent.wrapping_sub(half))
}

#[inline(always)]
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits((exponent.wrapping_add(127) as u32) << 23)
}

per_isa! {
    /// `out = silu(gate) * up`, with `silu(g) = g / (1 + exp(-g))`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn silu_mul(gate: &'a [f32], up: &'a [f32], out: &'a mut [f32]) {
        assert_eq!((gate.len(), up.len()), (out.len(), out.len()), "lengths");
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

per_isa! {
    /// `out = g / (1 + exp(-alpha * g)) * (u + 1)`, with `g = min(gate, limit)` and `u = clamp(up, -limit, limit)`.
    ///
    /// What is not finite is not clamped: it stays so.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn clamped_silu_mul(gate: &'a [f32], up: &'a [f32], limit: f32, alpha: f32, out: &'a mut [f32]) {
        assert_eq!((gate.len(), up.len()), (out.len(), out.len()), "lengths");
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            let clamp = |x: f32, from: f32| {
                let low = if x < from { from } else { x };
                let both = if low > limit { limit } else { low };
                if x.is_finite() { both } else { x }
            };
            let (gate, up) = (clamp(*gate, f32::NEG_INFINITY), clamp(*up, -limit));
            *out = gate / (1.0 + exp(-(alpha * gate))) * (up + 1.0);
        }
    }
}

per_isa! {
    /// `x = exp(x - max) / Σ exp(x - max)`. A NaN or +∞ makes all of it NaN, and so does a slice of nothing but -∞.
    pub fn softmax(x: &'a mut [f32]) {
        let mut max = f32::NEG_INFINITY;
        for x in &*x {
            max = if *x > max { *x } else { max };
        }
        let mut sums = [0.0; 16];
        let (chunks, rest) = x.as_chunks_mut::<16>();
        for chunk in chunks {
            for i in 0..16 {
                chunk[i] = exp(chunk[i] - max);
                sums[i] += chunk[i];
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *x = exp(*x - max);
            *sum += *x;
        }
        let sum = sum_of_lanes(sums);
        for x in x {
            *x /= sum;
        }
    }
}
