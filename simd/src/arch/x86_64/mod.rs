//! Tokens and intrinsics of x86-64.
#![allow(unsafe_code)] // Intrinsics: the reason for `arch`.

mod amx;
mod amx_laid;
mod amx_rows;
mod avx2;
mod avx512bf16;
mod avx512f;
mod mxfp4;

pub use amx::Amx;
pub(crate) use amx::{STREAMS_OF_TILE, STREAMS_OF_TILES, Streams, Sums};
pub(crate) use amx_laid::{Lay, Lines};
pub(crate) use amx_rows::{RowSums, TurnedStreams};
pub use avx2::Avx2;
pub use avx512bf16::Avx512;
pub use avx512f::Avx512f;

/// Asks for the line that lies `bytes` behind the start of `from`, into the first cache; there need not be one.
#[inline(always)]
fn prefetch<R: ?Sized>(from: &R, bytes: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

    let line = std::ptr::from_ref(from).cast::<i8>().wrapping_add(bytes);
    // SAFETY: every x86-64 has it; it changes nothing that a program can see and faults nowhere.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line) }
}

/// As [`prefetch`], into the second cache.
#[inline(always)]
fn prefetch_further<R: ?Sized>(from: &R, bytes: usize) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

    let line = std::ptr::from_ref(from).cast::<i8>().wrapping_add(bytes);
    // SAFETY: every x86-64 has it; it changes nothing that a program can see and faults nowhere.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(line) }
}
