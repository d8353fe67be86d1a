//! `/health`: whether tokens come, not whether the process is there.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::time::timeout;

use crate::engine_thread::{Command, EngineHandle};
use crate::error::ApiError;
use crate::served::Shared;
use crate::vitals::Phase;

/// A token that came so lately needs no other.
const LATELY: Duration = Duration::from_secs(30);
/// An idle engine gives a token within this time, or is told to be unwell until it does.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether the engine gives tokens: by what it does, or where it has nothing to do, by asking for one.
pub(crate) async fn check(engine: &EngineHandle) -> Result<(), ApiError> {
    engine.check_ready()?;
    let vitals = &engine.vitals;
    if vitals.since_progress() < LATELY {
        return Ok(());
    }
    if !vitals.is_idle() {
        let still = vitals.since_progress();
        return match still < vitals.patience() {
            true => Ok(()),
            false => Err(ApiError::unavailable(format!("no step ended for {} s", still.as_secs()))),
        };
    }
    match timeout(PROBE_TIMEOUT, engine.ask(|done| Command::Probe { done })).await {
        Ok(answered) => answered,
        // A request may have come before it, and its step may be a long one.
        Err(_) if vitals.phase() == Phase::Ready && vitals.since_progress() < vitals.patience() => Ok(()),
        Err(_) => Err(ApiError::unavailable("the engine gives no token")),
    }
}

/// Whether the server gives tokens. Needs no key.
#[utoipa::path(get, path = "/health", tag = "Operation", security(()),
    responses((status = 200, description = "A token came lately"), (status = 503, description = "Loading, ending, or stuck")))]
pub(crate) async fn health(State(shared): State<Arc<Shared>>) -> Response {
    match check(&shared.engine).await {
        Ok(()) => Json(json!({"status": "ok"})).into_response(),
        Err(error) => error.into_response(),
    }
}
