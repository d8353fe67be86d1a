//! What config.json says, checked once and turned into closed enums.
//!
//! Everything below this module asks `ModelConfig` and never the name of a model: a family is a row in the table of
//! [`family`], and a checkpoint is that row with numbers. Two dialects of config.json exist (hub files up to
//! transformers 4, and files written by transformers 5); both are read here and nowhere else.

mod dials;
pub mod family;
mod fields;
mod rope;
mod tensors;

use std::io::Read;
use std::path::{Path, PathBuf};

pub use dials::{DialError, Dials, ScalingMethod};
pub use family::Family;
pub use rope::{Rope, RopeScaling, YarnAttention};
pub use tensors::{StackedExperts, TensorKind, TensorSpec, expert_names, layer_names};

use family::{MlpRule, WindowRule};
use fields::Fields;

/// A decoder, as numbers and closed choices.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Row of the family table: tensor names and what they mean.
    pub family: &'static Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head; independent of `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Rows of the embedding; may exceed the tokenizer's size by padding.
    pub vocab_size: usize,
    /// Longest position that the model was made for.
    pub max_position_embeddings: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f32,
    /// The output projection is the embedding.
    pub tie_word_embeddings: bool,
    /// Which attention projections carry a bias.
    pub attention_bias: AttentionBias,
    /// Norm of queries and keys.
    pub qk_norm: QkNorm,
    /// Each query head has one more score, a weight, that has no value.
    pub attention_sinks: bool,
    /// What joins gate and up.
    pub activation: Activation,
    /// Rotary embedding.
    pub rope: Rope,
    /// One entry a decoder layer.
    pub layers: Vec<LayerConfig>,
    /// Data type that the checkpoint says its weights have; the shards have the last word.
    pub torch_dtype: Option<simd::Dtype>,
}

/// What differs from layer to layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerConfig {
    /// Key j is visible to query i iff `i - window < j <= i`; `None` is full causal attention.
    pub window: Option<usize>,
    /// Feed-forward part.
    pub mlp: Mlp,
}

/// Feed-forward part of a layer: `down(activation(gate(x), up(x)))`, once or in chosen experts.
#[derive(Clone, Debug, PartialEq)]
pub enum Mlp {
    /// One gated MLP.
    Dense {
        /// Rows of gate and up.
        intermediate_size: usize,
    },
    /// A router and experts.
    Sparse(Sparse),
}

/// Mixture of experts of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Sparse {
    /// Experts in the layer.
    pub num_experts: usize,
    /// Experts that a token goes through, where its request does not say.
    pub num_experts_per_tok: usize,
    /// Experts that a request may ask for.
    pub most_experts_per_tok: usize,
    /// Rows of an expert's gate and up.
    pub moe_intermediate_size: usize,
    /// Factors of the chosen experts' outputs.
    pub weights: ExpertWeights,
    /// Router and experts have biases.
    pub biased: bool,
    /// How the experts are published.
    pub storage: ExpertStorage,
}

/// By what the outputs of the chosen experts are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertWeights {
    /// Their probabilities among all experts.
    OfAll,
    /// These, divided by their sum (`norm_topk_prob`).
    OfAllNormed,
    /// The softmax of their logits alone (GPT-OSS).
    OfChosen,
}

/// How the experts of a layer are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertStorage {
    /// Each matrix is a tensor.
    Matrices,
    /// Two tensors hold all experts' matrices: `[experts, 2 * moe_intermediate_size, hidden_size]`, the rows of gate and
    /// then those of up, and `[experts, hidden_size, moe_intermediate_size]`.
    Stacked,
    /// The same with inputs as rows: `[experts, hidden_size, 2 * moe_intermediate_size]`, columns of gate and of up in
    /// turn, and `[experts, moe_intermediate_size, hidden_size]`.
    StackedTransposed,
    /// Three tensors hold all experts' blocks, scales and biases, gate and up row by row in turn.
    StackedMxfp4,
}

/// What joins the products of gate and up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `silu(gate) * up`.
    Silu,
    /// `gate * sigmoid(alpha * gate) * (up + 1)` with `gate` at most `limit` and `up` within ± `limit` (GPT-OSS).
    ClampedSilu {
        /// Where they are cut off.
        limit: f32,
        /// Steepness of the sigmoid.
        alpha: f32,
    },
}

/// Which of the attention projections carry a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionBias {
    /// None of them.
    None,
    /// q, k and v (Qwen2).
    Qkv,
    /// q, k, v and o (`attention_bias: true`).
    Qkvo,
}

/// Norm of queries and keys before the rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// RMSNorm over `head_dim`, one weight shared by the heads (Qwen3).
    PerHead,
}

