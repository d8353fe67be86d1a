//! The table of families: what a checkpoint of each calls its tensors and which of the forward pass's choices it takes.
//!
//! Adding a family is a row here, golden data and a line in the README. Formulas and names are those of transformers'
//! modeling files; biases, norms and windows are said per family because their config.json does not say them.

use super::fields::Fields;
use super::{AttentionBias, ConfigError, ExpertStorage, QkNorm};

/// One row of the table.
#[derive(Debug, PartialEq)]
pub struct Family {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// Entry of `architectures` in config.json.
    pub architecture: &'static str,
    pub(super) attention_bias: AttentionBias,
    pub(super) qk_norm: QkNorm,
    pub(super) window: WindowRule,
    pub(super) mlp: MlpRule,
    /// Ways in which routers and experts are published, the hub's own first; none in a family without.
    pub(super) layouts: &'static [ExpertLayout],
    /// Each query head has one more score, without a value.
    pub(super) sinks: bool,
    /// Fields that config.json must have, because transformers' default for them is not the one assumed here.
    pub(super) required: &'static [&'static str],
}

/// Which layers attend within `sliding_window` when config.json has no `layer_types`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum WindowRule {
    /// The field is not part of the family.
    Never,
    /// All layers, if the size is given (Mistral).
    Always,
    /// All layers, if `use_sliding_window` (Qwen3-MoE).
    IfUsed,
    /// Layers from `max_window_layers` on, if `use_sliding_window` (Qwen2, Qwen3).
    IfUsedFromLayer,
}

/// How config.json describes the feed-forward parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum MlpRule {
    /// `intermediate_size` in every layer.
    Dense,
    /// Experts of `intermediate_size` in every layer, weights always divided by their sum.
    Mixtral,
    /// Experts of `moe_intermediate_size`, save in `mlp_only_layers` and between `decoder_sparse_step`s.
    QwenMoe,
    /// Experts of `intermediate_size` in every layer, with biases and a clamped activation; the softmax is over the
    /// chosen ones.
    GptOss,
}

/// One way in which a family's routers and experts are published.
#[derive(Debug, PartialEq)]
pub(super) struct ExpertLayout {
    pub(super) storage: ExpertStorage,
    /// `NAME.weight`, and perhaps `NAME.bias`.
    pub(super) router: &'static str,
    pub(super) experts: ExpertNames,
}

/// What tensors with experts are called.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ExpertNames {
    /// A tensor for each matrix: `experts.EXPERT.gate.weight`, under other names.
    Each { experts: &'static str, gate: &'static str, up: &'static str, down: &'static str },
    /// All experts' matrices one after the other, gate and up in one: `NAME`, or in MXFP4 `NAME_blocks` and
    /// `NAME_scales`, and where there are biases `NAME_bias`.
    Stacked { gate_up: &'static str, down: &'static str },
}

const STACKS: ExpertNames = ExpertNames::Stacked { gate_up: "mlp.experts.gate_up_proj", down: "mlp.experts.down_proj" };

/// What transformers 5 computes with, and writes when asked not to go back to the published names.
const FUSED: ExpertLayout = ExpertLayout { storage: ExpertStorage::Stacked, router: "mlp.gate", experts: STACKS };

const QWEN_MOE: [ExpertLayout; 2] = [
    ExpertLayout {
        storage: ExpertStorage::Matrices,
        router: "mlp.gate",
        experts: ExpertNames::Each {
            experts: "mlp.experts",
            gate: "gate_proj.weight",
            up: "up_proj.weight",
            down: "down_proj.weight",
        },
    },
    FUSED,
];

const MIXTRAL: [ExpertLayout; 2] = [
    ExpertLayout {
        storage: ExpertStorage::Matrices,
        router: "block_sparse_moe.gate",
        experts: ExpertNames::Each {
            experts: "block_sparse_moe.experts",
            gate: "w1.weight",
            up: "w3.weight",
            down: "w2.weight",
        },
    },
    FUSED,
];

/// As published, as it is exported for training, and as `nightmonk pack` writes such an export: panels of one matrix each,
/// biases in their stacks.
const GPT_OSS: [ExpertLayout; 3] = [
    ExpertLayout { storage: ExpertStorage::StackedMxfp4, router: "mlp.router", experts: STACKS },
    ExpertLayout { storage: ExpertStorage::StackedTransposed, router: "mlp.router", experts: STACKS },
    ExpertLayout {
        storage: ExpertStorage::Matrices,
        router: "mlp.router",
        experts: ExpertNames::Each {
            experts: "mlp.experts",
            gate: "gate_proj.weight",
            up: "up_proj.weight",
            down: "down_proj.weight",
        },
    },
];

