//! Matrix products for 1 to M rows of activations, with one summation order.
//!
//! Sixteen output rows sit in the lanes of a panel and an output element is one lane that sums over k in order. Nothing
//! is ever reduced across lanes and no tile splits a sum, so an element has the same bits whether its row came alone or
//! among hundreds, and whoever computed the panel beside it. Memory is read strictly in sequence.
//!
//! Where an ISA multiplies BF16 by BF16, activations are split into two terms, `x = hi + lo`; each has a sum of its own
//! and the two meet at the end. The instruction, VDPBF16PS, treats
//! subnormal numbers as zero.

mod matrix;
pub(crate) mod mxfp4;
mod peak;
mod rows;

use std::ops::Range;

use bytemuck::{Pod, cast_slice};

#[cfg(target_arch = "x86_64")]
use crate::Avx512;
use crate::arch::step::{self, Step, Tile};
use crate::isa::with_lanes;
use crate::{Dtype, Isa};

use matrix::Layout;
pub use matrix::{Matrix, PANEL, PanelScratch};
pub use mxfp4::{MXFP4_BLOCK, MXFP4_SCALES};
pub use peak::spin_at_peak;
pub use rows::{Activations, ActivationsError, RowForm, Rows};

/// No ISA's tile has more panels than this.
const PANELS_MAX: usize = 3;

/// `sums[panel][i][lane]` = row `panel * PANEL + lane` of `w` times row `select[i]` of `x`.
///
/// `sums` starts with the first panel of `panels`; lanes beyond the last row of `w` hold nothing of use. Rows may be
/// selected in any order and repeatedly. The bits of an element depend on nothing but its row of `w`, its row of `x` and
/// the ISA; a row-major `w` is laid into panels in `scratch`, tile by tile, and gives the bits that panels give.
///
/// # Panics
/// If `x` was prepared for another ISA, dtype or width than `w` has, if a panel or a selected row does not exist, if
/// `sums` has another length than `panels.len() * select.len()`, or if `w` is row-major and `scratch` too small.
pub fn multiply(
    isa: Isa,
    w: &Matrix,
    panels: Range<usize>,
    x: &Rows,
    select: &[u32],
    scratch: &mut PanelScratch,
    sums: &mut [[f32; PANEL]],
) {
    assert!(panels.start <= panels.end && panels.end <= w.panel_count(), "panels {panels:?} of {}", w.panel_count());
    assert!(x.form().suits(isa, w), "activations are prepared as {:?}, which does not suit {w:?} on {isa}", x.form());
    assert_eq!(sums.len(), panels.len() * select.len(), "sums for {} panels and {} rows", panels.len(), select.len());
    let call = Call { isa, w, panels, x, select, scratch, sums };
    match (isa, w.dtype()) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512(token), Dtype::Bf16) if call.is_one_tile_of_mxfp4::<Avx512>() => call.run_mxfp4(token),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512(token), Dtype::Bf16) => call.run(token),
        (_, Dtype::Bf16) => with_lanes!(isa, lanes => call.run(step::Bf16Pairs(lanes))),
        (_, Dtype::F16) => with_lanes!(isa, lanes => call.run(step::F16(lanes))),
        (_, Dtype::F32) => with_lanes!(isa, lanes => call.run(step::F32(lanes))),
    }
}

struct Call<'a> {
    isa: Isa,
    w: &'a Matrix<'a>,
    panels: Range<usize>,
    x: &'a Rows,
    select: &'a [u32],
    scratch: &'a mut PanelScratch,
    sums: &'a mut [[f32; PANEL]],
}

