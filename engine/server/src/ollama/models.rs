//! What there is: `/api/tags`, `/api/show`, `/api/ps`, `/api/version`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{answered, time};
use crate::input::Input;
use crate::served::{Shared, unix_seconds};

/// Which model to show.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Show {
    #[serde(alias = "name")]
    model: String,
}

fn bytes(shared: &Shared) -> u64 {
    shared.model.arenas.iter().map(|(_, bytes)| bytes).sum()
}

fn details(shared: &Shared) -> Value {
    let family = shared.model.config.family.model_type;
    json!({
        "parent_model": "",
        "format": "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": format!("{:.1}B", shared.model.parameters as f64 / 1e9),
        "quantization_level": shared.model.config.torch_dtype.map_or("unknown", |dtype| dtype.name()).to_uppercase(),
    })
}

fn entries(shared: &Shared) -> Vec<Value> {
    let adapters = shared.adapters();
    let names = shared.model.names.iter().chain(adapters.iter().map(|adapter| &adapter.name));
    let entry = |name: &String| {
        // Ollama's names have a tag.
        let tagged = if name.contains(':') { name.clone() } else { format!("{name}:latest") };
        let digest = blake3::hash(format!("{name} {}", shared.fingerprint).as_bytes()).to_hex();
        json!({
            "name": tagged,
            "model": tagged,
            "modified_at": time(shared.created),
            "size": bytes(shared),
            "digest": digest.as_str(),
            "details": details(shared),
        })
    };
    names.map(entry).collect()
}

/// The models that there are.
#[utoipa::path(get, path = "/api/tags", tag = "Ollama", responses((status = 200, description = "The model and its adapters")))]
pub(crate) async fn tags(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({"models": entries(&shared)}))
}

/// The models that are in memory: all that there are.
#[utoipa::path(get, path = "/api/ps", tag = "Ollama", responses((status = 200, description = "The model and its adapters")))]
pub(crate) async fn ps(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let mut models = entries(&shared);
    if shared.engine.check_ready().is_err() {
        models.clear();
    }
    // It stays; some clients count the minutes.
    const YEAR: u64 = 365 * 86_400;
    for model in &mut models {
        model["expires_at"] = time(unix_seconds() + YEAR).into();
        model["size_vram"] = 0.into();
        model["context_length"] = shared.model.ctx_size.into();
    }
    Json(json!({"models": models}))
}

/// The version of this program.
#[utoipa::path(get, path = "/api/version", tag = "Ollama", responses((status = 200, description = "The version of this program")))]
pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// What a model is.
#[utoipa::path(post, path = "/api/show", tag = "Ollama", request_body = Show,
    responses((status = 200, description = "Family, sizes, what it can do"), (status = 404, description = "There is none of this name")))]
pub(crate) async fn show(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    answered(shared, request, async |shared, request| {
        let input = Input::read(request, shared.config.body_bytes_max).await?;
        let Show { model } = input.parse()?;
        shared.adapters_of(Some(&model))?;
        let (served, config) = (&shared.model, &shared.model.config);
        let family = config.family.model_type;
        let mut info = json!({
            "general.architecture": family,
            "general.parameter_count": served.parameters,
        });
        for (name, value) in [
            ("context_length", served.ctx_size),
            ("embedding_length", config.hidden_size),
            ("block_count", config.layers.len()),
            ("attention.head_count", config.num_attention_heads),
            ("attention.head_count_kv", config.num_key_value_heads),
        ] {
            info[format!("{family}.{name}")] = value.into();
        }
        let mut capabilities = vec!["completion"];
        if served.knows_tools() {
            capabilities.push("tools");
        }
        if served.thinks() {
            capabilities.push("thinking");
        }
        let document = json!({
            "license": "",
            "modelfile": "",
            "parameters": "",
            "template": "",
            "modified_at": time(shared.created),
            "details": details(&shared),
            "model_info": info,
            "capabilities": capabilities,
        });
        Ok(Json(document).into_response())
    })
    .await
}
