//! The header: what llama.cpp has to know before the first tensor.

use engine_core::checkpoint::Checkpoint;
use engine_core::config::{Mlp, ModelConfig, RopeScaling};
use simd::Dtype;

use super::names::{Form, Stored};

/// Alignment of every tensor, the format's default.
pub(super) const ALIGNMENT: usize = 32;

const VERSION: u32 = 3;
/// llama.cpp's numbers for a file of BF16 weights, and of experts in MXFP4.
const MOSTLY_BF16: usize = 32;
const MOSTLY_MXFP4_MOE: usize = 38;

/// A GGUF file up to its first tensor.
pub(super) struct Header {
    bytes: Vec<u8>,
}

enum Value {
    Count(usize),
    Float(f64),
    Text(String),
}

impl Header {
    pub(super) fn new(architecture: &str, checkpoint: &Checkpoint, tensors: &[Stored]) -> Result<Self, String> {
        let has_mxfp4 = tensors.iter().any(|tensor| tensor.form == Form::Mxfp4);
        let file_type = if has_mxfp4 { MOSTLY_MXFP4_MOE } else { MOSTLY_BF16 };
        let entries = metadata(architecture, file_type, checkpoint)?;
        let mut header = Self { bytes: Vec::new() };
        header.bytes.extend(b"GGUF");
        header.bytes.extend(VERSION.to_le_bytes());
        header.count(tensors.len());
        header.count(entries.len());
        for (key, value) in entries {
            header.text(&key);
            match value {
                Value::Count(count) => {
                    let count = u32::try_from(count).map_err(|_| format!("{key} is {count}, beyond 32 bits"))?;
                    header.bytes.extend(4_u32.to_le_bytes());
                    header.bytes.extend(count.to_le_bytes());
                }
                Value::Float(float) => {
                    header.bytes.extend(6_u32.to_le_bytes());
                    header.bytes.extend((float as f32).to_le_bytes());
                }
                Value::Text(text) => {
                    header.bytes.extend(8_u32.to_le_bytes());
                    header.text(&text);
                }
            }
        }
        let mut offset = 0;
        for tensor in tensors {
            header.text(&tensor.name);
            header.bytes.extend((tensor.shape.len() as u32).to_le_bytes());
            for size in tensor.shape.iter().rev() {
                header.count(*size); // the fastest first
            }
            let kind: u32 = match tensor.form {
                Form::Numbers(Dtype::F32) => 0,
                Form::Numbers(Dtype::F16) => 1,
                Form::Numbers(Dtype::Bf16) => 30,
                Form::Mxfp4 => 39,
            };
            header.bytes.extend(kind.to_le_bytes());
            header.count(offset);
            offset += tensor.bytes().next_multiple_of(ALIGNMENT);
        }
        header.bytes.resize(header.bytes.len().next_multiple_of(ALIGNMENT), 0);
        Ok(header)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn count(&mut self, count: usize) {
        self.bytes.extend((count as u64).to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.bytes.extend(text.as_bytes());
    }
}

fn metadata(architecture: &str, file_type: usize, checkpoint: &Checkpoint) -> Result<Vec<(String, Value)>, String> {
    let config = checkpoint.config();
    let name = checkpoint.folder().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut entries = vec![
        ("general.architecture".to_owned(), Value::Text(architecture.to_owned())),
        ("general.name".to_owned(), Value::Text(name)),
        ("general.file_type".to_owned(), Value::Count(file_type)),
        ("tokenizer.ggml.model".to_owned(), Value::Text("no_vocab".to_owned())),
    ];
    let mut set = |key: &str, value| entries.push((format!("{architecture}.{key}"), value));
    set("vocab_size", Value::Count(config.vocab_size));
    set("context_length", Value::Count(config.max_position_embeddings));
    set("embedding_length", Value::Count(config.hidden_size));
    set("block_count", Value::Count(config.layers.len()));
    set("attention.head_count", Value::Count(config.num_attention_heads));
    set("attention.head_count_kv", Value::Count(config.num_key_value_heads));
    set("attention.key_length", Value::Count(config.head_dim));
    set("attention.value_length", Value::Count(config.head_dim));
    set("attention.layer_norm_rms_epsilon", Value::Float(config.rms_norm_eps.into()));
    set("rope.dimension_count", Value::Count(config.rope.rotary_dim));
    set("rope.freq_base", Value::Float(config.rope.theta));
    if let RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_position_embeddings, .. } =
        config.rope.scaling
    {
        set("rope.scaling.type", Value::Text("yarn".to_owned()));
        set("rope.scaling.factor", Value::Float(factor));
        set("rope.scaling.original_context_length", Value::Count(original_max_position_embeddings as usize));
        set("rope.scaling.yarn_beta_fast", Value::Float(beta_fast));
        set("rope.scaling.yarn_beta_slow", Value::Float(beta_slow));
    }
    if let Some(window) = config.layers.iter().find_map(|layer| layer.window) {
        set("attention.sliding_window", Value::Count(window));
    }
    match uniform_mlp(config)? {
        Mlp::Dense { intermediate_size } => set("feed_forward_length", Value::Count(*intermediate_size)),
        Mlp::Sparse(sparse) => {
            set("feed_forward_length", Value::Count(sparse.moe_intermediate_size));
            set("expert_feed_forward_length", Value::Count(sparse.moe_intermediate_size));
            set("expert_count", Value::Count(sparse.num_experts));
            set("expert_used_count", Value::Count(sparse.num_experts_per_tok));
        }
    }
    Ok(entries)
}

/// The feed-forward part that all layers have.
fn uniform_mlp(config: &ModelConfig) -> Result<&Mlp, String> {
    let first = &config.layers.first().ok_or("a model without layers")?.mlp;
    match config.layers.iter().position(|layer| layer.mlp != *first) {
        None => Ok(first),
        Some(layer) => {
            Err(format!("layer {layer} has another feed-forward part than layer 0, which is not written here"))
        }
    }
}
