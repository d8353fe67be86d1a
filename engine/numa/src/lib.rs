//! The machine under the engine: which cores and memory there are, and workers that use them.
//!
//! Decode reads every chosen weight once and does little with it, so its speed is the speed of memory, and memory is
//! fast only for workers that stay where they are, wake at once, and find large pages. This package holds those facts
//! and those workers. It knows nothing of tensors or models.

pub mod affinity;
pub mod id_list;
pub mod partition;
pub mod pool;

pub use partition::TileMut;
pub use pool::{Pinning, Pool};
