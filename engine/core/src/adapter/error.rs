//! What can be wrong with an adapter, and what would help.

use std::path::PathBuf;

use crate::checkpoint::CheckpointError;

/// Why an adapter is refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum AdapterError {
    #[error(
        "cannot read {path}: {source}; an adapter is a folder with adapter_config.json and adapter_model.safetensors"
    )]
    Open { path: PathBuf, source: std::io::Error },
    #[error("{path} is larger than {most} bytes; an adapter's settings are a few lines")]
    TooLarge { path: PathBuf, most: u64 },
    #[error("{path} is not a JSON object: {why}")]
    Json { path: PathBuf, why: String },
    #[error("{path}: `{field}` {why}")]
    Field { path: PathBuf, field: String, why: String },
    #[error("{path}: this version does not have `{field}` ({what}); {help}")]
    Unsupported { path: PathBuf, field: String, what: String, help: &'static str },
    #[error(transparent)]
    Shard(#[from] CheckpointError),
    #[error("{path} was cut short or cannot be read; restore the file and load the adapter again")]
    Broken { path: PathBuf },
    #[error("{path} holds no tensors; the adapter was saved without its weights")]
    Empty { path: PathBuf },
    #[error("{path}: tensor `{tensor}` is {why}")]
    Tensor { path: PathBuf, tensor: String, why: String },
    #[error(
        "{path}: `{module}` has `{has}` but no `{lacks}`; the two are a pair, so the file is incomplete: save it again"
    )]
    Unpaired { path: PathBuf, module: String, has: &'static str, lacks: &'static str },
    #[error(
        "{path}: tensor `{tensor}` has shape {got:?}, but this model asks for {want}; the adapter was trained for another model"
    )]
    WrongShape { path: PathBuf, tensor: String, got: Vec<usize>, want: String },
    #[error(
        "{path}: the matrices of `{module}` have rank {got}, but adapter_config.json says {want}; the two files do not belong together"
    )]
    Rank { path: PathBuf, module: String, got: usize, want: usize },
    #[error(
        "{path}: adapter_config.json names `{module}`, for which there are no tensors; the file is incomplete: save it again"
    )]
    Missing { path: PathBuf, module: String },
    #[error("{path}: tensor `{tensor}` holds {value} at index {index}; the training diverged, or the file is damaged")]
    NotFinite { path: PathBuf, tensor: String, index: usize, value: f32 },
    #[error("cannot get {bytes} bytes of memory for an adapter: {source}; unload another one, or free memory")]
    Memory { bytes: usize, source: std::io::Error },
    #[error("there is an adapter `{name}` already; unload it first, or load this one under another name")]
    NameTaken { name: String },
    #[error("there is no adapter `{name}`; loaded are: {loaded}")]
    Unknown { name: String, loaded: String },
    #[error("adapter `{name}` is in use by {sequences} sequences; unload it when they have ended")]
    InUse { name: String, sequences: usize },
}

/// Why adapters cannot be used together, or not so.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum AdapterSetError {
    #[error("adapter {adapter} is chosen twice; add the two scales and choose it once")]
    Twice { adapter: String },
    #[error("the scale {scale} of adapter {adapter} is not a finite number")]
    Scale { adapter: String, scale: f32 },
    #[error("adapters {first} and {second} both replace `{module}` as a whole; a sequence can have only one of them")]
    BothReplace { first: String, second: String, module: String },
    #[error(
        "adapter {first} replaces `{module}` as a whole and {second} adds to it; a sequence can have only one of them"
    )]
    ReplacedAndAdapted { first: String, second: String, module: String },
}
