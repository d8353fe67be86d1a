//! Products with a published matrix where it lies: row after row, turned into lines of a panel in registers.

use crate::arch::Compute;
use crate::arch::step::Gather;
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
                for k in 0..16 {
                    sums[s] = step.step(weights[k], &now[s][line][k], sums[s]);
                }
            }
        }
        sums.map(|sums| [step.to_array(sums)])
    }
}
