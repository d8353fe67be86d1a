//! What can be wrong with a model folder, and what would help.

use std::path::PathBuf;

use crate::config::ConfigError;

/// Why a model folder is refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum CheckpointError {
    #[error("cannot start {threads} threads: {why}")]
    Threads { threads: usize, why: String },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(
        "{folder} holds neither model.safetensors nor model.safetensors.index.json; `nightmonk import` makes such a folder from a GGUF file"
    )]
    NoWeights { folder: PathBuf },
    #[error("cannot open {path}: {source}; a model folder holds config.json and every shard that its index names")]
    Open { path: PathBuf, source: std::io::Error },
    #[error("{path} was replaced by another file while the model was opened; start again")]
    Replaced { path: PathBuf },
    #[error("cannot read all of {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "{shard} was cut short or cannot be read while it was mapped; restore the file and start again (nothing was kept of what was computed with it)"
    )]
    Broken { shard: PathBuf },
    #[error("{path} is damaged: {why}; fetch the file again")]
    Index { path: PathBuf, why: String },
    #[error("{path} is damaged: {why}; fetch the file again and compare its checksum")]
    Header { path: PathBuf, why: String },
    #[error("{path} is damaged: tensor `{tensor}` {why}; fetch the file again and compare its checksum")]
    Tensor { path: PathBuf, tensor: String, why: String },
    #[error(
        "{shard} is damaged: packed panels of tensor `{tensor}`: {source}; write the folder again with `nightmonk pack`"
    )]
    Panels { shard: PathBuf, tensor: String, source: simd::matmul::packed::PackedError },
    #[error(
        "the panels of {first} and {second} were made from different models; write the folder again with `nightmonk pack`"
    )]
    TwoSources { first: PathBuf, second: PathBuf },
    #[error(
        "tensor `{tensor}` is in two shards: {first} and {second}; remove the one that does not belong to this model"
    )]
    TwoShards { tensor: String, first: PathBuf, second: PathBuf },
    #[error(
        "the index says that tensor `{tensor}` is in {shard}, but it is not; index and shards are of different downloads"
    )]
    NotInShard { tensor: String, shard: PathBuf },
    #[error(
        "{folder}: config.json asks for tensor `{tensor}`, which no shard holds; a shard is missing or config.json belongs to another model"
    )]
    Missing { folder: PathBuf, tensor: String },
    #[error("{shard}: tensor `{tensor}` has shape {got:?}, but config.json asks for {want:?}")]
    WrongShape { shard: PathBuf, tensor: String, want: Vec<usize>, got: Vec<usize> },
    #[error("{shard}: tensor `{tensor}` has type {got}, but config.json asks for {want}")]
    WrongType { shard: PathBuf, tensor: String, want: &'static str, got: &'static str },
    #[error(
        "{folder}: tensor `{tensor}` (and {others} more) is not part of the architecture that config.json names; the model needs something that is not supported"
    )]
    Unexpected { folder: PathBuf, tensor: String, others: usize },
    #[error(
        "{shard}: tensor `{tensor}` holds {value} at index {index}; the file is damaged: fetch it again and compare its checksum"
    )]
    NotFinite { shard: PathBuf, tensor: String, index: usize, value: f32 },
    #[error(
        "{shard}: tensor `{tensor}` holds the scale {value} at index {index}; supported are {} to {}, at which BF16 holds every weight exactly: the file is damaged, fetch it again and compare its checksum",
        simd::matmul::MXFP4_SCALES.start(),
        simd::matmul::MXFP4_SCALES.end()
    )]
    Scale { shard: PathBuf, tensor: String, index: usize, value: u8 },
}
