//! How often each expert of each layer was chosen, for a model and the texts that it was given.
//!
//! Counts are whole numbers, so those of several texts add up to what their recording at once would have counted, in any
//! order. What is told of them is computed when it is asked for ([`LayerCounts::entropy_bits`], [`LayerCounts::coverage`]).

mod file;
mod statistics;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;
use crate::model::{Choice, Observer};

pub use file::CountsFileError;

/// Characters of a workload's name at most.
pub const NAME_CHARS_MAX: usize = 200;

/// Counts of a model's experts. As an [`Observer`] of the model's steps it counts what they choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertCounts {
    /// BLAKE3 of the model's files, in hexadecimal digits.
    pub model: String,
    /// What of the run changes the routing: dials and adapters; empty where nothing was turned.
    pub settings: String,
    /// Tokens of each workload.
    pub workloads: BTreeMap<String, u64>,
    /// Layers with experts, ascending.
    pub layers: Vec<LayerCounts>,
    /// Tokens seen in each of the layers; behind the file's door all are equal to the workloads' sum.
    seen: u64,
}

/// Counts of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerCounts {
    /// Index of the layer in the model.
    pub layer: usize,
    /// Experts that each token went through.
    pub experts_per_token: usize,
    /// How often each expert was chosen.
    pub counts: Vec<u64>,
}

/// Why there are no counts.
#[derive(Debug, thiserror::Error)]
pub enum CountsError {
    /// The model has no experts.
    #[error("the model is dense: it has no experts to count")]
    Dense,
    /// The name of a workload is not one.
    #[error(
        "`{0}` is no name of a workload; it must have 1 to {NAME_CHARS_MAX} characters, none of them a control character"
    )]
    Name(String),
    /// Two counts are not of the same.
    #[error(
        "they differ in their {what}: {own} and {other}; only counts of the same model, run in the same way, add up"
    )]
    Different {
        /// What differs.
        what: &'static str,
        /// Here.
        own: String,
        /// There.
        other: String,
    },
    /// Sums beyond 64 bits.
    #[error("their sums are beyond 64 bits")]
    Overflow,
}

impl ExpertCounts {
    /// Nothing counted yet, of a workload that is to be.
    ///
    /// # Errors
    /// If the model has no experts, or the workload's name is not one.
    pub fn new(config: &ModelConfig, model: String, settings: String, workload: &str) -> Result<Self, CountsError> {
        if !is_name(workload) {
            return Err(CountsError::Name(workload.chars().take(NAME_CHARS_MAX).collect()));
        }
        let layers: Vec<_> = config
            .sparse_layers()
            .map(|(layer, sparse)| LayerCounts {
                layer,
                experts_per_token: sparse.num_experts_per_tok,
                counts: vec![0; sparse.num_experts],
            })
            .collect();
        if layers.is_empty() {
            return Err(CountsError::Dense);
        }
        Ok(Self { model, settings, workloads: [(workload.to_owned(), 0)].into(), layers, seen: 0 })
    }

    /// Tokens of all workloads.
    pub fn tokens(&self) -> u64 {
        self.seen
    }

    /// Counts the choices of some tokens in a layer.
    pub(crate) fn add<'c>(&mut self, layer: usize, rows: impl Iterator<Item = &'c [Choice]>) {
        let Ok(at) = self.layers.binary_search_by_key(&layer, |counts| counts.layer) else { return };
        let counts = &mut self.layers[at].counts;
        let mut tokens = 0;
        for row in rows {
            tokens += 1;
            for expert in row.iter().filter_map(|choice| choice.index()) {
                counts[expert] += 1;
            }
        }
        if at == 0 {
            self.seen += tokens;
            self.workloads.values_mut().for_each(|seen| *seen += tokens);
        }
    }

    /// Adds the counts of other texts. Nothing is added where it fails.
    ///
    /// # Errors
    /// If they are of another model, of a run with other settings, or too many.
    pub fn merge(&mut self, other: &Self) -> Result<(), CountsError> {
        let differ = |what, own: &str, other: &str| {
            let of = |text: &str| if text.is_empty() { "none".to_owned() } else { format!("`{text}`") };
            Err(CountsError::Different { what, own: of(own), other: of(other) })
        };
        if self.model != other.model {
            return differ("model's digest", &self.model, &other.model);
        }
        if self.settings != other.settings {
            return differ("settings", &self.settings, &other.settings);
        }
        let mut sum = self.clone();
        let shape = |layer: &LayerCounts| (layer.layer, layer.experts_per_token, layer.counts.len());
        if !sum.layers.iter().map(shape).eq(other.layers.iter().map(shape)) {
            let words = |counts: &Self| format!("{} of {} experts", counts.layers.len(), counts.layers[0].counts.len());
            return differ("layers", &words(self), &words(other));
        }
        for (name, tokens) in &other.workloads {
            let own = sum.workloads.entry(name.clone()).or_default();
            *own = own.checked_add(*tokens).ok_or(CountsError::Overflow)?;
        }
        let counts = sum.layers.iter_mut().flat_map(|layer| &mut layer.counts);
        for (own, count) in counts.zip(other.layers.iter().flat_map(|layer| &layer.counts)) {
            *own = own.checked_add(*count).ok_or(CountsError::Overflow)?;
        }
        sum.seen = sum.seen.checked_add(other.seen).ok_or(CountsError::Overflow)?;
        *self = sum;
        Ok(())
    }
}

