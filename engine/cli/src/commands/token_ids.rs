//! Token ids from a JSON file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::failure::Failure;

const BYTES_MAX: u64 = 64 << 20;

/// The list in a file, which has at least one id.
pub(super) fn read(path: &Path) -> Result<Vec<u32>, Failure> {
    let usage = |why: String| Failure::Usage(format!("{}: {why}", path.display()));
    let mut text = Vec::new();
    // Not the length in the metadata: that is 0 for a pipe or a device.
    let file = File::open(path).map_err(|error| usage(error.to_string()))?;
    file.take(BYTES_MAX + 1).read_to_end(&mut text).map_err(|error| usage(error.to_string()))?;
    if text.len() as u64 > BYTES_MAX {
        return Err(usage(format!("it has more than the {BYTES_MAX} bytes that are read")));
    }
    let tokens: Vec<u32> = serde_json::from_slice(&text)
        .map_err(|error| usage(format!("it is not a JSON list of token ids like [1, 2, 3]: {error}")))?;
    if tokens.is_empty() { Err(usage("the list is empty".into())) } else { Ok(tokens) }
}

/// Refuses ids that a model does not have.
pub(super) fn check(tokens: &[u32], vocab_size: usize) -> Result<(), Failure> {
    match tokens.iter().find(|token| **token as usize >= vocab_size) {
        Some(token) => Err(Failure::Usage(format!("token {token} is not in the vocabulary of {vocab_size}"))),
        None => Ok(()),
    }
}
