//! A model in memory and the step loop.
//!
//! Modules build on each other in this order, and never the other way: `config`, `checkpoint`, `adapter` and `homes`,
//! `kv_cache`, `model`, then `plan` and `expert_counts`, `pack` on `plan`; `sampler`, `text`, `constraint` on
//! `text`; `session` on most of them. `import` and `whole_file` stand alone.
#![deny(unsafe_code)]

pub mod adapter;
pub mod checkpoint;
pub mod config;
pub mod constraint;
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
pub mod whole_file;

/// Summation orders, roundings and the sampler's chain. A change of any of them changes bytes, and so this number: what was
/// computed under another one is not mixed with what is computed now.
pub const NUMERICS: u32 = 1;
