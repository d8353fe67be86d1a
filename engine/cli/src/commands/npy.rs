//! NumPy's .npy files, version 1.0: a magic number, a header padded to 64 bytes, then little-endian values.

use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::Path;

/// Type of the values.
pub(super) enum Kind {
    Float32,
    Int32,
}

/// Begins a file of an array with this shape; the values follow by [`Write`].
pub(super) fn create(path: &Path, kind: Kind, shape: &[usize]) -> Result<BufWriter<File>> {
    let mut file = BufWriter::new(File::create(path)?);
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
    file.write_all(b"\x93NUMPY\x01\x00")?;
    file.write_all(&(header.len() as u16).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    Ok(file)
}