/// Why a config.json is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {path}: {source}; a model folder holds config.json, tokenizer.json and *.safetensors")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Larger than any config.json is.
    #[error("{path} has more than {limit} bytes, which no config.json has")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// Not JSON, or not an object.
    #[error("{path} is not a JSON object: {why}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        why: String,
    },
    /// The architecture is not one of the table's.
    #[error("{path}: architecture `{got}` is not supported{lacks}; supported: {supported}")]
    Architecture {
        /// The file.
        path: PathBuf,
        /// What the file names.
        got: String,
        /// What it would need, where that is known.
        lacks: String,
        /// Names in the table.
        supported: String,
    },
    /// A field is missing, of the wrong type or out of its range.
    #[error("{path}: `{field}` {why}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field's name as config.json spells it.
        field: String,
        /// What is wrong and what is allowed.
        why: String,
    },
}

const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// A sequence of more positions is none that there is.
const POSITIONS_MAX: usize = 1 << 24;
/// Experts of all layers together; Kimi K2 has 23,040. A config.json of a few bytes must not ask for gigabytes of names.
const EXPERTS_MAX: usize = 1 << 17;

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the field and what is allowed.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.into(), source };
        let mut json = Vec::new();
        // Not the length in the metadata: that is 0 for a pipe or a device, and can change.
        let file = std::fs::File::open(path).map_err(read)?;
        file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut json).map_err(read)?;
        if json.len() as u64 > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLarge { path: path.into(), limit: CONFIG_BYTES_MAX });
        }
        Self::from_json(path, &json)
    }

    /// Parses the text of a config.json; `path` is for messages.
    ///
    /// # Errors
    /// As [`ModelConfig::from_file`].
    pub fn from_json(path: &Path, json: &[u8]) -> Result<Self, ConfigError> {
        let root = Fields::parse(path, json)?;
        let family = Family::find(&root)?;
        for field in family.required {
            if !root.says(field) {
                let why = "is missing; what this architecture assumes without it is not what others do";
                return Err(root.wrong(field, why.into()));
            }
        }
        // Multimodal wrappers nest the language model; none of the families here is one, but the error would mislead.
        let hidden_size = root.size("hidden_size", 1..=1 << 17)?;
        let num_layers = root.size("num_hidden_layers", 1..=512)?;
        let num_attention_heads = root.size("num_attention_heads", 1..=1024)?;
        let num_key_value_heads = root.optional_size("num_key_value_heads", 1..=1024)?.unwrap_or(num_attention_heads);
        if num_attention_heads % num_key_value_heads != 0 {
            return Err(root.wrong(
                "num_key_value_heads",
                format!("is {num_key_value_heads}, which does not divide num_attention_heads = {num_attention_heads}"),
            ));
        }
        let head_dim = match root.optional_size("head_dim", 2..=1024)? {
            Some(head_dim) => head_dim,
            None if hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
            None => return Err(root.wrong("head_dim", "is absent and hidden_size is no multiple of the heads".into())),
        };
        if head_dim % 2 != 0 {
            return Err(root.wrong("head_dim", format!("is {head_dim}; rotary embedding needs an even number")));
        }
        match root.optional_text("hidden_act")? {
            None | Some("silu") => {}
            Some(other) => return Err(root.wrong("hidden_act", format!("is `{other}`; supported: silu"))),
        }
        if root.optional_flag("mlp_bias")? == Some(true) {
            return Err(root.wrong("mlp_bias", "is true; MLP biases are not supported in this family".into()));
        }
        let storage = expert_storage(&root, family)?;
        let rms_norm_eps = root.number_of(&["rms_norm_eps", "layernorm_epsilon", "norm_eps"], 1e-6)?;
        if !(rms_norm_eps as f32).is_normal() {
            return Err(root.wrong("rms_norm_eps", format!("is {rms_norm_eps}, which float32 cannot hold")));
        }
        let max_position_embeddings = root.size("max_position_embeddings", 1..=POSITIONS_MAX)?;
        let explicit_bias = root.optional_flag("attention_bias")?.unwrap_or(false);
        let attention_bias = match (family.attention_bias, explicit_bias) {
            (AttentionBias::None, true) => AttentionBias::Qkvo,
            (rule, _) => rule,
        };
        let windows = windows(&root, family.window, num_layers)?;
        let mlps = mlps(&root, family, storage, num_layers)?;
        for (index, layer) in mlps.iter().enumerate() {
            let Mlp::Sparse(sparse) = layer else { continue };
            let block = simd::matmul::MXFP4_BLOCK;
            let whole = hidden_size.is_multiple_of(block) && sparse.moe_intermediate_size.is_multiple_of(block);
            if sparse.storage == ExpertStorage::StackedMxfp4 && !whole {
                let why = format!(
                    "and the size of the experts in layer {index} are {hidden_size} and {}; MXFP4 has blocks of {block}",
                    sparse.moe_intermediate_size
                );
                return Err(root.wrong("hidden_size", why));
            }
        }
        let layers = windows.into_iter().zip(mlps).map(|(window, mlp)| LayerConfig { window, mlp }).collect();
        let torch_dtype = match root.optional_text("torch_dtype")?.or(root.optional_text("dtype")?) {
            Some("bfloat16") => Some(simd::Dtype::Bf16),
            Some("float16") => Some(simd::Dtype::F16),
            Some("float32") => Some(simd::Dtype::F32),
            _ => None,
        };
        Ok(Self {
            family,
            hidden_size,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: root.size("vocab_size", 1..=1 << 21)?,
            max_position_embeddings,
            rms_norm_eps: rms_norm_eps as f32,
            tie_word_embeddings: root.optional_flag("tie_word_embeddings")?.unwrap_or(false),
            attention_bias,
            qk_norm: family.qk_norm,
            attention_sinks: family.sinks,
            activation: activation(&root, family.mlp)?,
            rope: Rope::parse(&root, head_dim, max_position_embeddings)?,
            layers,
            torch_dtype,
        })
    }

    /// Positions that a context may have: those that the model was made for, and where its frequencies are stretched by
    /// YaRN or follow the length, those that they are stretched to. (Of linear scaling config.json says one or the other,
    /// so the smaller is taken; `--rope-scale` says more.)
    pub fn longest_context(&self) -> usize {
        match self.rope.scaling {
            RopeScaling::Yarn { factor, original_max_position_embeddings: original, .. }
            | RopeScaling::Dynamic { factor, original_max_position_embeddings: original, .. } => {
                self.max_position_embeddings.max((factor * original) as usize).min(POSITIONS_MAX)
            }
            _ => self.max_position_embeddings,
        }
    }

    /// Gives frequencies that follow the length of a sequence those for `ctx_size` positions.
    pub fn for_context(&mut self, ctx_size: usize) {
        if let RopeScaling::Dynamic { length, .. } = &mut self.rope.scaling {
            *length = ctx_size as f64;
        }
    }

    /// Width of all query heads together.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key heads together, and of all value heads.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Query heads that share one key and value head.
    pub fn group_size(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }

    /// Mixtures of experts in the order of their layers, with the layers' indices.
    pub fn sparse_layers(&self) -> impl Iterator<Item = (usize, &Sparse)> {
        self.layers.iter().enumerate().filter_map(|(index, layer)| match &layer.mlp {
            Mlp::Sparse(sparse) => Some((index, sparse)),
            Mlp::Dense { .. } => None,
        })
    }
}