/// Counts for the one workload that it was made for.
impl Observer for ExpertCounts {
    fn routed(&mut self, layer: usize, logits: &[f32], choices: &[Choice]) {
        let Ok(at) = self.layers.binary_search_by_key(&layer, |counts| counts.layer) else { return };
        let rows = logits.len() / self.layers[at].counts.len();
        self.add(layer, choices.chunks((choices.len() / rows.max(1)).max(1)));
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.chars().take(NAME_CHARS_MAX + 1).count() <= NAME_CHARS_MAX
        && !name.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn sample(workload: &str, counts: [[u64; 4]; 2]) -> ExpertCounts {
        let layers = [1, 3].into_iter().zip(counts);
        let layer =
            |(layer, counts): (usize, [u64; 4])| LayerCounts { layer, experts_per_token: 2, counts: counts.into() };
        let tokens = counts[0].iter().sum::<u64>() / 2;
        ExpertCounts {
            model: "ab".repeat(32),
            settings: String::new(),
            workloads: [(workload.to_owned(), tokens)].into(),
            layers: layers.map(layer).collect(),
            seen: tokens,
        }
    }

    #[test]
    fn an_observed_step_is_counted_in_its_layer_and_absent_experts_are_not() {
        let mut counts = sample("prose", [[0; 4]; 2]);
        let choice = |expert| Choice { expert, weight: 0.5 };
        let choices = [choice(3), choice(0), choice(3), choice(u32::MAX)];
        counts.routed(1, &[0.0; 8], &choices);
        counts.routed(3, &[0.0; 8], &choices[..2]);
        counts.routed(2, &[0.0; 8], &choices);
        assert_eq!(counts.layers[0].counts, [1, 0, 0, 2]);
        assert_eq!(counts.layers[1].counts, [1, 0, 0, 1]);
        assert_eq!((counts.tokens(), counts.workloads["prose"]), (2, 2));
    }

    #[test]
    fn counts_of_texts_add_up_in_any_order() {
        let (prose, code) =
            (sample("prose", [[3, 1, 2, 0], [2, 2, 1, 1]]), sample("code", [[0, 1, 0, 1], [1, 0, 1, 0]]));
        let (mut one, mut other) = (prose.clone(), code.clone());
        one.merge(&code).unwrap();
        other.merge(&prose).unwrap();
        assert_eq!(one, other);
        assert_eq!(one.layers[0].counts, [3, 2, 2, 1]);
        assert_eq!((one.tokens(), one.workloads["prose"], one.workloads["code"]), (4, 3, 1));
        one.merge(&code).unwrap();
        assert_eq!((one.tokens(), one.workloads["code"]), (5, 2));
    }

    #[test]
    fn what_is_not_of_the_same_model_and_run_does_not_add_up_and_changes_nothing() {
        let own = sample("prose", [[1, 1, 0, 0]; 2]);
        type Change = fn(&mut ExpertCounts);
        let changes: [(&str, Change); 4] = [
            ("model's digest", |c| c.model = "cd".repeat(32)),
            ("settings", |c| c.settings = "4 experts a token".into()),
            ("layers", |c| c.layers[1].layer = 2),
            ("64 bits", |c| c.layers[1].counts[0] = u64::MAX),
        ];
        for (what, change) in changes {
            let (mut sum, mut other) = (own.clone(), own.clone());
            change(&mut other);
            let error = sum.merge(&other).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
            assert_eq!(sum, own);
        }
    }
}
