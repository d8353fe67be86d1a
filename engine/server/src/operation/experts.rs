//! `/experts`: what of the model is chosen token by token.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::served::Shared;

/// The layers with experts, how many each has, and how many a token may go through.
#[utoipa::path(get, path = "/experts", tag = "Operation", responses((status = 200, description = "Layers with experts")))]
pub(crate) async fn experts(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let layers = shared.model.config.sparse_layers().map(|(layer, sparse)| {
        json!({
            "layer": layer,
            "num_experts": sparse.num_experts,
            "num_experts_per_tok": sparse.num_experts_per_tok,
            "most_experts_per_tok": sparse.most_experts_per_tok,
        })
    });
    Json(json!({"layers": layers.collect::<Vec<_>>()}))
}
