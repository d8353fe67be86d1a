//! Everything about the folder, known before a tensor is read.
//!
//! A plan follows from the header and the options alone, so two plans for one file are equal: that is how
//! a second import recognises the first.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::expand::{ExpandError, Expander};
use super::folder::{Workspace, WriteError};
use super::gguf::{self, Gguf, ReadAt, TensorInfo};
use super::hyperparameters::Hyperparameters;
use super::shards::{self, Shard};
use super::source::SourceFile;
use super::tensors::{self, OutputTensor};
use super::tokenizer::{self, Tokenizer};
use super::{Dtype, ImportError, ImportOptions, ImportProgress, ImportReport, Rounding, Stage};

/// Changes when the same file would give another folder.
const IMPORT_VERSION: u32 = 1;

/// A folder that is to be written.
pub(super) struct Plan {
    pub(super) gguf: Gguf,
    shards: Vec<Shard>,
    config: Map<String, Value>,
    /// Names and contents, without `config.json`.
    pub(super) small_files: Vec<(&'static str, Vec<u8>)>,
    notes: Vec<String>,
    expand_to: Dtype,
}

impl Plan {
    pub(super) fn new(file: &dyn ReadAt, options: &ImportOptions) -> Result<Self, ImportError> {
        let gguf = Gguf::read(file)?;
        let mut model = Hyperparameters::read(&gguf.metadata)?;
        let tensors = tensors::plan(&gguf, &model, options.expand_to)?;
        if let Some(index) = tensors.rope_freqs {
            model.scale_by_frequency_table(&frequency_table(file, &gguf.tensors[index], model.head_dim)?)?;
        }
        let tokenizer = tokenizer::read(&gguf.metadata, tensors.vocab_size, model.max_position_embeddings)?;

        let mut config = model.config();
        let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
        set("vocab_size", json!(tensors.vocab_size));
        set("tie_word_embeddings", json!(tensors.tie_word_embeddings));
        set("attention_bias", json!(tensors.attention_bias));
        set("mlp_bias", json!(tensors.mlp_bias));
        set("torch_dtype", json!(main_dtype(&tensors.outputs).torch_name()));
        let ids = token_ids(&tokenizer);
        config.extend(ids.clone());

        let shards = shards::layout(tensors.outputs, options.max_shard_bytes);
        let mut small_files = vec![
            ("tokenizer.json", tokenizer.tokenizer_json),
            ("tokenizer_config.json", pretty(&tokenizer.tokenizer_config)),
            ("generation_config.json", pretty(&Value::Object(ids))),
        ];
        if let Some(index) = shards::index(&shards) {
            small_files.push(("model.safetensors.index.json", pretty(&index)));
        }
        Ok(Self { gguf, shards, config, small_files, notes: tokenizer.notes, expand_to: options.expand_to })
    }

    /// Length of every file but `config.json`.
    fn files(&self) -> Map<String, Value> {
        let shards = self.shards.iter().map(|shard| (shard.file_name.clone(), json!(shard.bytes())));
        shards.chain(self.small_files.iter().map(|(name, bytes)| ((*name).to_owned(), json!(bytes.len())))).collect()
    }

    pub(super) fn bytes_without_config(&self) -> u64 {
        let small: u64 = self.small_files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        self.shards.iter().map(Shard::bytes).sum::<u64>() + small
    }

    fn source_tensors(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for tensor in &self.gguf.tensors {
            *counts.entry(tensor.kind.name().to_owned()).or_default() += 1;
        }
        counts
    }

    /// Where the folder comes from, for `config.json`.
    pub(super) fn provenance(&self, file: &SourceFile<'_>, digest: &str) -> Map<String, Value> {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy();
        let provenance = json!({
            "import_version": IMPORT_VERSION,
            "source": name,
            "source_bytes": file.len(),
            "source_blake3": digest,
            "source_tensors": self.source_tensors(),
            "expanded_to": self.expand_to,
            "files": self.files(),
        });
        match provenance {
            Value::Object(provenance) => provenance,
            _ => Map::new(),
        }
    }

    pub(super) fn config_json(&self, provenance: Map<String, Value>) -> Vec<u8> {
        let mut config = self.config.clone();
        config.insert("nightmonk".to_owned(), Value::Object(provenance));
        pretty(&Value::Object(config))
    }

