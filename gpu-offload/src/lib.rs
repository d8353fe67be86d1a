//! The optional GPU: for now only whether a CUDA driver and devices are there; device memory, kernels and expert
//! residency are to live here.

pub mod driver;

pub use driver::{Device, DriverStatus};
