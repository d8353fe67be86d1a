//! Products on tile registers: up to 32 streams of activations meet two panels at a time.
//!
//! One row takes the same way as hundreds, since a tile's chain of sums is not that of other instructions. Weights that
//! do not lie in plain panels are laid into them: whole panels for many rows, and for few piece by piece, so that a piece
//! is still in the first cache when it is used.

use bytemuck::cast_slice;

use super::matrix::{Layout, Matrix};
use super::mxfp4::BlocksToLay;
use super::packed::PackedSpans;
use super::row_major::RowsToLay;
use super::rows::words_of_stream;
use super::{Call, PANEL, STREAMS_MAX};
use crate::arch::step::PREFETCH_BYTES;
use crate::arch::x86_64::{STREAMS_OF_TILES, Streams, Sums};
use crate::{Amx, Avx512, Isa};

const _: () = assert!(STREAMS_MAX.is_multiple_of(STREAMS_OF_TILES));

/// Panels of a tile.
const PANELS: usize = 2;

/// Lines of a piece, at most: 256 columns.
pub(super) const PIECE: usize = 128;

/// A panel that is laid into plain lines from its first column on.
pub(super) trait Lay {
    /// Lays the next lines and says how many: a multiple of 16 but at the end, and 0 behind it.
    fn lay(&mut self, avx512: Avx512, out: &mut [[u16; 2 * PANEL]; PIECE]) -> usize;
}

impl Call<'_> {
    pub(super) fn run_tiles(self, amx: Amx) {
        let Self { isa, w, panels, x, select, scratch, sums } = self;
        let terms = x.form().terms();
        let stride = words_of_stream(w.cols().div_ceil(2));
        let panel_bytes = w.bytes_of_expanded_panel();
        let selected = select.len();
        // So many streams stay in the second cache while all panels meet them.
        for (i, select) in select.chunks(STREAMS_MAX / terms).enumerate() {
            let in_order = select.windows(2).all(|rows| rows[1] == rows[0] + 1);
            let (tile, gathered) = scratch.parts_mut(
                if w.is_plain_panels() { 0 } else { PANELS * panel_bytes },
                if in_order { 0 } else { select.len() * terms * stride },
            );
            let words = if in_order {
                x.rows_from(select[0], select.len())
            } else {
                for (row, out) in select.iter().zip(gathered.chunks_exact_mut((terms * stride).max(1))) {
                    out.copy_from_slice(x.row(*row));
                }
                gathered
            };
            let rows = RowsOfTiles { words, stride, terms, count: select.len(), first: i * (STREAMS_MAX / terms) };
            for first in panels.clone().step_by(PANELS) {
                let here = PANELS.min(panels.end - first);
                let sums = &mut sums[(first - panels.start) * selected..][..here * selected];
                match here {
                    1 => products::<1>(amx, isa, w, first, &rows, tile, sums),
                    _ => products::<PANELS>(amx, isa, w, first, &rows, tile, sums),
                }
            }
        }
    }
}

/// Some prepared rows, one behind the other.
struct RowsOfTiles<'a> {
    words: &'a [u32],
    stride: usize,
    /// Streams of a row.
    terms: usize,
    count: usize,
    /// How many rows were selected before them.
    first: usize,
}

impl<'a> RowsOfTiles<'a> {
    /// Those that are multiplied at a time, and how many rows were selected before them.
    fn streams(&self) -> impl Iterator<Item = (Streams<'a>, usize)> {
        let (all, at_a_time) = (self.count * self.terms, STREAMS_OF_TILES);
        let (words, stride, terms, first) = (self.words, self.stride, self.terms, self.first);
        (0..all).step_by(at_a_time).map(move |from| {
            let streams = Streams { words: &words[from * stride..], stride, count: at_a_time.min(all - from) };
            (streams, first + from / terms)
        })
    }
}

/// `P` panels from `first` on times some rows.
fn products<const P: usize>(
    amx: Amx,
    isa: Isa,
    w: &Matrix,
    first: usize,
    rows: &RowsOfTiles,
    tile: &mut [u8],
    out: &mut [[f32; PANEL]],
) {
    let bytes_of_panel = w.bytes_of_panel();
    let stored = |p: usize| &w.bytes()[(first + p) * bytes_of_panel..][..bytes_of_panel];
    let few = rows.count * rows.terms <= STREAMS_OF_TILES;
    match w.layout() {
        Layout::Panels => plain::<P>(amx, std::array::from_fn(|p| cast_slice(stored(p))), rows, PREFETCH_BYTES, out),
        Layout::Packed(packed) if few => {
            laid(amx, std::array::from_fn::<_, P, _>(|p| PackedSpans::new(packed.panel(first + p))), rows, out);
        }
        Layout::Mxfp4Panels if few => {
            laid(amx, std::array::from_fn::<_, P, _>(|p| BlocksToLay::new(stored(p))), rows, out);
        }
        Layout::RowMajor if few && w.is_whole_lines() => {
            let next = (first + 2 * P <= w.panel_count()).then_some(P * bytes_of_panel);
            laid(amx, std::array::from_fn::<_, P, _>(|p| RowsToLay::new(stored(p), next)), rows, out);
        }
        _ => {
            let bytes = w.bytes_of_expanded_panel();
            for p in 0..P {
                w.expand_panel(isa, first + p, &mut tile[p * bytes..][..bytes]);
            }
            plain::<P>(amx, std::array::from_fn(|p| cast_slice(&tile[p * bytes..][..bytes])), rows, 0, out);
        }
    }
}

/// Plain panels times any number of rows.
fn plain<const P: usize>(
    amx: Amx,
    w: [&[[u16; 2 * PANEL]]; P],
    rows: &RowsOfTiles,
    ahead: usize,
    out: &mut [[f32; PANEL]],
) {
    for (streams, done) in rows.streams() {
        let mut sums = Sums::ZERO;
        amx.accumulate(w, streams, ahead, &mut sums);
        write(&sums, streams.count, rows.terms, done, out);
    }
}

/// Panels that are laid on the way, times few rows.
fn laid<const P: usize, L: Lay>(amx: Amx, mut w: [L; P], rows: &RowsOfTiles, out: &mut [[f32; PANEL]]) {
    let Some((streams, done)) = rows.streams().next() else { return };
    let mut pieces = [[[0; 2 * PANEL]; PIECE]; P];
    let mut sums = Sums::ZERO;
    let mut column = 0;
    loop {
        let mut lines = 0;
        for (w, piece) in w.iter_mut().zip(&mut pieces) {
            lines = w.lay(amx.avx512(), piece);
        }
        if lines == 0 {
            break;
        }
        let here = Streams { words: &streams.words[column..], ..streams };
        amx.accumulate(pieces.each_ref().map(|piece| &piece[..lines]), here, 0, &mut sums);
        column += lines;
    }
    write(&sums, streams.count, rows.terms, done, out);
}

/// Adds up the terms of each row, and puts them behind those of the `done` rows before.
fn write<const P: usize>(sums: &Sums<P>, streams: usize, terms: usize, done: usize, out: &mut [[f32; PANEL]]) {
    let selected = out.len() / P;
    for (sums, out) in sums.0.iter().zip(out.chunks_exact_mut(selected)) {
        for (terms, out) in sums[..streams].chunks_exact(terms).zip(&mut out[done..]) {
            *out = terms[0];
            for term in &terms[1..] {
                for (sum, x) in out.iter_mut().zip(term) {
                    *sum += x;
                }
            }
        }
    }
}
