//! What a shard says about matrices that it holds as panels.
//!
//! Byte by byte the format stands in docs/packed-checkpoint.md. In short: the tensor is `U8` under its published name, and
//! an entry of `__metadata__` says what the bytes are. Nothing of it is believed that can be counted: an entry gives
//! layout, type, shape and patches, from which follows how many bytes there must be.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use simd::Dtype;
use simd::matmul::{Matrix, packed};

/// Key of the format's version; a shard without it has no panels.
pub(crate) const VERSION_KEY: &str = "nightmonk.panels";
/// The only version so far.
pub(crate) const VERSION: &str = "1";
/// Key of the digest of what the shard was made from.
pub(crate) const SOURCE_KEY: &str = "nightmonk.source";
/// A tensor's entry has this before its name.
pub(crate) const TENSOR_PREFIX: &str = "panels:";
/// Kernels load whole lines: every tensor of panels begins at a multiple of this, in bytes of the file.
pub(crate) const ALIGNMENT: usize = 64;

const DIMENSION_MAX: usize = 1 << 40;

/// How the numbers of a tensor lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Row after row, as published.
    RowMajor,
    /// As [`Matrix::panels`] reads them.
    Panels,
    /// BF16 in 12 bits, as [`Matrix::packed`] reads them.
    Packed {
        /// Weights that are kept whole.
        patches: usize,
    },
}

/// What is known of a tensor without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorForm {
    /// Type of its numbers.
    pub dtype: Dtype,
    /// How they lie.
    pub layout: Layout,
}

impl From<Dtype> for TensorForm {
    /// The published form.
    fn from(dtype: Dtype) -> Self {
        Self { dtype, layout: Layout::RowMajor }
    }
}

impl TensorForm {
    /// Bytes of a matrix in this form; `None` if it has no such form, or more bytes than an address can say.
    pub fn bytes(&self, shape @ [rows, cols]: [usize; 2]) -> Option<usize> {
        match self.layout {
            Layout::RowMajor => rows.checked_mul(cols)?.checked_mul(self.dtype.size()),
            Layout::Panels => Matrix::panel_bytes(self.dtype, shape),
            Layout::Packed { .. } if self.dtype != Dtype::Bf16 => None,
            Layout::Packed { patches } => packed::matrix_bytes(shape, patches),
        }
    }
}

/// An entry: `panels BF16 2048x768`, or `packed BF16 2048x768 93`, where 93 is the number of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) form: TensorForm,
    pub(crate) shape: [usize; 2],
}

impl Entry {
    /// Bytes of the matrix, and of the tensor, which ends at a multiple of [`ALIGNMENT`].
    pub(crate) fn bytes(&self) -> Option<(usize, usize)> {
        let bytes = self.form.bytes(self.shape)?;
        Some((bytes, bytes.checked_next_multiple_of(ALIGNMENT)?))
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { form: TensorForm { dtype, layout }, shape: [rows, cols] } = self;
        let dtype = dtype.name().to_ascii_uppercase();
        match layout {
            Layout::RowMajor => unreachable!("a tensor as published has no entry"),
            Layout::Panels => write!(f, "panels {dtype} {rows}x{cols}"),
            Layout::Packed { patches } => write!(f, "packed {dtype} {rows}x{cols} {patches}"),
        }
    }
}

impl FromStr for Entry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text)
            // One spelling for each entry: neither signs nor leading zeros nor a second space.
            .filter(|entry| entry.to_string() == text)
            .ok_or_else(|| format!("is described as `{}`; known are `panels TYPE ROWSxCOLS` and `packed BF16 ROWSxCOLS PATCHES`, perhaps of a later version", super::header::printable(text)))
    }
}

impl Entry {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (layout, dtype, shape) = (words.next()?, words.next()?, words.next()?);
        let dtype = match dtype {
            "BF16" => Dtype::Bf16,
            "F16" => Dtype::F16,
            "F32" => Dtype::F32,
            _ => return None,
        };
        let (rows, cols) = shape.split_once('x')?;
        let shape = [rows.parse().ok()?, cols.parse().ok()?];
        if shape.iter().any(|size| !(1..=DIMENSION_MAX).contains(size)) {
            return None;
        }
        let layout = match (layout, words.next()) {
            ("panels", None) => Layout::Panels,
            ("packed", Some(patches)) if dtype == Dtype::Bf16 => Layout::Packed { patches: patches.parse().ok()? },
            _ => return None,
        };
        words.next().is_none().then_some(Self { form: TensorForm { dtype, layout }, shape })
    }
}

/// What `__metadata__` says of panels.
#[derive(Default)]
pub(crate) struct Described {
    /// Digest of the source; empty in a published shard.
    pub(crate) source: String,
    /// Entries by the names of tensors.
    pub(crate) tensors: BTreeMap<String, Entry>,
}

impl Described {
    /// Reads `__metadata__`. A shard that does not speak of panels describes none.
    ///
    /// # Errors
    /// The tensor, where one can be named, and what is wrong.
    pub(crate) fn read(metadata: Vec<(String, String)>) -> Result<Self, (Option<String>, String)> {
        let mut described = Self::default();
        let Some((_, version)) = metadata.iter().find(|(key, _)| key == VERSION_KEY) else { return Ok(described) };
        if version != VERSION {
            let version = super::header::printable(version);
            return Err((None, format!("its panels are of version `{version}`; this program reads version {VERSION}")));
        }
        for (key, value) in metadata {
            if key == SOURCE_KEY {
                described.source = value;
            } else if let Some(name) = key.strip_prefix(TENSOR_PREFIX) {
                let entry = value.parse().map_err(|why| (Some(name.to_owned()), why))?;
                described.tensors.insert(name.to_owned(), entry);
            } else if key != VERSION_KEY && key != "format" {
                return Err((None, format!("`__metadata__` has the unknown key `{}`", super::header::printable(&key))));
            }
        }
        if described.source.len() != 64
            || !described.source.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err((None, format!("`{SOURCE_KEY}` is not 64 hexadecimal digits")));
        }
        Ok(described)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_one_spelling() {
        for text in [
            "panels BF16 1x1",
            "panels F32 7x9",
            "panels F16 1099511627776x1",
            "packed BF16 16x8 0",
            "packed BF16 3x8 12",
        ] {
            assert_eq!(text.parse::<Entry>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "panels",
            "panels BF16",
            "panels BF16 1",
            "panels BF16 1x",
            "panels BF16 0x1",
            "panels BF16 1x0",
            "panels BF16 01x1",
            "panels BF16 +1x1",
            "panels bf16 1x1",
            "panels BF16 1x1 0",
            "panels BF16 1x1 ",
            " panels BF16 1x1",
            "panels  BF16 1x1",
            "panels BF16 1x1x1",
            "panels BF16 1099511627777x1",
            "packed BF16 8x8",
            "packed BF16 8x8 -1",
            "packed BF16 8x8 1 1",
            "packed F16 8x8 1",
            "packed BF16 8x8 18446744073709551616",
            "panels-mxfp4 32x32",
            "Panels BF16 1x1",
        ] {
            assert!(text.parse::<Entry>().is_err(), "{text}");
        }
    }
}
