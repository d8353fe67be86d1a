//! MXFP4 weights: blocks of 32 four-bit numbers with a scale, as the Open Compute Project's MX formats define them and
//! GPT-OSS is published.
//!
//! A weight is `E2M1 * 2^(scale - 127)`, with E2M1 one of 0, ½, 1, 1½, 2, 3, 4, 6 and a sign. For scales in
//! [`MXFP4_SCALES`] every weight is zero or a normal BF16, and exactly so. Products are defined as those with that BF16
//! matrix, bit by bit: what is kept in memory has 17 bytes for 32 weights, what is computed is the same.
//!
//! Negative zero expands to zero. A sum begins with +0, and adding a zero of either sign to a number or to +0 changes no
//! bit; only a sum of nothing but products that rounded to -0 could have told the two apart, by the sign of its zero.
//!
//! A panel is read strictly in sequence. Of each group of 128 columns come 64 bytes of scales, word `r` with those of the
//! four blocks of row `r` (as `252 - scale`: what is to be subtracted from the greatest exponent), then for each block
//! four lines of 64 bytes: word `r` has eight columns of row `r`, even ones in its lower half, odd ones in its upper
//! half, so that shifting all halves by a nibble leads from one step to the next. A last group of fewer blocks has its
//! line of scales and the lines of these blocks.

use std::ops::RangeInclusive;

use bytemuck::{cast_mut, cast_slice_mut};

use super::matrix::{Layout, PANEL};
use super::rows::Rows;
use super::{Call, streams_of, write_tile};
#[cfg(target_arch = "x86_64")]
use crate::Avx512;
use crate::Isa;
use crate::arch::mxfp4::{BLOCK_LINES, BLOCK_STEPS, GROUP_BLOCKS, GROUP_LINES, Line, Mxfp4Step, Mxfp4Tile};
#[cfg(target_arch = "x86_64")]
use crate::arch::step::{Ahead, Gather as _};
#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::{Lay, Lines};
use crate::arch::{Compute, Lanes};
use crate::isa::with_lanes;

/// Columns that share a scale.
pub const MXFP4_BLOCK: usize = 32;

/// Scales whose weights are zero or normal BF16 numbers, from ½ of the least to 6 times the greatest.
pub const MXFP4_SCALES: RangeInclusive<u8> = 2..=GREATEST_SCALE;

const GREATEST_SCALE: u8 = 252;

const BLOCK_BYTES: usize = MXFP4_BLOCK / 2;
/// Bytes of a row in a group.
const GROUP_BYTES: usize = GROUP_BLOCKS * BLOCK_BYTES;

const _: () = assert!(BLOCK_STEPS * 2 == MXFP4_BLOCK && GROUP_BYTES == size_of::<Line>());

/// BF16 of a nibble at the greatest scale.
pub(crate) const fn at_greatest_scale(nibble: u16) -> u16 {
    let (sign, magnitude) = ((nibble & 8) << 12, nibble & 7);
    let half = (GREATEST_SCALE as u16 - 1) << 7;
    // Two bits of exponent and one of mantissa, or ½, which is subnormal in E2M1.
    let normal = half + (magnitude << 6);
    match magnitude {
        0 => 0,
        1 => sign | half,
        _ => sign | normal,
    }
}

/// Bytes of a panel this wide, in whole blocks; `None` if there are more than an address can say.
pub(super) const fn one_panel_bytes(cols: usize) -> Option<usize> {
    let blocks = cols / MXFP4_BLOCK;
    match blocks.checked_mul(BLOCK_LINES) {
        Some(lines) => match lines.checked_add(blocks.div_ceil(GROUP_BLOCKS)) {
            Some(lines) => lines.checked_mul(size_of::<Line>()),
            None => None,
        },
        None => None,
    }
}

/// Sixteen rows as published; those beyond the last are empty.
#[derive(Clone, Copy)]
pub(super) struct PublishedRows<'a> {
    /// Two weights a byte, the even column in the lower half.
    pub(super) blocks: [&'a [u8]; PANEL],
    /// A byte for each block.
    pub(super) scales: [&'a [u8]; PANEL],
}

/// Lays published rows into a panel.
pub(super) fn pack(isa: Isa, rows: PublishedRows, out: &mut [u8]) {
    with_lanes!(isa, lanes => lanes.vectorize(Pack { lanes, rows, out }));
}

/// Expands a panel, or published rows, to a panel of BF16.
pub(super) fn expand(isa: Isa, from: Weights, out: &mut [u8]) {
    with_lanes!(isa, lanes => lanes.vectorize(Expand { lanes, from, out }));
}

#[derive(Clone, Copy)]
pub(super) enum Weights<'a> {
    Published(&'a PublishedRows<'a>),
    Panel(&'a [u8]),
}

struct Pack<'a, L> {
    lanes: L,
    rows: PublishedRows<'a>,
    out: &'a mut [u8],
}

