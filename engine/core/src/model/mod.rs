//! A model in memory and one forward pass for every family.

mod attention;
mod feed_forward;
mod forward;
mod linear;
mod rope_table;
mod weights;
mod workspace;

pub use forward::{Batch, Observer, Row};
pub use weights::{Load, LoadError, LoadProgress, Model, ModelOptions};
pub use workspace::{Workspace, WorkspaceShape};
