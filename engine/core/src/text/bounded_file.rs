//! Reading a small file of unknown origin: never more of it than any honest one has.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde_json::{Map, Value};

use super::TextError;

/// The whole file, or `None` if there is none.
pub(super) fn read(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, TextError> {
    let io = |source| TextError::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    // Not the length in the metadata: that is 0 for a pipe, and can change.
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > max_bytes {
        return Err(TextError::FileTooLarge { path: path.to_owned(), max_bytes });
    }
    Ok(Some(bytes))
}

/// The JSON object in the file, or `None` if there is no file.
pub(super) fn read_json_object(path: &Path, max_bytes: u64) -> Result<Option<Map<String, Value>>, TextError> {
    let Some(bytes) = read(path, max_bytes)? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| TextError::Malformed { path: path.to_owned(), reason: error.to_string() })
}

/// A JSON value in an error message: its type, and its text only where that is short.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(s) if s.len() <= 40 => format!("the string {s:?}"),
        Value::String(_) => "a long string".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}
