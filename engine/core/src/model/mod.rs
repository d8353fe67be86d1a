//! A model in memory and one forward pass for every family.

mod attention;
mod feed_forward;
mod forward;
mod linear;
mod load;
mod low_rank;
mod place;
mod reader;
mod rope_table;
mod routing;
mod source;
mod strips;
mod weights;
mod workspace;

pub use forward::{Batch, Observer, Row};
pub use load::{Load, LoadError, LoadProgress, ModelOptions, read_only};
pub use low_rank::AdapterRoom;
pub use routing::Choice;
pub(crate) use strips::{buffer_bytes as load_buffer_bytes, largest_strip};
pub use weights::Model;
pub use workspace::{Workspace, WorkspaceShape};
