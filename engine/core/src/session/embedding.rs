//! Vectors of whole texts, out of the final hidden states that a step's rows come to.
//!
//! A prompt that is embedded runs in the step loop beside all others, but nothing is drawn for it: its rows are seen as they
//! leave the last layer, before the product with the output matrix, which is never computed for them. States are added up
//! one position after the other, so chunks and company change no bit.

use super::event::{Event, Pooling, SequenceError, SequenceId};
use crate::adapter::AdapterSet;
use crate::model::Model;

/// Divides a vector by its length, so that the product of two of them is the cosine between them. The vector of zeros stays
/// as it is.
pub fn normalize(values: &mut [f32]) {
    let square: f64 = values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
    if square > 0.0 {
        let length = square.sqrt();
        values.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
}

/// What one sequence has come to.
pub(super) struct Pool {
    pooling: Pooling,
    positions: usize,
    normed: Vec<f32>, // [hidden_size], of one position
    sums: Vec<f64>,   // [hidden_size]
}

impl Pool {
    pub(super) fn new(pooling: Pooling, positions: usize, hidden_size: usize) -> Self {
        Self { pooling, positions, normed: vec![0.0; hidden_size], sums: vec![0.0; hidden_size] }
    }

    /// All positions will come once more.
    pub(super) fn restart(&mut self) {
        self.sums.fill(0.0);
    }

    fn wants(&self, position: usize) -> bool {
        match self.pooling {
            Pooling::Last => position + 1 == self.positions,
            Pooling::Mean => true,
            Pooling::First => position == 0,
        }
    }

    /// Adds the last residual stream of a position, `[hidden_size]`, of a sequence with these adapters.
    pub(super) fn add(&mut self, model: &Model, adapters: Option<&AdapterSet>, position: usize, residual: &[f32]) {
        if self.wants(position) {
            model.final_norm(residual, adapters, &mut self.normed);
            self.sums.iter_mut().zip(&self.normed).for_each(|(sum, value)| *sum += f64::from(*value));
        }
    }

    fn values(&self) -> Vec<f32> {
        let positions = if self.pooling == Pooling::Mean { self.positions as f64 } else { 1.0 };
        self.sums.iter().map(|sum| (sum / positions) as f32).collect()
    }

    /// What the sequence ends with, once all of its positions are computed.
    pub(super) fn event(&self, id: SequenceId) -> Event {
        let (values, prompt_tokens) = (self.values(), self.positions);
        match values.iter().position(|value| !value.is_finite()) {
            None => Event::Embedded { id, values, prompt_tokens },
            Some(index) => {
                let error = SequenceError::NonFiniteEmbedding { index, value: values[index] };
                Event::Failed { id, error }
            }
        }
    }
}
