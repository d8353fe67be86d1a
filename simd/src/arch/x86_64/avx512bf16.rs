//! AVX-512 BF16: one instruction multiplies 16 pairs of weights by a pair of activations and adds to 16 sums.
//!
//! VDPBF16PS treats subnormal inputs as zero and flushes subnormal results to zero.

use std::arch::x86_64::*;

use super::Avx512f;
use crate::arch::step::{Ahead, Gather, Step};
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

/// Sixteen loads, each of a whole line, since lines that are 4 KiB apart drive each other out of the first cache. Then
/// words change places within quarters of four registers, then the quarters.
#[inline]
#[target_feature(enable = "avx512f")]
fn turn(rows: &[u8], row_bytes: usize, at: usize) -> [__m512i; 16] {
    assert!(
        at + 64 <= row_bytes && row_bytes.checked_mul(16).is_some_and(|bytes| bytes <= rows.len()),
        "64 bytes of 16 rows"
    );
    let row = |row: usize| {
        // SAFETY: the last row ends within `rows`, as checked above, and others lie before it.
        let line = unsafe { rows.as_ptr().add(row * row_bytes + at) };
        // SAFETY: its 64 bytes too; unaligned is fine.
        unsafe { _mm512_loadu_si512(line.cast()) }
    };
    // Of rows 4 i to 4 i + 3, part `c` has in quarter `q` what stands in column `4 q + c`.
    let part = |i: usize| {
        let (a, b, c, d) = (row(4 * i), row(4 * i + 1), row(4 * i + 2), row(4 * i + 3));
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(ab_low, cd_low),
            _mm512_unpackhi_epi64(ab_low, cd_low),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ]
    };
    let parts = [part(0), part(1), part(2), part(3)];
    // Quarters 0 and 2 of two parts, quarters 1 and 3 of two parts; then the same of those.
    let quarters = |column: usize| {
        let [a, b, c, d] = [parts[0][column], parts[1][column], parts[2][column], parts[3][column]];
        let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (cd_even, cd_odd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        [
            _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even),
            _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd),
            _mm512_shuffle_i32x4::<0xdd>(ab_even, cd_even),
            _mm512_shuffle_i32x4::<0xdd>(ab_odd, cd_odd),
        ]
    };
    let [a, b, c, d] = [quarters(0), quarters(1), quarters(2), quarters(3)];
    [a[0], b[0], c[0], d[0], a[1], b[1], c[1], d[1], a[2], b[2], c[2], d[2], a[3], b[3], c[3], d[3]]
}

/// Upper bytes come from a table of 16 for each block, in which the nibble is the index; two interleavings of lower and
/// upper bytes make two lines.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn unpack(group: &[[u8; 64]; 3], bases: &[u32; 2]) -> [__m512i; 4] {
    // Offsets 0 to 7 without and with the sign.
    let offsets =
        _mm512_broadcast_i32x4(_mm_set_epi64x(0x8786_8584_8382_8180_u64.cast_signed(), 0x0706_0504_0302_0100));
    let nibble = _mm512_set1_epi8(15);
    let nibbles = load_line(&group[2]);
    let first = _mm512_and_si512(nibbles, nibble);
    let second = _mm512_and_si512(_mm512_srli_epi16::<4>(nibbles), nibble);
    let first = _mm512_shuffle_epi8(_mm512_add_epi8(offsets, _mm512_set1_epi32(bases[0].cast_signed())), first);
    let second = _mm512_shuffle_epi8(_mm512_add_epi8(offsets, _mm512_set1_epi32(bases[1].cast_signed())), second);
    let low = [load_line(&group[0]), load_line(&group[1])];
    [
        _mm512_unpacklo_epi8(low[0], first),
        _mm512_unpackhi_epi8(low[0], first),
        _mm512_unpacklo_epi8(low[1], second),
        _mm512_unpackhi_epi8(low[1], second),
    ]
}

/// Quarter `q` of every 16 bytes' register takes bytes `4 q` to `4 q + 3`.
static SPREAD: [u8; 64] = {
    let mut from = [0; 64];
    let mut i = 0;
    while i < 64 {
        from[i] = (i / 4) as u8;
        i += 1;
    }
    from
};

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn spread(bases: &[u8; 64]) -> [u32; 64] {
    let from = load_line(&SPREAD);
    let mut out = [0; 64];
    for (bases, out) in bases.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<16>().0) {
        // SAFETY: reads the 16 bytes of `bases`; unaligned is fine.
        let bases = unsafe { _mm_loadu_si128(bases.as_ptr().cast()) };
        let words = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(bases), from);
        // SAFETY: writes the 64 bytes of `out`; unaligned is fine.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), words) };
    }
    out
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

impl Gather for Avx512 {
    #[inline(always)]
    fn turn(self, rows: &[u8], row_bytes: usize, at: usize) -> [__m512i; 16] {
        // SAFETY: `self` proves every feature that `turn` enables.
        unsafe { turn(rows, row_bytes, at) }
    }

    #[inline(always)]
    fn unpack(self, group: &[[u8; 64]; 3], bases: &[u32; 2]) -> [__m512i; 4] {
        // SAFETY: `self` proves every feature that `unpack` enables.
        unsafe { unpack(group, bases) }
    }

    #[inline(always)]
    fn spread(self, bases: &[u8; 64]) -> [u32; 64] {
        // SAFETY: `self` proves every feature that `spread` enables.
        unsafe { spread(bases) }
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
    fn ask(self, line: &[u8; 64], Ahead { near, far }: Ahead) {
        super::prefetch(line, near);
        super::prefetch_further(line, far);
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

    #[inline(always)]
    fn prefetch<R: ?Sized>(self, from: &R, bytes: usize) {
        super::prefetch(from, bytes);
    }

    #[inline(always)]
    fn prefetch_further<R: ?Sized>(self, from: &R, bytes: usize) {
        super::prefetch_further(from, bytes);
    }
}
