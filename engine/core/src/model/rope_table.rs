//! Cosines and sines of the positions in a step.
//!
//! They are computed once a step, not once a layer, and by `libm` in float64: the system's cosf differs from one C
//! library and CPU to the next, and the same bytes are promised for an ISA, not for a machine.

use crate::config::Rope;

/// Frequencies of a model's rotary embedding.
pub(super) struct RopeTable {
    inv_freq: Vec<f32>, // [rotary_dim / 2]
    factor: f32,
}

impl RopeTable {
    pub(super) fn new(rope: &Rope) -> Self {
        Self { inv_freq: rope.inv_freq(), factor: rope.attention_factor() }
    }

    /// Rotating pairs of a head.
    pub(super) fn pairs(&self) -> usize {
        self.inv_freq.len()
    }

    /// Writes the `pairs` cosines and sines of `position`.
    pub(super) fn fill(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        for ((inv_freq, cos), sin) in self.inv_freq.iter().zip(cos).zip(sin) {
            // The angle is a float32 product, as in the models' own code; at long positions its rounding is part of them.
            let angle = f64::from(position as f32 * inv_freq);
            *cos = libm::cos(angle) as f32 * self.factor;
            *sin = libm::sin(angle) as f32 * self.factor;
        }
    }
}
