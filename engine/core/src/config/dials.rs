//! What a user may turn of a model without another checkpoint: experts of a token, rotary frequencies, the window.
//!
//! A dial changes numbers of [`ModelConfig`] and never a tensor's shape, so every folder can be turned after it was
//! checked and before it is loaded. The rotary dials mean what llama.cpp's flags of these names mean. What a checkpoint
//! cannot honour is refused with the reason, and what is honoured is told by [`Dials::words`], for people and for the
//! fingerprint of a job.

use super::{Mlp, ModelConfig, POSITIONS_MAX, RopeScaling, YarnAttention};

/// A stretch beyond it names no context that there is.
const SCALE_MAX: f64 = 1e6;

/// Changes of a model at the start of a run; what is absent stays as config.json says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dials {
    /// Experts that a token goes through, where its request does not say.
    pub experts_per_token: Option<usize>,
    /// Experts that a request may ask for; room is taken for as many. Without it, as many as tokens go through anyway.
    pub most_experts_per_token: Option<usize>,
    /// Base of the rotary frequencies.
    pub rope_freq_base: Option<f64>,
    /// How the context is stretched.
    pub rope_scaling: Option<ScalingMethod>,
    /// By what factor, 1 or more.
    pub rope_scale: Option<f64>,
    /// Context that the model was trained on before it is stretched by YaRN; 0 is the model's own.
    pub yarn_orig_ctx: Option<usize>,
    /// Positions that a query sees, itself included, in the layers that slide, or in all where none does; 0 is no window.
    pub attention_window: Option<usize>,
}

/// Ways to stretch a context that can be asked for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScalingMethod {
    /// Not at all.
    None,
    /// All frequencies divided.
    Linear,
    /// YaRN.
    Yarn,
}

/// A dial that this model cannot honour.
#[derive(Debug, thiserror::Error)]
#[error("`--{dial} {value}`: {why}")]
pub struct DialError {
    /// Its flag.
    pub dial: &'static str,
    /// What was asked for.
    pub value: String,
    /// Why not, and what would do.
    pub why: String,
}

fn refused(dial: &'static str, value: impl ToString, why: impl Into<String>) -> DialError {
    DialError { dial, value: value.to_string(), why: why.into() }
}

impl Dials {
    /// Turns `config`; nothing is changed where a dial is refused.
    ///
    /// # Errors
    /// [`DialError`] with the flag, its value and the reason.
    pub fn turn(&self, config: &mut ModelConfig) -> Result<(), DialError> {
        let mut turned = config.clone();
        self.turn_experts(&mut turned)?;
        self.turn_rope(&mut turned)?;
        self.turn_window(&mut turned)?;
        *config = turned;
        Ok(())
    }

    fn turn_experts(&self, config: &mut ModelConfig) -> Result<(), DialError> {
        let asked =
            [("experts-per-token", self.experts_per_token), ("experts-per-token-max", self.most_experts_per_token)];
        for (dial, count) in asked.into_iter().filter_map(|(dial, count)| Some((dial, count?))) {
            match config.sparse_layers().map(|(_, sparse)| sparse.num_experts).min() {
                None => return Err(refused(dial, count, "this model has no experts")),
                Some(all) if !(1..=all).contains(&count) => {
                    return Err(refused(
                        dial,
                        count,
                        format!("this model has {all} experts in a layer; ask for 1 to {all}"),
                    ));
                }
                Some(_) => {}
            }
        }
        for layer in &mut config.layers {
            let Mlp::Sparse(sparse) = &mut layer.mlp else { continue };
            sparse.num_experts_per_tok = self.experts_per_token.unwrap_or(sparse.num_experts_per_tok);
            let most = self.most_experts_per_token.unwrap_or(0);
            sparse.most_experts_per_tok = most.max(sparse.num_experts_per_tok);
        }
        Ok(())
    }

    fn turn_rope(&self, config: &mut ModelConfig) -> Result<(), DialError> {
        // What the model was trained on before its context was stretched.
        let unstretched = match config.rope.scaling {
            RopeScaling::Yarn { original_max_position_embeddings: original, .. }
            | RopeScaling::Llama3 { original_max_position_embeddings: original, .. }
            | RopeScaling::Dynamic { original_max_position_embeddings: original, .. } => original,
            RopeScaling::None | RopeScaling::Linear { .. } => config.max_position_embeddings as f64,
        };
        let mut longest = config.max_position_embeddings as f64;
        if let Some(scaling) = self.scaling(&config.rope.scaling, unstretched)? {
            longest = match scaling {
                RopeScaling::Linear { factor } => unstretched * factor,
                RopeScaling::Yarn { factor, original_max_position_embeddings, .. } => {
                    original_max_position_embeddings * factor
                }
                _ => unstretched,
            };
            config.rope.scaling = scaling;
        }
        if let Some(base) = self.rope_freq_base {
            if !base.is_finite() || base <= 1.0 {
                return Err(refused("rope-freq-base", base, "frequencies fall by powers of it; ask for more than 1"));
            }
            // NTK-aware scaling read backwards: a base that is greater by s^(d / (d - 2)) stretches the context by s.
            let dim = config.rope.rotary_dim as f64;
            longest *= libm::pow(base / config.rope.theta, (dim - 2.0) / dim).max(1.0);
            config.rope.theta = base;
        }
        config.max_position_embeddings = (longest as usize).clamp(1, POSITIONS_MAX);
        if !config.rope.is_finite() {
            let (dial, value) = match self.rope_freq_base {
                Some(base) => ("rope-freq-base", base.to_string()),
                None => ("rope-scale", self.rope_scale.unwrap_or(1.0).to_string()),
            };
            return Err(refused(dial, value, "it makes angles that are not finite in this model"));
        }
        Ok(())
    }