fn windows(root: &Fields, rule: WindowRule, num_layers: usize) -> Result<Vec<Option<usize>>, ConfigError> {
    let size = root.optional_size("sliding_window", 1..=1 << 24)?;
    if let Some(types) = root.optional_list("layer_types")? {
        if types.len() != num_layers {
            return Err(root.wrong("layer_types", format!("has {} entries for {num_layers} layers", types.len())));
        }
        return types
            .iter()
            .map(|kind| match (kind.as_str(), size) {
                (Some("full_attention"), _) => Ok(None),
                (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
                (Some("sliding_attention"), None) => {
                    Err(root.wrong("sliding_window", "is absent though layer_types names sliding layers".into()))
                }
                _ => {
                    Err(root
                        .wrong("layer_types", format!("holds {kind}; supported: full_attention, sliding_attention")))
                }
            })
            .collect();
    }
    let first_sliding = match rule {
        WindowRule::Never => num_layers,
        WindowRule::Always => 0,
        WindowRule::IfUsed if root.optional_flag("use_sliding_window")? != Some(true) => num_layers,
        WindowRule::IfUsed => 0,
        WindowRule::IfUsedFromLayer if root.optional_flag("use_sliding_window")? != Some(true) => num_layers,
        WindowRule::IfUsedFromLayer => root.optional_size("max_window_layers", 0..=1 << 20)?.unwrap_or(28),
    };
    Ok((0..num_layers).map(|layer| size.filter(|_| layer >= first_sliding)).collect())
}

/// How experts are stored, as far as config.json says. The only quantised weights are those that a family is published
/// with; whatever else is said is refused by name.
fn expert_storage(root: &Fields, family: &Family) -> Result<ExpertStorage, ConfigError> {
    const FIELD: &str = "quantization_config";
    let published = family.layouts.first().map_or(ExpertStorage::Matrices, |layout| layout.storage);
    match (root.object(FIELD)?, published) {
        (None, ExpertStorage::StackedMxfp4) => Ok(ExpertStorage::StackedTransposed),
        (None, published) => Ok(published),
        (Some(quantization), ExpertStorage::StackedMxfp4) => {
            match quantization.optional_text("quant_method")? {
                // What stays unquantised is checked by the tensors themselves; here only that it is a list.
                Some("mxfp4") => quantization.optional_list("modules_to_not_convert").map(|_| published),
                Some(other) => Err(quantization.wrong("quant_method", format!("is `{other}`; supported: mxfp4"))),
                None => Err(quantization.wrong("quant_method", "is missing; supported: mxfp4".into())),
            }
        }
        (Some(_), _) => {
            Err(root
                .wrong(FIELD, "is present; supported are unquantised checkpoints with BF16, F16 or F32 weights".into()))
        }
    }
}

fn activation(root: &Fields, rule: MlpRule) -> Result<Activation, ConfigError> {
    match rule {
        MlpRule::Dense | MlpRule::Mixtral | MlpRule::QwenMoe => Ok(Activation::Silu),
        MlpRule::GptOss => {
            let number = |name: &str, default: f64| {
                let number = root.number_of(&[name], default)?;
                match (number as f32).is_normal() {
                    true => Ok(number as f32),
                    false => Err(root.wrong(name, format!("is {number}, which float32 cannot hold"))),
                }
            };
            Ok(Activation::ClampedSilu { limit: number("swiglu_limit", 7.0)?, alpha: number("swiglu_alpha", 1.702)? })
        }
    }
}

fn mlps(root: &Fields, family: &Family, storage: ExpertStorage, num_layers: usize) -> Result<Vec<Mlp>, ConfigError> {
    let rule = family.mlp;
    let dense = || Ok(Mlp::Dense { intermediate_size: root.size("intermediate_size", 1..=1 << 20)? });
    let sparse = |moe_intermediate_size: usize, weights: ExpertWeights| {
        let num_experts = root.size_of(&["num_experts", "num_local_experts", "n_routed_experts"], 1..=4096)?;
        if num_experts * num_layers > EXPERTS_MAX {
            let why = format!("is {num_experts} in {num_layers} layers; at most {EXPERTS_MAX} experts are allowed");
            return Err(root.wrong("num_experts", why));
        }
        let spellings = ["num_experts_per_tok", "experts_per_token", "num_experts_per_token", "top_k_experts"];
        let num_experts_per_tok = root.size_of(&spellings, 1..=num_experts)?;
        let biased = rule == MlpRule::GptOss;
        Ok(Mlp::Sparse(Sparse {
            num_experts,
            num_experts_per_tok,
            most_experts_per_tok: num_experts_per_tok,
            moe_intermediate_size,
            weights,
            biased,
            storage,
        }))
    };
    match rule {
        MlpRule::Dense => (0..num_layers).map(|_| dense()).collect(),
        MlpRule::Mixtral | MlpRule::GptOss => {
            let weights = if rule == MlpRule::GptOss { ExpertWeights::OfChosen } else { ExpertWeights::OfAllNormed };
            (0..num_layers).map(|_| sparse(root.size("intermediate_size", 1..=1 << 20)?, weights)).collect()
        }
        MlpRule::QwenMoe => {
            let step = root.optional_size("decoder_sparse_step", 1..=512)?.unwrap_or(1);
            let dense_layers = root.optional_list("mlp_only_layers")?.unwrap_or_default();
            let is_layer = |entry: &serde_json::Value| entry.as_u64().is_some_and(|layer| layer < 512);
            if dense_layers.len() > num_layers || !dense_layers.iter().all(is_layer) {
                let why = format!("must be a list of at most {num_layers} layers' numbers");
                return Err(root.wrong("mlp_only_layers", why));
            }
            let weights = match root.optional_flag("norm_topk_prob")? {
                Some(true) => ExpertWeights::OfAllNormed,
                Some(false) | None => ExpertWeights::OfAll,
            };
            (0..num_layers)
                .map(|layer| {
                    let listed = dense_layers.iter().any(|entry| entry.as_u64() == Some(layer as u64));
                    if listed || (layer + 1) % step != 0 {
                        dense()
                    } else {
                        sparse(root.size("moe_intermediate_size", 1..=1 << 20)?, weights)
                    }
                })
                .collect()
        }
    }
}

#[cfg(test)]
mod tests;
