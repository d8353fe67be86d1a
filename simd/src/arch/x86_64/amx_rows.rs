//! Weights that lie row after row: 32 columns of 16 rows are a tile as they lie, with the row's length between its lines.
//!
//! The instruction multiplies rows of one tile by columns of another, and either can be the weights: products are the same
//! both ways round, and so is the order in which they are added up. So nothing is turned but the activations, once for all
//! panels, and sums come out row by row.
//!
//! Sixteen rows are more streams than the machine's own prefetching follows across pages, so each is asked for a little
//! ahead; into the second cache, because rows that are 4 KiB apart drive each other out of the first.

use std::arch::asm;

use super::amx::{LINES_OF_TILE, STREAMS_OF_TILE, Shapes};
use super::{Amx, Avx512f};
use crate::arch::step::Step as _;
use crate::arch::{Compute, Lanes as _};

const LINE_BYTES: usize = 64;
/// Rows of a panel, which are the lines of its tiles.
const ROWS: usize = 16;
/// How far ahead a row is asked for: longer than a line takes to come.
const LINES_AHEAD: usize = 8;

/// Up to 16 streams of activations as the columns of tiles.
#[derive(Clone, Copy)]
pub(crate) struct TurnedStreams<'a> {
    words: &'a [u32],
    /// Words from one pair of columns to the next.
    stride: usize,
    count: usize,
}

/// Sums of 16 rows, with each stream: `[row][stream]`.
#[repr(C, align(64))]
pub(crate) struct RowSums(pub(crate) [[f32; STREAMS_OF_TILE]; ROWS]);

impl RowSums {
    pub(crate) const ZERO: Self = Self([[0.0; STREAMS_OF_TILE]; ROWS]);
}

impl<'a> TurnedStreams<'a> {
    /// Words that [`TurnedStreams::turn`] asks for, of so many streams of so many pairs of columns.
    pub(crate) const fn words(count: usize, pairs: usize) -> usize {
        Self::stride(count) * pairs
    }

    const fn stride(count: usize) -> usize {
        if count <= 2 { count } else { STREAMS_OF_TILE }
    }

    /// Lays streams of equal length side by side.
    ///
    /// # Panics
    /// If they are more than 16, none, of different lengths or of no whole lines, or `out` is too short.
    pub(crate) fn turn(amx: Amx, streams: &[&[u32]], out: &'a mut [u32]) -> Self {
        let (count, pairs) = (streams.len(), streams[0].len());
        let stride = Self::stride(count);
        assert!(count <= STREAMS_OF_TILE && pairs.is_multiple_of(LINE_WORDS), "{count} streams of {pairs} pairs");
        assert!(streams.iter().all(|stream| stream.len() == pairs), "streams of one length");
        let out = &mut out[..stride * pairs];
        match streams {
            [one] => out.copy_from_slice(one),
            [one, two] => {
                for (out, (one, two)) in out.as_chunks_mut().0.iter_mut().zip(one.iter().zip(*two)) {
                    *out = [*one, *two];
                }
            }
            _ => amx.avx512().vectorize(Turn { lanes: amx.avx512().avx512f(), streams, out }),
        }
        Self { words: out, stride, count }
    }
}

const LINE_WORDS: usize = LINE_BYTES / size_of::<u32>();

struct Turn<'s, 'a, 'o> {
    lanes: Avx512f,
    streams: &'s [&'a [u32]],
    out: &'o mut [u32],
}

impl Compute for Turn<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn compute(self) {
        let Self { lanes, streams, out } = self;
        for (i, out) in out.as_chunks_mut::<{ LINE_WORDS * STREAMS_OF_TILE }>().0.iter_mut().enumerate() {
            let mut lines = [&[0; LINE_BYTES]; STREAMS_OF_TILE];
            for (line, stream) in lines.iter_mut().zip(streams) {
                *line = bytemuck::cast_ref(&stream.as_chunks::<LINE_WORDS>().0[i]);
            }
            out.copy_from_slice(lanes.transpose(lines).as_flattened());
        }
    }
}

