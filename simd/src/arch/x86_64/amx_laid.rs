//! Panels that are not plain: laid into lines a tile at a time, and multiplied while the next tile is laid.
//!
//! Putting lines together keeps the ports of vectors busy, multiplying them the tiles' own unit and the ports of loads and
//! stores; in one loop the two take little longer than the slower of them. A tile is multiplied one turn after it was
//! stored, for it is not loaded before its stores have reached the cache. Shapes are set once for all of a panel: that takes
//! as long as multiplying ten tiles.

use std::arch::asm;

use super::amx::{LINES_OF_TILE, STREAMS_OF_TILE, Shapes};
use super::{Amx, Avx512, Streams, Sums};
use crate::arch::Compute;
use crate::arch::step::Step as _;

/// Lines that are one tile.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Lines(pub(crate) [[u16; 32]; LINES_OF_TILE]);

impl Lines {
    pub(crate) const ZERO: Self = Self([[0; 32]; LINES_OF_TILE]);
}

/// A panel that is laid into plain lines from its first column on.
///
/// The tiles hold sums meanwhile: an implementation leaves them alone.
pub(crate) trait Lay {
    /// Lays the next 16 lines, or as many as are left.
    fn lay(&mut self, avx512: Avx512, out: &mut Lines);
}

impl Amx {
    /// As [`accumulate`](Amx::accumulate), but from zero, for panels of `lines` lines each that are laid on the way; `room`
    /// is for two tiles of each.
    ///
    /// # Panics
    /// If the streams are too many or too short.
    pub(crate) fn multiply_laid<const P: usize, L: Lay>(
        self,
        w: [L; P],
        lines: usize,
        x: Streams,
        room: &mut [[Lines; P]; 2],
        sums: &mut Sums<P>,
    ) {
        const { assert!(P == 1 || P == 2) };
        x.check(lines);
        self.avx512().vectorize(Laid { amx: self, w, lines, x, room, sums });
    }
}

struct Laid<'a, L, const P: usize> {
    amx: Amx,
    w: [L; P],
    lines: usize,
    x: Streams<'a>,
    room: &'a mut [[Lines; P]; 2],
    sums: &'a mut Sums<P>,
}

impl<L: Lay, const P: usize> Compute for Laid<'_, L, P> {
    type Output = ();

    #[inline(always)]
    fn compute(self) {
        if self.x.count <= STREAMS_OF_TILE { self.multiply::<false>() } else { self.multiply::<true>() }
    }
}

impl<L: Lay, const P: usize> Laid<'_, L, P> {
    /// `TWO` tiles of streams, or one.
    #[inline(always)]
    fn multiply<const TWO: bool>(self) {
        let Self { amx, mut w, lines, x, room: laid, sums } = self;
        let tiles = lines / LINES_OF_TILE;
        if tiles > 0 {
            let shapes = Shapes::new(x.count, LINES_OF_TILE);
            // SAFETY: `amx` proves AMX.
            unsafe { start(&shapes) };
            for tile in 0..tiles {
                for (w, laid) in w.iter_mut().zip(&mut laid[tile % 2]) {
                    w.lay(amx.avx512(), laid);
                }
                if tile > 0 {
                    // SAFETY: shapes were set, `lay` leaves tiles alone, and streams are longer than `lines`, as checked.
                    unsafe { add::<P, TWO>(&laid[(tile - 1) % 2], x, (tile - 1) * LINES_OF_TILE) };
                }
            }
            // SAFETY: likewise.
            unsafe { add::<P, TWO>(&laid[(tiles - 1) % 2], x, (tiles - 1) * LINES_OF_TILE) };
            // SAFETY: likewise.
            unsafe { finish::<P, TWO>(sums) };
        } else {
            sums.clear(x.count);
        }
        let rest = lines % LINES_OF_TILE;
        if rest > 0 {
            for (w, laid) in w.iter_mut().zip(&mut laid[0]) {
                w.lay(amx.avx512(), laid);
            }
            let x = Streams { words: &x.words[lines - rest..], ..x };
            amx.accumulate(laid[0].each_ref().map(|laid| &laid.0[..rest]), x, 0, sums);
        }
    }
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
            "tilezero tmm2",
            "tilezero tmm3",
            shapes = in(reg) shapes,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nostack),
        );
    }
}

