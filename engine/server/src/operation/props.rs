//! `/props`: how the server was started.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::generation::experts_per_token_max;
use crate::served::Shared;

/// How the server was started: model, sizes, defaults. (llama-server's names.)
#[utoipa::path(get, path = "/props", tag = "Operation", responses((status = 200, description = "Model, sizes and defaults")))]
pub(crate) async fn props(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let model = &shared.model;
    let sampling = &model.sampling;
    Json(json!({
        "default_generation_settings": {
            "n_ctx": model.ctx_size,
            "params": {
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "min_p": sampling.min_p,
                "n_predict": model.max_tokens.map_or(-1, |n| n as i64),
            },
        },
        "total_slots": model.width,
        "model_alias": shared.name(),
        "model_path": model.path,
        "settings": model.settings,
        "experts_per_token_max": experts_per_token_max(&model.config),
        "has_chat_template": model.template.is_some(),
        "modalities": {"vision": false, "audio": false},
        "build_info": concat!("nightmonk ", env!("CARGO_PKG_VERSION")),
    }))
}
