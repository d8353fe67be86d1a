//! AVX-512 BF16: one instruction multiplies 16 pairs of weights by a pair of activations and adds to 16 sums.
//!
//! VDPBF16PS treats subnormal inputs as zero and flushes subnormal results to zero.

use std::arch::x86_64::*;

use super::Avx512f;
use crate::arch::step::{Step, Unpack};
use crate::arch::{Compute, Lanes};

/// Proof that this CPU has all of [`Avx512f`] and AVX-512 BF16: [`Avx512::detect`] is the only way to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512(Avx512f);

impl Avx512 {
    /// The token, if this CPU deserves it.
    pub fn detect() -> Option<Self> {
        Avx512f::detect().filter(|_| is_x86_feature_detected!("avx512bf16")).map(Self)
    }

    /// What is contained.
    pub fn avx512f(self) -> Avx512f {
        self.0
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
fn compute<C: Compute>(work: C) -> C::Output {
    work.compute()
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load(pairs: &[u16; 32]) -> __m512i {
    // SAFETY: reads the 64 bytes of `pairs`; unaligned is fine.
    unsafe { _mm512_loadu_si512(pairs.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot(w: __m512i, x: u32, sums: __m512) -> __m512 {
    let x = _mm512_set1_epi32(x.cast_signed());
    // SAFETY: both are 512 bits, and any bits are BF16 numbers.
    let w: __m512bh = unsafe { std::mem::transmute(w) };
    // SAFETY: both are 512 bits, and any bits are BF16 numbers.
    let x: __m512bh = unsafe { std::mem::transmute(x) };
    _mm512_dpbf16_ps(sums, w, x)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_line(line: &[u8; 64]) -> __m512i {
    // SAFETY: reads the 64 bytes of `line`; unaligned is fine.
    unsafe { _mm512_loadu_si512(line.as_ptr().cast()) }
}

/// Upper bytes come from a table of 16 for each block, in which the nibble is the index; two interleavings of lower and
/// upper bytes make two lines.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn unpack(group: &[[u8; 64]; 3], bases: &[u8; 2]) -> [__m512i; 4] {
    // Offsets 0 to 7 without and with the sign.
    let offsets =
        _mm512_broadcast_i32x4(_mm_set_epi64x(0x8786_8584_8382_8180_u64.cast_signed(), 0x0706_0504_0302_0100));
    let nibble = _mm512_set1_epi8(15);
    let nibbles = load_line(&group[2]);
    let first = _mm512_and_si512(nibbles, nibble);
    let second = _mm512_and_si512(_mm512_srli_epi16::<4>(nibbles), nibble);
    let first = _mm512_shuffle_epi8(_mm512_add_epi8(offsets, _mm512_set1_epi8(bases[0].cast_signed())), first);
    let second = _mm512_shuffle_epi8(_mm512_add_epi8(offsets, _mm512_set1_epi8(bases[1].cast_signed())), second);
    let low = [load_line(&group[0]), load_line(&group[1])];
    [
        _mm512_unpacklo_epi8(low[0], first),
        _mm512_unpackhi_epi8(low[0], first),
        _mm512_unpacklo_epi8(low[1], second),
        _mm512_unpackhi_epi8(low[1], second),
    ]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn replace(line: __m512i, word: u32, value: u16) -> __m512i {
    _mm512_mask_set1_epi16(line, 1 << word, value.cast_signed())
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn sign_bits(bytes: &[u8; 64]) -> u64 {
    _mm512_movepi8_mask(load_line(bytes))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_words(line: __m512i) -> [u16; 32] {
    let mut out = [0; 32];
    // SAFETY: writes the 64 bytes of `out`; unaligned is fine.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), line) };
    out
}

impl Unpack for Avx512 {
    #[inline(always)]
    fn unpack(self, group: &[[u8; 64]; 3], bases: &[u8; 2]) -> [__m512i; 4] {
        // SAFETY: `self` proves every feature that `unpack` enables.
        unsafe { unpack(group, bases) }
    }

    #[inline(always)]
    fn replace(self, line: __m512i, word: u32, value: u16) -> __m512i {
        // SAFETY: `self` proves every feature that `replace` enables.
        unsafe { replace(line, word, value) }
    }

    #[inline(always)]
    fn line(self, line: __m512i) -> [u16; 32] {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { store_words(line) }
    }

    #[inline(always)]
    fn sign_bits(self, bytes: &[u8; 64]) -> u64 {
        // SAFETY: `self` proves every feature that `sign_bits` enables.
        unsafe { sign_bits(bytes) }
    }

    #[inline(always)]
    fn prefetch<R>(self, from: &R, bytes: usize) {
        let line = std::ptr::from_ref(from).cast::<i8>().wrapping_add(bytes);
        // SAFETY: a prefetch reads nothing that the program could see, and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line) }
    }
}

impl Step for Avx512 {
    type Raw = [u16; 32];
    type W = __m512i;
    type X = u32;
    type Sums = __m512;

    const PANELS: usize = Avx512f::PANELS;
    const STREAMS: usize = Avx512f::STREAMS;

    #[inline(always)]
    fn vectorize<C: Compute>(self, work: C) -> C::Output {
        // SAFETY: `self` proves every feature that `compute` enables.
        unsafe { compute(work) }
    }

    #[inline(always)]
    fn zero(self) -> __m512 {
        self.0.splat(0.0)
    }

    #[inline(always)]
    fn weights(self, raw: &[u16; 32]) -> __m512i {
        // SAFETY: `self` proves every feature that `load` enables.
        unsafe { load(raw) }
    }

    #[inline(always)]
    fn step(self, w: __m512i, x: &u32, sums: __m512) -> __m512 {
        // SAFETY: `self` proves every feature that `dot` enables.
        unsafe { dot(w, *x, sums) }
    }

    #[inline(always)]
    fn to_array(self, sums: __m512) -> [f32; 16] {
        self.0.to_array(sums)
    }
}
