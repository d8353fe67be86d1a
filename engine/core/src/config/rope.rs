//! Rotary position embedding: which angles a head's pairs turn by.
//!
//! Formulas of transformers' `modeling_rope_utils.py`; YaRN is arXiv 2309.00071. Frequencies are computed in float64 and
//! rounded once to float32; angles are float32 products `position * inv_freq`, because that is what the models saw.

use std::fmt;

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
    /// "Dynamic NTK": a base that grows with the length of the sequence.
    ///
    /// transformers computes it anew as a sequence grows and leaves the keys that it has; what comes out then depends on
    /// how the tokens were fed. Here all positions of a run have the base of one length, that of its context: bits depend
    /// on neither chunks nor neighbours, and a sequence that fills its context gets what one forward pass of transformers
    /// gives. A context of the original length or less changes nothing.
    Dynamic {
        /// Stretch for each further original length.
        factor: f64,
        /// Context that the model was trained on.
        original_max_position_embeddings: f64,
        /// Length that the base is computed for.
        length: f64,
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
        /// What cos and sin are multiplied by.
        attention: YarnAttention,
        /// Round the ramp's ends outwards.
        truncate: bool,
    },
}

/// What YaRN multiplies cos and sin by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum YarnAttention {
    /// `0.1 ln factor + 1`.
    OfFactor,
    /// This.
    Given(f64),
    /// `m(mscale) / m(mscale_all_dim)` with `m(k) = 0.1 k ln factor + 1` (DeepSeek).
    Mscale {
        /// Above.
        mscale: f64,
        /// Below.
        mscale_all_dim: f64,
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
        if matches!(scaling, RopeScaling::Dynamic { .. }) && rotary_dim < 4 {
            return Err(root.wrong("head_dim", format!("rotates {rotary_dim} dimensions; dynamic scaling needs 4")));
        }
        let rope = Self { theta, rotary_dim, scaling };
        if !rope.is_finite() {
            let why = format!("is {theta}; with the scaling of this file it makes angles that are not finite");
            return Err(root.wrong("rope_theta", why));
        }
        Ok(rope)
    }

    /// Whether it makes numbers.
    pub(super) fn is_finite(&self) -> bool {
        let finite = |x: &f32| x.is_finite();
        self.inv_freq().iter().all(finite) && finite(&self.attention_factor())
    }

    /// Angle per position of each rotating pair, `[rotary_dim / 2]`.
    pub fn inv_freq(&self) -> Vec<f32> {
        let pairs = self.rotary_dim / 2;
        let dim = self.rotary_dim as f64;
        let base = match self.scaling {
            RopeScaling::Dynamic { factor, original_max_position_embeddings: original, length } => {
                let stretch = factor * length.max(original) / original - (factor - 1.0);
                self.theta * libm::pow(stretch, dim / (dim - 2.0))
            }
            _ => self.theta,
        };
        let plain = |i: usize| libm::pow(base, -(2.0 * i as f64) / dim);
        (0..pairs).map(|i| self.scaling.apply(plain(i), i, self) as f32).collect()
    }

    /// Factor on cos and sin.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { factor, attention, .. } => {
                // 1 where nothing is stretched.
                let m = |k: f64| if factor <= 1.0 { 1.0 } else { 0.1 * k * libm::log(factor) + 1.0 };
                let factor = match attention {
                    YarnAttention::OfFactor => m(1.0),
                    YarnAttention::Given(factor) => factor,
                    YarnAttention::Mscale { mscale, mscale_all_dim } => m(mscale) / m(mscale_all_dim),
                };
                factor as f32
            }
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
                let both = (fields.optional_number("mscale")?, fields.optional_number("mscale_all_dim")?);
                let attention = match (fields.optional_number("attention_factor")?, both) {
                    (Some(given), _) => YarnAttention::Given(given),
                    (None, (Some(mscale), Some(mscale_all_dim))) => YarnAttention::Mscale { mscale, mscale_all_dim },
                    (None, _) => YarnAttention::OfFactor,
                };
                Ok(Self::Yarn {
                    factor: fields.number("factor")?,
                    beta_fast: fields.optional_number("beta_fast")?.unwrap_or(32.0),
                    beta_slow: fields.optional_number("beta_slow")?.unwrap_or(1.0),
                    original_max_position_embeddings: original()?,
                    attention,
                    truncate: fields.optional_flag("truncate")?.unwrap_or(true),
                })
            }
            "dynamic" => {
                let original = max_positions as f64;
                let factor = fields.number("factor")?;
                if factor < 1.0 {
                    return Err(fields.wrong("factor", format!("is {factor}; it stretches, so it is 1 or more")));
                }
                Ok(Self::Dynamic { factor, original_max_position_embeddings: original, length: original })
            }
            other => {
                let why = format!("is `{other}`; supported: default, linear, dynamic, llama3, yarn");
                Err(fields.wrong("rope_type", why))
            }
        }
    }

    /// As config.json and flags call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Linear { .. } => "linear",
            Self::Dynamic { .. } => "dynamic",
            Self::Llama3 { .. } => "llama3",
            Self::Yarn { .. } => "yarn",
        }
    }

    /// Stretch of the context.
    pub fn factor(&self) -> Option<f64> {
        match self {
            Self::None => None,
            Self::Linear { factor }
            | Self::Dynamic { factor, .. }
            | Self::Llama3 { factor, .. }
            | Self::Yarn { factor, .. } => Some(*factor),
        }
    }

    fn apply(&self, inv_freq: f64, pair: usize, rope: &Rope) -> f64 {
        match *self {
            // Dynamic scaling is in the base already.
            Self::None | Self::Dynamic { .. } => inv_freq,
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

/// `yarn x4 of 32768`
impl fmt::Display for RopeScaling {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())?;
        self.factor().map_or(Ok(()), |factor| write!(f, " x{factor}"))?;
        match self {
            Self::None | Self::Linear { .. } => Ok(()),
            Self::Dynamic { original_max_position_embeddings, length, .. } => {
                write!(f, " of {original_max_position_embeddings} for {length} positions")
            }
            Self::Llama3 { original_max_position_embeddings, .. }
            | Self::Yarn { original_max_position_embeddings, .. } => {
                write!(f, " of {original_max_position_embeddings}")
            }
        }
    }
}
