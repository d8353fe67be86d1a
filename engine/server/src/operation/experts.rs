//! `/experts`: what of the model is chosen token by token, and how often it was.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use engine_core::expert_counts::ExpertCounts;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::IntoParams;

use super::respond;
use crate::engine_thread::Command;
use crate::error::ApiError;
use crate::generation::patiently;
use crate::served::Shared;
use crate::vitals::Phase;

/// What is wanted of the counts.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ExpertsQuery {
    /// `1`: a file as `nightmonk experts record` writes it, which `nightmonk experts show` and `merge` read.
    download: Option<String>,
}

/// The layers with experts, how many each has, how many a token may go through, and how often each was chosen since the
/// start. Tokens count when they are computed, not where their keys and values were cached; requests with adapters or with
/// an `experts_per_token` of their own are not counted.
#[utoipa::path(get, path = "/experts", tag = "Operation", params(ExpertsQuery), responses(
    (status = 200, description = "`tokens` that were counted, and the layers with experts; or a file of counts"),
    (status = "4XX", description = "What is wrong with the request, or nothing was counted yet")))]
pub(crate) async fn experts(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<ExpertsQuery>, QueryRejection>,
) -> Response {
    let download = query.ok().and_then(|Query(query)| query.download);
    match download.as_deref() {
        None | Some("" | "0" | "false") => respond(told(&shared).await),
        Some("1" | "true") => match counted(&shared).await {
            // Digesting a large model takes minutes, the first time.
            Ok(counts) => patiently(async move { file(&shared, counts).await }).await,
            Err(error) => error.into_response(),
        },
        Some(_) => ApiError::field("download", "`download` must be 0 or 1").into_response(),
    }
}

async fn told(shared: &Shared) -> Result<Value, ApiError> {
    // While it loads, nothing was chosen.
    let counts = match shared.engine.vitals.phase() {
        Phase::Loading => None,
        _ => shared.engine.ask(|done| Command::Experts { done }).await?,
    };
    let layers = shared.model.config.sparse_layers().enumerate().map(|(at, (layer, sparse))| {
        let none = || vec![0; sparse.num_experts];
        json!({
            "layer": layer,
            "num_experts": sparse.num_experts,
            "num_experts_per_tok": sparse.num_experts_per_tok,
            "most_experts_per_tok": sparse.most_experts_per_tok,
            "counts": counts.as_ref().map_or_else(none, |counts| counts.layers[at].counts.clone()),
        })
    });
    let layers: Vec<Value> = layers.collect();
    Ok(json!({"tokens": counts.map_or(0, |counts| counts.tokens()), "layers": layers}))
}

/// The counts, if there is anything to count and anything was.
async fn counted(shared: &Shared) -> Result<ExpertCounts, ApiError> {
    shared.engine.check_ready()?;
    let counts = shared.engine.ask(|done| Command::Experts { done }).await?;
    let counts = counts.ok_or_else(|| ApiError::field("download", "this model has no experts to count"))?;
    match counts.tokens() {
        0 => Err(ApiError::field("download", "no token was counted yet; ask for an answer first")),
        _ => Ok(*counts),
    }
}

async fn file(shared: &Shared, mut counts: ExpertCounts) -> Result<Value, ApiError> {
    counts.model = shared.digest.get().await?;
    counts.settings.clone_from(&shared.model.dials);
    counts.to_json().map_err(|error| ApiError::engine(error.to_string()))
}