impl Amx {
    /// Products of the panels of `rows`, 16 rows of `row_bytes` each, with all streams; each panel's sums, of both tiles
    /// of streams if there are two, go to `write` with its number. The bits are those of
    /// [`accumulate`](Amx::accumulate).
    ///
    /// # Panics
    /// If rows are not whole lines, panels not whole rows, or streams have another length.
    pub(crate) fn multiply_rows<const X: usize>(
        self,
        rows: &[u8],
        row_bytes: usize,
        x: [TurnedStreams; X],
        mut write: impl FnMut(usize, &[RowSums; X]),
    ) {
        const { assert!(X == 1 || X == 2) };
        assert!(row_bytes.is_multiple_of(LINE_BYTES), "rows of {row_bytes} bytes");
        let panel_bytes = row_bytes * ROWS;
        assert!(rows.len().checked_rem(panel_bytes) == Some(0), "{} bytes of panels", rows.len());
        for x in x {
            assert_eq!(x.words.len(), x.stride * row_bytes / size_of::<u32>(), "words of the streams");
        }
        let mut sums = [const { RowSums::ZERO }; X];
        let lines = row_bytes / LINE_BYTES;
        for (panel, of_panel) in rows.chunks_exact(panel_bytes).enumerate() {
            let more = panel + 1 < rows.len() / panel_bytes;
            // SAFETY: `self` proves AMX.
            unsafe { start(&shapes(x)) };
            for line in 0..lines {
                // Over the end of a row into the same row of the next panel.
                let ahead = line + LINES_AHEAD;
                if ahead < lines || more {
                    let ahead = ahead * LINE_BYTES + if ahead < lines { 0 } else { panel_bytes - row_bytes };
                    for row in 0..ROWS {
                        super::prefetch_further(of_panel, row * row_bytes + ahead);
                    }
                }
                // SAFETY: shapes were set and nothing in between used tiles; the line is within all rows, and streams are as
                // long as these, as checked.
                unsafe { add(of_panel, row_bytes, line * LINE_BYTES, x) };
            }
            // SAFETY: likewise.
            unsafe { finish(&mut sums) };
            write(panel, &sums);
        }
    }
}

/// Tiles 0 and 1 have sums, 4 lines of rows, 6 and 7 streams.
fn shapes<const X: usize>(x: [TurnedStreams; X]) -> Shapes {
    let of_streams = |tile: usize| (size_of::<u32>() * x[tile.min(X - 1)].count) as u16;
    let (line, [first, second]) = (LINE_BYTES as u16, [0, 1].map(of_streams));
    Shapes::of(
        [ROWS as u8, ROWS as u8, 1, 1, ROWS as u8, 1, LINES_OF_TILE as u8, LINES_OF_TILE as u8],
        [first, second, line, line, line, line, first, second],
    )
}

/// Sets the shapes, and sums to zero.
///
/// # Safety
/// The CPU has AMX, and the system permits it.
#[inline(always)]
unsafe fn start(shapes: &Shapes) {
    // SAFETY: as this function asks. Tile registers are not used by compiled code.
    unsafe {
        asm!(
            "ldtilecfg [{shapes}]",
            "tilezero tmm0",
            "tilezero tmm1",
            shapes = in(reg) shapes,
            out("tmm0") _, out("tmm1") _,
            options(nostack),
        );
    }
}

/// Adds the products of the line at `at` of each row with the streams.
///
/// # Safety
/// Since [`start`], with the shapes of `x`, nothing else has used tiles; the line is one of all 16 rows, and streams have
/// its columns.
#[inline(always)]
unsafe fn add<const X: usize>(rows: &[u8], row_bytes: usize, at: usize, x: [TurnedStreams; X]) {
    let of = |tile: usize| {
        let x = x[tile.min(X - 1)];
        (x.words.as_ptr().wrapping_add(at / size_of::<u32>() * x.stride), size_of::<u32>() * x.stride)
    };
    let ((x0, stride0), (x1, stride1)) = (of(0), of(1));
    macro_rules! add {
        ($($instruction:literal)*) => {
            asm!(
                "# {x1} {stride1}", // not both have them
                $($instruction,)*
                w = in(reg) rows.as_ptr().wrapping_add(at),
                row = in(reg) row_bytes,
                x0 = in(reg) x0,
                stride0 = in(reg) stride0,
                x1 = in(reg) x1,
                stride1 = in(reg) stride1,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }
    match X {
        // SAFETY: as this function asks.
        1 => unsafe {
            add!("tileloadd tmm6, [{x0} + 1*{stride0}]"
                "tileloadd tmm4, [{w} + 1*{row}]"
                "tdpbf16ps tmm0, tmm4, tmm6");
        },
        // SAFETY: likewise.
        _ => unsafe {
            add!("tileloadd tmm6, [{x0} + 1*{stride0}]"
                "tileloadd tmm4, [{w} + 1*{row}]"
                "tdpbf16ps tmm0, tmm4, tmm6"
                "tileloadd tmm7, [{x1} + 1*{stride1}]"
                "tdpbf16ps tmm1, tmm4, tmm7");
        },
    }
}

/// Takes the sums out of the tiles, and leaves none behind.
///
/// # Safety
/// As [`add`].
#[inline(always)]
unsafe fn finish<const X: usize>(sums: &mut [RowSums; X]) {
    // SAFETY: as this function asks; a tile has 16 lines of up to 16 sums.
    unsafe {
        asm!(
            "tilestored [{sums} + 1*{line}], tmm0",
            sums = in(reg) sums[0].0.as_mut_ptr(),
            line = in(reg) LINE_BYTES,
            options(nostack),
        );
    }
    if X == 2 {
        // SAFETY: likewise.
        unsafe {
            asm!(
                "tilestored [{sums} + 1*{line}], tmm1",
                sums = in(reg) sums[1].0.as_mut_ptr(),
                line = in(reg) LINE_BYTES,
                options(nostack),
            );
        }
    }
    // SAFETY: likewise.
    unsafe {
        asm!(
            "tilerelease",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nomem, nostack),
        );
    }
}
