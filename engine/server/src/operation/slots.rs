//! `/slots`: the sequences that run or wait, without their text.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use engine_core::session::SlotState;
use serde::Serialize;
use utoipa::ToSchema;

use super::respond;
use crate::engine_thread::Command;
use crate::error::ApiError;
use crate::served::Shared;

/// A sequence, or room for one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Slot {
    id: usize,
    /// Positions that it may have.
    n_ctx: usize,
    is_processing: bool,
    /// `prefilling`, `decoding`, `queued` or `suspended`; `idle` where there is none.
    state: String,
    priority: Option<&'static str>,
    n_prompt_tokens: usize,
    n_prompt_tokens_processed: usize,
    n_decoded: usize,
}

/// The sequences that run or wait, and the room for others.
#[utoipa::path(get, path = "/slots", tag = "Operation", responses((status = 200, description = "Those that run, free ones, those that wait", body = Vec<Slot>)))]
pub(crate) async fn slots(State(shared): State<Arc<Shared>>) -> Response {
    respond(all(&shared).await)
}

async fn all(shared: &Shared) -> Result<Vec<Slot>, ApiError> {
    shared.engine.check_ready()?;
    let n_ctx = shared.model.ctx_size;
    let sequences = shared.engine.ask(|done| Command::Slots { done }).await?;
    let mut slots: Vec<Slot> = sequences
        .into_iter()
        .map(|slot| Slot {
            id: 0,
            n_ctx,
            is_processing: matches!(slot.state, SlotState::Prefilling | SlotState::Decoding),
            state: format!("{:?}", slot.state).to_lowercase(),
            priority: Some(match slot.priority {
                engine_core::session::Priority::Interactive => "interactive",
                engine_core::session::Priority::Background => "background",
            }),
            n_prompt_tokens: slot.prompt_tokens,
            n_prompt_tokens_processed: slot.computed.min(slot.prompt_tokens),
            n_decoded: slot.generated,
        })
        .collect();
    let running = slots.iter().filter(|slot| slot.is_processing).count();
    let idle = || Slot {
        id: 0,
        n_ctx,
        is_processing: false,
        state: "idle".into(),
        priority: None,
        n_prompt_tokens: 0,
        n_prompt_tokens_processed: 0,
        n_decoded: 0,
    };
    let free = shared.model.width.saturating_sub(running);
    slots.splice(running..running, std::iter::repeat_with(idle).take(free));
    slots.iter_mut().enumerate().for_each(|(id, slot)| slot.id = id);
    Ok(slots)
}
