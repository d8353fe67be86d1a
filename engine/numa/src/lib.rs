//! The machine under the engine: which cores and memory there are, and workers that use them.
//!
//! Decode reads every chosen weight once and does little with it, so its speed is the speed of memory, and memory is
//! fast only for workers that stay where they are, wake at once, and find large pages. This package holds those facts
//! and those workers. It knows nothing of tensors or models.

pub mod affinity;
pub mod bandwidth;
mod cgroup;
pub mod cores;
pub mod direct;
mod id_list;
mod kernel_files;
pub mod lock;
pub mod memory;
pub mod partition;
mod placement;
pub mod pool;
pub mod region;
mod slices;
pub mod topology;

pub use bandwidth::read_bandwidth;
pub use direct::{AlignedBuffer, DirectFile};
pub use lock::{check_lockable, lock};
pub use memory::{MemoryFacts, ProcessMemory};
pub use partition::TileMut;
pub use placement::Placement;
pub use pool::{CallerPin, Pinning, Pool, WorkerNode};
pub use region::Region;
pub use slices::Slices;
pub use topology::{Node, NodeId, Topology};
