//! Whether a stretched context is stretched: logits of the same tokens, with the scaling of the rotary embedding and without.
//!
//! A flag that is read and never used gives a model that works, up to the length that it was trained on. So it is not
//! enough that a long text can be read: the numbers must be others, before the original length and behind it.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;

use engine_core::config::{Dials, ModelConfig, RopeScaling, ScalingMethod};
use engine_core::session::Evaluator;
use serde_json::{Value, json};
use simd::Isa;

use super::super::distance::Distance;
use crate::args::Run;
use crate::failure::{Failure, wrong_dial};
use crate::load_choice::Work;
use crate::model::{Loaded, LogitRows, Opened};
use crate::nodes;

/// Positions on each side of the original length whose logits are compared.
const POSITIONS: usize = 32;

/// Least root mean square of the differences, over that of the logits. Frequencies that are rounded otherwise stay below
/// it, and the least stretch that anybody uses is far above.
const CHANGE_MIN: f64 = 1e-4;

/// What is to be proved of a model.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    /// As it is told: `yarn x4 of 32768`.
    scaling: String,
    /// Positions that the model was trained on before it was stretched.
    original: usize,
    /// Positions that it is stretched to.
    longest: usize,
    /// Scaling that changes nothing within the original length, by its definition.
    only_beyond: bool,
}

impl Claim {
    /// Of a config after the dials; nothing where neither it nor they stretch the context.
    pub(super) fn of(config: &ModelConfig, dials: &Dials) -> Option<Self> {
        let asked = dials.rope_scale.is_some()
            || dials.yarn_orig_ctx.is_some_and(|positions| positions > 0)
            || dials.rope_scaling.is_some_and(|method| method != ScalingMethod::None);
        let scaling = &config.rope.scaling;
        let original = match scaling {
            RopeScaling::None if !asked => return None,
            RopeScaling::None => config.max_position_embeddings as f64,
            // The model has room for as much as it is stretched to.
            RopeScaling::Linear { factor } => config.max_position_embeddings as f64 / factor,
            RopeScaling::Dynamic { original_max_position_embeddings: original, .. }
            | RopeScaling::Llama3 { original_max_position_embeddings: original, .. }
            | RopeScaling::Yarn { original_max_position_embeddings: original, .. } => *original,
        };
        let only_beyond = matches!(scaling, RopeScaling::Dynamic { .. });
        let (original, longest) = ((original as usize).max(1), config.longest_context());
        Some(Self { scaling: scaling.to_string(), original, longest, only_beyond })
    }

    /// The context that shows it on both sides of the original length.
    pub(super) fn ctx_size(&self) -> usize {
        self.original.saturating_add(POSITIONS)
    }

    /// The positions that are compared in a context of so many, below the original length and beyond it.
    fn positions(&self, ctx_size: usize) -> [Range<usize>; 2] {
        let below = self.original.min(ctx_size);
        let beyond = ctx_size.min(self.ctx_size()).max(below);
        [below - POSITIONS.min(below.div_ceil(2))..below, below..beyond]
    }
}

/// Logits around the original length, and what of them is there.
pub(super) struct Rows {
    positions: [Range<usize>; 2],
    logits: Vec<f32>,
    vocab_size: usize,
}

impl Rows {
    /// Feeds tokens, of which there are as many as positions, to an evaluator that has none.
    pub(super) fn of(
        claim: &Claim,
        evaluator: &mut Evaluator,
        tokens: &[u32],
        isa: Isa,
        vocab_size: usize,
    ) -> Result<Self, Failure> {
        let positions = claim.positions(tokens.len());
        let [below, beyond] = &positions;
        let mut logits = Vec::with_capacity((beyond.end - below.start) * vocab_size);
        evaluator.restart();
        evaluator.feed_from(&tokens[..beyond.end], below.start, &mut (), |position, row| {
            if !simd::elementwise::all_finite(isa, row) {
                let why = "are not all finite; a cache of float32 has a wider range (-ctk f32)";
                return Err(Failure::Failed(format!("logits at position {position} {why}").into()));
            }
            logits.extend_from_slice(row);
            Ok(())
        })?;
        Ok(Self { positions, logits, vocab_size })
    }

    /// The same tokens through the model as it is without scaling, in a run that is otherwise the same. The weights are in
    /// memory for that alone, before they are loaded for all that follows.
    pub(super) fn unscaled(claim: &Claim, folder: &Path, run: &Run, tokens: &[u32]) -> Result<Self, Failure> {
        let work = Work::Tokens { prompt: tokens.len(), generate: 0 };
        let mut opened = Opened::new(folder, run, 1, LogitRows::All, work)?;
        let unscaled = Dials { rope_scaling: Some(ScalingMethod::None), ..Dials::default() };
        opened.checkpoint.turn(&unscaled).map_err(|error| wrong_dial(&error))?;
        let others = Dials { rope_scale: None, yarn_orig_ctx: None, ..run.dials.dials() };
        let words = Dials { rope_scaling: unscaled.rope_scaling, ..others }.words(opened.checkpoint.config());
        opened.dials = format!("for comparison {words}");
        let (request, vocab_size) = (opened.request, opened.checkpoint.config().vocab_size);
        let loaded = opened.load()?;
        let adapters = loaded.adapter_set()?;
        let Loaded { model, pool, .. } = loaded;
        let _pin = nodes::pin_caller(&pool)?;
        let mut evaluator = Evaluator::new(&model, pool, request.kv_dtype, request.ctx_size, request.ubatch_size)?;
        evaluator.choose_adapters(adapters);
        Self::of(claim, &mut evaluator, tokens, model.options().isa, vocab_size)
    }

