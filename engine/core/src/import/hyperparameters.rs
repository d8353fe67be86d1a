//! What `llama.*` metadata says about the model, in the words of `config.json`.
//!
//! Any key here may change what the model computes. So a key that is not understood is refused by
//! name: a model that runs with a setting left out gives answers that look right and are not.

use serde_json::{Map, Value, json};

use super::ImportError;
use super::gguf::Metadata;

const LAYERS_MAX: u64 = 512;
const EXPERTS_MAX: u64 = 4096;
const HIDDEN_SIZE_MAX: u64 = 1 << 17;
const HEAD_DIM_MAX: u64 = 1024;
const WIDTH_MAX: u64 = 1 << 20;

/// Keys without their prefix `llama.`: read below, save `rope.scaling.finetuned`, which changes nothing, and
/// `vocab_size`, which is compared with the embedding.
const UNDERSTOOD: &[&str] = &[
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_used_count",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_log_multiplier",
    "vocab_size",
];

/// How positions beyond the first training length are rotated.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RopeScaling {
    None,
    Linear {
        factor: f64,
    },
    Yarn {
        factor: f64,
        original_max_position_embeddings: u64,
        beta_fast: f64,
        beta_slow: f64,
    },
    /// From `rope_freqs.weight`; Meta's low and high frequency factors, 1 and 4.
    Llama3 {
        factor: f64,
        original_max_position_embeddings: u64,
    },
}

/// Shape and settings of the model, under their names in `config.json`.
#[derive(Clone, Debug)]
pub(super) struct Hyperparameters {
    pub(super) hidden_size: u64,
    pub(super) num_hidden_layers: u64,
    pub(super) num_attention_heads: u64,
    pub(super) num_key_value_heads: u64,
    pub(super) head_dim: u64,
    pub(super) intermediate_size: u64,
    pub(super) max_position_embeddings: u64,
    pub(super) rms_norm_eps: f64,
    pub(super) rope_theta: f64,
    pub(super) rope_scaling: RopeScaling,
    /// Experts, and experts for each token; none in a dense model.
    pub(super) experts: Option<(u64, u64)>,
}

impl Hyperparameters {
    pub(super) fn read(metadata: &Metadata) -> Result<Self, ImportError> {
        match metadata.string("general.architecture")? {
            Some("llama") => {}
            found => {
                let found = found.unwrap_or("(none)").to_owned();
                return Err(ImportError::Architecture { found });
            }
        }
        if let Some(count) = metadata.count("split.count")?
            && count > 1
        {
            return Err(ImportError::Split { count });
        }
        let unknown = metadata.keys().find(|key| {
            let setting = key.strip_prefix("llama.");
            setting.is_some_and(|setting| !UNDERSTOOD.contains(&setting)) || key.starts_with("adapter.")
        });
        if let Some(key) = unknown {
            return Err(ImportError::UnknownKey { key: key.to_owned() });
        }

        let hidden_size = required(metadata, "llama.embedding_length", HIDDEN_SIZE_MAX)?;
        let num_attention_heads = required(metadata, "llama.attention.head_count", HIDDEN_SIZE_MAX)?;
        let num_key_value_heads =
            limited(metadata, "llama.attention.head_count_kv", HIDDEN_SIZE_MAX)?.unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            return Err(ImportError::setting(
                "llama.attention.head_count_kv",
                format!("{num_attention_heads} heads cannot share {num_key_value_heads} key and value heads evenly"),
            ));
        }
        let experts = match limited(metadata, "llama.expert_count", EXPERTS_MAX)? {
            None => None,
            Some(experts) => Some((experts, required(metadata, "llama.expert_used_count", experts)?)),
        };
        let max_position_embeddings = required(metadata, "llama.context_length", 1 << 40)?;
        Ok(Self {
            hidden_size,
            num_hidden_layers: required(metadata, "llama.block_count", LAYERS_MAX)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim: head_dim(metadata, hidden_size, num_attention_heads)?,
            intermediate_size: required(metadata, "llama.feed_forward_length", WIDTH_MAX)?,
            max_position_embeddings,
            rms_norm_eps: positive(metadata, "llama.attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| ImportError::missing("llama.attention.layer_norm_rms_epsilon"))?,
            rope_theta: positive(metadata, "llama.rope.freq_base")?.unwrap_or(10_000.0),
            rope_scaling: rope_scaling(metadata, max_position_embeddings)?,
            experts,
        })
    }

