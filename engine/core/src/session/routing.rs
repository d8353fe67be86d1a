//! What routers chose for the tokens of one sequence, kept where its request asks for it.
//!
//! A choice is stored at its position, so one that is computed again, after its sequence was suspended, is written over with
//! the same bits. Nothing is known of positions whose keys and values came from a cache: such a sequence takes none.

use std::num::NonZeroUsize;

use crate::config::ModelConfig;
use crate::model::Choice;

/// Bytes that a sequence's choices may take.
pub const ROUTING_BYTES_MAX: usize = 16 << 20;

/// The experts of each token of a sequence, and the factors of their outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// Layers with experts, ascending.
    layers: Vec<usize>,
    experts_per_token: usize,
    /// Choices that the sequence may come to have.
    most: usize,
    /// `[positions, layers, experts_per_token]`
    choices: Vec<Choice>,
}

impl Routing {
    /// Of a model with experts; `None` of one without.
    pub(super) fn new(config: &ModelConfig, asked: Option<NonZeroUsize>, positions: usize) -> Option<Self> {
        let layers: Vec<usize> = config.sparse_layers().map(|(layer, _)| layer).collect();
        let own = config.sparse_layers().map(|(_, sparse)| sparse.num_experts_per_tok).max()?;
        let experts_per_token = asked.map_or(own, NonZeroUsize::get);
        let most = positions.saturating_mul(layers.len() * experts_per_token);
        Some(Self { layers, experts_per_token, most, choices: Vec::new() })
    }

    /// Bytes that all of a sequence of so many positions would take; 0 where the model has no experts.
    pub fn bytes_for(config: &ModelConfig, asked: Option<NonZeroUsize>, positions: usize) -> usize {
        Self::new(config, asked, positions).map_or(0, |routing| routing.bytes_max())
    }

    pub(super) fn bytes_max(&self) -> usize {
        self.most.saturating_mul(size_of::<Choice>())
    }

    /// Layers with experts, ascending.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// Choices of a token in a layer.
    pub fn experts_per_token(&self) -> usize {
        self.experts_per_token
    }

    /// Positions whose choices are known, from the first of the sequence on. The last token that was drawn is not among
    /// them: it was never computed.
    pub fn positions(&self) -> usize {
        self.choices.len() / (self.layers.len() * self.experts_per_token)
    }

    /// Choices at a position in a layer, counted among those with experts, best first.
    ///
    /// # Panics
    /// If there is no such position or layer.
    pub fn choices(&self, position: usize, layer: usize) -> &[Choice] {
        assert!(layer < self.layers.len(), "{} layers have experts", self.layers.len());
        let at = (position * self.layers.len() + layer) * self.experts_per_token;
        &self.choices[at..at + self.experts_per_token]
    }

    /// Keeps what a row chose.
    pub(super) fn put(&mut self, position: usize, layer: usize, chosen: &[Choice]) {
        let Ok(layer) = self.layers.binary_search(&layer) else { return };
        // A sequence that waits takes no memory for it.
        if self.choices.capacity() == 0 {
            self.choices.reserve_exact(self.most);
        }
        let of_position = self.layers.len() * self.experts_per_token;
        if self.choices.len() < (position + 1) * of_position {
            let none = Choice { expert: u32::MAX, weight: 0.0 };
            self.choices.resize((position + 1) * of_position, none);
        }
        let at = position * of_position + layer * self.experts_per_token;
        let own = &mut self.choices[at..at + self.experts_per_token];
        own.iter_mut().zip(chosen).for_each(|(own, chosen)| *own = *chosen);
    }
}
