//! One step of a sum along K: how 16 weights (or 16 pairs of weights) meet one activation (or one pair).
//!
//! A sum is the same chain of steps in every kernel and every tile: this is where the order is decided.

use bytemuck::Pod;

use super::{Compute, Lanes};

/// A way to add products to 16 running sums.
pub(crate) trait Step: Copy {
    /// Weights of one step as they are stored, for 16 lanes.
    type Raw: Pod;
    /// Weights of one step in registers.
    type W: Copy;
    /// Activations of one step, the same for all lanes.
    type X: Pod;
    /// Sixteen running sums.
    type Sums: Copy;

    /// The tile, see [`Lanes::PANELS`].
    const PANELS: usize;
    const STREAMS: usize;

    fn vectorize<C: Compute>(self, work: C) -> C::Output;
    fn zero(self) -> Self::Sums;
    fn weights(self, raw: &Self::Raw) -> Self::W;
    /// The activations come by reference, so that they are broadcast straight from memory.
    fn step(self, w: Self::W, x: &Self::X, sums: Self::Sums) -> Self::Sums;
    fn to_array(self, sums: Self::Sums) -> [f32; 16];
    /// Asks for the line that lies `bytes` behind the start of `from`; there need not be one.
    fn prefetch<R: ?Sized>(self, from: &R, bytes: usize);
    /// As [`prefetch`](Self::prefetch), into the second cache only: for what is needed later than soon.
    fn prefetch_further<R: ?Sized>(self, from: &R, bytes: usize);
}

/// Steps that take one weight per lane: weights are loaded, sums can be resumed.
pub(crate) trait Single: Step<Raw = [Self::Element; 16], X = f32> {
    type Element: Pod;

    fn resume(self, sums: &[f32; 16]) -> Self::Sums;
}

/// Steps whose lines of 16 pairs can be put together in registers from weights that do not lie in plain panels.
pub(crate) trait Gather: Step<Raw = [u16; 32]> {
    /// Sixteen lines from 64 bytes of each of 16 rows: those from `at` on, where a row is `row_bytes` long.
    ///
    /// # Panics
    /// If they end behind `rows`.
    fn turn(self, rows: &[u8], row_bytes: usize, at: usize) -> [Self::W; 16];
    /// The four lines of two blocks of the 12-bit form, see [`packed`](crate::matmul::packed), without their patches.
    fn unpack(self, group: &[[u8; 64]; 3], bases: &[u32; 2]) -> [Self::W; 4];
    /// Each base in all four bytes of a word, which takes a load to spread over a register, and a byte takes more.
    fn spread(self, bases: &[u8; 64]) -> [u32; 64];
    fn line(self, line: Self::W) -> [u16; 32];
    /// Bit `i` is the highest bit of byte `i`.
    fn sign_bits(self, bytes: &[u8; 64]) -> u64;
    /// Asks for what is to come when `line` is in use.
    fn ask(self, line: &[u8; 64], ahead: Ahead);
}

/// How far ahead of themselves weights are asked for that take work to put together: into the second cache while many
/// lines can still be under way, which the first has no places for, and then into the first.
///
/// Panels of a tile are read side by side, so behind the end of one does not lie what is read next.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    pub(crate) near: usize,
    pub(crate) far: usize,
}

impl Ahead {
    /// For a line with `left` bytes of its panel from it on, where what is read next lies `next` bytes behind the panel.
    #[inline(always)]
    pub(crate) fn new(left: usize, next: usize) -> Self {
        const NEAR: usize = 1024;
        const FAR: usize = 2048;
        Self { near: if NEAR < left { NEAR } else { NEAR + next }, far: if FAR < left { FAR } else { FAR + next } }
    }
}

/// BF16 weights in pairs: `k` even, then `k` odd.
#[derive(Clone, Copy)]
pub(crate) struct Bf16Pairs<L>(pub(crate) L);
/// One BF16 weight per lane.
#[derive(Clone, Copy)]
pub(crate) struct Bf16<L>(pub(crate) L);
/// One F16 weight per lane.
#[derive(Clone, Copy)]
pub(crate) struct F16<L>(pub(crate) L);
/// One float32 weight per lane.
#[derive(Clone, Copy)]
pub(crate) struct F32<L>(pub(crate) L);

impl<L: Lanes> Step for Bf16Pairs<L> {
    type Raw = [u16; 32];
    type W = (L::V, L::V);
    type X = [f32; 2];
    type Sums = L::V;

    const PANELS: usize = L::PANELS;
    const STREAMS: usize = L::STREAMS;

    #[inline(always)]
    fn vectorize<C: Compute>(self, work: C) -> C::Output {
        self.0.vectorize(work)
    }

    #[inline(always)]
    fn zero(self) -> L::V {
        self.0.splat(0.0)
    }

