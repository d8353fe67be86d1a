//! Rotary position embedding: which angles a head's pairs turn by.
//!
//! Formulas of transformers' `modeling_rope_utils.py`; YaRN is arXiv 2309.00071. Frequencies are computed in float64 and
//! rounded once to float32; angles are float32 products `position * inv_freq`, because that is what the models saw.

use super::ConfigError;
use super::fields::Fields;

/// Rotary embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric series.
    pub theta: f64,
    /// Leading dimensions of a head that rotate; even.
    pub rotary_dim: usize,
    /// How frequencies are changed for long contexts.
    pub scaling: RopeScaling,
}

/// Change of the frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// Stretch of the context.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// Stretch of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high.
        high_freq_factor: f64,
        /// Context that the model was first trained on.
        original_max_position_embeddings: f64,
    },
    /// YaRN.
    Yarn {
        /// Stretch of the context.
        factor: f64,
        /// Rotations above which a dimension is kept.
        beta_fast: f64,
        /// Rotations below which a dimension is divided.
        beta_slow: f64,
        /// Context that the model was first trained on.
        original_max_position_embeddings: f64,
        /// Factor on cos and sin.
        attention_factor: f64,
        /// Round the ramp's ends outwards.
        truncate: bool,
    },
}

impl Rope {
    pub(super) fn parse(root: &Fields, head_dim: usize, max_positions: usize) -> Result<Self, ConfigError> {
        // transformers 5 puts everything into `rope_parameters`; hub files have `rope_theta` and `rope_scaling`.
        let scaling = match root.object("rope_parameters")? {
            Some(parameters) => Some(parameters),
            None => root.object("rope_scaling")?,
        };
        let number = |name: &str| match scaling.as_ref() {
            Some(scaling) if scaling.has(name) => scaling.optional_number(name),
            _ => root.optional_number(name),
        };
        let theta = number("rope_theta")?.unwrap_or(10_000.0);
        let partial = number("partial_rotary_factor")?.unwrap_or(1.0);
        let rotary_dim = (head_dim as f64 * partial) as usize;
        if rotary_dim == 0 || rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
            let why = format!("is {partial}, which makes {rotary_dim} of {head_dim} dimensions rotate");
            return Err(root.wrong("partial_rotary_factor", why));
        }
        let scaling = match &scaling {
            Some(fields) => RopeScaling::parse(fields, max_positions)?,
            None => RopeScaling::None,
        };
        let rope = Self { theta, rotary_dim, scaling };
        let finite = |x: &f32| x.is_finite();
        if !rope.inv_freq().iter().all(finite) || !finite(&rope.attention_factor()) {
            let why = format!("is {theta}; with the scaling of this file it makes angles that are not finite");
            return Err(root.wrong("rope_theta", why));
        }
        Ok(rope)
    }

    /// Angle per position of each rotating pair, `[rotary_dim / 2]`.
    pub fn inv_freq(&self) -> Vec<f32> {
        let pairs = self.rotary_dim / 2;
        let plain = |i: usize| libm::pow(self.theta, -(2.0 * i as f64) / self.rotary_dim as f64);
        (0..pairs).map(|i| self.scaling.apply(plain(i), i, self) as f32).collect()
    }

    /// Factor on cos and sin.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        }
    }
}

impl RopeScaling {
    fn parse(fields: &Fields, max_positions: usize) -> Result<Self, ConfigError> {
        let kind = fields.optional_text("rope_type")?.or(fields.optional_text("type")?).unwrap_or("default");
        let original =
            || Ok(fields.optional_number("original_max_position_embeddings")?.unwrap_or(max_positions as f64));
        match kind {
            "default" => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor: fields.number("factor")? }),
            "llama3" => Ok(Self::Llama3 {
                factor: fields.number("factor")?,
                low_freq_factor: fields.number("low_freq_factor")?,
                high_freq_factor: fields.number("high_freq_factor")?,
                original_max_position_embeddings: original()?,
            }),
            "yarn" => {
                let factor = fields.number("factor")?;
                // m(s, k) = 0.1 k ln s + 1, and 1 where nothing is stretched.
                let mscale = |k: f64| if factor <= 1.0 { 1.0 } else { 0.1 * k * libm::log(factor) + 1.0 };
                let both = (fields.optional_number("mscale")?, fields.optional_number("mscale_all_dim")?);
                let attention_factor = match (fields.optional_number("attention_factor")?, both) {
                    (Some(given), _) => given,
                    (None, (Some(mscale_k), Some(all_dim))) => mscale(mscale_k) / mscale(all_dim),
                    (None, _) => mscale(1.0),
                };
                Ok(Self::Yarn {
                    factor,
                    beta_fast: fields.optional_number("beta_fast")?.unwrap_or(32.0),
                    beta_slow: fields.optional_number("beta_slow")?.unwrap_or(1.0),
                    original_max_position_embeddings: original()?,
                    attention_factor,
                    truncate: fields.optional_flag("truncate")?.unwrap_or(true),
                })
            }
            other => Err(fields.wrong("rope_type", format!("is `{other}`; supported: default, linear, llama3, yarn"))),
        }
    }

    fn apply(&self, inv_freq: f64, pair: usize, rope: &Rope) -> f64 {
        match *self {
            Self::None => inv_freq,
            Self::Linear { factor } => inv_freq / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let wavelength = 2.0 * std::f64::consts::PI / inv_freq;
                if wavelength > original_max_position_embeddings / low_freq_factor {
                    inv_freq / factor
                } else if wavelength < original_max_position_embeddings / high_freq_factor {
                    inv_freq
                } else {
                    let smooth = (original_max_position_embeddings / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * inv_freq / factor + smooth * inv_freq
                }
            }
            Self::Yarn { factor, beta_fast, beta_slow, original_max_position_embeddings, truncate, .. } => {
                let dim = rope.rotary_dim as f64;
                let dimension_of = |rotations: f64| {
                    dim * libm::log(original_max_position_embeddings / (rotations * 2.0 * std::f64::consts::PI))
                        / (2.0 * libm::log(rope.theta))
                };
                let (mut low, mut high) = (dimension_of(beta_fast), dimension_of(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                let ramp = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                inv_freq / factor * ramp + inv_freq * (1.0 - ramp)
            }
        }
    }
}