impl<L: Lanes> Compute for Pack<'_, L> {
    type Output = ();

    #[inline(always)]
    fn compute(self) {
        let (lines, _) = self.out.as_chunks_mut();
        for (group, lines) in lines.chunks_mut(GROUP_LINES).enumerate() {
            pack_group(self.lanes, &self.rows, group, lines);
        }
    }
}

/// One group of 16 rows into its lines: the scales, then the weights.
#[inline(always)]
fn pack_group<L: Lanes>(lanes: L, rows: &PublishedRows, group: usize, out: &mut [Line]) {
    let (scales, out) = out.split_first_mut().expect("a group begins with its scales");
    *scales = [0; 64];
    for (row, of_row) in rows.scales.iter().zip(scales.as_chunks_mut::<GROUP_BLOCKS>().0) {
        for (scale, published) in of_row.iter_mut().zip(row.get(group * GROUP_BLOCKS..).unwrap_or_default()) {
            *scale = GREATEST_SCALE.wrapping_sub(*published);
        }
    }
    let mut filled_up = [[0; 64]; PANEL];
    let mut lines = [&[0; 64]; PANEL];
    for ((line, filled_up), row) in lines.iter_mut().zip(&mut filled_up).zip(rows.blocks) {
        let row = row.get(group * GROUP_BYTES..).unwrap_or_default();
        *line = match row.first_chunk() {
            Some(whole) => whole,
            None => {
                filled_up[..row.len()].copy_from_slice(row);
                filled_up
            }
        };
    }
    for (out, mut words) in out.iter_mut().zip(lanes.transpose(lines)) {
        for word in &mut words {
            *word = even_columns(*word) | even_columns(*word >> 4) << 16;
        }
        *out = bytemuck::cast(words);
    }
}

/// Nibbles 0, 2, 4 and 6, side by side.
#[inline(always)]
fn even_columns(word: u32) -> u32 {
    let bytes = word & 0x0f0f_0f0f;
    let pairs = (bytes | bytes >> 4) & 0x00ff_00ff;
    (pairs | pairs >> 8) & 0xffff
}

struct Expand<'a, L> {
    lanes: L,
    from: Weights<'a>,
    out: &'a mut [u8],
}

impl<L: Lanes> Compute for Expand<'_, L> {
    type Output = ();

    #[inline(always)]
    fn compute(self) {
        let steps: &mut [[u16; 2 * PANEL]] = cast_slice_mut(self.out);
        for (group, steps) in steps.chunks_mut(GROUP_BLOCKS * BLOCK_STEPS).enumerate() {
            match self.from {
                Weights::Panel(panel) => {
                    let lines = panel.as_chunks().0;
                    expand_group(&lines[group * GROUP_LINES..], steps);
                }
                Weights::Published(rows) => {
                    let mut lines = [[0; 64]; GROUP_LINES];
                    pack_group(self.lanes, rows, group, &mut lines);
                    expand_group(&lines, steps);
                }
            }
        }
    }
}

