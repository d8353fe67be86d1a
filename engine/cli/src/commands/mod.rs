//! The commands, one file each.

pub(crate) mod bench;
pub(crate) mod context;
mod distance;
pub(crate) mod doctor;
pub(crate) mod experts;
pub(crate) mod generate;
mod golden;
pub(crate) mod import;
pub(crate) mod logits;
pub(crate) mod night;
mod npy;
pub(crate) mod numerics;
pub(crate) mod pack;
pub(crate) mod perplexity;
pub(crate) mod plan;
pub(crate) mod serve;
mod token_ids;