    #[inline(always)]
    fn weights(self, raw: &[u16; 32]) -> (L::V, L::V) {
        (self.0.load_bf16_even(raw), self.0.load_bf16_odd(raw))
    }

    #[inline(always)]
    fn step(self, (even, odd): (L::V, L::V), x: &[f32; 2], sums: L::V) -> L::V {
        let sums = self.0.multiply_add(even, self.0.splat(x[0]), sums);
        self.0.multiply_add(odd, self.0.splat(x[1]), sums)
    }

    #[inline(always)]
    fn to_array(self, sums: L::V) -> [f32; 16] {
        self.0.to_array(sums)
    }

    #[inline(always)]
    fn prefetch<R: ?Sized>(self, from: &R, bytes: usize) {
        self.0.prefetch(from, bytes);
    }

    #[inline(always)]
    fn prefetch_further<R: ?Sized>(self, from: &R, bytes: usize) {
        self.0.prefetch_further(from, bytes);
    }
}

macro_rules! single {
    ($name:ident, $element:ty, $load:ident) => {
        impl<L: Lanes> Step for $name<L> {
            type Raw = [$element; 16];
            type W = L::V;
            type X = f32;
            type Sums = L::V;

            const PANELS: usize = L::PANELS;
            const STREAMS: usize = L::STREAMS;

            #[inline(always)]
            fn vectorize<C: Compute>(self, work: C) -> C::Output {
                self.0.vectorize(work)
            }

            #[inline(always)]
            fn zero(self) -> L::V {
                self.0.splat(0.0)
            }

            #[inline(always)]
            fn weights(self, raw: &[$element; 16]) -> L::V {
                self.0.$load(raw)
            }

            #[inline(always)]
            fn step(self, w: L::V, x: &f32, sums: L::V) -> L::V {
                self.0.multiply_add(w, self.0.splat(*x), sums)
            }

            #[inline(always)]
            fn to_array(self, sums: L::V) -> [f32; 16] {
                self.0.to_array(sums)
            }

            #[inline(always)]
            fn prefetch<R: ?Sized>(self, from: &R, bytes: usize) {
                self.0.prefetch(from, bytes);
            }

            #[inline(always)]
            fn prefetch_further<R: ?Sized>(self, from: &R, bytes: usize) {
                self.0.prefetch_further(from, bytes);
            }
        }

        impl<L: Lanes> Single for $name<L> {
            type Element = $element;

            #[inline(always)]
            fn resume(self, sums: &[f32; 16]) -> L::V {
                self.0.load(sums)
            }
        }
    };
}

single!(Bf16, u16, load_bf16);
single!(F16, u16, load_f16);
single!(F32, f32, load);

/// How far ahead of itself a tile of few streams, which waits for memory, asks for its panels' lines.
pub(crate) const PREFETCH_BYTES: usize = 1536;

/// `P` panels times `S` streams of activations, all along K at once: each weight is loaded once for all streams.
pub(crate) struct Tile<'a, T: Step, const P: usize, const S: usize> {
    pub(crate) step: T,
    pub(crate) w: [&'a [T::Raw]; P],
    pub(crate) x: [&'a [T::X]; S],
    /// How far behind the weights in use lie those to be asked for, in bytes; none are if it is 0.
    pub(crate) ahead: usize,
}

impl<T: Step, const P: usize, const S: usize> Compute for Tile<'_, T, P, S> {
    type Output = [[[f32; 16]; P]; S];

    #[inline(always)]
    fn compute(self) -> Self::Output {
        if self.ahead == 0 { self.sums::<false>() } else { self.sums::<true>() }
    }
}

impl<T: Step, const P: usize, const S: usize> Tile<'_, T, P, S> {
    #[inline(always)]
    fn sums<const AHEAD: bool>(self) -> [[[f32; 16]; P]; S] {
        let Self { step, mut w, mut x, ahead } = self;
        // One length for all slices, so that the loop needs no checks.
        let steps = w[0].len();
        for w in &mut w {
            *w = &w[..steps];
        }
        for x in &mut x {
            *x = &x[..steps];
        }
        let mut sums = [[step.zero(); P]; S];
        for k in 0..steps {
            if AHEAD {
                for w in w {
                    step.prefetch(&w[k], ahead);
                }
            }
            let mut weights = [step.weights(&w[0][k]); P];
            for p in 1..P {
                weights[p] = step.weights(&w[p][k]);
            }
            for s in 0..S {
                for p in 0..P {
                    sums[s][p] = step.step(weights[p], &x[s][k], sums[s][p]);
                }
            }
        }
        let mut out = [[[0.0; 16]; P]; S];
        for s in 0..S {
            for p in 0..P {
                out[s][p] = step.to_array(sums[s][p]);
            }
        }
        out
    }
}
