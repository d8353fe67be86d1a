//! Files mapped for reading: the one place of this package where memory is not Rust's own.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};

/// A file of weights, mapped read-only and shared with the page cache.
pub struct MappedFile(Mmap);

impl MappedFile {
    /// Maps `path`, which must be a regular file. An empty file maps to no bytes.
    ///
    /// # Errors
    /// Those of opening and mapping; `InvalidInput` if it is not a regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Asked before the file is opened: opening a pipe waits for somebody to write.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let file = File::open(path)?;
        // SAFETY: the map is private to this process and read-only; weights are not changed while a model is open, which
        // is the contract of a model folder. A file that is cut short meanwhile ends the process with SIGBUS.
        Ok(Self(unsafe { Mmap::map(&file)? }))
    }

    /// Bytes without a file.
    #[cfg(test)]
    pub(super) fn anonymous(bytes: &[u8]) -> Self {
        let mut map = memmap2::MmapMut::map_anon(bytes.len()).unwrap();
        map.copy_from_slice(bytes);
        Self(map.make_read_only().unwrap())
    }

    /// Takes the file's pages out of this process; those that are read again come back from the page cache. Without it a
    /// file that was read once counts as this process's memory, beside the copy that was made of it.
    ///
    /// # Errors
    /// What the system says; nothing is lost by it.
    pub fn release(&self) -> io::Result<()> {
        // SAFETY: the map is of a file, shared and read-only: pages that are dropped come back with the same bytes.
        unsafe { self.0.unchecked_advise(UncheckedAdvice::DontNeed) }
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}
