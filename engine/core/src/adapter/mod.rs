//! LoRA adapters as PEFT publishes them: opened, checked against a model, and laid into memory beside it.
//!
//! An adapter adds `scale * B (A x)` to products of the model, and may replace norms, the embedding or the output matrix
//! as a whole. The model's own weights are never touched: which adapters a row goes through is a matter of that row.

mod config;
mod error;
mod folder;
mod names;
mod set;
mod weights;

pub use error::{AdapterError, AdapterSetError};
pub use folder::AdapterFolder;
pub(crate) use names::{Module, Norm};
pub use set::AdapterSet;
pub use weights::Adapter;
pub(crate) use weights::LowRankPair;

/// Every matrix begins at a cache line.
const ALIGNMENT: usize = 64;

/// What adapters ask of a run, from which the planner knows their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdapterNeeds {
    /// How many may be loaded at a time.
    pub count: usize,
    /// Greatest rank among them.
    pub rank: usize,
    /// Bytes of their matrices together.
    pub bytes: u64,
}

impl AdapterNeeds {
    /// The same with one more adapter.
    pub fn and(self, folder: &AdapterFolder) -> Self {
        Self {
            count: self.count + 1,
            rank: self.rank.max(folder.rank()),
            bytes: self.bytes.saturating_add(folder.bytes() as u64),
        }
    }
}
