//! GGUF files become Hugging Face folders.
//!
//! The engine runs checkpoints as they were published, and many models are at hand only as GGUF
//! files. [`import_gguf`] writes such a file out as a folder that every tool of the field reads:
//! unquantized tensors byte by byte, quantized ones as the exact values that they stand for. It
//! says which these are, because nothing brings back what quantization lost.
//!
//! ```text
//! gguf              a strict reader: nothing in the file is believed before it was checked
//! hyperparameters   metadata → config.json           tensors    names, shapes, order of rows
//! tokenizer         vocabulary → tokenizer.json      shards     layout of safetensors files
//! dequantize        blocks → f32                     expand     bytes of a tensor, chunk by chunk
//! folder            all or nothing on disk           report     what was done, for people and scripts
//! ```

mod dequantize;
mod error;
mod expand;
mod folder;
pub mod gguf;
mod hyperparameters;
mod report;
mod shards;
mod tensors;
mod tokenizer;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

pub use dequantize::dequantize;
pub use error::ImportError;
pub use report::{ImportReport, Rounding};

use expand::{ExpandError, Expander};
use folder::{Existing, Workspace, WriteError};
use gguf::{Gguf, ReadAt, TensorInfo};
use hyperparameters::Hyperparameters;
use shards::Shard;
use tokenizer::Tokenizer;

/// Changes when the same file would give another folder.
const IMPORT_VERSION: u32 = 1;
const CONFIG_BYTES_MAX: u64 = 16 << 20;
const HASH_BUFFER_BYTES: usize = 1 << 20;

/// Formats of values in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the variants are the formats' names")]
pub enum Dtype {
    F32,
    F16,
    BF16,
}

impl Dtype {
    const fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Name in safetensors headers.
    const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
        }
    }

    /// Name in `config.json`.
    const fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the user may choose.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Format for quantized tensors. F32, the default, keeps every value; others round, and the report says so.
    pub expand_to: Dtype,
    /// A shard is not made larger than this many bytes, unless a single tensor is.
    pub max_shard_bytes: u64,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self { expand_to: Dtype::F32, max_shard_bytes: 4 << 30 }
    }
}

/// What an import is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading the whole file once for its digest.
    Digest,
    /// Writing tensors.
    Write,
}

/// How far an import is.
#[derive(Clone, Copy, Debug)]
pub struct ImportProgress<'a> {
    /// What is being done.
    pub stage: Stage,
    /// Bytes of this stage that are done.
    pub done_bytes: u64,
    /// Bytes of this stage in all.
    pub total_bytes: u64,
    /// The tensor being written; empty in other stages.
    pub tensor: &'a str,
}

/// Writes the model in the GGUF file `source` as a Hugging Face folder at `target`.
///
/// The folder appears only when it is complete and synced. If `target` is a finished import of the
/// same file with the same options, it is left as it is and the report says so.
///
/// # Errors
/// See [`ImportError`]; `target` is then untouched, and what was written beside it is removed.
pub fn import_gguf(
    source: &Path,
    target: &Path,
    options: &ImportOptions,
    progress: &mut dyn FnMut(ImportProgress<'_>),
) -> Result<ImportReport, ImportError> {
    let file = SourceFile::open(source)?;
    let plan = Plan::new(&file, options)?;
    let existing = folder::existing(target)?;
    if matches!(existing, Existing::Something) && provenance_at(target).is_none() {
        return Err(ImportError::TargetExists { target: target.to_owned() });
    }
    let digest = file.digest(progress)?;
    let mut provenance = plan.provenance(&file, &digest);
    let mut report = plan.report(source, target, digest);

    if let Existing::Something = existing {
        report.rounding = finished_import(target, &provenance)
            .ok_or_else(|| ImportError::TargetExists { target: target.to_owned() })?;
        report.already_done = true;
        return Ok(report);
    }

    let workspace = Workspace::create(target, plan.total_bytes())?;
    let rounding = plan.write_tensors(&file, &workspace, progress)?;
    for (name, bytes) in &plan.small_files {
        workspace.write(name, |file| Ok(file.write_all(bytes)?))?;
    }
    if let Some(rounding) = rounding {
        provenance.insert("rounding".to_owned(), json!(rounding));
    }
    workspace.write("config.json", |file| Ok(file.write_all(&plan.config_json(provenance))?))?;
    file.check_unchanged()?;
    workspace.publish()?;
    report.rounding = rounding;
    Ok(report)
}

/// The GGUF file, open, with the length and times that it had at the beginning.
struct SourceFile<'a> {
    path: &'a Path,
    file: File,
    state: [i64; 5],
    len: u64,
}

impl<'a> SourceFile<'a> {
    fn open(path: &'a Path) -> Result<Self, ImportError> {
        let failed = |error| ImportError::io("cannot be opened", path)(error);
        // Opening a pipe would wait for a writer.
        if !fs::metadata(path).map_err(failed)?.is_file() {
            return Err(failed(io::Error::other("not a file")));
        }
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        Ok(Self { path, file, state: state(&metadata), len: metadata.len() })
    }

