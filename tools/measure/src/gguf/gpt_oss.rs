//! What llama.cpp takes for granted about GPT-OSS, and therefore cannot be told in the file.
//!
//! One thing differs all the same: llama.cpp rounds the ends of YaRN's ramp outwards, which the published config.json
//! says not to (`truncate: false`). Its logits are a little other ones; its speed is not.

use engine_core::config::{Activation, AttentionBias, ModelConfig, RopeScaling};

/// # Errors
/// What in `config` llama.cpp would compute otherwise.
pub(super) fn check(config: &ModelConfig) -> Result<(), String> {
    let windows: Vec<Option<usize>> = config.layers.iter().map(|layer| layer.window).collect();
    let first = windows.first().copied().flatten();
    let alternating = windows.iter().enumerate().all(|(layer, window)| *window == first.filter(|_| layer % 2 == 0));
    let yarn_factor = match config.rope.scaling {
        RopeScaling::Yarn { factor, .. } => {
            let usual = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
            (f64::from(config.rope.attention_factor()) - usual).abs() < 1e-6
        }
        _ => false,
    };
    let assumed = [
        (first.is_some() && alternating, "a sliding window in every other layer from the first on"),
        (yarn_factor, "YaRN with the attention factor that follows from its stretch"),
        (config.activation == Activation::ClampedSilu { limit: 7.0, alpha: 1.702 }, "swiglu_limit 7 and alpha 1.702"),
        (config.attention_bias == AttentionBias::Qkvo, "attention_bias"),
        (config.rope.rotary_dim == config.head_dim, "heads that rotate as a whole"),
        (!config.tie_word_embeddings, "an output matrix of its own"),
    ];
    match assumed.iter().find(|(holds, _)| !holds) {
        None => Ok(()),
        Some((_, what)) => Err(format!("config.json differs from what llama.cpp assumes of GPT-OSS: {what}")),
    }
}
