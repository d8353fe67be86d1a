//! What llama.cpp calls each tensor, and how it wants it stored.

use engine_core::checkpoint::Checkpoint;
use engine_core::config::{
    AttentionBias, ExpertStorage, Mlp, ModelConfig, QkNorm, RopeScaling, Sparse, expert_names, layer_names,
};
use simd::Dtype;
use simd::matmul::MXFP4_BLOCK;

use super::gpt_oss;
use super::mxfp4::{self, Rows};

/// A tensor of the GGUF file: one of the checkpoint's, or several stacked.
pub(super) struct Stored {
    pub(super) name: String,
    /// Row-major, the fastest last.
    pub(super) shape: Vec<usize>,
    pub(super) form: Form,
    pub(super) parts: Vec<Part>,
    /// Heads whose rows are stored interleaved.
    pub(super) rotary_heads: Option<usize>,
}

/// How a tensor's values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Numbers(Dtype),
    Mxfp4,
}

/// Where a tensor's values come from.
pub(super) enum Part {
    /// The checkpoint's tensor of this name.
    Tensor(String),
    /// Some numbers of each expert, from a tensor of small vectors.
    Biases { name: String, rows: Rows },
    /// Some rows of each expert, from a stack of MXFP4.
    Mxfp4 { blocks: String, scales: String, rows: Rows },
    /// What each rotary frequency is divided by.
    Divisors(Vec<f32>),
}

impl Stored {
    pub(super) fn bytes(&self) -> usize {
        let values: usize = self.shape.iter().product();
        match self.form {
            Form::Numbers(dtype) => values * dtype.size(),
            Form::Mxfp4 => values / MXFP4_BLOCK * mxfp4::BLOCK_BYTES,
        }
    }
}

/// llama.cpp's name of the architecture.
pub(super) fn architecture(config: &ModelConfig) -> Result<&'static str, String> {
    let name = match config.family.model_type {
        "llama" | "mistral" | "mixtral" => "llama",
        "qwen2" => "qwen2",
        "qwen3" => "qwen3",
        "qwen3_moe" => "qwen3moe",
        "gpt_oss" => return gpt_oss::check(config).map(|()| "gpt-oss"),
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
    let name = architecture(config)?;
    let is_llama = name == "llama";
    let mut list = List { checkpoint, stored: Vec::new() };
    list.matrix("token_embd.weight", "model.embed_tokens.weight");
    match (&config.rope.scaling, is_llama) {
        (RopeScaling::None, _) => {}
        (RopeScaling::Yarn { .. }, _) if name == "gpt-oss" => {} // in the header
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
        if config.attention_sinks {
            list.floats(to("attn_sinks.weight"), config.sinks_name(index));
        }
        let norm = if name == "gpt-oss" { "post_attention_norm.weight" } else { "ffn_norm.weight" };
        list.floats(to(norm), from("post_attention_layernorm.weight"));
        match &layer.mlp {
            Mlp::Dense { .. } => {
                for part in ["gate", "up", "down"] {
                    list.matrix(&to(&format!("ffn_{part}.weight")), &from(&format!("mlp.{part}_proj.weight")));
                }
            }
            Mlp::Sparse(sparse) => {
                list.floats(to("ffn_gate_inp.weight"), config.router_name(index));
                if sparse.biased {
                    list.floats(to("ffn_gate_inp.bias"), config.router_bias_name(index));
                }
                match sparse.storage {
                    ExpertStorage::Matrices => {
                        for (part, name) in ["gate", "up", "down"].into_iter().enumerate() {
                            let names = (0..sparse.num_experts)
                                .map(|expert| expert_names(config, index, expert)[part].clone())
                                .collect();
                            list.stack(to(&format!("ffn_{name}_exps.weight")), names)?;
                        }
                    }
                    ExpertStorage::StackedMxfp4 => list.stacked_mxfp4(config, index, sparse),
                    ExpertStorage::Stacked | ExpertStorage::StackedTransposed => {
                        return Err("experts in stacks of BF16 are not written as GGUF here".into());
                    }
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
        let (shape, form) = (tensor.shape.to_vec(), Form::Numbers(tensor.dtype));
        let parts = vec![Part::Tensor(source.into())];
        self.stored.push(Stored { name: name.into(), shape, form, parts, rotary_heads: None });
    }

    /// A tensor that llama.cpp wants in float32.
    fn floats(&mut self, name: String, source: String) {
        self.matrix(&name, &source);
        self.last().form = Form::Numbers(Dtype::F32);
    }

    /// The experts of a layer as one tensor.
    fn stack(&mut self, name: String, sources: Vec<String>) -> Result<(), String> {
        let first = self.checkpoint.tensor(&sources[0]);
        if let Some(other) = sources.iter().find(|source| self.checkpoint.tensor(source).dtype != first.dtype) {
            return Err(format!("`{other}` has another type than `{}`, and GGUF stacks them", sources[0]));
        }
        let shape = [&[sources.len()], first.shape].concat();
        let parts = sources.into_iter().map(Part::Tensor).collect();
        self.stored.push(Stored { name, shape, form: Form::Numbers(first.dtype), parts, rotary_heads: None });
        Ok(())
    }

    /// The experts of a layer that are published as stacks; gate and up, which alternate there, become two tensors.
    fn stacked_mxfp4(&mut self, config: &ModelConfig, layer: usize, sparse: &Sparse) {
        let [gate_up, down] = config.stacked_experts(layer);
        let [gate_up_bias, down_bias] = config.expert_bias_names(layer);
        let (hidden, width) = (config.hidden_size, sparse.moe_intermediate_size);
        for (name, stack, bias, rows, [out, input]) in [
            ("gate", &gate_up, &gate_up_bias, Rows::Even, [width, hidden]),
            ("up", &gate_up, &gate_up_bias, Rows::Odd, [width, hidden]),
            ("down", &down, &down_bias, Rows::All, [hidden, width]),
        ] {
            let (blocks, scales) = (stack.blocks.clone(), stack.scales.clone());
            self.stored.push(Stored {
                name: format!("blk.{layer}.ffn_{name}_exps.weight"),
                shape: vec![sparse.num_experts, out, input],
                form: Form::Mxfp4,
                parts: vec![Part::Mxfp4 { blocks, scales, rows }],
                rotary_heads: None,
            });
            self.stored.push(Stored {
                name: format!("blk.{layer}.ffn_{name}_exps.bias"),
                shape: vec![sparse.num_experts, out],
                form: Form::Numbers(Dtype::F32),
                parts: vec![Part::Biases { name: bias.clone(), rows }],
                rotary_heads: None,
            });
        }
    }

    fn frequencies(&mut self, config: &ModelConfig) {
        let dim = config.rope.rotary_dim as f64;
        let plain = |pair: usize| config.rope.theta.powf(-2.0 * pair as f64 / dim);
        let scaled = config.rope.inv_freq().into_iter().enumerate();
        let divisors: Vec<f32> = scaled.map(|(pair, scaled)| (plain(pair) / f64::from(scaled)) as f32).collect();
        self.stored.push(Stored {
            name: "rope_freqs.weight".into(),
            shape: vec![divisors.len()],
            form: Form::Numbers(Dtype::F32),
            parts: vec![Part::Divisors(divisors)],
            rotary_heads: None,
        });
    }

    fn last(&mut self) -> &mut Stored {
        self.stored.last_mut().expect("called after a push")
    }
}
