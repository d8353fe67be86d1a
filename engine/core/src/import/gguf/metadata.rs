//! Keys and values of a GGUF file, asked for by key and type.
//!
//! Writers disagree about integer widths, so a count may have any of them; everything else must
//! have the type that the format's description names.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::error::{Defect, GgufError};

/// Many strings in one buffer: a vocabulary costs its bytes and not an allocation per token.
#[derive(Clone, Debug, Default)]
pub struct Strings {
    text: String,
    ends: Vec<usize>,
}

impl Strings {
    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string at `index`.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        Some(&self.text[start..end])
    }

    /// All of them in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|index| self.get(index).unwrap_or_default())
    }

    pub(super) fn push(&mut self, string: &str) {
        self.text.push_str(string);
        self.ends.push(self.text.len());
    }
}

/// Types of numbers in metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
    Bool,
}

impl Number {
    pub(super) const fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// `bytes` must be [`Self::bytes`] long.
    pub(super) fn decode(self, bytes: &[u8]) -> Result<Scalar, Defect> {
        let mut word = [0; 8];
        word[..self.bytes()].copy_from_slice(bytes);
        let word = u64::from_le_bytes(word);
        // Narrow numbers lie in the low bytes of the word, so truncating `as` recovers them exactly.
        Ok(match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => Scalar::Int(i128::from(word)),
            Self::I8 => Scalar::Int(i128::from(word as i8)),
            Self::I16 => Scalar::Int(i128::from(word as i16)),
            Self::I32 => Scalar::Int(i128::from(word as i32)),
            Self::I64 => Scalar::Int(i128::from(word as i64)),
            Self::F32 => Scalar::Float(f64::from(f32::from_bits(word as u32)), true),
            Self::F64 => Scalar::Float(f64::from_bits(word), false),
            Self::Bool => match word {
                0 => Scalar::Bool(false),
                1 => Scalar::Bool(true),
                other => return Err(Defect::Bool { found: other as u8 }),
            },
        })
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Scalar {
    Int(i128),
    /// The value, and whether it was stored as `f32`.
    Float(f64, bool),
    Bool(bool),
}

impl Scalar {
    const fn name(self) -> &'static str {
        match self {
            Self::Int(_) => "a whole number",
            Self::Float(..) => "a floating-point number",
            Self::Bool(_) => "a bool",
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Scalar(Scalar),
    String(String),
    Strings(Strings),
    /// Kept as in the file, and decoded for who asks.
    Numbers(Number, Vec<u8>),
}

impl Value {
    const fn name(&self) -> &'static str {
        match self {
            Self::Scalar(scalar) => scalar.name(),
            Self::String(_) => "a string",
            Self::Strings(_) => "an array of strings",
            Self::Numbers(..) => "an array of numbers",
        }
    }
}

/// The shortest decimal number that rounds to the same `f32`.
///
/// Files hold `f32`, `config.json` holds decimal text. Widened as it is, 1e-5 would become
/// 0.000009999999747378752; the shortest text with the same meaning is what a person once wrote.
fn shortest_decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// The metadata of a file: keys and values.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    values: BTreeMap<String, (u64, Value)>,
}

impl Metadata {
    /// All keys in alphabetical order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// Whether `key` is there.
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// Adds an entry found at `offset`; false when the key is there already.
    pub(super) fn insert(&mut self, key: String, offset: u64, value: Value) -> bool {
        match self.values.entry(key) {
            Entry::Occupied(_) => false,
            Entry::Vacant(vacant) => {
                vacant.insert((offset, value));
                true
            }
        }
    }

    fn wrong<T>(&self, key: &str, wanted: &'static str) -> Result<Option<T>, GgufError> {
        let (offset, found) = self.values.get(key).map_or((0, "missing"), |(offset, value)| (*offset, value.name()));
        Err(GgufError { place: format!("metadata key `{key}`"), offset, defect: Defect::WrongType { wanted, found } })
    }

    /// The string under `key`, or `None` when the key is absent.
    pub fn string(&self, key: &str) -> Result<Option<&str>, GgufError> {
        match self.values.get(key) {
            None => Ok(None),
            Some((_, Value::String(string))) => Ok(Some(string)),
            Some(_) => self.wrong(key, "a string"),
        }
    }

    /// The number under `key`, of any integer type, or `None` when the key is absent.
    pub fn count(&self, key: &str) -> Result<Option<u64>, GgufError> {
        match self.values.get(key) {
            None => Ok(None),
            Some((_, Value::Scalar(Scalar::Int(int)))) if u64::try_from(*int).is_ok() => Ok(u64::try_from(*int).ok()),
            Some(_) => self.wrong(key, "a whole number, not negative"),
        }
    }

    /// The finite floating-point number under `key`, or `None` when the key is absent.
    pub fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        match self.values.get(key) {
            None => Ok(None),
            Some((_, Value::Scalar(Scalar::Float(value, is_f32)))) if value.is_finite() => {
                Ok(Some(if *is_f32 { shortest_decimal(*value as f32) } else { *value }))
            }
            Some(_) => self.wrong(key, "a finite floating-point number"),
        }
    }

    /// The bool under `key`, or `None` when the key is absent.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.values.get(key) {
            None => Ok(None),
            Some((_, Value::Scalar(Scalar::Bool(bool)))) => Ok(Some(*bool)),
            Some(_) => self.wrong(key, "a bool"),
        }
    }

    /// The strings under `key`, or `None` when the key is absent.
    pub fn strings(&self, key: &str) -> Result<Option<&Strings>, GgufError> {
        match self.values.get(key) {
            None => Ok(None),
            Some((_, Value::Strings(strings))) => Ok(Some(strings)),
            Some(_) => self.wrong(key, "an array of strings"),
        }
    }

    /// The `i32` numbers under `key`, or `None` when the key is absent.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, GgufError> {
        match self.values.get(key) {
            None => Ok(None),
            Some((_, Value::Numbers(Number::I32 | Number::U32, bytes))) => {
                Ok(Some(bytes.as_chunks().0.iter().map(|word| i32::from_le_bytes(*word)).collect()))
            }
            Some(_) => self.wrong(key, "an array of 32-bit whole numbers"),
        }
    }

    /// The `f32` numbers under `key`, or `None` when the key is absent.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, GgufError> {
        match self.values.get(key) {
            None => Ok(None),
            Some((_, Value::Numbers(Number::F32, bytes))) => {
                Ok(Some(bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect()))
            }
            Some(_) => self.wrong(key, "an array of 32-bit floating-point numbers"),
        }
    }
}