    /// `rope_freqs.weight` holds what each frequency is divided by: llama3 scaling written out.
    ///
    /// The settings behind it are found again by computing the table that each plausible setting
    /// gives and comparing; a table that fits none is refused, because rounding its divisors into
    /// another scheme would change the model.
    pub(super) fn scale_by_frequency_table(&mut self, table: &[f32]) -> Result<(), ImportError> {
        if table.iter().all(|divisor| *divisor == 1.0) {
            return Ok(());
        }
        let refuse = || Err(ImportError::RopeFrequencies { tensor: "rope_freqs.weight".to_owned() });
        if self.rope_scaling != RopeScaling::None || table.len() as u64 != self.head_dim / 2 {
            return refuse();
        }
        let factor = f64::from(table.iter().copied().fold(1.0, f32::max));
        for original_max_position_embeddings in [8192, 4096, 2048, 16384, 32768] {
            let fits = table.iter().enumerate().all(|(i, divisor)| {
                let want = self.llama3_divisor(i, factor, original_max_position_embeddings as f64);
                (f64::from(*divisor) - want).abs() <= 1e-4 * want
            });
            if fits {
                self.rope_scaling = RopeScaling::Llama3 { factor, original_max_position_embeddings };
                return Ok(());
            }
        }
        refuse()
    }

    fn llama3_divisor(&self, i: usize, factor: f64, original: f64) -> f64 {
        let frequency = self.rope_theta.powf(-2.0 * i as f64 / self.head_dim as f64);
        let wavelength = std::f64::consts::TAU / frequency;
        if wavelength < original / 4.0 {
            1.0
        } else if wavelength > original {
            factor
        } else {
            let smooth = (original / wavelength - 1.0) / 3.0;
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    }

    /// The part of `config.json` that these settings are.
    pub(super) fn config(&self) -> Map<String, Value> {
        let (class, model_type) =
            if self.experts.is_some() { ("MixtralForCausalLM", "mixtral") } else { ("LlamaForCausalLM", "llama") };
        let mut config = Map::new();
        let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
        set("architectures", json!([class]));
        set("model_type", json!(model_type));
        set("hidden_act", json!("silu"));
        set("hidden_size", json!(self.hidden_size));
        set("intermediate_size", json!(self.intermediate_size));
        set("num_hidden_layers", json!(self.num_hidden_layers));
        set("num_attention_heads", json!(self.num_attention_heads));
        set("num_key_value_heads", json!(self.num_key_value_heads));
        set("head_dim", json!(self.head_dim));
        set("max_position_embeddings", json!(self.max_position_embeddings));
        set("rms_norm_eps", json!(self.rms_norm_eps));
        set("rope_theta", json!(self.rope_theta));
        let scaling = match self.rope_scaling {
            RopeScaling::None => Value::Null,
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Yarn { factor, original_max_position_embeddings, beta_fast, beta_slow } => json!({
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original_max_position_embeddings,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
            }),
            RopeScaling::Llama3 { factor, original_max_position_embeddings } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": original_max_position_embeddings,
            }),
        };
        set("rope_scaling", scaling);
        if let Some((experts, experts_per_token)) = self.experts {
            set("num_local_experts", json!(experts));
            set("num_experts_per_tok", json!(experts_per_token));
            // Mixtral's own default; a window would be a key of its own, and is refused above.
            set("sliding_window", Value::Null);
        }
        config
    }
}