const LLAMA: Family = Family {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    attention_bias: AttentionBias::None,
    qk_norm: QkNorm::None,
    window: WindowRule::Never,
    mlp: MlpRule::Dense,
    layouts: &[],
    sinks: false,
    required: &[],
};

/// Every family that loads.
pub static FAMILIES: [Family; 7] = [
    LLAMA,
    Family {
        model_type: "mistral",
        architecture: "MistralForCausalLM",
        window: WindowRule::Always,
        required: &["num_key_value_heads", "sliding_window"],
        ..LLAMA
    },
    Family {
        model_type: "qwen2",
        architecture: "Qwen2ForCausalLM",
        attention_bias: AttentionBias::Qkv,
        window: WindowRule::IfUsedFromLayer,
        required: &["num_key_value_heads"],
        ..LLAMA
    },
    Family {
        model_type: "qwen3",
        architecture: "Qwen3ForCausalLM",
        qk_norm: QkNorm::PerHead,
        window: WindowRule::IfUsedFromLayer,
        required: &["num_key_value_heads", "head_dim"],
        ..LLAMA
    },
    Family {
        model_type: "qwen3_moe",
        architecture: "Qwen3MoeForCausalLM",
        qk_norm: QkNorm::PerHead,
        window: WindowRule::IfUsed,
        mlp: MlpRule::QwenMoe,
        layouts: &QWEN_MOE,
        required: &["num_key_value_heads"],
        ..LLAMA
    },
    Family {
        model_type: "mixtral",
        architecture: "MixtralForCausalLM",
        window: WindowRule::Always,
        mlp: MlpRule::Mixtral,
        layouts: &MIXTRAL,
        required: &["num_key_value_heads", "rms_norm_eps", "rope_theta"],
        ..LLAMA
    },
    Family {
        model_type: "gpt_oss",
        architecture: "GptOssForCausalLM",
        mlp: MlpRule::GptOss,
        layouts: &GPT_OSS,
        sinks: true,
        required: &[
            "attention_bias",
            "head_dim",
            "layer_types",
            "num_key_value_heads",
            "rms_norm_eps",
            "rope_theta",
            "rope_type",
        ],
        ..LLAMA
    },
];

impl Family {
    /// The row that config.json names by `architectures`, or by `model_type` where that is absent.
    pub(super) fn find(root: &Fields) -> Result<&'static Self, ConfigError> {
        let listed = root.optional_list("architectures")?.and_then(|list| list.first()).and_then(|name| name.as_str());
        let found = match (listed, root.optional_text("model_type")?) {
            (Some(name), _) => FAMILIES.iter().find(|family| family.architecture == name).ok_or(name),
            (None, Some(name)) => FAMILIES.iter().find(|family| family.model_type == name).ok_or(name),
            (None, None) => return Err(root.wrong("architectures", "is missing".into())),
        };
        found.map_err(|got| ConfigError::Architecture {
            path: root.path().into(),
            got: got.into(),
            lacks: lacks(got).map_or(String::new(), |what| format!(" (it needs {what})")),
            supported: FAMILIES.iter().map(|family| family.architecture).collect::<Vec<_>>().join(", "),
        })
    }

    /// The layout of a storage.
    ///
    /// # Panics
    /// If the family is never published so.
    pub(super) fn layout(&self, storage: ExpertStorage) -> &'static ExpertLayout {
        let found = self.layouts.iter().find(|layout| layout.storage == storage);
        found.unwrap_or_else(|| panic!("experts of {} are never stored as {storage:?}", self.model_type))
    }
}

/// What well-known architectures have that no family here has, so that a refusal says more than no.
fn lacks(architecture: &str) -> Option<&'static str> {
    match architecture {
        "DeepseekV3ForCausalLM" | "deepseek_v3" | "KimiK2ForCausalLM" | "kimi_k2" => {
            Some("latent attention, sigmoid routing by groups, shared experts and weights in FP8 blocks")
        }
        "DeepseekV32ForCausalLM" | "GlmMoeDsaForCausalLM" => Some("latent attention with an index of keys"),
        "Glm4MoeForCausalLM" | "glm4_moe" => Some("sigmoid routing and shared experts"),
        "MiniMaxM2ForCausalLM" | "minimax_m2" => {
            Some("sigmoid routing, a norm over all heads together and weights in FP8 blocks")
        }
        "Qwen2MoeForCausalLM" | "qwen2_moe" => Some("a shared expert with a gate"),
        "Qwen3NextForCausalLM" | "Qwen3_5MoeForCausalLM" | "Qwen3_5MoeForConditionalGeneration" => {
            Some("linear attention")
        }
        "Llama4ForCausalLM" | "Llama4ForConditionalGeneration" => Some("chunked attention without positions"),
        _ => None,
    }
}
