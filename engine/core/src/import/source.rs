//! The GGUF file on disk, read at positions: it is never in memory as a whole.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use super::gguf::ReadAt;
use super::{ImportError, ImportProgress, Stage};

const HASH_BUFFER_BYTES: usize = 1 << 20;

/// The GGUF file, open, with the length and times that it had at the beginning.
pub(super) struct SourceFile<'a> {
    pub(super) path: &'a Path,
    file: File,
    state: [i64; 5],
    len: u64,
}

impl<'a> SourceFile<'a> {
    pub(super) fn open(path: &'a Path) -> Result<Self, ImportError> {
        let failed = |error| ImportError::io("cannot be opened", path)(error);
        // Opening a pipe would wait for a writer.
        if !fs::metadata(path).map_err(failed)?.is_file() {
            return Err(failed(io::Error::other("not a file")));
        }
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        Ok(Self { path, file, state: state(&metadata), len: metadata.len() })
    }

    /// BLAKE3 of all bytes.
    pub(super) fn digest(&self, progress: &mut dyn FnMut(ImportProgress<'_>)) -> Result<String, ImportError> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; HASH_BUFFER_BYTES];
        let mut done_bytes = 0;
        while done_bytes < self.len {
            let len = buffer.len().min((self.len - done_bytes) as usize);
            let piece = &mut buffer[..len];
            self.read_exact_at(piece, done_bytes).map_err(ImportError::io("cannot be read", self.path))?;
            hasher.update(piece);
            done_bytes += len as u64;
            progress(ImportProgress { stage: Stage::Digest, done_bytes, total_bytes: self.len, tensor: "" });
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    pub(super) fn check_unchanged(&self) -> Result<(), ImportError> {
        let metadata = self.file.metadata().map_err(ImportError::io("cannot be looked at", self.path))?;
        if state(&metadata) == self.state {
            Ok(())
        } else {
            Err(ImportError::SourceChanged { path: self.path.to_owned() })
        }
    }
}

impl ReadAt for SourceFile<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(&self.file, buffer, offset)
    }
}

fn state(metadata: &fs::Metadata) -> [i64; 5] {
    let len = metadata.size().cast_signed();
    [len, metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()]
}