    /// The logits of each side, where there are any.
    fn sides(&self) -> [&[f32]; 2] {
        let [below, beyond] = &self.positions;
        self.logits[..(below.len() + beyond.len()) * self.vocab_size].split_at(below.len() * self.vocab_size).into()
    }
}

/// What the scaling does.
pub(super) struct Proof {
    claim: Claim,
    positions: [Range<usize>; 2],
    /// Differences relative to the logits, below the original length and beyond it.
    differences: [Option<f64>; 2],
}

impl Proof {
    pub(super) fn new(claim: Claim, scaled: &Rows, unscaled: &Rows) -> Self {
        let difference = |[scaled, unscaled]: [&[f32]; 2]| {
            let mut distance = Distance::default();
            distance.add(unscaled, scaled);
            (!scaled.is_empty()).then(|| distance.relative())
        };
        let ([below, beyond], [of_below, of_beyond]) = (scaled.sides(), unscaled.sides());
        let differences = [difference([below, of_below]), difference([beyond, of_beyond])];
        Self { claim, positions: scaled.positions.clone(), differences }
    }

    /// An error where the scaling is one in name only.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let unchanged = |difference: &Option<f64>| {
            difference.is_some_and(|difference| difference.is_nan() || difference <= CHANGE_MIN)
        };
        let [below, beyond] = &self.differences;
        // Dynamic scaling changes all positions of a context beyond the original length, and none of another.
        let counts = [!self.claim.only_beyond || beyond.is_some(), true];
        for ((difference, counts), positions) in [below, beyond].into_iter().zip(counts).zip(&self.positions) {
            if counts && unchanged(difference) {
                return Err(Failure::Failed(
                    format!(
                        "rope scaling `{}` does not change the logits: at positions {} to {} they differ by {:.1e} of their \
                         root mean square from those without it; the setting has no effect",
                        self.claim.scaling,
                        positions.start,
                        positions.end - 1,
                        difference.unwrap_or(0.0),
                    )
                    .into(),
                ));
            }
        }
        Ok(())
    }

    pub(super) fn words(&self) -> String {
        let side = |(positions, difference): (&Range<usize>, &Option<f64>)| {
            let difference = (*difference)?;
            Some(format!("{difference:.2e} at positions {} to {}", positions.start, positions.end - 1))
        };
        let sides: Vec<String> = self.positions.iter().zip(&self.differences).filter_map(side).collect();
        let Claim { scaling, original, longest, .. } = &self.claim;
        let beyond = match self.differences[1] {
            None if longest > original => {
                format!(" (a `--ctx-size` above {original} shows positions beyond the original length)")
            }
            _ => String::new(),
        };
        format!(
            "rope {scaling}: logits with and without it differ, root mean square over that of the logits, by {}{beyond}",
            sides.join(" and ")
        )
    }

    pub(super) fn document(&self) -> Value {
        let side = |index: usize| {
            let positions: &Range<usize> = &self.positions[index];
            self.differences[index].map(|difference| {
                json!({"first": positions.start, "positions": positions.len(), "rms_difference": difference})
            })
        };
        json!({
            "scaling": self.claim.scaling,
            "original_context": self.claim.original,
            "below": side(0),
            "beyond": side(1),
            "changes": self.check().is_ok(),
        })
    }
}

/// The run in which a claim can be seen: its context reaches beyond the original length, unless another was asked for.
pub(super) fn run_for(claim: Option<&Claim>, run: &Run, needed: usize) -> Run {
    let shown = claim.map_or(0, |claim| claim.ctx_size().min(claim.longest));
    match run.ctx_size {
        Some(_) => run.clone(),
        None => run.with_ctx_size(NonZeroUsize::new(needed.max(shown)).unwrap_or(NonZeroUsize::MIN)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(original: usize, only_beyond: bool) -> Claim {
        Claim { scaling: "yarn x4 of 64".into(), original, longest: 4 * original, only_beyond }
    }

    #[test]
    fn positions_lie_on_both_sides_of_the_original_length_where_the_context_has_them() {
        assert_eq!(claim(64, false).positions(1000), [32..64, 64..96]);
        assert_eq!(claim(64, false).positions(70), [32..64, 64..70]);
        assert_eq!(claim(64, false).positions(50), [25..50, 50..50]);
        assert_eq!(claim(1, false).positions(1000), [0..1, 1..33]);
    }

    #[test]
    fn a_side_that_does_not_change_is_an_error_but_where_it_may_not() {
        let proof = |below, beyond, only_beyond| Proof {
            claim: claim(64, only_beyond),
            positions: [32..64, 64..96],
            differences: [Some(below), beyond],
        };
        assert!(proof(0.1, Some(0.2), false).check().is_ok());
        assert!(proof(0.1, None, false).check().is_ok());
        assert!(proof(0.0, None, true).check().is_ok());
        for (proof, positions) in [
            (proof(0.0, Some(0.2), false), "32 to 63"),
            (proof(0.2, Some(1e-6), false), "64 to 95"),
            (proof(0.0, None, false), "32 to 63"),
            (proof(0.0, Some(0.2), true), "32 to 63"),
        ] {
            let said = proof.check().unwrap_err().to_string();
            assert!(said.contains("does not change the logits") && said.contains(positions), "{said}");
        }
    }
}
