//! The sums of AMX, step by step in registers: for weights that are put together there and have one row to meet.
//!
//! TDPBF16PS adds up the even and the odd products of 16 pairs apart, fused and with subnormal numbers as zero.
//! VDPBF16PS adds the odd product of a pair and then the even one, in the same way; so a register that has the even
//! columns of two lines, the first of them in its odd places, makes two links of that chain. With one line alone the other
//! half of the activations is zero; what that could change is the sign of a zero, after a sum that was flushed to one.

use std::arch::x86_64::*;

use super::avx512bf16::dot;
use super::{Amx, Avx512};
use crate::arch::mxfp4::{Line, Mxfp4Step};
use crate::arch::step::{Gather, Step};
use crate::arch::{Compute, Lanes};

/// [`Step`] with the bits of [`Amx::accumulate`].
#[derive(Clone, Copy)]
pub(crate) struct AmxSteps(Avx512);

impl From<Amx> for AmxSteps {
    fn from(amx: Amx) -> Self {
        Self(amx.avx512())
    }
}

/// Products of the block under way, and the sum of those before.
#[derive(Clone, Copy)]
pub(crate) struct BlockSums {
    even: __m512,
    odd: __m512,
    before: __m512,
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn step(w: __m512i, x: u32, sums: BlockSums) -> BlockSums {
    BlockSums { even: dot(w, x & 0xffff, sums.even), odd: dot(w, x & 0xffff_0000, sums.odd), ..sums }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn step_twice(w: [__m512i; 2], x: [u32; 2], sums: BlockSums) -> BlockSums {
    let even = _mm512_mask_mov_epi16(_mm512_slli_epi32::<16>(w[0]), 0x5555_5555, w[1]);
    let odd = _mm512_mask_mov_epi16(_mm512_srli_epi32::<16>(w[1]), 0xaaaa_aaaa, w[0]);
    BlockSums {
        even: dot(even, x[0] << 16 | x[1] & 0xffff, sums.even),
        odd: dot(odd, x[0] & 0xffff_0000 | x[1] >> 16, sums.odd),
        ..sums
    }
}

/// `a + b`, where a subnormal sum is zero.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn add(a: __m512, b: __m512) -> __m512 {
    let sum = _mm512_add_ps(a, b);
    let normal = _mm512_set1_ps(f32::MIN_POSITIVE);
    let tiny = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(sum), normal);
    _mm512_mask_and_ps(sum, tiny, sum, _mm512_set1_ps(-0.0))
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn end_block(sums: BlockSums) -> BlockSums {
    let zero = _mm512_setzero_ps();
    BlockSums { even: zero, odd: zero, before: add(sums.before, add(sums.even, sums.odd)) }
}

impl Step for AmxSteps {
    type Raw = [u16; 32];
    type W = __m512i;
    type X = u32;
    type Sums = BlockSums;

    const PANELS: usize = 2;
    // Each sum takes three registers.
    const STREAMS: usize = 4;

    #[inline(always)]
    fn vectorize<C: Compute>(self, work: C) -> C::Output {
        Step::vectorize(self.0, work)
    }

    #[inline(always)]
    fn zero(self) -> BlockSums {
        let zero = self.0.zero();
        BlockSums { even: zero, odd: zero, before: zero }
    }

    #[inline(always)]
    fn weights(self, raw: &[u16; 32]) -> __m512i {
        self.0.weights(raw)
    }

    #[inline(always)]
    fn step(self, w: __m512i, x: &u32, sums: BlockSums) -> BlockSums {
        // SAFETY: `self` proves every feature that `step` enables.
        unsafe { step(w, *x, sums) }
    }

    #[inline(always)]
    fn step_twice(self, w: [__m512i; 2], x: [&u32; 2], sums: BlockSums) -> BlockSums {
        // SAFETY: `self` proves every feature that `step_twice` enables.
        unsafe { step_twice(w, [*x[0], *x[1]], sums) }
    }

    #[inline(always)]
    fn end_block(self, sums: BlockSums) -> BlockSums {
        // SAFETY: `self` proves every feature that `end_block` enables.
        unsafe { end_block(sums) }
    }

    /// A block without steps adds zero.
    #[inline(always)]
    fn to_array(self, sums: BlockSums) -> [f32; 16] {
        self.0.avx512f().to_array(self.end_block(sums).before)
    }

    #[inline(always)]
    fn prefetch<R: ?Sized>(self, from: &R, bytes: usize) {
        super::prefetch(from, bytes);
    }

    #[inline(always)]
    fn prefetch_further<R: ?Sized>(self, from: &R, bytes: usize) {
        super::prefetch_further(from, bytes);
    }
}

impl Gather for AmxSteps {
    #[inline(always)]
    fn turn(self, rows: &[u8], row_bytes: usize, at: usize) -> [__m512i; 16] {
        self.0.turn(rows, row_bytes, at)
    }

    #[inline(always)]
    fn unpack(self, group: &[[u8; 64]; 3], bases: &[u8; 2]) -> [__m512i; 4] {
        self.0.unpack(group, bases)
    }

    #[inline(always)]
    fn line(self, line: __m512i) -> [u16; 32] {
        self.0.line(line)
    }

    #[inline(always)]
    fn sign_bits(self, bytes: &[u8; 64]) -> u64 {
        self.0.sign_bits(bytes)
    }
}

impl Mxfp4Step for AmxSteps {
    type Nibbles = __m512i;
    type Scales = __m512i;

    #[inline(always)]
    fn scales(self, line: &Line, block: usize) -> __m512i {
        self.0.scales(line, block)
    }

    #[inline(always)]
    fn nibbles(self, line: &Line) -> __m512i {
        self.0.nibbles(line)
    }

    #[inline(always)]
    fn next(self, nibbles: __m512i) -> __m512i {
        self.0.next(nibbles)
    }

    #[inline(always)]
    fn expand(self, nibbles: __m512i, scales: __m512i) -> __m512i {
        self.0.expand(nibbles, scales)
    }
}
