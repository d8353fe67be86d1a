//! What of a model would fit a GPU: first what every token needs, then experts.
//!
//! This version computes on the CPU alone; the budget says what a card would be worth before one is bought.

use serde::Serialize;

use super::Plan;

/// A plan's bytes beside the memory of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OnGpu {
    /// Memory of the GPU.
    pub vram_bytes: u64,
    /// Attention, routers, dense MLPs, norms and output matrix, as published.
    pub always_bytes: u64,
    /// Keys and values of the context that was asked for.
    pub kv_bytes: u64,
    /// Whether these fit.
    pub fits: bool,
    /// One expert, as published.
    pub expert_bytes: u64,
    /// Experts that fit beside them, of all layers together.
    pub experts_that_fit: u64,
    /// Experts of all layers.
    pub experts: u64,
}

impl Plan {
    /// The budget of a GPU with `vram_bytes`.
    pub fn on_gpu(&self, vram_bytes: u64, tied: bool) -> OnGpu {
        // A tied embedding is the output matrix too.
        let embedding = if tied { 0 } else { self.embedding_bytes };
        let always_bytes = self.checkpoint_bytes - self.expert_bytes - embedding;
        let needed = always_bytes.saturating_add(self.kv_bytes);
        let expert_bytes = self.expert_bytes.checked_div(self.experts).unwrap_or(0);
        let left = vram_bytes.saturating_sub(needed);
        OnGpu {
            vram_bytes,
            always_bytes,
            kv_bytes: self.kv_bytes,
            fits: needed <= vram_bytes,
            expert_bytes,
            experts_that_fit: left.checked_div(expert_bytes).unwrap_or(0).min(self.experts),
            experts: self.experts,
        }
    }
}
