//! Products on tile registers: up to 32 streams of activations meet two panels at a time.
//!
//! One row takes the same way as hundreds, since a tile's chain of sums is not that of other instructions. Weights that
//! do not lie in plain panels are laid into them: whole panels for many rows, and for few tile by tile, each multiplied
//! while the next is laid. Published rows are tiles already.

use bytemuck::cast_slice;

use super::matrix::{Layout, Matrix};
use super::mxfp4::BlocksToLay;
use super::packed::PanelToLay;
use super::rows::words_of_stream;
use super::{Call, PANEL, STREAMS_MAX};
use crate::arch::step::PREFETCH_BYTES;
use crate::arch::x86_64::{Lay, Lines, RowSums, STREAMS_OF_TILE, STREAMS_OF_TILES, Streams, Sums, TurnedStreams};
use crate::{Amx, Isa};

const _: () = assert!(STREAMS_MAX.is_multiple_of(STREAMS_OF_TILES));

/// Panels of a tile.
const PANELS: usize = 2;

/// What the products of `P` panels at a time are computed in; made once, since it is as long as some tiles.
struct Room<const P: usize> {
    sums: Sums<P>,
    laid: [[Lines; P]; 2],
}

impl<const P: usize> Room<P> {
    fn new() -> Self {
        Self { sums: Sums::ZERO, laid: [[Lines::ZERO; P]; 2] }
    }
}

impl Call<'_> {
    pub(super) fn run_tiles(self, amx: Amx) {
        let Self { w, x, select, .. } = self;
        let terms = x.form().terms();
        if matches!(w.layout(), Layout::RowMajor) && w.is_whole_lines() && select.len() * terms <= STREAMS_OF_TILES {
            return self.run_published_tiles(amx);
        }
        let Self { w, panels, x, select, scratch, sums, .. } = self;
        let stride = words_of_stream(w.cols().div_ceil(2));
        let panel_bytes = w.bytes_of_expanded_panel();
        let selected = select.len();
        let mut room = Room::<PANELS>::new();
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
                    1 => products::<1>(amx, w, first, &rows, tile, &mut Room::new(), sums),
                    _ => products::<PANELS>(amx, w, first, &rows, tile, &mut room, sums),
                }
            }
        }
    }
}

impl Call<'_> {
    /// Few rows times a published matrix of whole lines, where it lies.
    fn run_published_tiles(self, amx: Amx) {
        let Self { w, panels, x, select, scratch, sums, .. } = self;
        let (terms, pairs) = (x.form().terms(), w.cols() / 2);
        if select.is_empty() || panels.is_empty() || pairs == 0 {
            return sums.fill([0.0; PANEL]);
        }
        let mut streams: [&[u32]; STREAMS_OF_TILES] = [&[]; STREAMS_OF_TILES];
        for (i, stream) in streams.iter_mut().enumerate().take(select.len() * terms) {
            let row = x.row(select[i / terms]);
            *stream = &row[i % terms * words_of_stream(pairs)..][..pairs];
        }
        let streams = &streams[..select.len() * terms];
        let (first, second) = streams.split_at(streams.len().min(STREAMS_OF_TILE));
        let words = [first, second].map(|streams| TurnedStreams::words(streams.len(), pairs));
        let (_, turned) = scratch.parts_mut(0, words[0] + words[1]);
        let (of_first, of_second) = turned.split_at_mut(words[0]);
        let row_bytes = w.cols() * w.dtype().size();
        let rows = &w.bytes()[panels.start * PANEL * row_bytes..panels.end * PANEL * row_bytes];
        let first = TurnedStreams::turn(amx, first, of_first);
        if second.is_empty() {
            amx.multiply_rows(rows, row_bytes, [first], |panel, tiles| {
                write_rows(tiles, terms, &mut sums[panel * select.len()..][..select.len()]);
            });
        } else {
            let second = TurnedStreams::turn(amx, second, of_second);
            amx.multiply_rows(rows, row_bytes, [first, second], |panel, tiles| {
                write_rows(tiles, terms, &mut sums[panel * select.len()..][..select.len()]);
            });
        }
    }
}

