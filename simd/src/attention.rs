//! Attention of query rows over one run of the KV cache, and the merging of runs.
//!
//! A run has a fixed number of positions, whoever computes it: so sums have the same order for any number of threads and
//! any chunking of a prompt. Within a run, scores are sums over the head dimension with positions in the lanes, and
//! output is a sum over positions with the head dimension in the lanes; nothing is reduced across lanes but the sum of
//! the probabilities, over a fixed tree. Each key panel and each value row is read once for all rows of a tile.

mod block;
mod merge;
mod run;

pub use block::{KV_BLOCK, KV_RUN, block_bytes, store};
pub use merge::{begin, begin_with_sinks, finish, fold_run};
pub use run::{AttendScratch, attend_run};

#[cfg(test)]
mod tests;
