//! Shards read past the page cache, for weights that get memory of their own.

use numa::{AlignedBuffer, DirectFile};

use super::{Checkpoint, CheckpointError, Location};

/// The shards of a checkpoint, opened once more for direct reads from many threads.
pub struct DirectShards<'c> {
    checkpoint: &'c Checkpoint,
    files: Vec<DirectFile>,
}

impl<'c> DirectShards<'c> {
    /// Opens the shards again.
    ///
    /// # Errors
    /// [`CheckpointError::Open`], and [`CheckpointError::Replaced`] where a name stands for another file by now.
    pub fn open(checkpoint: &'c Checkpoint) -> Result<Self, CheckpointError> {
        let open = |shard: &super::Shard| {
            let failed = |source| CheckpointError::Open { path: shard.path.clone(), source };
            let file = DirectFile::open(&shard.path).map_err(failed)?;
            // The headers that were checked are those of the mapped file.
            match shard.map.is_at(&shard.path).map_err(failed)? {
                true => Ok(file),
                false => Err(CheckpointError::Replaced { path: shard.path.clone() }),
            }
        };
        let files = checkpoint.shards.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { checkpoint, files })
    }

    /// The bytes at a place, in `buffer`, which must have room for them.
    ///
    /// # Errors
    /// [`CheckpointError::Read`] with what the system says, also of a shard that became shorter.
    pub fn read<'b>(&self, location: &Location, buffer: &'b mut AlignedBuffer) -> Result<&'b [u8], CheckpointError> {
        self.files[location.shard].read_at(location.start as u64, location.size(), buffer).map_err(|source| {
            CheckpointError::Read { path: self.checkpoint.shards[location.shard].path.clone(), source }
        })
    }
}
