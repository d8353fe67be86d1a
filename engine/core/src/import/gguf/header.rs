//! Reading a header: the one place where numbers of the file decide how far to go on.

use std::collections::BTreeSet;

use super::error::{Defect, GgufError};
use super::metadata::{Metadata, Number, Scalar, Strings, Value};
use super::{ALIGNMENT_MAX, Gguf, ReadAt, TensorInfo, TensorType};

/// The largest header that is read: beyond it a file is more likely hostile than large.
const HEADER_BYTES_MAX: u64 = 1 << 30;
const KEYS_MAX: u64 = 1 << 16;
const KEY_BYTES_MAX: u64 = u16::MAX as u64;
const TENSORS_MAX: u64 = 1_000_000;
const TENSOR_NAME_BYTES_MAX: u64 = 256;
const DIMS_MAX: u32 = 4;
const DIM_MAX: u64 = 1 << 40;
const ALIGNMENT_DEFAULT: u64 = 32;
const BUFFER_BYTES: usize = 64 << 10;

/// Metadata value types by number.
const STRING: u32 = 8;
const ARRAY: u32 = 9;

fn number_of_type(id: u32) -> Result<Number, Defect> {
    Ok(match id {
        0 => Number::U8,
        1 => Number::I8,
        2 => Number::U16,
        3 => Number::I16,
        4 => Number::U32,
        5 => Number::I32,
        6 => Number::F32,
        7 => Number::Bool,
        10 => Number::U64,
        11 => Number::I64,
        12 => Number::F64,
        _ => return Err(Defect::ValueType { found: id }),
    })
}

pub(super) fn read(file: &dyn ReadAt) -> Result<Gguf, GgufError> {
    let mut cursor = Cursor::new(file);
    let (version, tensors, keys) = cursor.preamble()?;
    let metadata = cursor.metadata(keys)?;
    let alignment = alignment(&metadata)?;
    let entries = cursor.tensor_entries(tensors)?;
    let data_start = cursor.position.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    let tensors = place(entries, data_start, alignment, file.len())?;
    Ok(Gguf { version, metadata, tensors })
}

fn alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    let found = metadata.count("general.alignment")?.unwrap_or(ALIGNMENT_DEFAULT);
    if !found.is_power_of_two() || !(8..=ALIGNMENT_MAX).contains(&found) {
        let place = "metadata key `general.alignment`".to_owned();
        return Err(GgufError { place, offset: 0, defect: Defect::Alignment { found } });
    }
    Ok(found)
}

/// A tensor's entry as read: `tensor.offset` still counts from the data section.
struct Entry {
    tensor: TensorInfo,
    at: u64,
}

/// Turns offsets into positions in the file, after checking that every tensor has its bytes for itself.
fn place(
    mut entries: Vec<Entry>,
    data_start: u64,
    alignment: u64,
    file_len: u64,
) -> Result<Vec<TensorInfo>, GgufError> {
    let fail = |entry: &Entry, defect| {
        Err(GgufError { place: format!("tensor `{}`", entry.tensor.name), offset: entry.at, defect })
    };
    for entry in &mut entries {
        let tensor = &mut entry.tensor;
        if tensor.offset % alignment != 0 {
            let found = tensor.offset;
            return fail(entry, Defect::Unaligned { found, alignment });
        }
        let start = data_start.checked_add(tensor.offset).filter(|start| *start <= file_len);
        let left = start.map_or(0, |start| file_len - start);
        let Some(start) = start.filter(|_| tensor.bytes <= left) else {
            let needed = tensor.bytes;
            return fail(entry, Defect::Truncated { what: "its data", needed, left });
        };
        tensor.offset = start;
    }
    let mut order: Vec<&Entry> = entries.iter().collect();
    order.sort_by_key(|entry| entry.tensor.offset);
    for pair in order.windows(2) {
        let (first, second) = (&pair[0].tensor, &pair[1].tensor);
        if first.offset + first.bytes > second.offset {
            return fail(pair[1], Defect::Overlap { other: first.name.clone() });
        }
    }
    Ok(entries.into_iter().map(|entry| entry.tensor).collect())
}

