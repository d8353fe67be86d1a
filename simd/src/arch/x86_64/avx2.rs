//! AVX2 with FMA and F16C: 16 lanes are two registers.

use std::arch::x86_64::*;

use crate::arch::{Compute, Lanes};

/// Proof that this CPU has AVX2, FMA and F16C: [`Avx2::detect`] is the only way to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

impl Avx2 {
    /// The token, if this CPU deserves it.
    pub fn detect() -> Option<Self> {
        let has =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }
}

type V = [__m256; 2];

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn compute<C: Compute>(work: C) -> C::Output {
    work.compute()
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn splat(x: f32) -> V {
    [_mm256_set1_ps(x); 2]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_8(x: &[f32; 8]) -> __m256 {
    // SAFETY: reads the 32 bytes of `x`; unaligned is fine.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_8_halves(x: &[u16; 8]) -> __m128i {
    // SAFETY: reads the 16 bytes of `x`; unaligned is fine.
    unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_8_pairs(x: &[u16; 16]) -> __m256i {
    // SAFETY: reads the 32 bytes of `x`; unaligned is fine.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load(x: &[f32; 16]) -> V {
    let (halves, _) = x.as_chunks();
    [load_8(&halves[0]), load_8(&halves[1])]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_f16(x: &[u16; 16]) -> V {
    let (halves, _) = x.as_chunks();
    [_mm256_cvtph_ps(load_8_halves(&halves[0])), _mm256_cvtph_ps(load_8_halves(&halves[1]))]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_bf16(x: &[u16; 16]) -> V {
    let (halves, _) = x.as_chunks();
    let low = _mm256_cvtepu16_epi32(load_8_halves(&halves[0]));
    let high = _mm256_cvtepu16_epi32(load_8_halves(&halves[1]));
    [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high))]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_bf16_even(x: &[u16; 32]) -> V {
    let (halves, _) = x.as_chunks();
    let (low, high) = (load_8_pairs(&halves[0]), load_8_pairs(&halves[1]));
    [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high))]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_bf16_odd(x: &[u16; 32]) -> V {
    let (halves, _) = x.as_chunks();
    let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    let (low, high) = (load_8_pairs(&halves[0]), load_8_pairs(&halves[1]));
    [_mm256_castsi256_ps(_mm256_and_si256(low, upper)), _mm256_castsi256_ps(_mm256_and_si256(high, upper))]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn multiply_add(a: V, b: V, c: V) -> V {
    [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn to_array(x: V) -> [f32; 16] {
    let mut out = [0.0; 16];
    let (halves, _) = out.as_chunks_mut::<8>();
    for (half, x) in halves.iter_mut().zip(x) {
        // SAFETY: writes the 32 bytes of `half`; unaligned is fine.
        unsafe { _mm256_storeu_ps(half.as_mut_ptr(), x) };
    }
    out
}

impl Lanes for Avx2 {
    type V = V;

    // 8 of 16 registers hold sums.
    const PANELS: usize = 1;
    const STREAMS: usize = 4;

    #[inline(always)]
    fn vectorize<C: Compute>(self, work: C) -> C::Output {
        // SAFETY: `self` proves every feature that `compute` enables.
        unsafe { compute(work) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        // SAFETY: `self` proves every feature that `splat` enables.
        unsafe { splat(x) }
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> V {
        // SAFETY: `self` proves every feature that `load` enables.
        unsafe { load(x) }
    }

    #[inline(always)]
    fn load_f16(self, x: &[u16; 16]) -> V {
        // SAFETY: `self` proves every feature that `load_f16` enables.
        unsafe { load_f16(x) }
    }

    #[inline(always)]
    fn load_bf16(self, x: &[u16; 16]) -> V {
        // SAFETY: `self` proves every feature that `load_bf16` enables.
        unsafe { load_bf16(x) }
    }

    #[inline(always)]
    fn load_bf16_even(self, x: &[u16; 32]) -> V {
        // SAFETY: `self` proves every feature that `load_bf16_even` enables.
        unsafe { load_bf16_even(x) }
    }

    #[inline(always)]
    fn load_bf16_odd(self, x: &[u16; 32]) -> V {
        // SAFETY: `self` proves every feature that `load_bf16_odd` enables.
        unsafe { load_bf16_odd(x) }
    }

    #[inline(always)]
    fn multiply_add(self, a: V, b: V, c: V) -> V {
        // SAFETY: `self` proves every feature that `multiply_add` enables.
        unsafe { multiply_add(a, b, c) }
    }

    #[inline(always)]
    fn prefetch<R: ?Sized>(self, from: &R, bytes: usize) {
        super::prefetch(from, bytes);
    }

    #[inline(always)]
    fn prefetch_further<R: ?Sized>(self, from: &R, bytes: usize) {
        super::prefetch_further(from, bytes);
    }

    #[inline(always)]
    fn to_array(self, x: V) -> [f32; 16] {
        // SAFETY: `self` proves every feature that `to_array` enables.
        unsafe { to_array(x) }
    }
}