/// As [`write`], of one panel whose sums lie row by row.
fn write_rows(tiles: &[RowSums], terms: usize, out: &mut [[f32; PANEL]]) {
    let rows_of_tile = STREAMS_OF_TILE / terms;
    for (tile, out) in tiles.iter().zip(out.chunks_mut(rows_of_tile)) {
        for (row, out) in out.iter_mut().enumerate() {
            for (sum, of_streams) in out.iter_mut().zip(&tile.0) {
                let of_row = &of_streams[row * terms..][..terms];
                *sum = of_row[1..].iter().fold(of_row[0], |sum, x| sum + x);
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
    w: &Matrix,
    first: usize,
    rows: &RowsOfTiles,
    tile: &mut [u8],
    room: &mut Room<P>,
    out: &mut [[f32; PANEL]],
) {
    let (isa, bytes_of_panel) = (Isa::Amx(amx), w.bytes_of_panel());
    let stored = |p: usize| &w.bytes()[(first + p) * bytes_of_panel..][..bytes_of_panel];
    let few = rows.count * rows.terms <= STREAMS_OF_TILES;
    match w.layout() {
        Layout::Panels => {
            plain::<P>(amx, std::array::from_fn(|p| cast_slice(stored(p))), rows, PREFETCH_BYTES, room, out);
        }
        Layout::Packed(packed) if few => {
            let panel = |p| PanelToLay::new(packed.panel(first + p), (P - 1) * packed.bytes_of_panel());
            laid(amx, std::array::from_fn::<_, P, _>(panel), w.cols() / 2, rows, room, out);
        }
        Layout::Mxfp4Panels if few => {
            let panel = |p| BlocksToLay::new(stored(p), (P - 1) * bytes_of_panel);
            laid(amx, std::array::from_fn::<_, P, _>(panel), w.cols() / 2, rows, room, out);
        }
        Layout::Mxfp4RowMajor if few => {
            for (p, tile) in tile.chunks_exact_mut(bytes_of_panel.max(1)).enumerate().take(P) {
                w.pack_panel_with(isa, first + p, tile);
            }
            let panel = |p| BlocksToLay::new(&tile[p * bytes_of_panel..][..bytes_of_panel], 0);
            laid(amx, std::array::from_fn::<_, P, _>(panel), w.cols() / 2, rows, room, out);
        }
        _ => {
            let bytes = w.bytes_of_expanded_panel();
            for p in 0..P {
                w.expand_panel(isa, first + p, &mut tile[p * bytes..][..bytes]);
            }
            plain::<P>(amx, std::array::from_fn(|p| cast_slice(&tile[p * bytes..][..bytes])), rows, 0, room, out);
        }
    }
}

/// Plain panels times any number of rows.
fn plain<const P: usize>(
    amx: Amx,
    w: [&[[u16; 2 * PANEL]]; P],
    rows: &RowsOfTiles,
    ahead: usize,
    Room { sums, .. }: &mut Room<P>,
    out: &mut [[f32; PANEL]],
) {
    for (streams, done) in rows.streams() {
        sums.clear(streams.count);
        amx.accumulate(w, streams, ahead, sums);
        write(sums, streams.count, rows.terms, done, out);
    }
}

/// Panels of `lines` lines that are laid on the way, times few rows.
fn laid<const P: usize, L: Lay>(
    amx: Amx,
    w: [L; P],
    lines: usize,
    rows: &RowsOfTiles,
    Room { sums, laid }: &mut Room<P>,
    out: &mut [[f32; PANEL]],
) {
    let Some((streams, done)) = rows.streams().next() else { return };
    amx.multiply_laid(w, lines, streams, laid, sums);
    write(sums, streams.count, rows.terms, done, out);
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
