//! Why an import was refused or failed.

use std::io;
use std::path::{Path, PathBuf};

use super::gguf::{GgufError, TensorInfo};

/// An import that was refused or failed. Nothing that looks finished is left behind.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file is no sound GGUF file.
    #[error("the GGUF file cannot be used: {0}")]
    Gguf(#[from] GgufError),
    /// A model of another architecture.
    #[error("metadata key `general.architecture`: `{found}` is not supported; `llama` is")]
    Architecture {
        /// What the file says.
        found: String,
    },
    /// One of several files.
    #[error("the file is one of {count} parts; merge them first (llama-gguf-split --merge FIRST-PART OUT.gguf)")]
    Split {
        /// Number of parts.
        count: u64,
    },
    /// A setting that may change the model and is not understood.
    #[error("metadata key `{key}` is not understood, and leaving it out could change what the model computes")]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// A key that must be there.
    #[error("metadata key `{key}` is missing; convert the model again with a current converter")]
    MissingKey {
        /// The key.
        key: &'static str,
    },
    /// A key or tensor with a value that cannot be used.
    #[error("`{name}`: {reason}")]
    Setting {
        /// The key or tensor.
        name: String,
        /// Why not.
        reason: String,
    },
    /// A tensor that must be there.
    #[error("tensor `{name}` is missing; the file is incomplete, or its metadata belong to another model")]
    MissingTensor {
        /// Its name in the file.
        name: String,
    },
    /// Tensors without a meaning for this architecture.
    #[error("the file has tensors that a llama model does not have: {}", some(names))]
    UnknownTensors {
        /// Their names in the file.
        names: Vec<String>,
    },
    /// A tensor whose shape contradicts the metadata.
    #[error("tensor `{name}` has shape {found:?}, but the metadata ask for {wanted:?} (0: any)")]
    Shape {
        /// Its name in the file.
        name: String,
        /// Its dimensions, the fastest first.
        found: Vec<u64>,
        /// Those that follow from the metadata.
        wanted: Vec<u64>,
    },
    /// Frequency divisors that no known scaling gives.
    #[error("tensor `{tensor}` scales rotary frequencies in a way that is not known (llama3 scaling is)")]
    RopeFrequencies {
        /// Its name in the file.
        tensor: String,
    },
    /// The tokenizer that was written does not work.
    #[error("the file's tokenizer cannot be written as tokenizer.json: {reason}")]
    Tokenizer {
        /// Why not.
        reason: String,
    },
    /// An infinite value or one that is not a number.
    #[error("tensor `{tensor}`: value {index} is not finite; the file is damaged")]
    NotFinite {
        /// Its name in the file.
        tensor: String,
        /// Index of the value in the tensor that would be written.
        index: u64,
    },
    /// A value too large for the chosen format.
    #[error("tensor `{tensor}`: value {index} is too large for {dtype}; choose BF16 or F32")]
    TooLarge {
        /// Its name in the file.
        tensor: String,
        /// Index of the value in the tensor that would be written.
        index: u64,
        /// The chosen format.
        dtype: super::Dtype,
    },
    /// Something else is where the folder should be.
    #[error("{} exists and is not a finished import of this file with these options; choose another folder or remove it", target.display())]
    TargetExists {
        /// The folder that was asked for.
        target: PathBuf,
    },
    /// Another process writes the same folder.
    #[error("another import is writing {} at this moment", folder.display())]
    Busy {
        /// The temporary folder.
        folder: PathBuf,
    },
    /// Not enough space.
    #[error("{}: {needed} bytes are needed, but {} are free; make space or choose another folder", folder.display(), available.map_or("fewer".to_owned(), |bytes| bytes.to_string()))]
    NoSpace {
        /// Where the folder is to be.
        folder: PathBuf,
        /// Bytes of the whole folder.
        needed: u64,
        /// Bytes that are free, where known.
        available: Option<u64>,
    },
    /// The file changed while it was read.
    #[error("{} changed while it was being imported; import it again", path.display())]
    SourceChanged {
        /// The GGUF file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{}: {doing}: {error}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
}

impl ImportError {
    pub(super) fn setting(name: &str, reason: String) -> Self {
        Self::Setting { name: name.to_owned(), reason }
    }

    pub(super) const fn missing(key: &'static str) -> Self {
        Self::MissingKey { key }
    }

    pub(super) fn shape(tensor: &TensorInfo, wanted: &[u64]) -> Self {
        Self::Shape { name: tensor.name.clone(), found: tensor.dims.clone(), wanted: wanted.to_vec() }
    }

    /// Gives an error of the operating system its place; for use with `map_err`.
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { doing, path: path.to_owned(), error }
    }
}

/// The first few names, and how many more there are.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
