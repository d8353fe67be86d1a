//! AVX-512: 16 lanes are one register.

use std::arch::x86_64::*;

use crate::arch::{Compute, Lanes};

/// Proof that this CPU has AVX-512 F, BW, VL and DQ beside AVX2, FMA and F16C: [`Avx512f::detect`] and an
/// [`Avx512`](super::Avx512) are the only ways to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512f(());

impl Avx512f {
    /// The token, if this CPU deserves it.
    pub fn detect() -> Option<Self> {
        let has = super::Avx2::detect().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq");
        has.then_some(Self(()))
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn compute<C: Compute>(work: C) -> C::Output {
    work.compute()
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_halves(x: &[u16; 16]) -> __m256i {
    // SAFETY: reads the 32 bytes of `x`; unaligned is fine.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_pairs(x: &[u16; 32]) -> __m512i {
    // SAFETY: reads the 64 bytes of `x`; unaligned is fine.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_f16(x: &[u16; 16]) -> __m512 {
    _mm512_cvtph_ps(load_halves(x))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_bf16(x: &[u16; 16]) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(load_halves(x))))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_bf16_even(x: &[u16; 32]) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(load_pairs(x)))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_bf16_odd(x: &[u16; 32]) -> __m512 {
    _mm512_castsi512_ps(_mm512_and_si512(load_pairs(x), _mm512_set1_epi32(0xffff_0000_u32 as i32)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn to_array(x: __m512) -> [f32; 16] {
    let mut out = [0.0; 16];
    // SAFETY: writes the 64 bytes of `out`; unaligned is fine.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), x) };
    out
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_line(line: &[u8; 64]) -> __m512i {
    // SAFETY: reads the 64 bytes of `line`; unaligned is fine.
    unsafe { _mm512_loadu_si512(line.as_ptr().cast()) }
}

/// In registers: words, then pairs of words change places within quarters of two lines, then the quarters.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(lines: [&[u8; 64]; 16]) -> [[u32; 16]; 16] {
    // Of 4 lines, `quarters[line / 4][column % 4]` has in quarter `q` what stands in column `4 q + column % 4`.
    let mut quarters = [[_mm512_setzero_si512(); 4]; 4];
    for i in 0..4 {
        let (a, b) = (load_line(lines[4 * i]), load_line(lines[4 * i + 1]));
        let (c, d) = (load_line(lines[4 * i + 2]), load_line(lines[4 * i + 3]));
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        quarters[i] = [
            _mm512_unpacklo_epi64(ab_low, cd_low),
            _mm512_unpackhi_epi64(ab_low, cd_low),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ];
    }
    let mut out = [[0; 16]; 16];
    for column in 0..4 {
        let [a, b, c, d] = [quarters[0][column], quarters[1][column], quarters[2][column], quarters[3][column]];
        // Quarters 0 and 2 of both, quarters 1 and 3 of both.
        let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (cd_even, cd_odd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        store_words(_mm512_shuffle_i32x4::<0x88>(ab_even, cd_even), &mut out[column]);
        store_words(_mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd), &mut out[4 + column]);
        store_words(_mm512_shuffle_i32x4::<0xdd>(ab_even, cd_even), &mut out[8 + column]);
        store_words(_mm512_shuffle_i32x4::<0xdd>(ab_odd, cd_odd), &mut out[12 + column]);
    }
    out
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_words(x: __m512i, out: &mut [u32; 16]) {
    // SAFETY: writes the 64 bytes of `out`; unaligned is fine.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), x) };
}

impl Lanes for Avx512f {
    type V = __m512;

    // 24 of 32 registers hold sums.
    const PANELS: usize = 3;
    const STREAMS: usize = 8;

    #[inline(always)]
    fn vectorize<C: Compute>(self, work: C) -> C::Output {
        // SAFETY: `self` proves every feature that `compute` enables.
        unsafe { compute(work) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> __m512 {
        // SAFETY: `self` proves AVX-512 F; reads the 64 bytes of `x`, unaligned is fine.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn load_f16(self, x: &[u16; 16]) -> __m512 {
        // SAFETY: `self` proves every feature that `load_f16` enables.
        unsafe { load_f16(x) }
    }

    #[inline(always)]
    fn load_bf16(self, x: &[u16; 16]) -> __m512 {
        // SAFETY: `self` proves every feature that `load_bf16` enables.
        unsafe { load_bf16(x) }
    }

    #[inline(always)]
    fn load_bf16_even(self, x: &[u16; 32]) -> __m512 {
        // SAFETY: `self` proves every feature that `load_bf16_even` enables.
        unsafe { load_bf16_even(x) }
    }

    #[inline(always)]
    fn load_bf16_odd(self, x: &[u16; 32]) -> __m512 {
        // SAFETY: `self` proves every feature that `load_bf16_odd` enables.
        unsafe { load_bf16_odd(x) }
    }

    #[inline(always)]
    fn multiply_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_fmadd_ps(a, b, c) }
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
    fn to_array(self, x: __m512) -> [f32; 16] {
        // SAFETY: `self` proves every feature that `to_array` enables.
        unsafe { to_array(x) }
    }

    #[inline(always)]
    fn transpose(self, lines: [&[u8; 64]; 16]) -> [[u32; 16]; 16] {
        // SAFETY: `self` proves every feature that `transpose` enables.
        unsafe { transpose(lines) }
    }
}
