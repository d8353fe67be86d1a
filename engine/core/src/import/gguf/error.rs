//! What can be wrong with a GGUF file.

use std::io;

use super::{ALIGNMENT_MAX, TensorType};

/// What is wrong with a GGUF file, and where.
#[derive(Debug, thiserror::Error)]
#[error("{place}, byte {offset}: {defect}")]
pub struct GgufError {
    /// The header, a metadata key or a tensor.
    pub place: String,
    /// Position in the file, in bytes.
    pub offset: u64,
    /// What is wrong there.
    pub defect: Defect,
}

/// A defect of a GGUF file.
#[derive(Debug, thiserror::Error)]
pub enum Defect {
    /// The first four bytes are not `GGUF`.
    #[error("begins with {found:02x?} instead of \"GGUF\": this is not a GGUF file")]
    Magic {
        /// The bytes found.
        found: [u8; 4],
    },
    /// A version that is not 2 or 3.
    #[error("GGUF version {version}; versions 2 and 3 can be read (convert the file again with a current converter)")]
    Version {
        /// The version found.
        version: u32,
    },
    /// A file for big-endian machines.
    #[error("the file is big-endian; only little-endian files can be read (convert it with gguf-convert-endian)")]
    BigEndian,
    /// Something reaches beyond the end.
    #[error("{what} needs {needed} bytes but only {left} are left; the file is cut short or damaged")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that are left.
        left: u64,
    },
    /// A number above its limit.
    #[error("{what} is {found}, more than the limit of {limit}; the file is damaged or hostile")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// The number in the file.
        found: u64,
        /// The largest one that is accepted.
        limit: u64,
    },
    /// Text that is not UTF-8.
    #[error("{what} is not UTF-8")]
    NotUtf8 {
        /// What was being read.
        what: &'static str,
    },
    /// A name with unprintable characters, or none at all.
    #[error("{what} is empty or has characters other than printable ASCII")]
    Name {
        /// A key or a tensor's name.
        what: &'static str,
    },
    /// A value type that the format does not have.
    #[error("{found} is no GGUF value type")]
    ValueType {
        /// The number in the file.
        found: u32,
    },
    /// An array of arrays.
    #[error("an array of arrays is not supported")]
    NestedArray,
    /// A bool that is neither 0 nor 1.
    #[error("a bool holds {found}")]
    Bool {
        /// The byte in the file.
        found: u8,
    },
    /// The same key or tensor twice.
    #[error("it is there twice")]
    Duplicate,
    /// A value of an unexpected type.
    #[error("it must be {wanted}, but is {found}")]
    WrongType {
        /// What is needed.
        wanted: &'static str,
        /// What the file has.
        found: &'static str,
    },
    /// `general.alignment` is no power of two.
    #[error("the alignment {found} is not a power of two between 8 and {ALIGNMENT_MAX}")]
    Alignment {
        /// The number in the file.
        found: u64,
    },
    /// A tensor type that cannot be expanded here.
    #[error("tensor type {found} ({name}) is not supported; supported are {}", TensorType::NAMES)]
    TensorType {
        /// The number in the file.
        found: u32,
        /// ggml's name for it, if known.
        name: &'static str,
    },
    /// A tensor with a shape that cannot be.
    #[error("shape {dims:?} is not possible for a {kind} tensor: {reason}")]
    Shape {
        /// Dimensions, the fastest first, as in the file.
        dims: Vec<u64>,
        /// ggml's name of the tensor type.
        kind: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// Data that does not begin at a multiple of the alignment.
    #[error("its data begins at {found}, which is not a multiple of the alignment {alignment}")]
    Unaligned {
        /// Offset in the data section.
        found: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// Two tensors share bytes.
    #[error("its data overlaps that of tensor `{other}`")]
    Overlap {
        /// The other tensor.
        other: String,
    },
    /// The file cannot be read.
    #[error("reading failed: {0}")]
    Io(io::Error),
}
