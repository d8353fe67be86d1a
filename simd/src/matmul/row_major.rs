//! Products with a published matrix where it lies: row after row, turned into lines of a panel in registers.

use crate::arch::Compute;
use crate::arch::step::{BLOCK, Gather};
use crate::matmul::PANEL;

const LINE_BYTES: usize = 64;

/// How far ahead a row is asked for: longer than a line takes to come, short enough that 16 rows stay in the second cache.
const LINES_AHEAD: usize = 8;

/// One panel that lies row after row, times `S` streams of activations.
///
/// That is 16 streams, more than the machine's own prefetching follows across pages; so each is asked for a little ahead,
/// over the end of a row into the same row of the next panel.
pub(super) struct RowsTile<'a, T: Gather, const S: usize> {
    pub(super) step: T,
    /// Sixteen rows of whole lines.
    pub(super) rows: &'a [u8],
    /// Whether another panel follows.
    pub(super) more: bool,
    pub(super) x: [&'a [T::X]; S],
}

impl<T: Gather, const S: usize> Compute for RowsTile<'_, T, S> {
    type Output = [[[f32; PANEL]; 1]; S];

    #[expect(clippy::needless_range_loop, reason = "a line of each row and of each stream")]
    #[inline(always)]
    fn compute(self) -> Self::Output {
        let Self { step, rows, more, x } = self;
        let row_bytes = rows.len() / PANEL;
        let lines = row_bytes / LINE_BYTES;
        let mut now: [&[[T::X; 16]]; S] = [&[]; S];
        for s in 0..S {
            now[s] = &x[s].as_chunks().0[..lines];
        }
        let mut sums = [step.zero(); S];
        for line in 0..lines {
            let ahead = line + LINES_AHEAD;
            if ahead < lines || more {
                let ahead = ahead * LINE_BYTES + if ahead < lines { 0 } else { rows.len() - row_bytes };
                for row in 0..PANEL {
                    step.prefetch(rows, row * row_bytes + ahead);
                }
            }
            let weights = step.turn(rows, row_bytes, line * LINE_BYTES);
            for s in 0..S {
                for k in (0..16).step_by(2) {
                    let x = [&now[s][line][k], &now[s][line][k + 1]];
                    sums[s] = step.step_twice([weights[k], weights[k + 1]], x, sums[s]);
                }
                const { assert!(BLOCK == 16) };
                sums[s] = step.end_block(sums[s]);
            }
        }
        sums.map(|sums| [step.to_array(sums)])
    }
}

/// Sixteen rows of whole lines that are still to be laid into a panel.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // asked for by tiles
pub(super) struct RowsToLay<'a> {
    rows: &'a [u8],
    /// Bytes of each row that are laid already.
    at: usize,
    /// How far behind these rows those lie that will be laid next.
    next: Option<usize>,
}

#[cfg(target_arch = "x86_64")]
impl<'a> RowsToLay<'a> {
    pub(super) fn new(rows: &'a [u8], next: Option<usize>) -> Self {
        Self { rows, at: 0, next }
    }
}

struct LayLines<'s, 'a, T> {
    gather: T,
    rows: &'s mut RowsToLay<'a>,
    out: &'s mut [[[u16; 2 * PANEL]; 16]],
}

impl<T: Gather> Compute for LayLines<'_, '_, T> {
    /// Lines of a row.
    type Output = usize;

    #[inline(always)]
    fn compute(self) -> usize {
        let Self { gather, rows: RowsToLay { rows, at, next }, out } = self;
        let row_bytes = rows.len() / PANEL;
        let mut lines = 0;
        for (out, from) in out.iter_mut().zip((*at..row_bytes).step_by(LINE_BYTES)) {
            let ahead = from + LINES_AHEAD * LINE_BYTES;
            let ahead = if ahead < row_bytes { Some(ahead) } else { next.map(|next| ahead - row_bytes + next) };
            if let Some(ahead) = ahead {
                for row in 0..PANEL {
                    gather.prefetch(*rows, row * row_bytes + ahead);
                }
            }
            // An array's `map` would not be compiled for the ISA.
            for (out, line) in out.iter_mut().zip(gather.turn(rows, row_bytes, from)) {
                *out = gather.line(line);
            }
            lines += 1;
        }
        *at += lines * LINE_BYTES;
        lines
    }
}

#[cfg(target_arch = "x86_64")]
impl super::tiles::Lay for RowsToLay<'_> {
    fn lay(&mut self, avx512: crate::Avx512, out: &mut [[u16; 2 * PANEL]; super::tiles::PIECE]) -> usize {
        use crate::arch::step::Step as _;

        16 * avx512.vectorize(LayLines { gather: avx512, rows: self, out: bytemuck::cast_slice_mut(out) })
    }
}
