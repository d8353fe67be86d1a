//! The strict layer above the `safetensors` crate.
//!
//! The crate is laxer than the format's own rules: it takes a header that begins with spaces, duplicate keys (the last
//! one wins), any rank, any name, unaligned tensors. Each of those has been used to make two readers see two different
//! models in one file, so they are refused here; layout (holes, overlaps, overflow, size) is checked by the crate.

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
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Range<usize>,
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
    check_keys(header).map_err(|error| damaged(format!("its header is not valid: {error}")))?;
    let (_, metadata) = SafeTensors::read_metadata(file).map_err(|error| match error {
        SafeTensorError::MetadataIncompleteBuffer => {
            damaged(format!("its {} bytes are not what its header describes: it was cut short or changed", file.len()))
        }
        error => damaged(format!("its header is not valid: {error}")),
    })?;
    let data = 8 + size;
    let tensors = metadata.tensors();
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
            if info.shape.len() > RANK_MAX {
                return Err(damaged(format!("has {} dimensions; at most {RANK_MAX} are allowed", info.shape.len())));
            }
            if let Some(bad) = info.shape.iter().find(|size| !(1..=DIMENSION_MAX).contains(*size)) {
                return Err(damaged(format!("has a dimension of {bad}; allowed are 1 to {DIMENSION_MAX}")));
            }
            let dtype = match info.dtype {
                safetensors::Dtype::BF16 => Dtype::Bf16,
                safetensors::Dtype::F16 => Dtype::F16,
                safetensors::Dtype::F32 => Dtype::F32,
                other => return Err(damaged(format!("has type {other:?}; supported: BF16, F16, F32"))),
            };
            let (start, end) = info.data_offsets;
            let bytes = data + start..data + end;
            if bytes.start % dtype.size() != 0 {
                return Err(damaged(format!(
                    "begins at byte {}, not aligned to its type {}",
                    bytes.start,
                    dtype.name()
                )));
            }
            Ok((name, TensorInfo { dtype, shape: info.shape.clone(), bytes }))
        })
        .collect()
}

fn printable(name: &str) -> String {
    name.chars().take(NAME_BYTES_MAX).flat_map(char::escape_default).collect()
}

/// Refuses duplicate keys, which JSON parsers resolve silently and differently.
fn check_keys(header: &[u8]) -> Result<(), serde_json::Error> {
    struct UniqueKeys;
    impl<'de> Visitor<'de> for UniqueKeys {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an object with unique keys")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            let mut seen = HashSet::new();
            while let Some(key) = map.next_key::<String>()? {
                map.next_value::<IgnoredAny>()?;
                if let Some(twice) = seen.replace(key) {
                    return Err(serde::de::Error::custom(format!("key `{}` appears twice", printable(&twice))));
                }
            }
            Ok(())
        }
    }
    serde_json::Deserializer::from_slice(header).deserialize_map(UniqueKeys)
}
