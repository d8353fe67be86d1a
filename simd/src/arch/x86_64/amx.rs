//! AMX: one instruction multiplies 16 rows of activations by 16 lines of a panel, which are 8,192 products.
//!
//! A tile register has up to 16 rows of 64 bytes. Sixteen lines of a panel, 32 columns of 16 rows of weights, are one as
//! they lie in memory; so are 32 columns of up to 16 streams of activations, and 16 sums of each stream.
//!
//! TDPBF16PS adds, of each sum, the even products of the 16 pairs in order, the odd ones likewise, each product fused with
//! its addition; then the two, and then that to the sum. Subnormal numbers are zero. All rounding is to nearest. So a sum
//! is a chain over 32 columns at a time, however many streams share the tile.
//!
//! The instructions are written as assembler, for the compiler has no stable intrinsics. Every block of this file sets the
//! shapes of the tiles that it uses and leaves none behind; `amx_laid` and `amx_rows` keep sums in tiles from one block to
//! the next, which is sound since compiled code never touches these registers.

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::sync::LazyLock;

use super::Avx512;

/// Proof that this CPU has all of [`Avx512`] and tiles of BF16, and that the system lets this process use them:
/// [`Amx::detect`] is the only way to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amx(Avx512);

impl Amx {
    /// The token, if this CPU and this system deserve it.
    pub fn detect() -> Option<Self> {
        static USABLE: LazyLock<bool> = LazyLock::new(|| has_tiles() && permitted());
        Avx512::detect().filter(|_| *USABLE).map(Self)
    }

    /// What is contained.
    pub fn avx512(self) -> Avx512 {
        self.0
    }
}

/// Whether the CPU has AMX-TILE and AMX-BF16 and the system saves their registers.
fn has_tiles() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    /// State components 17 and 18.
    const TILES_SAVED: u64 = 3 << 17;
    let bits = AMX_BF16 | AMX_TILE;
    // Leaf 7 and XGETBV are there where AVX-512 is, which the standard library has found.
    if Avx512::detect().is_none() || __cpuid_count(7, 0).edx & bits != bits {
        return false;
    }
    #[target_feature(enable = "xsave")]
    fn enabled() -> u64 {
        // SAFETY: register 0 always exists.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: a system that lets AVX-512 be used has turned XSAVE on.
    unsafe { enabled() & TILES_SAVED == TILES_SAVED }
}

/// Asks Linux for the tile registers, which are 8 KiB more for each thread to save.
fn permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: touches no memory of this process.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// Lines of a panel in a tile register.
pub(crate) const LINES_OF_TILE: usize = 16;
/// Streams in a tile register.
pub(crate) const STREAMS_OF_TILE: usize = 16;
/// Streams that are multiplied at a time, at most: two tiles of them.
pub(crate) const STREAMS_OF_TILES: usize = 2 * STREAMS_OF_TILE;

/// Up to [`STREAMS_OF_TILES`] streams of activations, in pairs of columns, at equal distances.
#[derive(Clone, Copy)]
pub(crate) struct Streams<'a> {
    pub(crate) words: &'a [u32],
    /// Words from the start of one stream to that of the next.
    pub(crate) stride: usize,
    pub(crate) count: usize,
}

impl Streams<'_> {
    /// # Panics
    /// If the streams are none or too many, or one is shorter than `lines`.
    pub(super) fn check(&self, lines: usize) {
        assert!((1..=STREAMS_OF_TILES).contains(&self.count), "{} streams", self.count);
        let last = (self.count - 1).checked_mul(self.stride).and_then(|start| self.words.get(start..));
        assert!(last.is_some_and(|last| lines <= last.len()), "{lines} words of each stream");
    }
}

/// Sums of `P` panels: `[panel][stream]`, of two tiles of streams.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Sums<const P: usize>(pub(crate) [[[f32; 16]; STREAMS_OF_TILES]; P]);

impl<const P: usize> Sums<P> {
    pub(crate) const ZERO: Self = Self([[[0.0; 16]; STREAMS_OF_TILES]; P]);

    /// Sets the sums of the first `streams` streams to zero.
    pub(crate) fn clear(&mut self, streams: usize) {
        for sums in &mut self.0 {
            sums[..streams].fill([0.0; 16]);
        }
    }
}

/// Shapes of the eight tile registers, as LDTILECFG reads them.
#[repr(C, align(64))]
pub(super) struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_of_row: [u16; 16],
    rows: [u8; 16],
}

