//! CPU kernels: slices in, slices out.
//!
//! Whoever calls decides about threads, files and models; a kernel only computes, allocates nothing, and gives the same
//! bits for the same numbers however its rows were grouped and its panels were shared out. That is what lets every
//! layer above split work freely and still promise equal output.
//!
//! An [`Isa`] is chosen once and handed to each call. [`matmul`] and [`attention`] may differ in the last bits between
//! ISAs (a fused multiply-add rounds once, a multiplication and an addition twice); [`elementwise`] never does.
//!
//! Unsafe code lives below `arch` and nowhere else: there each ISA offers a few operations on 16 float lanes, guarded by
//! a token that only CPU detection creates, and the kernels here are ordinary safe code over these operations.

#![deny(unsafe_code)]

#[cfg(target_endian = "big")]
compile_error!("weights and KV blocks are little-endian bytes that kernels read in place");

mod arch;
pub mod attention;
mod dtype;
pub mod elementwise;
mod isa;
pub mod matmul;
pub mod oracle;
mod top_k;

#[cfg(target_arch = "x86_64")]
pub use arch::x86_64::{Amx, Avx2, Avx512, Avx512f};
pub use dtype::Dtype;
pub use isa::{Isa, IsaError};
pub use top_k::top_k;