    /// What the model's scaling becomes, if it is turned.
    fn scaling(&self, own: &RopeScaling, unstretched: f64) -> Result<Option<RopeScaling>, DialError> {
        let scale = self.rope_scale;
        if let Some(factor) = scale
            && !(1.0..=SCALE_MAX).contains(&factor)
        {
            let why = "a context is stretched by a factor of 1 or more (llama.cpp's --rope-freq-scale is one over it)";
            return Err(refused("rope-scale", factor, why));
        }
        let original = self.yarn_orig_ctx.filter(|positions| *positions > 0);
        if let Some(positions) = original.filter(|positions| *positions > POSITIONS_MAX) {
            return Err(refused("yarn-orig-ctx", positions, format!("at most {POSITIONS_MAX} positions are counted")));
        }
        let method = match (self.rope_scaling, own) {
            (Some(method), _) => Some(method),
            (None, RopeScaling::Yarn { .. }) if scale.is_some() || original.is_some() => Some(ScalingMethod::Yarn),
            (None, RopeScaling::None | RopeScaling::Linear { .. }) if scale.is_some() => Some(ScalingMethod::Linear),
            (None, _) => None,
        };
        if let (None, Some(factor)) = (method, scale) {
            let why = format!(
                "this model's context is stretched by `{}`; say which way instead, by `--rope-scaling linear` or `yarn`",
                own.name()
            );
            return Err(refused("rope-scale", factor, why));
        }
        if let Some(positions) = original.filter(|_| method != Some(ScalingMethod::Yarn)) {
            let why = "only YaRN asks for it; add `--rope-scaling yarn`";
            return Err(refused("yarn-orig-ctx", positions, why));
        }
        let factor = |name: &str| {
            let why = "by how much? Add `--rope-scale F`: this model has no factor of its own";
            scale.or(own.factor()).ok_or_else(|| refused("rope-scaling", name, why))
        };
        Ok(match method {
            None => None,
            Some(ScalingMethod::None) => match scale {
                Some(factor) => return Err(refused("rope-scale", factor, "`--rope-scaling none` stretches nothing")),
                None => Some(RopeScaling::None),
            },
            Some(ScalingMethod::Linear) => Some(RopeScaling::Linear { factor: factor("linear")? }),
            Some(ScalingMethod::Yarn) => {
                let factor = factor("yarn")?;
                let original_max_position_embeddings = original.map_or(unstretched, |positions| positions as f64);
                Some(match own {
                    RopeScaling::Yarn { beta_fast, beta_slow, attention, truncate, .. } => RopeScaling::Yarn {
                        factor,
                        beta_fast: *beta_fast,
                        beta_slow: *beta_slow,
                        original_max_position_embeddings,
                        attention: *attention,
                        truncate: *truncate,
                    },
                    _ => RopeScaling::Yarn {
                        factor,
                        beta_fast: 32.0,
                        beta_slow: 1.0,
                        original_max_position_embeddings,
                        attention: YarnAttention::OfFactor,
                        truncate: true,
                    },
                })
            }
        })
    }

    fn turn_window(&self, config: &mut ModelConfig) -> Result<(), DialError> {
        let Some(window) = self.attention_window else { return Ok(()) };
        if window > POSITIONS_MAX {
            let why = format!("at most {POSITIONS_MAX} positions are counted; 0 is no window");
            return Err(refused("attention-window", window, why));
        }
        let some_slide = config.layers.iter().any(|layer| layer.window.is_some());
        for layer in config.layers.iter_mut().filter(|layer| layer.window.is_some() || !some_slide) {
            layer.window = (window > 0).then_some(window);
        }
        Ok(())
    }

    /// What was turned, as it then is in `config`: empty where everything is as published.
    ///
    /// Two runs of one model with equal words compute with equal numbers. Frequencies that follow the length of the
    /// context are told too: they are not in config.json.
    pub fn words(&self, config: &ModelConfig) -> String {
        let mut words = Vec::new();
        if let Some(count) = self.experts_per_token {
            words.push(format!("{count} experts per token"));
        }
        if let Some(base) = self.rope_freq_base {
            words.push(format!("rope base {base}"));
        }
        let turned = self.rope_scaling.is_some() || self.rope_scale.is_some() || self.yarn_orig_ctx.is_some();
        let follows = matches!(config.rope.scaling, RopeScaling::Dynamic { .. });
        if turned || follows {
            words.push(format!("rope {}", config.rope.scaling));
        }
        if let Some(window) = self.attention_window {
            let sliding = config.layers.iter().filter(|layer| layer.window.is_some()).count();
            words.push(match window {
                0 => "no window".into(),
                _ => format!("window {window} in {sliding} of {} layers", config.layers.len()),
            });
        }
        words.join(", ")
    }
}