const _: () = assert!(size_of::<Shapes>() == 64 && align_of::<Shapes>() == 64);

impl Shapes {
    /// Tiles 0 to 3 have sums, two panels of each tile of streams; 4 and 5 streams; 6 and 7 `lines` lines of panels.
    pub(super) fn new(streams: usize, lines: usize) -> Self {
        let first = streams.min(STREAMS_OF_TILE) as u8;
        // A tile without rows would be an invalid one; the kernels for one tile of streams do not touch it.
        let second = streams.saturating_sub(STREAMS_OF_TILE).max(1) as u8;
        let (line, of_streams) = (64, 4 * lines as u16);
        let rows = [first, first, second, second, first, second, lines as u8, lines as u8];
        Self::of(rows, [line, line, line, line, of_streams, of_streams, line, line])
    }

    pub(super) fn of(rows: [u8; 8], bytes_of_row: [u16; 8]) -> Self {
        let mut shapes = Self { palette: 1, start_row: 0, reserved: [0; 14], bytes_of_row: [0; 16], rows: [0; 16] };
        shapes.rows[..8].copy_from_slice(&rows);
        shapes.bytes_of_row[..8].copy_from_slice(&bytes_of_row);
        shapes
    }
}

/// Where a product's parts lie, for the assembler.
struct Places {
    shapes: Shapes,
    /// Two panels, or the same one twice.
    w: [*const u32; 2],
    x: *const u32,
    /// Bytes between streams.
    stride: usize,
    /// Tiles along the columns, at least one.
    steps: usize,
    /// Bytes behind the lines in use of those to be asked for.
    ahead: usize,
    /// Of either panel.
    sums: [*mut f32; 2],
}

const LINE_BYTES: usize = 64;
const TILE_BYTES: usize = LINE_BYTES * LINES_OF_TILE;

/// Asks for the tile that lies `{ahead}` bytes behind what the register points to.
macro_rules! ask {
    ($register:literal) => {
        ask!($register: "0" "64" "128" "192" "256" "320" "384" "448"
            "512" "576" "640" "704" "768" "832" "896" "960")
    };
    ($register:literal: $($offset:literal)*) => {
        concat!($("prefetcht0 [{", $register, "} + {ahead} + ", $offset, "]\n"),*)
    };
}

