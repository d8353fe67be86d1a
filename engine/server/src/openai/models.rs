//! `/v1/models`: the model and its adapters. Answered while the model loads: clients verify a connection by it.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::served::Shared;

/// What can be asked for as `model`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// The model under an adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    /// Positions of a sequence.
    max_model_len: usize,
    /// llama-server's facts.
    #[schema(value_type = Object)]
    meta: Value,
}

/// Names that can be asked for.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Models {
    object: &'static str,
    data: Vec<Model>,
}

fn all(shared: &Shared) -> Vec<Model> {
    let config = &shared.model.config;
    let meta = json!({
        "n_vocab": config.vocab_size,
        "n_ctx": shared.model.ctx_size,
        "n_ctx_train": config.max_position_embeddings,
        "n_embd": config.hidden_size,
    });
    let model = |id: &String, parent: Option<&str>| Model {
        id: id.clone(),
        object: "model",
        created: shared.created,
        owned_by: "nightmonk",
        parent: parent.map(Into::into),
        max_model_len: shared.model.ctx_size,
        meta: meta.clone(),
    };
    let adapters = shared.adapters();
    let names = shared.model.names.iter().map(|name| model(name, None));
    names.chain(adapters.iter().map(|adapter| model(&adapter.name, Some(shared.name())))).collect()
}

/// The models that there are.
#[utoipa::path(get, path = "/v1/models", tag = "OpenAI", responses((status = 200, description = "The model and its adapters", body = Models)))]
pub(crate) async fn list(State(shared): State<Arc<Shared>>) -> Json<Models> {
    Json(Models { object: "list", data: all(&shared) })
}

/// One of them.
#[utoipa::path(get, path = "/v1/models/{id}", tag = "OpenAI", params(("id" = String, Path, description = "Its name")),
    responses((status = 200, description = "The model", body = Model), (status = 404, description = "There is none of this name")))]
pub(crate) async fn one(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    match all(&shared).into_iter().find(|model| model.id == id) {
        Some(model) => Json(model).into_response(),
        None => ApiError::no_model(&id, shared.name()).into_response(),
    }
}
