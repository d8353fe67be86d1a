//! A strict reader of GGUF headers (versions 2 and 3, little-endian).
//!
//! A model file comes from a stranger, and readers of this format have been attacked through every
//! number in it. So nothing here believes a length before it was compared with the bytes that are
//! left, memory grows only with bytes that were really read, and a tensor exists for the callers
//! only when its whole data lies inside the file and overlaps no other. The header is read through
//! [`ReadAt`] in small pieces: a file of 100 GB costs the size of its header.
//!
//! Format: `docs/gguf.md` of ggml-org/ggml.

mod error;
mod header;
mod metadata;

use std::io;

pub use error::{Defect, GgufError};
pub use metadata::{Metadata, Strings};

/// Something with a length that can be read at any position, by several threads at a time.
pub trait ReadAt: Sync {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether there is not a single byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buffer` from `offset` on, or fails.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for &[u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let source = start.checked_add(buffer.len()).and_then(|end| self.get(start..end));
        buffer.copy_from_slice(source.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// The largest alignment of tensor data, in bytes.
const ALIGNMENT_MAX: u64 = 1 << 30;

/// A GGUF file's header, checked.
#[derive(Clone, Debug)]
pub struct Gguf {
    /// Version of the format: 2 or 3.
    pub version: u32,
    /// Keys and values.
    pub metadata: Metadata,
    /// Tensors in the order of the file.
    pub tensors: Vec<TensorInfo>,
}

impl Gguf {
    /// Reads the header of `file` and checks that every tensor lies inside.
    ///
    /// # Errors
    /// [`GgufError`] says where the file is damaged, or what about it is not supported.
    pub fn read(file: &dyn ReadAt) -> Result<Self, GgufError> {
        header::read(file)
    }
}

/// Types of tensor data that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the variants are ggml's names")]
pub enum TensorType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q8_0,
    Q4K,
    Q6K,
}

impl TensorType {
    const NAMES: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K";

    fn from_id(id: u32) -> Result<Self, Defect> {
        // The names of the others make the refusal useful; numbers without a name are free or retired.
        const OTHERS: &[(u32, &str)] = &[
            (6, "Q5_0"),
            (7, "Q5_1"),
            (9, "Q8_1"),
            (10, "Q2_K"),
            (11, "Q3_K"),
            (13, "Q5_K"),
            (15, "Q8_K"),
            (16, "IQ2_XXS"),
            (17, "IQ2_XS"),
            (18, "IQ3_XXS"),
            (19, "IQ1_S"),
            (20, "IQ4_NL"),
            (21, "IQ3_S"),
            (22, "IQ2_S"),
            (23, "IQ4_XS"),
            (24, "I8"),
            (25, "I16"),
            (26, "I32"),
            (27, "I64"),
            (28, "F64"),
            (29, "IQ1_M"),
            (34, "TQ1_0"),
            (35, "TQ2_0"),
            (39, "MXFP4"),
        ];
        Ok(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            14 => Self::Q6K,
            30 => Self::BF16,
            _ => {
                let name = OTHERS.iter().find(|(other, _)| *other == id).map_or("unknown", |(_, name)| name);
                return Err(Defect::TensorType { found: id, name });
            }
        })
    }

    /// ggml's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Values in a block; 1 where there are no blocks.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q6K => 210,
        }
    }

    /// Whether values were rounded to blocks when the file was made.
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }
}

/// A tensor whose data lies inside the file.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Name in the file.
    pub name: String,
    /// How its data is stored.
    pub kind: TensorType,
    /// Dimensions, the fastest first: a matrix is `[in_features, out_features]`.
    pub dims: Vec<u64>,
    /// Where its data begins, from the beginning of the file, in bytes.
    pub offset: u64,
    /// Length of its data in bytes.
    pub bytes: u64,
}

impl TensorInfo {
    /// Number of values.
    pub fn len(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Never: an empty tensor is refused when the header is read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
