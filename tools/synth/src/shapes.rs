//! Published shapes, as their config.json gives them.

use serde_json::{Value, json};

/// Names that [`config`] knows.
pub const SHAPES: [&str; 7] = [
    "qwen3-30b-a3b",
    "qwen3-235b-a22b",
    "qwen3-coder-480b-a35b",
    "qwen3-0.6b",
    "llama-2-70b",
    "gpt-oss-20b",
    "gpt-oss-120b",
];

/// config.json of a shape, with `layers` layers in place of its own.
///
/// # Errors
/// Lists the shapes that are known.
pub fn config(shape: &str, layers: Option<usize>) -> Result<Value, String> {
    let mut config = match shape {
        "qwen3-30b-a3b" => qwen3_moe([2048, 32, 4, 128, 768, 6144, 48], 1e6),
        "qwen3-235b-a22b" => qwen3_moe([4096, 64, 4, 128, 1536, 12288, 94], 1e6),
        "qwen3-coder-480b-a35b" => qwen3_moe([6144, 96, 8, 160, 2560, 8192, 62], 1e7),
        "qwen3-0.6b" => json!({
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "head_dim": 128,
            "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 3072, "num_hidden_layers": 28,
            "rope_theta": 1e6, "rms_norm_eps": 1e-6, "vocab_size": 151_936, "tie_word_embeddings": true,
            "max_position_embeddings": 40960, "torch_dtype": "bfloat16",
        }),
        "llama-2-70b" => json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192,
            "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672, "num_hidden_layers": 80,
            "rope_theta": 1e4, "rms_norm_eps": 1e-5, "vocab_size": 32000, "tie_word_embeddings": false,
            "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
        }),
        "gpt-oss-20b" => gpt_oss(layers.unwrap_or(24), 32),
        "gpt-oss-120b" => gpt_oss(layers.unwrap_or(36), 128),
        other => return Err(format!("`{other}` is no shape; known: {}", SHAPES.join(", "))),
    };
    if let Some(layers) = layers {
        config["num_hidden_layers"] = layers.into();
    }
    Ok(config)
}

fn qwen3_moe(
    [hidden, heads, kv_heads, experts, moe_intermediate, intermediate, layers]: [usize; 7],
    theta: f64,
) -> Value {
    json!({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": hidden, "head_dim": 128,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "num_experts": experts,
        "num_experts_per_tok": 8, "norm_topk_prob": true, "moe_intermediate_size": moe_intermediate,
        "intermediate_size": intermediate, "num_hidden_layers": layers, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "rope_theta": theta, "rms_norm_eps": 1e-6, "vocab_size": 151_936,
        "tie_word_embeddings": false, "max_position_embeddings": 40960, "torch_dtype": "bfloat16",
    })
}

fn gpt_oss(layers: usize, experts: usize) -> Value {
    let kinds = (0..layers).map(|layer| if layer % 2 == 0 { "sliding_attention" } else { "full_attention" });
    json!({
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": 2880, "head_dim": 64,
        "num_attention_heads": 64, "num_key_value_heads": 8, "attention_bias": true, "num_local_experts": experts,
        "num_experts_per_tok": 4, "intermediate_size": 2880, "num_hidden_layers": layers,
        "layer_types": kinds.collect::<Vec<_>>(), "sliding_window": 128, "swiglu_limit": 7.0, "rope_theta": 150_000,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "original_max_position_embeddings": 4096, "truncate": false,
        },
        "rms_norm_eps": 1e-5, "vocab_size": 201_088, "tie_word_embeddings": false, "max_position_embeddings": 131_072,
        "quantization_config": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
            ],
        },
    })
}
