//! A model in memory and the step loop.
//!
//! The order of the `mod` lines is the dependency order: a module may use those above it, never those below.
#![deny(unsafe_code)]

pub mod adapter;
pub mod checkpoint;
pub mod config;
pub mod expert_counts;
pub mod homes;
pub mod import;
pub mod kv_cache;
pub mod model;
pub mod pack;
pub mod plan;
pub mod sampler;
pub mod session;
pub mod text;
