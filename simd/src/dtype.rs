//! Storage formats and the conversions between them and float32.

use std::fmt;

/// A storage format; bytes are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// bfloat16: the upper half of a float32.
    Bf16,
    /// IEEE 754 binary16.
    F16,
    /// IEEE 754 binary32.
    F32,
}

impl Dtype {
    /// Bytes of one element; also the alignment that kernels ask of a slice of bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// `bf16`, `f16` or `f32`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    /// Converts to float32, exactly. A NaN stays a NaN.
    ///
    /// # Panics
    /// If `src` is not `dst.len()` elements long.
    pub fn widen(self, src: &[u8], dst: &mut [f32]) {
        assert_eq!(src.len(), dst.len() * self.size(), "widen: bytes of {} for {} elements", self.name(), dst.len());
        match self {
            Self::Bf16 => {
                for (x, bytes) in dst.iter_mut().zip(src.as_chunks().0) {
                    *x = bf16_to_f32(u16::from_le_bytes(*bytes));
                }
            }
            Self::F16 => {
                for (x, bytes) in dst.iter_mut().zip(src.as_chunks().0) {
                    *x = f16_to_f32(u16::from_le_bytes(*bytes));
                }
            }
            Self::F32 => {
                for (x, bytes) in dst.iter_mut().zip(src.as_chunks().0) {
                    *x = f32::from_le_bytes(*bytes);
                }
            }
        }
    }

    /// Converts from float32, rounding to nearest, ties to even. What is too large becomes infinite, a NaN stays a NaN.
    ///
    /// # Panics
    /// If `dst` is not `src.len()` elements long.
    pub fn narrow(self, src: &[f32], dst: &mut [u8]) {
        assert_eq!(dst.len(), src.len() * self.size(), "narrow: bytes of {} for {} elements", self.name(), src.len());
        match self {
            Self::Bf16 => {
                for (x, bytes) in src.iter().zip(dst.as_chunks_mut().0) {
                    *bytes = bf16_from_f32(*x).to_le_bytes();
                }
            }
            Self::F16 => {
                for (x, bytes) in src.iter().zip(dst.as_chunks_mut().0) {
                    *bytes = half::f16::from_f32(*x).to_le_bytes();
                }
            }
            Self::F32 => {
                for (x, bytes) in src.iter().zip(dst.as_chunks_mut().0) {
                    *bytes = x.to_le_bytes();
                }
            }
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[inline(always)]
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds to nearest even without a branch, so that loops over it vectorise.
#[inline(always)]
pub(crate) fn bf16_from_f32(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // Rounding could carry a NaN into infinity; cutting it off could leave an infinity: so it is cut off and made quiet.
    let quiet = (bits >> 16) | 0x40;
    (if x.is_nan() { quiet } else { rounded }) as u16
}

/// Exact, and without a branch: the exponent is rebased by a multiplication, which also normalises subnormals.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    const REBASE: f32 = f32::from_bits((127 + 112) << 23);
    let magnitude = u32::from(bits & 0x7fff);
    let rebased = (f32::from_bits(magnitude << 13) * REBASE).to_bits();
    let special = if magnitude >= 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(rebased | special | u32::from(bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_16_bit_numbers_widen_exactly_and_narrow_back() {
        for bits in 0..=u16::MAX {
            let bytes = bits.to_le_bytes();
            for (dtype, want) in
                [(Dtype::Bf16, half::bf16::from_bits(bits).to_f64()), (Dtype::F16, half::f16::from_bits(bits).to_f64())]
            {
                let (mut x, mut back) = ([0.0], [0; 2]);
                dtype.widen(&bytes, &mut x);
                dtype.narrow(&x, &mut back);
                if want.is_nan() {
                    assert!(x[0].is_nan(), "{dtype} {bits:#x}");
                    dtype.widen(&back, &mut x);
                    assert!(x[0].is_nan(), "{dtype} {bits:#x}");
                } else {
                    assert_eq!(f64::from(x[0]).to_bits(), want.to_bits(), "{dtype} {bits:#x}");
                    assert_eq!(back, bytes, "{dtype} {bits:#x}");
                }
            }
        }
    }

    #[test]
    fn bf16_rounds_to_nearest_even() {
        for bits in (0..=u32::MAX).step_by(251) {
            let x = f32::from_bits(bits);
            let (got, want) = (bf16_from_f32(x), half::bf16::from_f32(x));
            assert_eq!(got, want.to_bits(), "{bits:#x}");
        }
        assert_eq!(bf16_to_f32(bf16_from_f32(f32::MAX)), f32::INFINITY);
        assert!(bf16_to_f32(bf16_from_f32(f32::from_bits(0x7f80_0001))).is_nan());
    }
}
