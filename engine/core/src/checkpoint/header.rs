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
use serde::de::{Deserializer, MapAccess, Visitor};
use simd::Dtype;

use super::CheckpointError;
use super::panels::{ALIGNMENT, Described, Entry, Layout, TensorForm};

/// Where a tensor lies in its shard, and how.
pub(crate) struct TensorInfo {
    pub(crate) element: Element,
    pub(crate) layout: Layout,
    /// Of the numbers, however they lie.
    pub(crate) shape: Vec<usize>,
    /// Without what fills up the last line of panels.
    pub(crate) bytes: Range<usize>,
}

/// The tensors of a shard in the order of their data, and what its panels were made from.
pub(crate) struct Header {
    pub(crate) tensors: Vec<(String, TensorInfo)>,
    /// Digest of the source; empty in a published shard.
    pub(crate) source: String,
}

/// What a shard calls the type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    Number(Dtype),
    /// Bytes that stand for something else.
    U8,
}

impl Element {
    pub(crate) fn size(self) -> usize {
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
pub(crate) fn read(path: &Path, file: &[u8]) -> Result<Header, CheckpointError> {
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
    let (entries, metadata) = entries(header).map_err(|error| invalid(error.to_string()))?;
    let of_tensor = |name: &str, why| CheckpointError::Tensor { path: path.into(), tensor: printable(name), why };
    let Described { source, tensors: mut panels } =
        Described::read(metadata).map_err(|(tensor, why)| match tensor {
            Some(tensor) => of_tensor(&tensor, why),
            None => damaged(why),
        })?;
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
    let tensors = tensors
        .into_iter()
        .map(|(name, info)| {
            let damaged = |why: String| of_tensor(&name, why);
            if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(damaged(format!(
                    "has a name that is not 1 to {NAME_BYTES_MAX} printable ASCII characters"
                )));
            }
            if let Some(bad) = info.shape.iter().find(|size| !(1..=DIMENSION_MAX).contains(*size)) {
                return Err(damaged(format!("has a dimension of {bad}; allowed are 1 to {DIMENSION_MAX}")));
            }
            let (start, end) = info.data_offsets;
            let bytes = data + start..data + end;
            if let Some(entry) = panels.remove(&name) {
                let bytes = check_panels(&entry, &info.shape, info.dtype, bytes).map_err(damaged)?;
                let TensorForm { dtype, layout } = entry.form;
                let element = Element::Number(dtype);
                return Ok((name, TensorInfo { element, layout, shape: entry.shape.to_vec(), bytes }));
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
            if bytes.start % element.size() != 0 {
                return Err(damaged(format!(
                    "begins at byte {}, not aligned to its type {:?}",
                    bytes.start, info.dtype
                )));
            }
            Ok((name, TensorInfo { element, layout: Layout::RowMajor, shape: info.shape.clone(), bytes }))
        })
        .collect::<Result<_, _>>()?;
    match panels.pop_first() {
        None => Ok(Header { tensors, source }),
        Some((name, _)) => Err(of_tensor(&name, "is described as panels, but is not there".into())),
    }
}

/// The bytes of a matrix in panels, if the tensor that holds them is what its entry says.
fn check_panels(
    entry: &Entry,
    shape: &[usize],
    dtype: safetensors::Dtype,
    bytes: Range<usize>,
) -> Result<Range<usize>, String> {
    let want = entry.bytes();
    let whole = want.map(|(_, whole)| whole);
    if dtype != safetensors::Dtype::U8 || shape.len() != 1 || shape.first().copied() != whole {
        let want = whole.map_or("no bytes can hold that".to_owned(), |whole| format!("that is U8 [{whole}]"));
        return Err(format!("is described as `{entry}` but has type {dtype:?} and shape {shape:?}; {want}"));
    }
    if !bytes.start.is_multiple_of(ALIGNMENT) {
        return Err(format!("begins at byte {}, but panels begin at a multiple of {ALIGNMENT}", bytes.start));
    }
    Ok(bytes.start..bytes.start + want.map_or(0, |(bytes, _)| bytes))
}

/// A name, or words about one, as an error may show them: short, and without characters that act on a terminal.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars().take(NAME_BYTES_MAX) {
        match c {
            ' '..='~' => shown.push(c),
            c => shown.extend(c.escape_default()),
        }
    }
    shown
}

type Entries = Vec<(String, safetensors::tensor::TensorInfo)>;
type Strings = Vec<(String, String)>;

/// The names and entries of a header, and its `__metadata__`. Refuses duplicate keys, which JSON parsers resolve silently
/// and differently.
fn entries(header: &[u8]) -> Result<(Entries, Strings), serde_json::Error> {
    struct Whole;
    impl<'de> Visitor<'de> for Whole {
        type Value = (Entries, Strings);
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an object with unique keys")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut seen = HashSet::new();
            let (mut entries, mut metadata) = (Entries::new(), Strings::new());
            while let Some(key) = map.next_key::<String>()? {
                if key == "__metadata__" {
                    metadata =
                        map.next_value::<Option<Metadata>>()?.map_or(Strings::new(), |Metadata(strings)| strings);
                } else {
                    entries.push((key.clone(), map.next_value()?));
                }
                refuse_twice(&mut seen, key)?;
            }
            Ok((entries, metadata))
        }
    }
    serde_json::Deserializer::from_slice(header).deserialize_map(Whole)
}

struct Metadata(Strings);

impl<'de> serde::Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UniqueStrings;
        impl<'de> Visitor<'de> for UniqueStrings {
            type Value = Strings;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of strings with unique keys")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strings, A::Error> {
                let mut seen = HashSet::new();
                let mut strings = Strings::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    strings.push((key.clone(), value));
                    refuse_twice(&mut seen, key)?;
                }
                Ok(strings)
            }
        }
        deserializer.deserialize_map(UniqueStrings).map(Self)
    }
}

fn refuse_twice<E: serde::de::Error>(seen: &mut HashSet<String>, key: String) -> Result<(), E> {
    match seen.replace(key) {
        None => Ok(()),
        Some(twice) => Err(E::custom(format!("key `{}` appears twice", printable(&twice)))),
    }
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
