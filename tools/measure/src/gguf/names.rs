//! What llama.cpp calls each tensor, and how it wants it stored.

use engine_core::checkpoint::Checkpoint;
use engine_core::config::{
    AttentionBias, ExpertStorage, Mlp, ModelConfig, QkNorm, RopeScaling, expert_names, layer_names,
};
use simd::Dtype;

/// A tensor of the GGUF file: one of the checkpoint's, or several stacked.
pub(super) struct Stored {
    pub(super) name: String,
    /// Row-major, the fastest last.
    pub(super) shape: Vec<usize>,
    pub(super) dtype: Dtype,
    pub(super) parts: Vec<Part>,
    /// Heads whose rows are stored interleaved.
    pub(super) rotary_heads: Option<usize>,
}

/// Where a tensor's values come from.
pub(super) enum Part {
    /// The checkpoint's tensor of this name.
    Tensor(String),
    /// What each rotary frequency is divided by.
    Divisors(Vec<f32>),
}

impl Stored {
    pub(super) fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

/// llama.cpp's name of the architecture.
pub(super) fn architecture(config: &ModelConfig) -> Result<&'static str, String> {
    let name = match config.family.model_type {
        "llama" | "mistral" | "mixtral" => "llama",
        "qwen2" => "qwen2",
        "qwen3" => "qwen3",
        "qwen3_moe" => "qwen3moe",
        other => return Err(format!("`{other}` checkpoints are not written as GGUF here")),
    };
    match config.layers.iter().any(|layer| layer.window.is_some()) {
        true => Err("sliding windows are not written here: llama.cpp has none for these architectures".into()),
        false => Ok(name),
    }
}

/// Every tensor, in the order of the forward pass.
pub(super) fn tensors(checkpoint: &Checkpoint) -> Result<Vec<Stored>, String> {
    let config = checkpoint.config();
    let is_llama = architecture(config)? == "llama";
    let mut list = List { checkpoint, stored: Vec::new() };
    list.matrix("token_embd.weight", "model.embed_tokens.weight");
    match (&config.rope.scaling, is_llama) {
        (RopeScaling::None, _) => {}
        (RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. }, true) => list.frequencies(config),
        _ => return Err("this rope_scaling is not written as GGUF here".into()),
    }
    for (index, layer) in config.layers.iter().enumerate() {
        let from = |tensor: &str| layer_names(index, tensor);
        let to = |tensor: &str| format!("blk.{index}.{tensor}");
        list.floats(to("attn_norm.weight"), from("input_layernorm.weight"));
        for (there, here) in [("q", "q"), ("k", "k"), ("v", "v"), ("output", "o")] {
            let heads = match here {
                "q" if is_llama => Some(config.num_attention_heads),
                "k" if is_llama => Some(config.num_key_value_heads),
                _ => None,
            };
            list.matrix(&to(&format!("attn_{there}.weight")), &from(&format!("self_attn.{here}_proj.weight")));
            list.last().rotary_heads = heads;
            let has_bias = match config.attention_bias {
                AttentionBias::None => false,
                AttentionBias::Qkv => here != "o",
                AttentionBias::Qkvo => true,
            };
            if has_bias {
                if heads.is_some() {
                    return Err("`attention_bias` in a Llama is not written as GGUF here".into());
                }
                list.floats(to(&format!("attn_{there}.bias")), from(&format!("self_attn.{here}_proj.bias")));
            }
        }
        if config.qk_norm == QkNorm::PerHead {
            list.floats(to("attn_q_norm.weight"), from("self_attn.q_norm.weight"));
            list.floats(to("attn_k_norm.weight"), from("self_attn.k_norm.weight"));
        }
        list.floats(to("ffn_norm.weight"), from("post_attention_layernorm.weight"));
        match &layer.mlp {
            Mlp::Dense { .. } => {
                for part in ["gate", "up", "down"] {
                    list.matrix(&to(&format!("ffn_{part}.weight")), &from(&format!("mlp.{part}_proj.weight")));
                }
            }
            Mlp::Sparse(sparse) if sparse.storage != ExpertStorage::Matrices => {
                return Err("experts in stacks are not written as GGUF here".into());
            }
            Mlp::Sparse(sparse) => {
                list.floats(to("ffn_gate_inp.weight"), config.router_name(index));
                for (part, name) in ["gate", "up", "down"].into_iter().enumerate() {
                    let experts = 0..sparse.num_experts;
                    let names = experts.map(|expert| expert_names(config, index, expert)[part].clone()).collect();
                    list.stack(to(&format!("ffn_{name}_exps.weight")), names)?;
                }
            }
        }
    }
    list.floats("output_norm.weight".into(), "model.norm.weight".into());
    if !config.tie_word_embeddings {
        list.matrix("output.weight", "lm_head.weight");
    }
    Ok(list.stored)
}

struct List<'c> {
    checkpoint: &'c Checkpoint,
    stored: Vec<Stored>,
}

impl List<'_> {
    /// A tensor that keeps its type.
    fn matrix(&mut self, name: &str, source: &str) {
        let tensor = self.checkpoint.tensor(source);
        let (shape, dtype) = (tensor.shape.to_vec(), tensor.dtype);
        let parts = vec![Part::Tensor(source.into())];
        self.stored.push(Stored { name: name.into(), shape, dtype, parts, rotary_heads: None });
    }

    /// A tensor that llama.cpp wants in float32.
    fn floats(&mut self, name: String, source: String) {
        self.matrix(&name, &source);
        self.last().dtype = Dtype::F32;
    }

    /// The experts of a layer as one tensor.
    fn stack(&mut self, name: String, sources: Vec<String>) -> Result<(), String> {
        let first = self.checkpoint.tensor(&sources[0]);
        if let Some(other) = sources.iter().find(|source| self.checkpoint.tensor(source).dtype != first.dtype) {
            return Err(format!("`{other}` has another type than `{}`, and GGUF stacks them", sources[0]));
        }
        let shape = [&[sources.len()], first.shape].concat();
        let parts = sources.into_iter().map(Part::Tensor).collect();
        self.stored.push(Stored { name, shape, dtype: first.dtype, parts, rotary_heads: None });
        Ok(())
    }

    fn frequencies(&mut self, config: &ModelConfig) {
        let dim = config.rope.rotary_dim as f64;
        let plain = |pair: usize| config.rope.theta.powf(-2.0 * pair as f64 / dim);
        let scaled = config.rope.inv_freq().into_iter().enumerate();
        let divisors: Vec<f32> = scaled.map(|(pair, scaled)| (plain(pair) / f64::from(scaled)) as f32).collect();
        self.stored.push(Stored {
            name: "rope_freqs.weight".into(),
            shape: vec![divisors.len()],
            dtype: Dtype::F32,
            parts: vec![Part::Divisors(divisors)],
            rotary_heads: None,
        });
    }

    fn last(&mut self) -> &mut Stored {
        self.stored.last_mut().expect("called after a push")
    }
}
