//! A writer of GGUF files, and a llama model of a few kilobytes to begin from.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value as Json;

use crate::import::{ImportError, ImportOptions, ImportReport, import_gguf};

pub(super) const F32: u32 = 0;
pub(super) const F16: u32 = 1;
pub(super) const Q8_0: u32 = 8;
pub(super) const BF16: u32 = 30;

pub(super) const ALIGNMENT: usize = 32;

#[derive(Clone)]
pub(super) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    String(String),
    Strings(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

pub(super) fn text(value: &str) -> Value {
    Value::String(value.to_owned())
}

pub(super) fn texts(values: &[&str]) -> Value {
    Value::Strings(values.iter().map(|value| (*value).to_owned()).collect())
}

impl Value {
    fn bytes(&self) -> Vec<u8> {
        fn string(value: &str) -> Vec<u8> {
            [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat()
        }
        fn array<T>(kind: u32, values: &[T], bytes: impl Fn(&T) -> Vec<u8>) -> Vec<u8> {
            let head = [&9_u32.to_le_bytes()[..], &kind.to_le_bytes(), &(values.len() as u64).to_le_bytes()].concat();
            [head, values.iter().flat_map(bytes).collect()].concat()
        }
        let scalar = |kind: u32, bytes: &[u8]| [&kind.to_le_bytes(), bytes].concat();
        match self {
            Self::U32(value) => scalar(4, &value.to_le_bytes()),
            Self::F32(value) => scalar(6, &value.to_le_bytes()),
            Self::Bool(value) => scalar(7, &[u8::from(*value)]),
            Self::String(value) => scalar(8, &string(value)),
            Self::Strings(values) => array(8, values, |value| string(value)),
            Self::I32s(values) => array(5, values, |value| value.to_le_bytes().to_vec()),
            Self::F32s(values) => array(6, values, |value| value.to_le_bytes().to_vec()),
        }
    }
}

#[derive(Clone)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dims: Vec<u64>,
    pub(super) kind: u32,
    pub(super) bytes: Vec<u8>,
}

#[derive(Clone)]
pub(super) struct Sample {
    pub(super) keys: Vec<(String, Value)>,
    pub(super) tensors: Vec<Tensor>,
}

pub(super) const HIDDEN: u64 = 32;
pub(super) const INNER: u64 = 64;
pub(super) const HEADS: u64 = 2;
pub(super) const HEAD_DIM: u64 = 16;
pub(super) const VOCAB: u64 = 10;
pub(super) const TOKENS: [&str; 8] = ["<|end|>", "a", "b", "ab", "Ġ", "Ġa", "1", "11"];

impl Sample {
    /// One layer; F32 throughout, tied embeddings, two query heads that share one key and value head.
    pub(super) fn llama() -> Self {
        let mut sample = Self { keys: Vec::new(), tensors: Vec::new() };
        sample.set("general.architecture", text("llama"));
        for (key, value) in [
            ("llama.block_count", 1),
            ("llama.context_length", 128),
            ("llama.embedding_length", HIDDEN as u32),
            ("llama.feed_forward_length", INNER as u32),
            ("llama.attention.head_count", HEADS as u32),
            ("llama.attention.head_count_kv", 1),
        ] {
            sample.set(key, Value::U32(value));
        }
        sample.set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
        sample.set("tokenizer.ggml.model", text("gpt2"));
        sample.set("tokenizer.ggml.pre", text("smollm"));
        sample.set("tokenizer.ggml.tokens", texts(&TOKENS));
        sample.set("tokenizer.ggml.token_type", Value::I32s(vec![3, 1, 1, 1, 1, 1, 1, 1]));
        sample.set("tokenizer.ggml.merges", texts(&["a b", "Ġ a", "1 1"]));
        sample.set("tokenizer.ggml.eos_token_id", Value::U32(0));
        let key_rows = HEAD_DIM;
        for (name, dims) in [
            ("token_embd.weight", vec![HIDDEN, VOCAB]),
            ("blk.0.attn_norm.weight", vec![HIDDEN]),
            ("blk.0.attn_q.weight", vec![HIDDEN, HIDDEN]),
            ("blk.0.attn_k.weight", vec![HIDDEN, key_rows]),
            ("blk.0.attn_v.weight", vec![HIDDEN, key_rows]),
            ("blk.0.attn_output.weight", vec![HIDDEN, HIDDEN]),
            ("blk.0.ffn_norm.weight", vec![HIDDEN]),
            ("blk.0.ffn_gate.weight", vec![HIDDEN, INNER]),
            ("blk.0.ffn_up.weight", vec![HIDDEN, INNER]),
            ("blk.0.ffn_down.weight", vec![INNER, HIDDEN]),
            ("output_norm.weight", vec![HIDDEN]),
        ] {
            let values = numbers(dims.iter().product(), sample.tensors.len() as f32);
            sample.set_tensor(name, &dims, F32, f32_bytes(&values));
        }
        sample
    }

    pub(super) fn set(&mut self, key: &str, value: Value) {
        self.remove(key);
        self.keys.push((key.to_owned(), value));
    }

    pub(super) fn remove(&mut self, key: &str) {
        self.keys.retain(|(known, _)| known != key);
    }

    pub(super) fn set_tensor(&mut self, name: &str, dims: &[u64], kind: u32, bytes: Vec<u8>) {
        let tensor = Tensor { name: name.to_owned(), dims: dims.to_vec(), kind, bytes };
        match self.tensors.iter_mut().find(|known| known.name == name) {
            Some(known) => *known = tensor,
            None => self.tensors.push(tensor),
        }
    }

    pub(super) fn remove_tensor(&mut self, name: &str) {
        self.tensors.retain(|tensor| tensor.name != name);
    }

    /// The file, and where its data section begins.
    pub(super) fn bytes_and_data_start(&self) -> (Vec<u8>, usize) {
        let string = |value: &str| [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat();
        let mut file = b"GGUF".to_vec();
        file.extend(3_u32.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            file.extend(string(key));
            file.extend(value.bytes());
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            file.extend(string(&tensor.name));
            file.extend((tensor.dims.len() as u32).to_le_bytes());
            file.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            file.extend(tensor.kind.to_le_bytes());
            file.extend((offset as u64).to_le_bytes());
            offset += tensor.bytes.len().next_multiple_of(ALIGNMENT);
        }
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        let data_start = file.len();
        for tensor in &self.tensors {
            file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
            file.extend(&tensor.bytes);
        }
        (file, data_start)
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.bytes_and_data_start().0
    }

    pub(super) fn import(&self) -> Result<Imported, ImportError> {
        self.import_with(&ImportOptions::default())
    }

    pub(super) fn import_with(&self, options: &ImportOptions) -> Result<Imported, ImportError> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let source = folder.path().join("model.gguf");
        std::fs::write(&source, self.bytes()).expect("the sample is written");
        let target = folder.path().join("model");
        let report = import_gguf(&source, &target, options, &mut |_| {})?;
        Ok(Imported { _folder: folder, source, target, report })
    }

    pub(super) fn refusal(&self) -> String {
        match self.import() {
            Ok(_) => panic!("the sample was imported"),
            Err(error) => error.to_string(),
        }
    }
}

pub(super) struct Imported {
    _folder: tempfile::TempDir,
    pub(super) source: PathBuf,
    pub(super) target: PathBuf,
    pub(super) report: ImportReport,
}

impl Imported {
    pub(super) fn json(&self, name: &str) -> Json {
        json_at(&self.target.join(name))
    }

    /// Dtype, shape and bytes of a tensor, wherever it is.
    pub(super) fn tensor(&self, name: &str) -> (String, Vec<usize>, Vec<u8>) {
        for entry in std::fs::read_dir(&self.target).expect("the folder is there") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                let bytes = std::fs::read(&path).expect("a shard");
                let shard = SafeTensors::deserialize(&bytes).expect("a sound shard");
                if let Ok(tensor) = shard.tensor(name) {
                    return (format!("{:?}", tensor.dtype()), tensor.shape().to_vec(), tensor.data().to_vec());
                }
            }
        }
        panic!("no tensor `{name}`");
    }

    pub(super) fn f32s(&self, name: &str) -> Vec<f32> {
        let (dtype, _, bytes) = self.tensor(name);
        assert_eq!(dtype, "F32");
        bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
    }

    pub(super) fn tokenizer(&self) -> tokenizers::Tokenizer {
        tokenizers::Tokenizer::from_file(self.target.join("tokenizer.json")).expect("a sound tokenizer.json")
    }
}

pub(super) fn json_at(path: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("sound JSON")
}

/// Different values, all of them exact in every format.
pub(super) fn numbers(len: u64, seed: f32) -> Vec<f32> {
    (0..len).map(|i| (i % 61) as f32 - 30.0 + seed / 8.0).collect()
}

pub(super) fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