/// A whole number from 1 to `limit`, or `None` when the key is absent. Zero means absent: writers do that.
fn limited(metadata: &Metadata, key: &'static str, limit: u64) -> Result<Option<u64>, ImportError> {
    match metadata.count(key)? {
        None | Some(0) => Ok(None),
        Some(found) if found <= limit => Ok(Some(found)),
        Some(found) => Err(ImportError::setting(key, format!("{found} is above the limit of {limit}"))),
    }
}

fn required(metadata: &Metadata, key: &'static str, limit: u64) -> Result<u64, ImportError> {
    limited(metadata, key, limit)?.ok_or_else(|| ImportError::missing(key))
}

fn positive(metadata: &Metadata, key: &'static str) -> Result<Option<f64>, ImportError> {
    match metadata.float(key)? {
        Some(found) if found <= 0.0 => Err(ImportError::setting(key, format!("{found} must be above zero"))),
        found => Ok(found),
    }
}

fn head_dim(metadata: &Metadata, hidden_size: u64, heads: u64) -> Result<u64, ImportError> {
    let key_length = limited(metadata, "llama.attention.key_length", HEAD_DIM_MAX)?;
    let rotated = limited(metadata, "llama.rope.dimension_count", HEAD_DIM_MAX)?;
    let head_dim = key_length.or(rotated).unwrap_or(hidden_size / heads);
    let others = [
        ("llama.rope.dimension_count", rotated),
        ("llama.attention.value_length", limited(metadata, "llama.attention.value_length", HEAD_DIM_MAX)?),
    ];
    for (key, found) in others {
        if let Some(found) = found.filter(|found| *found != head_dim) {
            let reason = format!("{found} differs from the head dimension {head_dim}; that is not supported");
            return Err(ImportError::setting(key, reason));
        }
    }
    if head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim > HEAD_DIM_MAX {
        let reason = format!("the head dimension {head_dim} must be even, above 0 and at most {HEAD_DIM_MAX}");
        return Err(ImportError::setting("llama.attention.key_length", reason));
    }
    Ok(head_dim)
}

fn rope_scaling(metadata: &Metadata, max_position_embeddings: u64) -> Result<RopeScaling, ImportError> {
    const TYPE: &str = "llama.rope.scaling.type";
    const FACTOR: &str = "llama.rope.scaling.factor";
    let factor = match positive(metadata, FACTOR)? {
        Some(factor) => Some(factor),
        None => positive(metadata, "llama.rope.scale_linear")?,
    };
    // Settings that scale attention in ways for which config.json has no words: only their neutral values pass.
    let neutral: [(&'static str, f64); 4] = [
        ("llama.rope.scaling.attn_factor", 1.0),
        ("llama.rope.scaling.yarn_attn_factor", 1.0),
        ("llama.rope.scaling.yarn_ext_factor", 1.0),
        ("llama.rope.scaling.yarn_log_multiplier", 0.0),
    ];
    for (key, value) in neutral {
        if let Some(found) = metadata.float(key)?.filter(|found| *found != value) {
            return Err(ImportError::setting(key, format!("{found} is not supported (only {value} is)")));
        }
    }
    match metadata.string(TYPE)? {
        None if factor.is_none_or(|factor| factor == 1.0) => Ok(RopeScaling::None),
        Some("none") => Ok(RopeScaling::None),
        None | Some("linear") => {
            Ok(RopeScaling::Linear { factor: factor.ok_or_else(|| ImportError::missing(FACTOR))? })
        }
        Some("yarn") => Ok(RopeScaling::Yarn {
            factor: factor.ok_or_else(|| ImportError::missing(FACTOR))?,
            original_max_position_embeddings: limited(
                metadata,
                "llama.rope.scaling.original_context_length",
                max_position_embeddings,
            )?
            .ok_or_else(|| ImportError::missing("llama.rope.scaling.original_context_length"))?,
            beta_fast: positive(metadata, "llama.rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: positive(metadata, "llama.rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        }),
        Some(other) => {
            Err(ImportError::setting(TYPE, format!("`{other}` is not supported; none, linear and yarn are")))
        }
    }
}
