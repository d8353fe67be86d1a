//! How the bytes of a strip come to the worker that takes it.

use crate::checkpoint::{Checkpoint, Location};

/// What one worker reads with.
pub(super) struct Reader<'a> {
    checkpoint: &'a Checkpoint,
}

impl<'a> Reader<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint }
    }

    /// The bytes at a place.
    pub(super) fn bytes(&mut self, location: &Location) -> &[u8] {
        self.checkpoint.bytes(location)
    }
}
