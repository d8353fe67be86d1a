//! What is seen of a step's rows on their way: states that are embedded, choices that are told, choices that are counted.
//!
//! A step has one observer. Rows that nobody asked about cost a look at their sequence.

use super::sequence::Sequence;
use crate::expert_counts::ExpertCounts;
use crate::model::{Batch, Choice, Model, Observer};

/// Sees the rows of a step and hands them to their sequences.
pub(super) struct Watch<'a, 't> {
    pub(super) model: &'a Model,
    pub(super) batch: &'a Batch<'a>,
    /// Those of the step, in the order of its block tables.
    pub(super) running: &'a mut [Sequence<'t>],
    /// Of a model with experts.
    pub(super) counts: Option<&'a mut ExpertCounts>,
}

impl Observer for Watch<'_, '_> {
    fn residual(&mut self, layer: usize, rows: &[f32]) {
        let config = self.model.config();
        if layer < config.layers.len() {
            return;
        }
        for (row, residual) in self.batch.rows.iter().zip(rows.chunks_exact(config.hidden_size)) {
            if let Some(pool) = &mut self.running[row.sequence].pool {
                pool.add(self.model, self.batch.adapters.get(row.sequence), row.position, residual);
            }
        }
    }

    fn routed(&mut self, layer: usize, _logits: &[f32], choices: &[Choice]) {
        let most = (choices.len() / self.batch.rows.len().max(1)).max(1);
        for (row, chosen) in self.batch.rows.iter().zip(choices.chunks_exact(most)) {
            if let Some(routing) = &mut self.running[row.sequence].routing {
                routing.put(row.position, layer, chosen);
            }
        }
        if let Some(counts) = &mut self.counts {
            let rows = self.batch.rows.iter().zip(choices.chunks_exact(most));
            counts.add(layer, rows.filter(|(row, _)| self.running[row.sequence].is_counted).map(|(_, chosen)| chosen));
        }
    }
}