const LINE_BYTES: usize = 64;

/// Adds the products of a tile of each panel with the streams from word `at` on.
///
/// # Safety
/// Since [`start`], with the shapes of `x` and of tiles that are full, nothing else has used tiles; streams have as many
/// words.
#[inline(always)]
unsafe fn add<const P: usize, const TWO: bool>(w: &[Lines; P], x: Streams, at: usize) {
    let stride = size_of::<u32>() * x.stride;
    let x0 = x.words.as_ptr().wrapping_add(at);
    macro_rules! add {
        ($($instruction:literal)*) => {
            asm!(
                "# {x0} {x1} {stride} {w0} {w1} {line}", // not all have all
                $($instruction,)*
                x0 = in(reg) x0,
                x1 = in(reg) x0.wrapping_byte_add(STREAMS_OF_TILE * stride),
                stride = in(reg) stride,
                w0 = in(reg) &w[0],
                w1 = in(reg) &w[P - 1],
                line = in(reg) LINE_BYTES,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }
    match (P, TWO) {
        // SAFETY: as this function asks; so too below.
        (1, false) => unsafe {
            add!("tileloadd tmm4, [{x0} + 1*{stride}]"
                "tileloadd tmm6, [{w0} + 1*{line}]"
                "tdpbf16ps tmm0, tmm4, tmm6");
        },
        // SAFETY: likewise.
        (1, true) => unsafe {
            add!("tileloadd tmm4, [{x0} + 1*{stride}]"
                "tileloadd tmm6, [{w0} + 1*{line}]"
                "tdpbf16ps tmm0, tmm4, tmm6"
                "tileloadd tmm5, [{x1} + 1*{stride}]"
                "tdpbf16ps tmm2, tmm5, tmm6");
        },
        // SAFETY: likewise.
        (_, false) => unsafe {
            add!("tileloadd tmm4, [{x0} + 1*{stride}]"
                "tileloadd tmm6, [{w0} + 1*{line}]"
                "tdpbf16ps tmm0, tmm4, tmm6"
                "tileloadd tmm7, [{w1} + 1*{line}]"
                "tdpbf16ps tmm1, tmm4, tmm7");
        },
        // SAFETY: likewise.
        (_, true) => unsafe {
            add!("tileloadd tmm4, [{x0} + 1*{stride}]"
                "tileloadd tmm6, [{w0} + 1*{line}]"
                "tdpbf16ps tmm0, tmm4, tmm6"
                "tileloadd tmm5, [{x1} + 1*{stride}]"
                "tdpbf16ps tmm2, tmm5, tmm6"
                "tileloadd tmm7, [{w1} + 1*{line}]"
                "tdpbf16ps tmm1, tmm4, tmm7"
                "tdpbf16ps tmm3, tmm5, tmm7");
        },
    }
}

/// Takes the sums out of the tiles, and leaves none behind.
///
/// # Safety
/// As [`add`].
#[inline(always)]
unsafe fn finish<const P: usize, const TWO: bool>(sums: &mut Sums<P>) {
    for (p, sums) in sums.0.iter_mut().enumerate() {
        macro_rules! store {
            ($first:literal, $second:literal) => {{
                let (first, second) = sums.split_at_mut(STREAMS_OF_TILE);
                // SAFETY: as this function asks; a tile has up to 16 lines of sums.
                unsafe { asm!($first, sums = in(reg) first.as_mut_ptr(), line = in(reg) LINE_BYTES, options(nostack)) };
                if TWO {
                    // SAFETY: likewise.
                    unsafe {
                        asm!($second, sums = in(reg) second.as_mut_ptr(), line = in(reg) LINE_BYTES, options(nostack));
                    }
                }
            }};
        }
        match p {
            0 => store!("tilestored [{sums} + 1*{line}], tmm0", "tilestored [{sums} + 1*{line}], tmm2"),
            _ => store!("tilestored [{sums} + 1*{line}], tmm1", "tilestored [{sums} + 1*{line}], tmm3"),
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
