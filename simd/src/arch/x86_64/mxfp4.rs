//! MXFP4 to pairs of BF16 on AVX-512: a shift or a shuffle, a look-up and a subtraction for 32 weights.

use std::arch::x86_64::*;

use super::Avx512;
use crate::arch::mxfp4::{GROUP_BLOCKS, LINE_STEPS, Line, Mxfp4Step};

/// BF16 of each nibble at the greatest scale, twice: the look-up has 32 entries, so that the bit above a nibble, which
/// belongs to the next one, does not matter. Both zeros are 0, which saturation keeps at 0 whatever is subtracted.
static AT_GREATEST_SCALE: [u16; 32] = {
    let mut table = [0; 32];
    let mut nibble = 0;
    while nibble < 32 {
        table[nibble] = crate::matmul::mxfp4::at_greatest_scale(nibble as u16 & 15);
        nibble += 1;
    }
    table
};

/// Byte `b` of every word into the lower byte of both its halves.
static BOTH_HALVES: [Line; GROUP_BLOCKS] = {
    let mut shuffles = [[0x80; 64]; GROUP_BLOCKS];
    let mut b = 0;
    while b < GROUP_BLOCKS {
        let mut half = 0;
        while half < 32 {
            // A shuffle stays within 16 bytes.
            shuffles[b][2 * half] = (half / 2 * 4 % 16 + b) as u8;
            half += 1;
        }
        b += 1;
    }
    shuffles
};

/// The upper byte of every half word into the lower one.
static UPPER_BYTES: Line = {
    let mut shuffle = [0x80; 64];
    let mut half = 0;
    while half < 32 {
        // A shuffle stays within 16 bytes.
        shuffle[2 * half] = (2 * half % 16 + 1) as u8;
        half += 1;
    }
    shuffle
};

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load(line: &Line) -> __m512i {
    // SAFETY: reads the 64 bytes of `line`; unaligned is fine.
    unsafe { _mm512_loadu_si512(line.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_table(table: &[u16; 32]) -> __m512i {
    // SAFETY: reads the 64 bytes of `table`; unaligned is fine.
    unsafe { _mm512_loadu_si512(table.as_ptr().cast()) }
}

/// The exponents of a block, to be subtracted.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn scales(line: &Line, shuffle: &Line) -> __m512i {
    _mm512_slli_epi16::<7>(_mm512_shuffle_epi8(load(line), load(shuffle)))
}

/// Shifts, look-ups and saturating subtractions all want the same port of some CPUs, so bytes are moved by a shuffle, which
/// has another. What is left above a nibble does not matter.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn nibbles(line: &Line) -> [__m512i; LINE_STEPS] {
    let (even, upper_bytes) = (load(line), load(&UPPER_BYTES));
    let odd = _mm512_srli_epi16::<4>(even);
    [even, odd, _mm512_shuffle_epi8(even, upper_bytes), _mm512_shuffle_epi8(odd, upper_bytes)]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn expand(nibbles: __m512i, scales: __m512i) -> __m512i {
    _mm512_subs_epu16(_mm512_permutexvar_epi16(nibbles, load_table(&AT_GREATEST_SCALE)), scales)
}

impl Mxfp4Step for Avx512 {
    type Nibbles = __m512i;
    type Scales = __m512i;

    #[inline(always)]
    fn scales(self, line: &Line, block: usize) -> __m512i {
        // SAFETY: `self` proves every feature that `scales` enables.
        unsafe { scales(line, &BOTH_HALVES[block % GROUP_BLOCKS]) }
    }

    #[inline(always)]
    fn nibbles(self, line: &Line) -> [__m512i; LINE_STEPS] {
        // SAFETY: `self` proves every feature that `nibbles` enables.
        unsafe { nibbles(line) }
    }

    #[inline(always)]
    fn expand(self, nibbles: __m512i, scales: __m512i) -> __m512i {
        // SAFETY: `self` proves every feature that `expand` enables.
        unsafe { expand(nibbles, scales) }
    }
}
