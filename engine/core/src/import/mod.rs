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
//! plan              all of the above, before the first byte is written
//! folder            all or nothing on disk           report     what was done, for people and scripts
//! ```

mod dequantize;
mod error;
mod expand;
mod folder;
pub mod gguf;
mod hyperparameters;
mod plan;
mod report;
mod shards;
mod source;
mod tensors;
mod tokenizer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

pub use dequantize::dequantize;
pub use error::ImportError;
pub use report::{ImportReport, Rounding};

use folder::Workspace;
use plan::Plan;
use source::SourceFile;

const CONFIG_BYTES_MAX: u64 = 16 << 20;
/// What is kept free for `config.json`, whose length is known last.
const CONFIG_BYTES_RESERVED: u64 = 64 << 10;

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
    let is_free = folder::is_free(target)?;
    if !is_free && provenance_at(target).is_none() {
        return Err(ImportError::TargetExists { target: target.to_owned() });
    }
    let digest = file.digest(progress)?;
    let mut provenance = plan.provenance(&file, &digest);
    let mut report = plan.report(source, target, digest);

    if !is_free {
        let finished = finished_import(target, &provenance);
        let finished = finished.ok_or_else(|| ImportError::TargetExists { target: target.to_owned() })?;
        report.bytes = plan.bytes_without_config() + finished.config_bytes;
        report.rounding = finished.rounding;
        report.already_done = true;
        return Ok(report);
    }

    let workspace = Workspace::create(target, plan.bytes_without_config() + CONFIG_BYTES_RESERVED)?;
    let rounding = plan.write_tensors(&file, &workspace, progress)?;
    for (name, bytes) in &plan.small_files {
        workspace.write(name, |file| Ok(file.write_all(bytes)?))?;
    }
    if let Some(rounding) = rounding {
        provenance.insert("rounding".to_owned(), json!(rounding));
    }
    let config = plan.config_json(provenance);
    workspace.write("config.json", |file| Ok(file.write_all(&config)?))?;
    file.check_unchanged()?;
    workspace.publish()?;
    report.bytes = plan.bytes_without_config() + config.len() as u64;
    report.rounding = rounding;
    Ok(report)
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

/// What an earlier import says about itself.
struct Finished {
    config_bytes: u64,
    rounding: Option<Rounding>,
}

/// The import at `target`, if it is one of the same file with the same options and no file changed its length.
fn finished_import(target: &Path, wanted: &Map<String, Value>) -> Option<Finished> {
    let found = provenance_at(target)?;
    // The same bytes may have had another name.
    let same = wanted.iter().all(|(key, value)| key == "source" || found.get(key) == Some(value));
    let bytes_of = |name: &str| fs::metadata(target.join(name)).ok().map(|metadata| metadata.len());
    let files = wanted.get("files")?.as_object()?;
    let complete = files.iter().all(|(name, bytes)| bytes_of(name) == bytes.as_u64());
    let rounding = found.get("rounding").and_then(|rounding| serde_json::from_value(rounding.clone()).ok());
    (same && complete).then_some(Finished { config_bytes: bytes_of("config.json")?, rounding })
}