impl Call<'_> {
    fn run<T: Step>(self, step: T) {
        const { assert!(T::PANELS <= PANELS_MAX) };
        if self.select.is_empty() {
            return;
        }
        let panel_bytes = self.w.bytes_of_expanded_panel();
        // Few rows are bound by reading, and each panel of a tile is a stream of its own to the memory: two hide the
        // latency of a step. Many rows are bound by arithmetic, and a wider tile loads less for each product.
        let streams = self.select.len() * self.x.form().terms();
        let width = if streams <= T::STREAMS / 2 { T::PANELS.min(2) } else { T::PANELS };
        let mut sums = self.sums;
        let mut first = self.panels.start;
        while first < self.panels.end {
            let count = width.min(self.panels.end - first);
            let bytes = match self.w.layout() {
                Layout::Panels => &self.w.bytes()[first * panel_bytes..][..count * panel_bytes],
                _ => {
                    let bytes = self.scratch.bytes_mut(count * panel_bytes);
                    for (i, out) in (first..first + count).zip(bytes.chunks_exact_mut(panel_bytes.max(1))) {
                        self.w.expand_panel(self.isa, i, out);
                    }
                    &*bytes
                }
            };
            let raw: &[T::Raw] = cast_slice(bytes);
            let (now, later) = sums.split_at_mut(count * self.select.len());
            match count {
                1 => rows::<T, 1>(step, raw, self.x, self.select, now),
                2 if const { T::PANELS >= 2 } => rows::<T, 2>(step, raw, self.x, self.select, now),
                3 if const { T::PANELS >= 3 } => rows::<T, 3>(step, raw, self.x, self.select, now),
                _ => unreachable!("a tile of {count} panels"),
            }
            sums = later;
            first += count;
        }
    }
}

/// `P` panels times all selected rows.
fn rows<T: Step, const P: usize>(step: T, raw: &[T::Raw], x: &Rows, select: &[u32], sums: &mut [[f32; PANEL]]) {
    let terms = x.form().terms();
    let mut done = 0;
    for select_now in select.chunks(T::STREAMS / terms) {
        // One arm per tile; those that an ISA has no registers for are not compiled.
        macro_rules! tile {
            ($($streams:literal)*) => {
                match select_now.len() * terms {
                    $($streams if const { $streams <= T::STREAMS } => {
                        tile::<T, P, $streams>(step, raw, x, select_now, sums, select.len(), done);
                    })*
                    streams => unreachable!("a tile of {streams} streams"),
                }
            };
        }
        tile!(1 2 3 4 5 6 7 8);
        done += select_now.len();
    }
}

/// One tile: `select_now` are the rows from `done` on of `selected`.
fn tile<T: Step, const P: usize, const S: usize>(
    step: T,
    raw: &[T::Raw],
    x: &Rows,
    select_now: &[u32],
    sums: &mut [[f32; PANEL]],
    selected: usize,
    done: usize,
) {
    let steps = raw.len() / P;
    let mut w: [&[T::Raw]; P] = [&[]; P];
    for (p, w) in w.iter_mut().enumerate() {
        *w = &raw[p * steps..][..steps];
    }
    let tile = step.vectorize(Tile { step, w, x: streams_of::<T::X, S>(x, select_now) });
    write_tile(&tile, x.form().terms(), sums, selected, done);
}

/// The streams of the selected rows: each row's terms, one after the other.
fn streams_of<'a, X: Pod, const S: usize>(x: &'a Rows, select: &[u32]) -> [&'a [X]; S] {
    let terms = x.form().terms();
    let mut streams: [&[X]; S] = [&[]; S];
    for (s, stream) in streams.iter_mut().enumerate() {
        let row: &[X] = cast_slice(x.row(select[s / terms]));
        let steps = row.len() / terms;
        *stream = &row[s % terms * steps..][..steps];
    }
    streams
}

/// Adds up the terms of the tile's rows and puts them where rows from `done` on of `selected` belong.
fn write_tile<const P: usize>(
    tile: &[[[f32; PANEL]; P]],
    terms: usize,
    sums: &mut [[f32; PANEL]],
    selected: usize,
    done: usize,
) {
    for (i, terms) in tile.chunks_exact(terms).enumerate() {
        for p in 0..P {
            let out = &mut sums[p * selected + done + i];
            *out = terms[0][p];
            for term in &terms[1..] {
                for (sum, x) in out.iter_mut().zip(term[p]) {
                    *sum += x;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