/// Bytes of a tensor's data; an error when its shape is not possible.
fn data_bytes(dims: &[u64], kind: TensorType) -> Result<u64, Defect> {
    let fail = |reason| Err(Defect::Shape { dims: dims.to_vec(), kind: kind.name(), reason });
    if dims.contains(&0) {
        return fail("a dimension is zero");
    }
    if dims.iter().any(|dim| *dim > DIM_MAX) {
        return fail("a dimension is above 2^40");
    }
    let block_len = kind.block_len() as u64;
    if !dims[0].is_multiple_of(block_len) {
        return fail("the first dimension is not a multiple of the block length");
    }
    let values = dims.iter().try_fold(1_u64, |product, dim| product.checked_mul(*dim));
    match values.and_then(|values| (values / block_len).checked_mul(kind.block_bytes() as u64)) {
        Some(bytes) => Ok(bytes),
        None => fail("its size overflows 64 bits"),
    }
}

/// A position in the header, and a name for it.
struct Cursor<'a> {
    file: &'a dyn ReadAt,
    position: u64,
    /// End of what may be the header.
    end: u64,
    place: String,
    buffer: Vec<u8>,
    buffer_start: u64,
}

impl<'a> Cursor<'a> {
    fn new(file: &'a dyn ReadAt) -> Self {
        let end = file.len().min(HEADER_BYTES_MAX);
        Self { file, position: 0, end, place: "header".to_owned(), buffer: Vec::new(), buffer_start: 0 }
    }

    fn fail<T>(&self, defect: Defect) -> Result<T, GgufError> {
        Err(GgufError { place: self.place.clone(), offset: self.position, defect })
    }

    fn at<T>(&self, result: Result<T, Defect>) -> Result<T, GgufError> {
        result.or_else(|defect| self.fail(defect))
    }

    fn left(&self) -> u64 {
        self.end - self.position
    }

    fn need(&self, what: &'static str, needed: u64) -> Result<(), GgufError> {
        let left = self.left();
        if needed <= left {
            Ok(())
        } else if self.end < self.file.len() {
            self.fail(Defect::Limit {
                what: "the header's length",
                found: self.position.saturating_add(needed),
                limit: self.end,
            })
        } else {
            self.fail(Defect::Truncated { what, needed, left })
        }
    }

