//! The twin of every ISA: plain loops over 16 lanes, which the compiler vectorises for whatever it targets.
//!
//! Multiplication and addition round separately: `mul_add` would be a call into libm on a CPU without FMA.

use super::{Compute, Lanes};
use crate::dtype::{bf16_to_f32, f16_to_f32};

/// Always at hand.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl Lanes for Scalar {
    type V = [f32; 16];

    const PANELS: usize = 1;
    const STREAMS: usize = 2;

    #[inline(always)]
    fn vectorize<C: Compute>(self, work: C) -> C::Output {
        work.compute()
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 16] {
        [x; 16]
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> [f32; 16] {
        *x
    }

    #[inline(always)]
    fn load_f16(self, x: &[u16; 16]) -> [f32; 16] {
        let mut out = [0.0; 16];
        for i in 0..16 {
            out[i] = f16_to_f32(x[i]);
        }
        out
    }

    #[inline(always)]
    fn load_bf16(self, x: &[u16; 16]) -> [f32; 16] {
        let mut out = [0.0; 16];
        for i in 0..16 {
            out[i] = bf16_to_f32(x[i]);
        }
        out
    }

    #[inline(always)]
    fn load_bf16_even(self, x: &[u16; 32]) -> [f32; 16] {
        let mut out = [0.0; 16];
        for i in 0..16 {
            out[i] = bf16_to_f32(x[2 * i]);
        }
        out
    }

    #[inline(always)]
    fn load_bf16_odd(self, x: &[u16; 32]) -> [f32; 16] {
        let mut out = [0.0; 16];
        for i in 0..16 {
            out[i] = bf16_to_f32(x[2 * i + 1]);
        }
        out
    }

    #[inline(always)]
    fn multiply_add(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        let mut out = [0.0; 16];
        for i in 0..16 {
            out[i] = a[i] * b[i] + c[i];
        }
        out
    }

    #[inline(always)]
    fn to_array(self, x: [f32; 16]) -> [f32; 16] {
        x
    }

    #[inline(always)]
    fn prefetch<R: ?Sized>(self, _: &R, _: usize) {}

    #[inline(always)]
    fn prefetch_further<R: ?Sized>(self, _: &R, _: usize) {}
}
