//! How the bytes of a strip come to the worker that takes it.
//!
//! Weights that get memory of their own are read past the page cache: through it they would be in memory twice, and the
//! kernel would drop what others need to make room for a copy that nobody reads again. But what the page cache holds
//! already is copied from there, which is faster than any disk. That is asked for each strip anew, so it does not matter
//! how much of a file is there, nor what goes away meanwhile.

use numa::AlignedBuffer;

use crate::checkpoint::{Checkpoint, CheckpointError, DirectShards, Location};

/// What one worker reads with.
pub(super) struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    direct: Option<(&'a DirectShards<'a>, AlignedBuffer)>,
}

/// Bytes of a strip, and whether they had to come from the disk.
pub(super) struct Read<'b> {
    pub(super) bytes: &'b [u8],
    pub(super) from_disk: bool,
}

impl<'a> Reader<'a> {
    /// Reads through the map.
    pub(super) fn mapped(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, direct: None }
    }

    /// Reads past the page cache, up to `most` bytes at a time.
    pub(super) fn direct(
        checkpoint: &'a Checkpoint,
        shards: &'a DirectShards<'a>,
        most: usize,
    ) -> std::io::Result<Self> {
        Ok(Self { checkpoint, direct: Some((shards, AlignedBuffer::new(most)?)) })
    }

    /// The bytes at a place; where they `stay_mapped` while the model runs, they are in the page cache afterwards.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn read(&mut self, location: &Location, stay_mapped: bool) -> Result<Read<'_>, CheckpointError> {
        let from_disk = !self.checkpoint.is_cached(location);
        let bytes = match &mut self.direct {
            Some((shards, buffer)) if from_disk && !stay_mapped => shards.read(location, buffer)?,
            _ => self.checkpoint.populate(location)?,
        };
        Ok(Read { bytes, from_disk })
    }
}