impl Places {
    /// Adds the products of up to 16 streams to their sums.
    ///
    /// # Safety
    /// The CPU has AMX and the system permits it; all that the shapes and steps describe can be read, and the sums written.
    unsafe fn multiply_one(&self) {
        // SAFETY: as this function asks. Tile registers are not used by compiled code; none keeps anything afterwards.
        unsafe {
            asm!(
                "ldtilecfg [{shapes}]",
                "tileloadd tmm0, [{sums0} + 1*{line}]",
                "tileloadd tmm1, [{sums1} + 1*{line}]",
                "2:",
                "tileloadd tmm4, [{x0} + 1*{stride}]",
                "tileloadd tmm6, [{w0} + 1*{line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{w1} + 1*{line}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "test {ahead}, {ahead}",
                "jz 3f",
                ask!("w0"),
                ask!("w1"),
                "3:",
                "add {w0}, {tile}",
                "add {w1}, {tile}",
                "add {x0}, 64",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums0} + 1*{line}], tmm0",
                "tilestored [{sums1} + 1*{line}], tmm1",
                "tilerelease",
                shapes = in(reg) &self.shapes,
                w0 = inout(reg) self.w[0] => _,
                w1 = inout(reg) self.w[1] => _,
                x0 = inout(reg) self.x => _,
                stride = in(reg) self.stride,
                line = in(reg) LINE_BYTES,
                tile = const TILE_BYTES,
                steps = inout(reg) self.steps => _,
                ahead = in(reg) self.ahead,
                sums0 = in(reg) self.sums[0],
                sums1 = in(reg) self.sums[1],
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// As [`multiply_one`](Self::multiply_one), of 17 to 32 streams.
    ///
    /// # Safety
    /// The same.
    unsafe fn multiply_two(&self) {
        // SAFETY: as this function asks. Tile registers are not used by compiled code; none keeps anything afterwards.
        unsafe {
            asm!(
                "ldtilecfg [{shapes}]",
                "tileloadd tmm0, [{sums0} + 1*{line}]",
                "tileloadd tmm1, [{sums1} + 1*{line}]",
                "tileloadd tmm2, [{sums0} + 1*{line} + {tile}]",
                "tileloadd tmm3, [{sums1} + 1*{line} + {tile}]",
                "2:",
                "tileloadd tmm4, [{x0} + 1*{stride}]",
                "tileloadd tmm6, [{w0} + 1*{line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{x1} + 1*{stride}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm7, [{w1} + 1*{line}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "test {ahead}, {ahead}",
                "jz 3f",
                ask!("w0"),
                ask!("w1"),
                "3:",
                "add {w0}, {tile}",
                "add {w1}, {tile}",
                "add {x0}, 64",
                "add {x1}, 64",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums0} + 1*{line}], tmm0",
                "tilestored [{sums1} + 1*{line}], tmm1",
                "tilestored [{sums0} + 1*{line} + {tile}], tmm2",
                "tilestored [{sums1} + 1*{line} + {tile}], tmm3",
                "tilerelease",
                shapes = in(reg) &self.shapes,
                w0 = inout(reg) self.w[0] => _,
                w1 = inout(reg) self.w[1] => _,
                x0 = inout(reg) self.x => _,
                x1 = inout(reg) self.x.wrapping_byte_add(STREAMS_OF_TILE * self.stride) => _,
                stride = in(reg) self.stride,
                line = in(reg) LINE_BYTES,
                tile = const TILE_BYTES,
                steps = inout(reg) self.steps => _,
                ahead = in(reg) self.ahead,
                sums0 = in(reg) self.sums[0],
                sums1 = in(reg) self.sums[1],
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Amx {
    /// Adds to `sums` the products of `P` panels, 1 or 2, with all streams: the lines of `w` with as many pairs of columns
    /// of each stream. Sums are chains over [`LINES_OF_TILE`] lines at a time from the first on, so a caller who cuts a
    /// panel into pieces cuts it there. Lines that lie `ahead` bytes behind the ones in use are asked for; none are if it
    /// is 0.
    ///
    /// # Panics
    /// If the panels have different lengths or the streams are too many or too short.
    pub(crate) fn accumulate<const P: usize>(self, w: [&[[u16; 32]]; P], x: Streams, ahead: usize, sums: &mut Sums<P>) {
        const { assert!(P == 1 || P == 2) };
        let lines = w[0].len();
        assert!(w.iter().all(|w| w.len() == lines), "lines of all panels");
        x.check(lines);

        let mut done = 0;
        for (lines_of_tile, steps) in [(LINES_OF_TILE, lines / LINES_OF_TILE), (lines % LINES_OF_TILE, 1)] {
            if lines_of_tile == 0 || steps == 0 {
                continue;
            }
            let places = Places {
                shapes: Shapes::new(x.count, lines_of_tile),
                w: [w[0][done..].as_ptr().cast(), w[P - 1][done..].as_ptr().cast()],
                x: x.words[done..].as_ptr(),
                stride: size_of::<u32>() * x.stride,
                steps,
                ahead,
                sums: [sums.0[0].as_mut_ptr().cast(), sums.0[P - 1].as_mut_ptr().cast()],
            };
            if x.count <= STREAMS_OF_TILE {
                // SAFETY: `self` proves AMX; each panel has `steps` times `lines_of_tile` lines from `done` on, each stream
                // as many words, as checked above.
                unsafe { places.multiply_one() };
            } else {
                // SAFETY: likewise.
                unsafe { places.multiply_two() };
            }
            done += steps * lines_of_tile;
        }
    }

    /// Does `steps` steps of four tiles of sums on numbers that never leave the registers; returns the floating-point
    /// operations done.
    pub(crate) fn spin(self, steps: usize) -> f64 {
        let shapes = Shapes::new(STREAMS_OF_TILES, LINES_OF_TILE);
        // SAFETY: `self` proves AMX; tiles begin as zeros, and nothing is stored.
        unsafe {
            asm!(
                "ldtilecfg [{shapes}]",
                "test {steps}, {steps}",
                "jz 3f",
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {steps}",
                "jnz 2b",
                "3:",
                "tilerelease",
                shapes = in(reg) &shapes,
                steps = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
        let products_of_step = 4 * STREAMS_OF_TILE * 16 * 2 * LINES_OF_TILE;
        (steps * products_of_step * 2) as f64
    }
}