    pub(super) fn report(&self, source: &Path, target: &Path, digest: String) -> ImportReport {
        let quantized = self.gguf.tensors.iter().filter(|tensor| tensor.kind.is_quantized());
        let outputs = self.shards.iter().flat_map(|shard| &shard.tensors);
        ImportReport {
            source: source.to_owned(),
            source_blake3: digest,
            target: target.to_owned(),
            already_done: false,
            architecture: self.config["architectures"][0].as_str().unwrap_or_default().to_owned(),
            parameters: outputs.map(OutputTensor::values).sum(),
            bytes: self.bytes_without_config(),
            source_tensors: self.source_tensors(),
            quantized: quantized.map(|tensor| tensor.name.clone()).collect(),
            expanded_to: self.expand_to,
            rounding: None,
            notes: self.notes.clone(),
        }
    }

    /// Writes all shards. Returns what rounding changed, if values were rounded.
    pub(super) fn write_tensors(
        &self,
        file: &SourceFile<'_>,
        workspace: &Workspace,
        progress: &mut dyn FnMut(ImportProgress<'_>),
    ) -> Result<Option<Rounding>, ImportError> {
        let total_bytes = self.shards.iter().map(Shard::bytes).sum();
        let mut done_bytes = 0;
        let mut expander = Expander::default();
        for shard in &self.shards {
            workspace.write(&shard.file_name, |shard_file| {
                shard_file.write_all(&shard.header)?;
                done_bytes += shard.header.len() as u64;
                for output in &shard.tensors {
                    let source = &self.gguf.tensors[output.source];
                    let written = expander.expand(file, source, output, |bytes| {
                        shard_file.write_all(bytes)?;
                        done_bytes += bytes.len() as u64;
                        let tensor = &output.name;
                        progress(ImportProgress { stage: Stage::Write, done_bytes, total_bytes, tensor });
                        io::Result::Ok(())
                    });
                    written.map_err(|error| expand_error(error, file.path, source, output.dtype))?;
                }
                Ok(())
            })?;
        }
        Ok((expander.rounding != Rounding::default()).then_some(expander.rounding))
    }
}

fn expand_error(error: ExpandError<io::Error>, path: &Path, source: &TensorInfo, dtype: Dtype) -> WriteError {
    let tensor = source.name.clone();
    WriteError::Import(match error {
        ExpandError::Write(error) => return WriteError::Io(error),
        ExpandError::Read(error) => ImportError::io("cannot be read", path)(error),
        ExpandError::NotFinite { index } => ImportError::NotFinite { tensor, index },
        ExpandError::TooLarge { index } => ImportError::TooLarge { tensor, index, dtype },
    })
}

/// Reads `rope_freqs.weight`: `head_dim / 2` divisors.
fn frequency_table(file: &dyn ReadAt, tensor: &TensorInfo, head_dim: u64) -> Result<Vec<f32>, ImportError> {
    if tensor.dims != [head_dim / 2] || tensor.kind != gguf::TensorType::F32 {
        return Err(ImportError::RopeFrequencies { tensor: tensor.name.clone() });
    }
    let mut bytes = vec![0; tensor.bytes as usize];
    file.read_exact_at(&mut bytes, tensor.offset).map_err(|error| gguf::GgufError {
        place: format!("tensor `{}`", tensor.name),
        offset: tensor.offset,
        defect: gguf::Defect::Io(error),
    })?;
    Ok(bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect())
}

/// The format of most values.
fn main_dtype(outputs: &[OutputTensor]) -> Dtype {
    let values = |dtype: &Dtype| -> u64 {
        outputs.iter().filter(|output| output.dtype == *dtype).map(OutputTensor::values).sum()
    };
    [Dtype::BF16, Dtype::F16, Dtype::F32].into_iter().max_by_key(values).unwrap_or(Dtype::F32)
}

/// Ids that begin, end and pad texts, for `config.json` and `generation_config.json`.
fn token_ids(tokenizer: &Tokenizer) -> Map<String, Value> {
    let eos = match tokenizer.eos.as_slice() {
        [] => Value::Null,
        [eos] => json!(eos),
        several => json!(several),
    };
    let ids = [("bos_token_id", json!(tokenizer.bos)), ("eos_token_id", eos), ("pad_token_id", json!(tokenizer.pad))];
    ids.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}
