//! What an ISA has to offer to the kernels: a few operations on 16 float lanes.
//!
//! Kernels are written once, over [`Lanes`] and [`Step`], and compiled once per ISA. The operations are marked
//! `#[inline(always)]` and end in intrinsics; [`Lanes::vectorize`] is the one place where a call crosses into a function
//! compiled for the ISA, and everything below it is inlined there.

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // no other ISA expands in registers
pub(crate) mod mxfp4;
pub(crate) mod scalar;
pub(crate) mod step;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;

/// Work to be compiled for an ISA. `compute` must be `#[inline(always)]`, and so must what it calls in its loops.
pub(crate) trait Compute {
    type Output;

    fn compute(self) -> Self::Output;
}

/// Sixteen float32 lanes. The implementing type is the proof that the CPU can do this.
pub(crate) trait Lanes: Copy {
    /// The lanes in registers.
    type V: Copy;

    /// Panels times streams that keep their sums in registers: the tile.
    const PANELS: usize;
    const STREAMS: usize;

    /// Calls `work.compute()` in a function compiled for this ISA.
    fn vectorize<C: Compute>(self, work: C) -> C::Output;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, x: &[f32; 16]) -> Self::V;
    fn load_f16(self, x: &[u16; 16]) -> Self::V;
    fn load_bf16(self, x: &[u16; 16]) -> Self::V;
    /// Lane `i` from `x[2 * i]`, as BF16.
    fn load_bf16_even(self, x: &[u16; 32]) -> Self::V;
    /// Lane `i` from `x[2 * i + 1]`, as BF16.
    fn load_bf16_odd(self, x: &[u16; 32]) -> Self::V;
    /// `a * b + c`: rounded once where the ISA can, else after each operation.
    fn multiply_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn to_array(self, x: Self::V) -> [f32; 16];

    /// Asks for the line that lies `bytes` behind the start of `from`; there need not be one.
    fn prefetch<R: ?Sized>(self, from: &R, bytes: usize);
    /// As [`prefetch`](Self::prefetch), into the second cache only: for what is needed later than soon.
    fn prefetch_further<R: ?Sized>(self, from: &R, bytes: usize);

    /// Word `j` of line `i` becomes word `i` of line `j`.
    #[inline(always)]
    fn transpose(self, lines: [&[u8; 64]; 16]) -> [[u32; 16]; 16] {
        let mut out = [[0; 16]; 16];
        for (i, line) in lines.into_iter().enumerate() {
            for (out, word) in out.iter_mut().zip(line.as_chunks().0) {
                out[i] = u32::from_le_bytes(*word);
            }
        }
        out
    }
}
