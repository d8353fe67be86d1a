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
pub mod packed;
mod peak;
mod row_major;
mod rows;
#[cfg(target_arch = "x86_64")]
mod tiles;

use std::ops::Range;

use bytemuck::{Pod, cast_slice};

use crate::arch::step::{self, Gather, PREFETCH_BYTES, Step, Tile};
use crate::isa::with_lanes;
use crate::{Dtype, Isa};

#[cfg(target_arch = "x86_64")]
use crate::Avx512;
use matrix::Layout;
pub use matrix::{Matrix, PANEL, PanelScratch};
pub use mxfp4::{MXFP4_BLOCK, MXFP4_SCALES};
use packed::{Packed, PackedTile};
pub use peak::spin_at_peak;
use row_major::RowsTile;
pub use rows::{Activations, ActivationsError, RowForm, Rows};

/// No ISA's tile has more panels than this.
const PANELS_MAX: usize = 3;
/// Streams that are laid side by side, on ISAs that read tiles of them: half a MiB of 2,048 columns.
const STREAMS_MAX: usize = 128;

/// `sums[panel][i][lane]` = row `panel * PANEL + lane` of `w` times row `select[i]` of `x`.
///
/// `sums` starts with the first panel of `panels`; lanes beyond the last row of `w` hold nothing of use. Rows may be
/// selected in any order and repeatedly. The bits of an element depend on nothing but its row of `w`, its row of `x` and
/// the ISA; a row-major or packed `w` gives the bits that panels give, for it is laid into panels in `scratch`, tile by
/// tile, where it is not unpacked in registers.
///
/// # Panics
/// If `x` was prepared for another ISA, dtype or width than `w` has, if a panel or a selected row does not exist, if
/// `sums` has another length than `panels.len() * select.len()`, or if `w` is not in plain panels and `scratch` too small.
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
        (Isa::Avx512(token), Dtype::Bf16) => match w.layout() {
            Layout::Packed(packed) if call.streams() <= Avx512::STREAMS => call.run_packed(token, packed),
            Layout::Mxfp4RowMajor | Layout::Mxfp4Panels if call.streams() <= Avx512::STREAMS => call.run_mxfp4(token),
            Layout::RowMajor if call.can_turn::<Avx512>() => call.run_rows(token),
            _ => call.run(token),
        },
        #[cfg(target_arch = "x86_64")]
        (Isa::Amx(token), Dtype::Bf16) => call.run_tiles(token),
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
    /// Streams of activations: what a weight is multiplied with.
    fn streams(&self) -> usize {
        self.select.len() * self.x.form().terms()
    }

    /// Whether its lines can be turned in registers, and the streams are one tile.
    fn can_turn<T: Gather>(&self) -> bool {
        self.streams() <= T::STREAMS && self.w.is_whole_lines()
    }

    /// One tile of streams times row-major weights: they are turned once, in registers. With more streams they would be
    /// turned again and again, and get plain panels in scratch instead.
    fn run_rows<T: Gather>(self, step: T) {
        let streams = self.streams();
        if streams == 0 {
            return;
        }
        let panel_bytes = self.w.bytes_of_panel();
        for (panel, sums) in self.panels.clone().zip(self.sums.chunks_exact_mut(self.select.len())) {
            let rows = &self.w.bytes()[panel * panel_bytes..][..panel_bytes];
            let more = panel + 1 < self.panels.end;
            macro_rules! tile {
                ($($streams:literal)*) => {
                    match streams {
                        $($streams => rows_tile::<T, $streams>(step, rows, more, self.x, self.select, sums),)*
                        streams => unreachable!("a tile of {streams} streams"),
                    }
                };
            }
            tile!(1 2 3 4 5 6 7 8);
        }
    }

    /// As [`run_rows`](Self::run_rows), for packed weights.
    fn run_packed<T: Gather>(self, step: T, packed: Packed) {
        let streams = self.streams();
        if streams == 0 {
            return;
        }
        // The fewer the sums, the more panels whose lines have registers beside them, and whose loads need not wait for one
        // another.
        let width = match streams {
            1 | 2 => 3,
            3 | 4 => 2,
            _ => 1,
        };
        let firsts = self.panels.clone().step_by(width);
        for (first, sums) in firsts.zip(self.sums.chunks_mut(width * self.select.len())) {
            macro_rules! tile {
                ($(($panels:literal, $streams:literal))*) => {
                    match (sums.len() / self.select.len(), streams) {
                        $(($panels, $streams) => {
                            packed_tile::<T, $panels, $streams>(step, packed, first, self.x, self.select, sums);
                        })*
                        (panels, streams) => unreachable!("a tile of {panels} panels and {streams} streams"),
                    }
                };
            }
            tile!((3, 1)(3, 2)(2, 1)(2, 2)(2, 3)(2, 4)(1, 1)(1, 2)(1, 3)(1, 4)(1, 5)(1, 6)(1, 7)(1, 8));
        }
    }

    fn run<T: Step>(self, step: T) {
        const { assert!(T::PANELS <= PANELS_MAX) };
        if self.select.is_empty() {
            return;
        }
        let panel_bytes = self.w.bytes_of_expanded_panel();
        // Few rows are bound by reading, and each panel of a tile is a stream of its own to the memory: two hide the
        // latency of a step. Many rows are bound by arithmetic, and a wider tile loads less for each product.
        let streams = self.streams();
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
    // Rows of one tile read the panels from memory as they go. Of more rows the first do, and the last ask for the panels
    // that come next, which then arrive while there is arithmetic to be done.
    let ahead = match (done, done + select_now.len() == selected) {
        (0, true) => PREFETCH_BYTES,
        (_, true) => size_of_val(raw),
        (_, false) => 0,
    };
    let tile = step.vectorize(Tile { step, w, x: streams_of::<T::X, S>(x, select_now), ahead });
    write_tile(&tile, x.form().terms(), sums, selected, done);
}

/// The streams of the selected rows: each row's terms, one after the other.
fn streams_of<'a, X: Pod, const S: usize>(x: &'a Rows, select: &[u32]) -> [&'a [X]; S] {
    let terms = x.form().terms();
    let mut streams: [&[X]; S] = [&[]; S];
    for (s, stream) in streams.iter_mut().enumerate() {
        let row = x.row(select[s / terms]);
        let stride = row.len() / terms;
        *stream = cast_slice(&row[s % terms * stride..][..stride - x.form().padding()]);
    }
    streams
}

/// As [`tile`], for one panel that lies row after row and all selected rows.
fn rows_tile<T: Gather, const S: usize>(
    step: T,
    rows: &[u8],
    more: bool,
    x: &Rows,
    select: &[u32],
    sums: &mut [[f32; PANEL]],
) {
    let tile = step.vectorize(RowsTile { step, rows, more, x: streams_of::<T::X, S>(x, select) });
    write_tile(&tile, x.form().terms(), sums, select.len(), 0);
}

/// As [`tile`], for packed panels from `first` on and all selected rows.
fn packed_tile<T: Gather, const P: usize, const S: usize>(
    step: T,
    packed: Packed,
    first: usize,
    x: &Rows,
    select: &[u32],
    sums: &mut [[f32; PANEL]],
) {
    let w = std::array::from_fn(|p| packed.panel(first + p));
    let tile: [[[f32; PANEL]; P]; S] = step.vectorize(PackedTile { step, w, x: streams_of::<T::X, S>(x, select) });
    write_tile(&tile, x.form().terms(), sums, select.len(), 0);
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
