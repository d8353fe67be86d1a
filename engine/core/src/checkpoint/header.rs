//! The strict layer above the `safetensors` crate.
//!
//! The crate is laxer than the format's own rules: it takes a header that begins with spaces, duplicate keys (the last
//! one wins), any rank, any name, unaligned tensors. Each of those has been used to make two readers see two different
//! models in one file, so they are refused here. Holes, overlaps and sizes are checked by the crate, once it is certain
//! that every tensor ends within the file: it adds these numbers without asking whether the sum fits 64 bits.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::{SafeTensorError, SafeTensors};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use simd::Dtype;

use super::CheckpointError;

/// Where a tensor lies in its shard.
pub(super) struct TensorInfo {
    pub(super) element: Element,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Range<usize>,
}

/// What a shard calls the type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    Number(Dtype),
    /// Bytes that stand for something else.
    U8,
}

impl Element {
    pub(super) fn size(self) -> usize {
        match self {
            Self::Number(dtype) => dtype.size(),
            Self::U8 => 1,
        }
    }
}

const HEADER_BYTES_MAX: usize = 100_000_000;
const TENSORS_MAX: usize = 1_000_000;
const RANK_MAX: usize = 8;
const DIMENSION_MAX: usize = 1 << 40;
const NAME_BYTES_MAX: usize = 256;

/// Reads and checks the header of the shard `file`, mapped from `path`.
pub(super) fn read(path: &Path, file: &[u8]) -> Result<Vec<(String, TensorInfo)>, CheckpointError> {
    let damaged = |why: String| CheckpointError::Header { path: path.into(), why };
    let size = file.first_chunk::<8>().map(|size| u64::from_le_bytes(*size));
    let Some(size) = size.and_then(|size| usize::try_from(size).ok()) else {
        return Err(damaged(format!("it has {} bytes, too few for a safetensors header", file.len())));
    };
    if size > HEADER_BYTES_MAX {
        return Err(damaged(format!("its header claims {size} bytes; at most {HEADER_BYTES_MAX} are allowed")));
    }
    let Some(header) = file.get(8..8 + size) else {
        return Err(damaged(format!("its header claims {size} bytes, but the file has {}", file.len())));
    };
    if header.first() != Some(&b'{') {
        return Err(damaged("its header does not begin with `{`".into()));
    }
    let data = 8 + size;
    let invalid = |error: String| damaged(format!("its header is not valid: {}", printable(&error)));
    let entries = entries(header).map_err(|error| invalid(error.to_string()))?;
    if let Some((name, why)) = check_extents(&entries, file.len() - data) {
        return Err(CheckpointError::Tensor { path: path.into(), tensor: printable(name), why });
    }
    let (_, metadata) = SafeTensors::read_metadata(file).map_err(|error| match error {
        SafeTensorError::MetadataIncompleteBuffer => {
            damaged(format!("its {} bytes are more than its header describes", file.len()))
        }
        error => invalid(error.to_string()),
    })?;
    let mut tensors: Vec<_> = metadata.tensors().into_iter().collect();
    // In the order of the data: the same damage is always reported by the same name.
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    if tensors.len() > TENSORS_MAX {
        return Err(damaged(format!("it holds {} tensors; at most {TENSORS_MAX} are allowed", tensors.len())));
    }
    tensors
        .into_iter()
        .map(|(name, info)| {
            let damaged = |why: String| CheckpointError::Tensor { path: path.into(), tensor: printable(&name), why };
            if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(damaged(format!(
                    "has a name that is not 1 to {NAME_BYTES_MAX} printable ASCII characters"
                )));
            }
            if let Some(bad) = info.shape.iter().find(|size| !(1..=DIMENSION_MAX).contains(*size)) {
                return Err(damaged(format!("has a dimension of {bad}; allowed are 1 to {DIMENSION_MAX}")));
            }
            let element = match info.dtype {
                safetensors::Dtype::BF16 => Element::Number(Dtype::Bf16),
                safetensors::Dtype::F16 => Element::Number(Dtype::F16),
                safetensors::Dtype::F32 => Element::Number(Dtype::F32),
                safetensors::Dtype::U8 => Element::U8,
                other => {
                    return Err(damaged(format!("has type {other:?}; supported: BF16, F16, F32, and U8 for MXFP4")));
                }
            };
            let (start, end) = info.data_offsets;
            let bytes = data + start..data + end;
            if bytes.start % element.size() != 0 {
                return Err(damaged(format!(
                    "begins at byte {}, not aligned to its type {:?}",
                    bytes.start, info.dtype
                )));
            }
            Ok((name, TensorInfo { element, shape: info.shape.clone(), bytes }))
        })
        .collect()
}

/// A name, or words about one, as an error may show them: short, and without characters that act on a terminal.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars().take(NAME_BYTES_MAX) {
        match c {
            ' '..='~' => shown.push(c),
            c => shown.extend(c.escape_default()),
        }
    }
    shown
}

/// The names and entries of a header. Refuses duplicate keys, which JSON parsers resolve silently and differently.
fn entries(header: &[u8]) -> Result<Vec<(String, safetensors::tensor::TensorInfo)>, serde_json::Error> {
    struct UniqueKeys;
    impl<'de> Visitor<'de> for UniqueKeys {
        type Value = Vec<(String, safetensors::tensor::TensorInfo)>;
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an object with unique keys")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut seen = HashSet::new();
            let mut entries = Vec::new();
            while let Some(key) = map.next_key::<String>()? {
                if key == "__metadata__" {
                    map.next_value::<IgnoredAny>()?;
                } else {
                    entries.push((key.clone(), map.next_value()?));
                }
                if let Some(twice) = seen.replace(key) {
                    return Err(serde::de::Error::custom(format!("key `{}` appears twice", printable(&twice))));
                }
            }
            Ok(entries)
        }
    }
    serde_json::Deserializer::from_slice(header).deserialize_map(UniqueKeys)
}

/// The first tensor, in the order of the data, whose shape or place cannot be true, and why.
fn check_extents(entries: &[(String, safetensors::tensor::TensorInfo)], data_bytes: usize) -> Option<(&str, String)> {
    let wrong = |info: &safetensors::tensor::TensorInfo| {
        let (start, end) = info.data_offsets;
        if info.shape.len() > RANK_MAX {
            return Some(format!("has {} dimensions; at most {RANK_MAX} are allowed", info.shape.len()));
        }
        if end > data_bytes {
            let why = "it was cut short or changed";
            return Some(format!("should end {end} bytes after the header, but the file has only {data_bytes}: {why}"));
        }
        let values = info.shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
        let bits = values.and_then(|values| values.checked_mul(info.dtype.bitsize()));
        match end.checked_sub(start) {
            Some(bytes) if bytes.checked_mul(8) == bits => None,
            _ => Some(format!(
                "has shape {:?} and type {:?}, which do not take the bytes {start} to {end}",
                info.shape, info.dtype
            )),
        }
    };
    let wrong = entries.iter().filter_map(|(name, info)| Some((info.data_offsets, name, wrong(info)?)));
    wrong.min_by_key(|(offsets, ..)| *offsets).map(|(_, name, why)| (name.as_str(), why))
}
