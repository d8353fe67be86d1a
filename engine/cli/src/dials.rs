//! Flags that turn a model: how many experts a token goes through, rotary frequencies, the window.
//!
//! Those of the rotary embedding are llama.cpp's and mean what they mean there. They decide bytes, so a night job's
//! fingerprint has them.

use clap::Args;
use engine_core::config::{Dials, ScalingMethod};

#[derive(Args, Clone)]
pub(crate) struct DialFlags {
    /// Experts that a token goes through, more or fewer than the model's own
    #[arg(long, env = "NIGHTMONK_EXPERTS_PER_TOKEN", value_name = "N")]
    experts_per_token: Option<usize>,
    /// Most experts that a request may ask for itself, for which room is made; without it, as many as tokens go through
    #[arg(long, env = "NIGHTMONK_EXPERTS_PER_TOKEN_MAX", value_name = "N")]
    experts_per_token_max: Option<usize>,
    /// Base of the rotary frequencies; without it, the model's own
    #[arg(long, env = "NIGHTMONK_ROPE_FREQ_BASE", value_name = "F", allow_negative_numbers = true)]
    rope_freq_base: Option<f64>,
    /// How the context is stretched: none, linear or yarn; without it, as the model has it, and linear where it has not
    #[arg(long, env = "NIGHTMONK_ROPE_SCALING", value_name = "METHOD", value_parser = method)]
    rope_scaling: Option<ScalingMethod>,
    /// Factor by which the context is stretched
    #[arg(long, env = "NIGHTMONK_ROPE_SCALE", value_name = "F", allow_negative_numbers = true)]
    rope_scale: Option<f64>,
    /// Context that the model was trained on before YaRN stretches it; 0 is the model's own
    #[arg(long, env = "NIGHTMONK_YARN_ORIG_CTX", value_name = "N")]
    yarn_orig_ctx: Option<usize>,
    /// Positions that a query sees in layers that slide, or in all where none does; 0 is no window
    #[arg(long, env = "NIGHTMONK_ATTENTION_WINDOW", value_name = "N")]
    attention_window: Option<usize>,
}

impl DialFlags {
    pub(crate) fn dials(&self) -> Dials {
        Dials {
            experts_per_token: self.experts_per_token,
            most_experts_per_token: self.experts_per_token_max,
            rope_freq_base: self.rope_freq_base,
            rope_scaling: self.rope_scaling,
            rope_scale: self.rope_scale,
            yarn_orig_ctx: self.yarn_orig_ctx,
            attention_window: self.attention_window,
        }
    }
}

fn method(name: &str) -> Result<ScalingMethod, String> {
    match name {
        "none" => Ok(ScalingMethod::None),
        "linear" => Ok(ScalingMethod::Linear),
        "yarn" => Ok(ScalingMethod::Yarn),
        _ => Err("known: none, linear, yarn".into()),
    }
}
