//! NumPy's .npy files, version 1.0: a magic number, a header padded to 64 bytes, then little-endian values.

use std::io::{Result, Write};
use std::path::Path;

use engine_core::whole_file::WholeFile;

/// Type of the values.
pub(super) enum Kind {
    Float32,
    Int32,
}

/// An array whose values go to the disk as they come; its name is there when all of them are.
pub(super) struct Array {
    file: WholeFile,
    header_bytes: u64,
    /// Bytes on their way.
    buffer: Vec<u8>,
}

impl Array {
    /// Begins a file of an array with this shape.
    pub(super) fn create(path: &Path, kind: Kind, shape: &[usize]) -> Result<Self> {
        let kind = match kind {
            Kind::Float32 => "<f4",
            Kind::Int32 => "<i4",
        };
        let sizes: String = shape.iter().map(|size| format!("{size}, ")).collect();
        let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({}), }}", sizes.trim_end());
        const BEFORE: usize = 10;
        while !(BEFORE + header.len() + 1).is_multiple_of(64) {
            header.push(' ');
        }
        header.push('\n');
        let mut file = WholeFile::create(path)?;
        file.write_all(b"\x93NUMPY\x01\x00")?;
        file.write_all(&(header.len() as u16).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        Ok(Self { file, header_bytes: (BEFORE + header.len()) as u64, buffer: Vec::new() })
    }

    /// The next values.
    pub(super) fn push(&mut self, values: impl Iterator<Item = [u8; 4]>) -> Result<()> {
        self.buffer.clear();
        self.buffer.extend(values.flatten());
        self.file.write_all(&self.buffer)
    }

    /// Values from index `first` of the flat array on.
    pub(super) fn put(&mut self, first: u64, values: impl Iterator<Item = [u8; 4]>) -> Result<()> {
        self.buffer.clear();
        self.buffer.extend(values.flatten());
        self.file.write_at(&self.buffer, self.header_bytes + 4 * first)
    }

    /// All values are there.
    pub(super) fn finish(self) -> Result<()> {
        self.file.finish()
    }
}
