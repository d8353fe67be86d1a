//! Golden data: tiny checkpoints, and beside each what transformers computed from it (tests/golden/README.md).

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensorError, SafeTensors};

/// Those of the repository have less than a tenth of it.
const REFERENCE_BYTES_MAX: u64 = 64 << 20;
const REFERENCE: &str = "reference.safetensors";

/// What transformers computed.
pub(super) struct Reference {
    pub(super) token_ids: Vec<u32>,
    pub(super) vocab_size: usize,
    /// In float32, `[tokens, vocab_size]`.
    pub(super) logits: Vec<f32>,
    /// The same of the model in BF16.
    pub(super) logits_bf16: Vec<f32>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum GoldenError {
    #[error("cannot read {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} has more than the {REFERENCE_BYTES_MAX} bytes that are read")]
    TooLarge { path: PathBuf },
    #[error("{path} is not a safetensors file: {source}")]
    Format { path: PathBuf, source: SafeTensorError },
    #[error("{path}: array `{name}` {what}; tests/golden/README.md says what it holds")]
    Array { path: PathBuf, name: &'static str, what: String },
}

/// Folders in `golden` that hold a model and what was computed from it, by name.
pub(super) fn families(golden: &Path) -> Result<Vec<PathBuf>, GoldenError> {
    let failed = |source| GoldenError::Io { path: golden.to_owned(), source };
    let mut families = Vec::new();
    for entry in fs::read_dir(golden).map_err(failed)? {
        let folder = entry.map_err(failed)?.path();
        if folder.join(REFERENCE).is_file() && folder.join("config.json").is_file() {
            families.push(folder);
        }
    }
    families.sort_unstable();
    Ok(families)
}

impl Reference {
    /// Reads the reference of a family's folder: at least one token, and as many rows of logits in both forms.
    pub(super) fn of(family: &Path) -> Result<Self, GoldenError> {
        let path = family.join(REFERENCE);
        let failed = |source| GoldenError::Io { path: path.clone(), source };
        let mut bytes = Vec::new();
        let file = File::open(&path).map_err(failed)?;
        file.take(REFERENCE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > REFERENCE_BYTES_MAX {
            return Err(GoldenError::TooLarge { path });
        }
        let arrays = match SafeTensors::deserialize(&bytes) {
            Ok(arrays) => arrays,
            Err(source) => return Err(GoldenError::Format { path, source }),
        };
        let wrong = |name, what: String| GoldenError::Array { path: path.clone(), name, what };
        let array = |name, dtype| match arrays.tensor(name) {
            Ok(array) if array.dtype() == dtype => Ok(array),
            Ok(array) => Err(wrong(name, format!("is {:?}, not {dtype:?}", array.dtype()))),
            Err(_) => Err(wrong(name, "is missing".into())),
        };
        let token_ids = array("token_ids", Dtype::I32)?;
        let (logits, logits_bf16) = (array("logits", Dtype::F32)?, array("logits_bf16", Dtype::F32)?);
        let tokens = match token_ids.shape() {
            [tokens] if *tokens > 0 => *tokens,
            shape => return Err(wrong("token_ids", format!("has shape {shape:?}, not that of a list of tokens"))),
        };
        let vocab_size = match logits.shape() {
            [rows, vocab_size] if *rows == tokens => *vocab_size,
            shape => {
                return Err(wrong("logits", format!("has shape {shape:?}, not a row for each of {tokens} tokens")));
            }
        };
        if logits_bf16.shape() != logits.shape() {
            let what = format!("has shape {:?}, but `logits` {:?}", logits_bf16.shape(), logits.shape());
            return Err(wrong("logits_bf16", what));
        }
        let token_ids: Vec<u32> = token_ids.data().as_chunks().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
        if let Some(id) = token_ids.iter().find(|id| **id as usize >= vocab_size) {
            return Err(wrong("token_ids", format!("has {id}, which is not in a vocabulary of {vocab_size}")));
        }
        let floats = |data: &[u8]| data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let (logits, logits_bf16) = (floats(logits.data()), floats(logits_bf16.data()));
        Ok(Self { token_ids, vocab_size, logits, logits_bf16 })
    }
}
