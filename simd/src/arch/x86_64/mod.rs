//! Tokens and intrinsics of x86-64.
#![allow(unsafe_code)] // Intrinsics: the reason for `arch`.

mod avx2;
mod avx512bf16;
mod avx512f;
mod mxfp4;

pub use avx2::Avx2;
pub use avx512bf16::Avx512;
pub use avx512f::Avx512f;
