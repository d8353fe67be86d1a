//! AVX-512 BF16: one instruction multiplies 16 pairs of weights by a pair of activations and adds to 16 sums.
//!
//! VDPBF16PS treats subnormal inputs as zero and flushes subnormal results to zero.

use std::arch::x86_64::*;

use super::Avx512f;
use crate::arch::step::Step;
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