/// The steps of one group.
#[inline(always)]
fn expand_group(lines: &[Line], out: &mut [[u16; 2 * PANEL]]) {
    let Some((scales, lines)) = lines.split_first() else { return };
    for ((block, lines), out) in lines.chunks(BLOCK_LINES).enumerate().zip(out.chunks_mut(BLOCK_STEPS)) {
        let mut exponents = [0; 2 * PANEL];
        for (both, scales) in exponents.as_chunks_mut::<2>().0.iter_mut().zip(scales.as_chunks::<GROUP_BLOCKS>().0) {
            *both = [u16::from(scales[block]) << 7; 2];
        }
        for (line, out) in lines.iter().zip(out.chunks_mut(BLOCK_STEPS / BLOCK_LINES)) {
            let mut nibbles: [u16; 2 * PANEL] = bytemuck::cast(*line);
            for out in out {
                let mut weights = [0; 2 * PANEL];
                for i in 0..2 * PANEL {
                    weights[i] = at_greatest_scale(nibbles[i] & 15).saturating_sub(exponents[i]);
                    nibbles[i] >>= 4;
                }
                *out = weights;
            }
        }
    }
}

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // no other ISA expands in registers
impl Call<'_> {
    /// One tile of streams, so that no weight is expanded twice.
    pub(super) fn run_mxfp4<T: Mxfp4Step>(self, step: T) {
        /// Sums of two panels leave registers for what expands; and see [`Call::run`] for streams to the memory.
        const PANELS: usize = 2;
        if self.select.is_empty() {
            return;
        }
        let panel_bytes = self.w.bytes_of_panel();
        let mut sums = self.sums;
        let mut first = self.panels.start;
        while first < self.panels.end {
            let count = PANELS.min(self.panels.end - first);
            let bytes = match self.w.layout() {
                Layout::Mxfp4Panels => &self.w.bytes()[first * panel_bytes..][..count * panel_bytes],
                _ => {
                    let bytes = self.scratch.bytes_mut(count * panel_bytes);
                    for (i, out) in (first..first + count).zip(bytes.chunks_exact_mut(panel_bytes.max(1))) {
                        self.w.pack_panel_with(self.isa, i, out);
                    }
                    &*bytes
                }
            };
            let (now, later) = sums.split_at_mut(count * self.select.len());
            match count {
                1 => rows::<T, 1>(step, bytes, self.x, self.select, now),
                _ => rows::<T, PANELS>(step, bytes, self.x, self.select, now),
            }
            sums = later;
            first += count;
        }
    }
}

/// `P` panels times all selected rows.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
fn rows<T: Mxfp4Step, const P: usize>(step: T, panels: &[u8], x: &Rows, select: &[u32], sums: &mut [[f32; PANEL]]) {
    let lines = panels.as_chunks().0;
    let lines_of_panel = lines.len() / P;
    let mut w: [&[Line]; P] = [&[]; P];
    for (p, w) in w.iter_mut().enumerate() {
        *w = &lines[p * lines_of_panel..][..lines_of_panel];
    }
    macro_rules! tile {
        ($($streams:literal)*) => {
            match select.len() * x.form().terms() {
                $($streams if const { $streams <= T::STREAMS } => {
                    let tile = Mxfp4Tile { step, w, x: streams_of::<T::X, $streams>(x, select) };
                    write_tile(&step.vectorize(tile), x.form().terms(), sums, select.len(), 0);
                })*
                streams => unreachable!("a tile of {streams} streams"),
            }
        };
    }
    tile!(1 2 3 4 5 6 7 8);
}

/// What is still to be laid of a panel.
#[cfg(target_arch = "x86_64")]
pub(super) struct BlocksToLay<'a> {
    panel: &'a [Line],
    /// Blocks that are laid already.
    laid: usize,
    /// How far behind the panel's end that lies which will be laid after it.
    next: usize,
}

#[cfg(target_arch = "x86_64")]
impl<'a> BlocksToLay<'a> {
    /// What will be laid after the panel lies `next` bytes behind its end.
    pub(super) fn new(panel: &'a [u8], next: usize) -> Self {
        Self { panel: panel.as_chunks().0, laid: 0, next }
    }
}

#[cfg(target_arch = "x86_64")]
impl Lay for BlocksToLay<'_> {
    #[inline(always)]
    fn lay(&mut self, avx512: Avx512, out: &mut Lines) {
        let scales_at = self.laid / GROUP_BLOCKS * GROUP_LINES;
        let lines_at = scales_at + 1 + self.laid % GROUP_BLOCKS * BLOCK_LINES;
        let ahead = Ahead::new(size_of_val(&self.panel[lines_at..]), self.next);
        if self.laid.is_multiple_of(GROUP_BLOCKS) {
            avx512.ask(&self.panel[scales_at], ahead);
        }
        let scales = avx512.scales(&self.panel[scales_at], self.laid);
        let out: &mut [[[u16; 2 * PANEL]; BLOCK_STEPS / BLOCK_LINES]; BLOCK_LINES] = cast_mut(&mut out.0);
        for (line, out) in self.panel[lines_at..][..BLOCK_LINES].iter().zip(out) {
            avx512.ask(line, ahead);
            for (out, nibbles) in out.iter_mut().zip(avx512.nibbles(line)) {
                *out = avx512.line(avx512.expand(nibbles, scales));
            }
        }
        self.laid += 1;
    }
}

#[cfg(test)]
mod tests;
