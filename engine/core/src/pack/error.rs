//! Why a folder was not packed.

use std::io;
use std::path::{Path, PathBuf};

use crate::checkpoint::CheckpointError;

/// Why packing was refused or ended. Shards that are finished stay, and the same command goes on behind them.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum PackError {
    #[error(transparent)]
    Source(#[from] CheckpointError),
    #[error("{} was written by `nightmonk pack` already; give the published folder", folder.display())]
    AlreadyPacked { folder: PathBuf },
    #[error("{} is the model itself; give another folder to write", folder.display())]
    SameFolder { folder: PathBuf },
    #[error("{} holds `{other}`, which does not belong to a packed model; choose another folder, or empty it", folder.display())]
    NotEmpty { folder: PathBuf, other: String },
    #[error(
        "{} was begun from another model, or with other options; remove it, choose another folder, or give the model and the options that it was begun with",
        folder.display()
    )]
    OtherSource { folder: PathBuf },
    #[error("another `nightmonk pack` is writing {} at this moment", folder.display())]
    Busy { folder: PathBuf },
    #[error(
        "{}: {}; make room and start again: finished shards are kept",
        path.display(),
        too_little(*needed, *available)
    )]
    NoSpace { path: PathBuf, needed: u64, available: Option<u64> },
    #[error(
        "{}: tensor `{tensor}` was read back and is not what was written; disk or memory of this machine is faulty",
        shard.display()
    )]
    Differs { shard: PathBuf, tensor: String },
    #[error("tensor `{tensor}` has {bytes} bytes in panels, more than this format can describe")]
    TooLarge { tensor: String, bytes: u64 },
    #[error("cannot start {threads} threads: {why}")]
    Threads { threads: usize, why: String },
    #[error("{}: {doing}: {error}", path.display())]
    Io { doing: &'static str, path: PathBuf, error: io::Error },
}

impl PackError {
    /// Gives an error of the operating system its place; for use with `map_err`.
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { doing, path: path.to_owned(), error }
    }
}

/// How far a shard shrinks is known only when it is written, so a disk may be full that had room for the least.
fn too_little(needed: u64, available: Option<u64>) -> String {
    match available {
        Some(available) if available >= needed => {
            format!("no space left on its disk: more than the {available} bytes that are free are needed")
        }
        Some(available) => {
            format!("no space on its disk: at least {needed} bytes more are needed, but {available} are free")
        }
        None => format!("no space left on its disk: at least {needed} bytes more are needed"),
    }
}
