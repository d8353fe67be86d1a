//! The commands, one file each.

pub(crate) mod bench;
pub(crate) mod doctor;
pub(crate) mod generate;
pub(crate) mod import;
pub(crate) mod logits;
pub(crate) mod night;
mod npy;
pub(crate) mod pack;
pub(crate) mod perplexity;
pub(crate) mod plan;