    /// BLAKE3 of all bytes.
    fn digest(&self, progress: &mut dyn FnMut(ImportProgress<'_>)) -> Result<String, ImportError> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; HASH_BUFFER_BYTES];
        let mut done_bytes = 0;
        while done_bytes < self.len {
            let len = buffer.len().min((self.len - done_bytes) as usize);
            let piece = &mut buffer[..len];
            self.read_exact_at(piece, done_bytes).map_err(ImportError::io("cannot be read", self.path))?;
            hasher.update(piece);
            done_bytes += len as u64;
            progress(ImportProgress { stage: Stage::Digest, done_bytes, total_bytes: self.len, tensor: "" });
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    fn check_unchanged(&self) -> Result<(), ImportError> {
        let metadata = self.file.metadata().map_err(ImportError::io("cannot be looked at", self.path))?;
        if state(&metadata) == self.state {
            Ok(())
        } else {
            Err(ImportError::SourceChanged { path: self.path.to_owned() })
        }
    }
}

impl ReadAt for SourceFile<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(&self.file, buffer, offset)
    }
}

fn state(metadata: &fs::Metadata) -> [i64; 5] {
    let len = metadata.size().cast_signed();
    [len, metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()]
}

/// Everything about the folder that is known before a tensor is read.
struct Plan {
    gguf: Gguf,
    shards: Vec<Shard>,
    config: Map<String, Value>,
    /// Names and contents, without `config.json`.
    small_files: Vec<(&'static str, Vec<u8>)>,
    notes: Vec<String>,
    expand_to: Dtype,
}

impl Plan {
    fn new(file: &dyn ReadAt, options: &ImportOptions) -> Result<Self, ImportError> {
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

    fn total_bytes(&self) -> u64 {
        let small: u64 = self.small_files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let config = pretty(&Value::Object(self.config.clone())).len() as u64;
        self.shards.iter().map(Shard::bytes).sum::<u64>() + small + config
    }

    fn source_tensors(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for tensor in &self.gguf.tensors {
            *counts.entry(tensor.kind.name().to_owned()).or_default() += 1;
        }
        counts
    }

    /// Where the folder comes from, for `config.json`.
    fn provenance(&self, file: &SourceFile<'_>, digest: &str) -> Map<String, Value> {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy();
        let provenance = json!({
            "import_version": IMPORT_VERSION,
            "source": name,
            "source_bytes": file.len,
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

    fn config_json(&self, provenance: Map<String, Value>) -> Vec<u8> {
        let mut config = self.config.clone();
        config.insert("nightmonk".to_owned(), Value::Object(provenance));
        pretty(&Value::Object(config))
    }

    fn report(&self, source: &Path, target: &Path, digest: String) -> ImportReport {
        let quantized = self.gguf.tensors.iter().filter(|tensor| tensor.kind.is_quantized());
        let outputs = self.shards.iter().flat_map(|shard| &shard.tensors);
        ImportReport {
            source: source.to_owned(),
            source_blake3: digest,
            target: target.to_owned(),
            already_done: false,
            architecture: self.config["architectures"][0].as_str().unwrap_or_default().to_owned(),
            parameters: outputs.map(tensors::OutputTensor::values).sum(),
            bytes: self.total_bytes(),
            source_tensors: self.source_tensors(),
            quantized: quantized.map(|tensor| tensor.name.clone()).collect(),
            expanded_to: self.expand_to,
            rounding: None,
            notes: self.notes.clone(),
        }
    }

    /// Writes all shards. Returns what rounding changed, if values were rounded.
    fn write_tensors(
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
fn main_dtype(outputs: &[tensors::OutputTensor]) -> Dtype {
    let values = |dtype: &Dtype| -> u64 {
        outputs.iter().filter(|output| output.dtype == *dtype).map(tensors::OutputTensor::values).sum()
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

/// What an earlier import wrote into `config.json` about itself.
fn provenance_at(target: &Path) -> Option<Map<String, Value>> {
    let mut bytes = Vec::new();
    File::open(target.join("config.json")).ok()?.take(CONFIG_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    match serde_json::from_slice(&bytes).ok()? {
        Value::Object(mut config) => match config.remove("nightmonk") {
            Some(Value::Object(provenance)) => Some(provenance),
            _ => None,
        },
        _ => None,
    }
}

/// The rounding that an equal import told of, if `target` is one and none of its files changed length.
fn finished_import(target: &Path, wanted: &Map<String, Value>) -> Option<Option<Rounding>> {
    let found = provenance_at(target)?;
    // The same bytes may have had another name.
    let same = wanted.iter().all(|(key, value)| key == "source" || found.get(key) == Some(value));
    let complete = wanted.get("files")?.as_object()?.iter().all(|(name, bytes)| {
        fs::metadata(target.join(name)).is_ok_and(|metadata| Some(metadata.len()) == bytes.as_u64())
    });
    if !same || !complete {
        return None;
    }
    Some(found.get("rounding").and_then(|rounding| serde_json::from_value(rounding.clone()).ok()))
}