    fn fill(&mut self, what: &'static str, target: &mut [u8]) -> Result<(), GgufError> {
        self.need(what, target.len() as u64)?;
        if target.len() >= BUFFER_BYTES {
            if let Err(error) = self.file.read_exact_at(target, self.position) {
                return self.fail(Defect::Io(error));
            }
        } else {
            let inside = self.position - self.buffer_start;
            if inside + target.len() as u64 > self.buffer.len() as u64 || self.position < self.buffer_start {
                let len = self.left().min(BUFFER_BYTES as u64) as usize;
                self.buffer.resize(len, 0);
                if let Err(error) = self.file.read_exact_at(&mut self.buffer, self.position) {
                    return self.fail(Defect::Io(error));
                }
                self.buffer_start = self.position;
            }
            let start = (self.position - self.buffer_start) as usize;
            target.copy_from_slice(&self.buffer[start..][..target.len()]);
        }
        self.position += target.len() as u64;
        Ok(())
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        let mut bytes = [0; 4];
        self.fill(what, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        let mut bytes = [0; 8];
        self.fill(what, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn limited(&self, what: &'static str, found: u64, limit: u64) -> Result<u64, GgufError> {
        if found <= limit { Ok(found) } else { self.fail(Defect::Limit { what, found, limit }) }
    }

    /// `len` bytes; allocated only after the file was seen to have them.
    fn bytes(&mut self, what: &'static str, len: u64) -> Result<Vec<u8>, GgufError> {
        self.need(what, len)?;
        let mut bytes = vec![0; len as usize];
        self.fill(what, &mut bytes)?;
        Ok(bytes)
    }

    fn string(&mut self, what: &'static str) -> Result<String, GgufError> {
        let len = self.u64(what)?;
        let bytes = self.bytes(what, len)?;
        String::from_utf8(bytes).or_else(|_| self.fail(Defect::NotUtf8 { what }))
    }

    fn name(&mut self, what: &'static str, limit: u64) -> Result<String, GgufError> {
        let len = self.u64(what)?;
        self.limited(what, len, limit)?;
        let bytes = self.bytes(what, len)?;
        match String::from_utf8(bytes) {
            Ok(name) if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(name),
            _ => self.fail(Defect::Name { what }),
        }
    }

    fn preamble(&mut self) -> Result<(u32, u64, u64), GgufError> {
        let mut found = [0; 4];
        self.fill("the magic number", &mut found)?;
        if found != *b"GGUF" {
            self.position = 0;
            return self.fail(Defect::Magic { found });
        }
        let version = self.u32("the version")?;
        if matches!(version.swap_bytes(), 1..=3) {
            return self.fail(Defect::BigEndian);
        }
        if !matches!(version, 2 | 3) {
            return self.fail(Defect::Version { version });
        }
        let tensors = self.u64("the number of tensors")?;
        self.limited("the number of tensors", tensors, TENSORS_MAX)?;
        let keys = self.u64("the number of metadata keys")?;
        self.limited("the number of metadata keys", keys, KEYS_MAX)?;
        Ok((version, tensors, keys))
    }

    fn metadata(&mut self, keys: u64) -> Result<Metadata, GgufError> {
        let mut metadata = Metadata::default();
        for index in 0..keys {
            self.place = format!("metadata entry {index}");
            let at = self.position;
            let key = self.name("a key", KEY_BYTES_MAX)?;
            self.place = format!("metadata key `{key}`");
            let id = self.u32("a value's type")?;
            let value = match id {
                STRING => Value::String(self.string("a string")?),
                ARRAY => self.array()?,
                _ => Value::Scalar(self.scalar(id)?),
            };
            if !metadata.insert(key, at, value) {
                self.position = at;
                return self.fail(Defect::Duplicate);
            }
        }
        Ok(metadata)
    }

    fn scalar(&mut self, id: u32) -> Result<Scalar, GgufError> {
        let number = self.at(number_of_type(id))?;
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..number.bytes()];
        self.fill("a value", bytes)?;
        self.at(number.decode(bytes))
    }

    fn array(&mut self) -> Result<Value, GgufError> {
        let id = self.u32("the type of an array")?;
        let len = self.u64("the length of an array")?;
        match id {
            ARRAY => self.fail(Defect::NestedArray),
            STRING => {
                let mut strings = Strings::default();
                // Each string has a length of 8 bytes, so that the file bounds the loop and the memory.
                self.need("an array of strings", len.saturating_mul(8))?;
                for _ in 0..len {
                    strings.push(&self.string("a string of an array")?);
                }
                Ok(Value::Strings(strings))
            }
            _ => {
                let number = self.at(number_of_type(id))?;
                let bytes = self.bytes("an array", len.saturating_mul(number.bytes() as u64))?;
                if number == Number::Bool
                    && let Some(found) = bytes.iter().find(|byte| **byte > 1)
                {
                    return self.fail(Defect::Bool { found: *found });
                }
                Ok(Value::Numbers(number, bytes))
            }
        }
    }

    fn tensor_entries(&mut self, count: u64) -> Result<Vec<Entry>, GgufError> {
        let mut names = BTreeSet::new();
        let mut entries = Vec::new();
        for index in 0..count {
            self.place = format!("tensor entry {index}");
            let at = self.position;
            let name = self.name("a tensor's name", TENSOR_NAME_BYTES_MAX)?;
            self.place = format!("tensor `{name}`");
            let rank = self.u32("the number of dimensions")?;
            if rank == 0 || rank > DIMS_MAX {
                let (what, found, limit) = ("the number of dimensions", u64::from(rank), u64::from(DIMS_MAX));
                return self.fail(Defect::Limit { what, found, limit });
            }
            let dims = (0..rank).map(|_| self.u64("a dimension")).collect::<Result<Vec<_>, _>>()?;
            let id = self.u32("the tensor's type")?;
            let kind = self.at(TensorType::from_id(id))?;
            let offset = self.u64("the tensor's offset")?;
            let bytes = self.at(data_bytes(&dims, kind))?;
            if !names.insert(name.clone()) {
                self.position = at;
                return self.fail(Defect::Duplicate);
            }
            entries.push(Entry { tensor: TensorInfo { name, kind, dims, offset, bytes }, at });
        }
        Ok(entries)
    }
}
