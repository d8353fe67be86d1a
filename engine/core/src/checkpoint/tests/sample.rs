//! Folders to damage: copies of golden checkpoints, and models of a few dozen weights in each type.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::{ModelConfig, TensorKind};

/// A model folder that is deleted when dropped.
pub(super) struct Folder(TempDir);

pub(super) const SHARD: &str = "model.safetensors";
pub(super) const SECOND: &str = "model-00002-of-00002.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

impl Folder {
    /// A copy of `tests/golden/<family>`.
    pub(super) fn golden(family: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(family);
        for entry in fs::read_dir(source).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.starts_with("model") || name == "config.json" {
                fs::copy(&path, folder.path(name)).unwrap();
            }
        }
        folder
    }

    /// A small model of zeros, of one shard.
    pub(super) fn tiny(architecture: &str, dtype: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let config = tiny_config(architecture);
        folder.write("config.json", config.to_string());
        folder.write(SHARD, tiny_shard(&config, dtype));
        folder
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(super) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    pub(super) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    pub(super) fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    /// Changes a JSON file.
    pub(super) fn json(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&self.read(name)).unwrap();
        change(&mut value);
        self.write(name, value.to_string());
    }

    /// Changes a shard's header and data.
    pub(super) fn shard(&self, name: &str, change: impl FnOnce(&mut Map<String, Value>, &mut Vec<u8>)) {
        let (header, mut data) = split(&self.read(name));
        let mut header: Map<String, Value> = serde_json::from_str(&header).unwrap();
        change(&mut header, &mut data);
        self.write(name, joined(&Value::Object(header).to_string(), &data));
    }

    /// Changes the text of a shard's header.
    pub(super) fn header(&self, change: impl FnOnce(&str) -> String) {
        let (header, data) = split(&self.read(SHARD));
        self.write(SHARD, joined(&change(&header), &data));
    }

    /// Opens the folder and reads every weight.
    pub(super) fn open(&self) -> Result<Checkpoint, CheckpointError> {
        let checkpoint = Checkpoint::open(self.0.path())?;
        for spec in checkpoint.config().tensors() {
            checkpoint.check_finite(&spec.name)?;
        }
        Ok(checkpoint)
    }
}

/// Header and data of a shard.
pub(super) fn split(file: &[u8]) -> (String, Vec<u8>) {
    let size = u64::from_le_bytes(*file.first_chunk::<8>().unwrap()) as usize;
    (String::from_utf8(file[8..8 + size].to_vec()).unwrap(), file[8 + size..].to_vec())
}

/// A shard of header and data, padded with spaces as the format asks for.
pub(super) fn joined(header: &str, data: &[u8]) -> Vec<u8> {
    let size = header.len().next_multiple_of(8);
    let mut file = (size as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(8 + size, b' ');
    file.extend(data);
    file
}

/// One layer, four columns: all tensors of the family, few weights.
pub(super) fn tiny_config(architecture: &str) -> Value {
    let mut config = json!({
        "architectures": [architecture], "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 2, "intermediate_size": 3, "moe_intermediate_size": 3, "num_experts": 2,
        "num_experts_per_tok": 1, "vocab_size": 5, "max_position_embeddings": 64, "tie_word_embeddings": false,
        "rms_norm_eps": 1e-6, "rope_theta": 1e4,
    });
    if architecture == "GptOssForCausalLM" {
        // Blocks have 32 columns.
        (config["hidden_size"], config["intermediate_size"]) = (json!(32), json!(32));
        (config["attention_bias"], config["layer_types"]) = (json!(true), json!(["full_attention"]));
        config["rope_scaling"] = json!({"rope_type": "default"});
        config["quantization_config"] = json!({"quant_method": "mxfp4"});
    }
    config
}

/// A shard with all tensors that a config asks for, of zeros; scales are 100.
pub(super) fn tiny_shard(config: &Value, dtype: &str) -> Vec<u8> {
    let number = if dtype == "F32" { 4 } else { 2 };
    let config = ModelConfig::from_json(Path::new("config.json"), config.to_string().as_bytes()).unwrap();
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut data = Vec::new();
    for spec in config.tensors() {
        let (dtype, size) = if spec.kind.is_numbers() { (dtype, number) } else { ("U8", 1) };
        let start = data.len();
        let end = start + spec.shape.iter().product::<usize>() * size;
        data.resize(end, if spec.kind == TensorKind::Mxfp4Scales { 100 } else { 0 });
        header.insert(spec.name, json!({"dtype": dtype, "shape": spec.shape, "data_offsets": [start, end]}));
    }
    joined(&Value::Object(header).to_string(), &data)
}
