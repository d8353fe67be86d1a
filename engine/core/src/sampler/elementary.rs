//! `exp` and `ln` whose bits do not depend on the machine.
//!
//! The standard library calls the C library's functions, and those differ between C libraries, between their versions
//! and, where they pick an FMA variant at load time, between CPUs. A token must not. So these two use only additions,
//! multiplications and divisions of `f64`, each rounded as IEEE 754 says, in one written order. Both are good to a few
//! units of 1e-16, far below what one float32 logit can tell apart.

const LN_2_HIGH: f64 = f64::from_bits(0x3FE6_2E42_FEE0_0000);
const LN_2_LOW: f64 = f64::from_bits(0x3DEA_39EF_3579_3C76);

/// 1/n! for n in 0..=13: at |r| <= ln(2)/2 the first term left out is below 5e-18.
const EXP_COEFFICIENTS: [f64; 14] = [
    1.0,
    1.0,
    1.0 / 2.0,
    1.0 / 6.0,
    1.0 / 24.0,
    1.0 / 120.0,
    1.0 / 720.0,
    1.0 / 5040.0,
    1.0 / 40320.0,
    1.0 / 362_880.0,
    1.0 / 3_628_800.0,
    1.0 / 39_916_800.0,
    1.0 / 479_001_600.0,
    1.0 / 6_227_020_800.0,
];

/// e^x for x <= 0; exactly 1 at 0, and 0 below -700, where a probability has lost to everything else.
#[inline]
pub(super) fn exp_nonpositive(x: f64) -> f64 {
    debug_assert!(x <= 0.0);
    // Clamped instead of branched on, so that a loop over a vocabulary can be vectorised.
    let clamped = x.max(-700.0);
    // Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits of the mantissa.
    let shifted = clamped * std::f64::consts::LOG2_E + 6_755_399_441_055_744.0;
    let k = shifted - 6_755_399_441_055_744.0;
    let r = (clamped - k * LN_2_HIGH) - k * LN_2_LOW;
    let mut sum = EXP_COEFFICIENTS[13];
    for n in (0..13).rev() {
        sum = sum * r + EXP_COEFFICIENTS[n];
    }
    // k is in -1010..=0, so the power of two is a normal number.
    let exponent = (shifted.to_bits() as u32 as i32 + 1023) as u64;
    let value = sum * f64::from_bits(exponent << 52);
    if x < -700.0 { 0.0 } else { value }
}

/// Natural logarithm of a positive normal number.
pub(super) fn ln(x: f64) -> f64 {
    debug_assert!(x.is_normal() && x > 0.0);
    let bits = x.to_bits();
    let mut k = (bits >> 52) as i64 - 1023;
    let mut m = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        k += 1;
    }
    // ln(m) = 2 atanh(s), s = (m-1)/(m+1), |s| <= 0.1716: s^2 shrinks each term by 34.
    let s = (m - 1.0) / (m + 1.0);
    let s2 = s * s;
    let mut sum = 1.0 / 23.0;
    for n in (0..11).rev() {
        sum = sum * s2 + 1.0 / f64::from(2 * n + 1);
    }
    let k = k as f64;
    k * LN_2_HIGH + (2.0 * s * sum + k * LN_2_LOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_standard_library() {
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert_eq!(exp_nonpositive(-0.0), 1.0);
        assert_eq!(exp_nonpositive(f64::NEG_INFINITY), 0.0);
        for step in 0..=1_400_000u32 {
            let x = -f64::from(step) * 0.0005;
            let (got, want) = (exp_nonpositive(x), x.exp());
            assert!((got / want - 1.0).abs() < 1e-15, "exp({x}): got {got:e}, want {want:e}");
        }
    }

    #[test]
    fn ln_agrees_with_the_standard_library() {
        assert_eq!(ln(1.0), 0.0);
        for step in 1..=1_000_000u32 {
            let x = f64::from(step) * 0.37;
            let (got, want) = (ln(x), x.ln());
            assert!((got - want).abs() <= 1e-15 * want.abs().max(1.0), "ln({x}): got {got:e}, want {want:e}");
        }
    }

    /// Other bits would mean other tokens. The same steps in Python, which has no FMA either, give this number too.
    #[test]
    fn the_bits_are_pinned() {
        let mut digest = 0u64;
        for step in 0..100_000u32 {
            let x = -f64::from(step) * 0.001_7;
            digest = digest.rotate_left(5) ^ exp_nonpositive(x).to_bits() ^ ln(1.0 - x).to_bits();
        }
        assert_eq!(digest, 0x2C98_5E3C_77BB_34F6);
    }
}
