//! Shards read past the page cache, for weights that get memory of their own.

use std::sync::atomic::{AtomicUsize, Ordering};

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

    /// Drops what the page cache holds of the shards, see [`DirectFile::drop_cached`].
    ///
    /// # Errors
    /// [`CheckpointError::Read`] with what the system says.
    pub fn drop_cached(&self) -> Result<(), CheckpointError> {
        self.checkpoint.release();
        let failed = |file: &DirectFile, source| CheckpointError::Read { path: file.path().to_owned(), source };
        self.files.iter().try_for_each(|file| file.drop_cached().map_err(|source| failed(file, source)))
    }

    /// Reads all shards to their ends, `strip` bytes at a time by each of `readers` threads, and keeps nothing: how fast
    /// the disk is at best. Returns the bytes.
    ///
    /// # Errors
    /// [`CheckpointError::Read`], and [`CheckpointError::Threads`] if they do not start.
    pub fn read_all(&self, readers: usize, strip: usize) -> Result<u64, CheckpointError> {
        let next = AtomicUsize::new(0);
        let strips: Vec<(usize, u64, usize)> = self
            .files
            .iter()
            .enumerate()
            .flat_map(|(shard, file)| {
                let offsets = (0..file.bytes()).step_by(strip);
                offsets.map(move |at| (shard, at, strip.min((file.bytes() - at) as usize)))
            })
            .collect();
        let work = |mut buffer: AlignedBuffer| -> Result<u64, CheckpointError> {
            let mut bytes = 0;
            while let Some((shard, at, len)) = strips.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.read_at(*shard, *at, *len, &mut buffer)?;
                bytes += *len as u64;
            }
            Ok(bytes)
        };
        let failed = |error: std::io::Error| CheckpointError::Threads { threads: readers, why: error.to_string() };
        std::thread::scope(|scope| {
            let start = |_| {
                let (work, buffer) = (&work, AlignedBuffer::new(strip).map_err(failed)?);
                std::thread::Builder::new()
                    .name("read".into())
                    .spawn_scoped(scope, move || work(buffer))
                    .map_err(failed)
            };
            let threads = (0..readers).map(start).collect::<Result<Vec<_>, _>>()?;
            threads.into_iter().map(|thread| thread.join().expect("reading does not panic")).sum()
        })
    }

    /// The bytes at a place, in `buffer`, which must have room for them.
    ///
    /// # Errors
    /// [`CheckpointError::Read`] with what the system says, also of a shard that became shorter.
    pub fn read<'b>(&self, location: &Location, buffer: &'b mut AlignedBuffer) -> Result<&'b [u8], CheckpointError> {
        self.read_at(location.shard, location.start as u64, location.size(), buffer)
    }

    fn read_at<'b>(
        &self,
        shard: usize,
        at: u64,
        len: usize,
        buffer: &'b mut AlignedBuffer,
    ) -> Result<&'b [u8], CheckpointError> {
        let failed = |source| CheckpointError::Read { path: self.checkpoint.shards[shard].path.clone(), source };
        self.files[shard].read_at(at, len, buffer).map_err(failed)
    }
}
