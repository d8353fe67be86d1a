//! Adapters, loaded and unloaded between steps: `/lora-adapters` as llama-server has it, `/v1/load_lora_adapter` as vLLM has.
//!
//! A folder that a request names is opened on this machine, so only folders below one that the operator named are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::respond;
use crate::engine_thread::Command;
use crate::error::ApiError;
use crate::guard;
use crate::served::{ServedAdapter, Shared};

use crate::input::{Input, is_json};

/// Most adapters that are loaded at a time; each takes memory that no plan counted.
const ADAPTERS_MAX: usize = 16;
/// Longest name.
const NAME_BYTES_MAX: usize = 256;

/// A loaded adapter.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Adapter {
    id: usize,
    name: String,
    path: String,
    /// Factor of what it adds to requests that do not say.
    scale: f32,
}

/// A factor for a loaded adapter.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Scale {
    id: usize,
    scale: f32,
}

/// An adapter to be loaded.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct LoadAdapter {
    lora_name: String,
    lora_path: String,
}

/// An adapter to be unloaded.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct UnloadAdapter {
    lora_name: String,
}

/// The loaded adapters.
#[utoipa::path(get, path = "/lora-adapters", tag = "Operation", responses((status = 200, description = "The loaded adapters", body = Vec<Adapter>)))]
pub(crate) async fn list(State(shared): State<Arc<Shared>>) -> Response {
    let adapter = |(id, ServedAdapter { name, path, scale })| Adapter { id, name, path, scale };
    respond(Ok(shared.adapters().into_iter().enumerate().map(adapter).collect::<Vec<_>>()))
}

/// Factors for requests that do not say; adapters that are not named get 0.
#[utoipa::path(post, path = "/lora-adapters", tag = "Operation", request_body = Vec<Scale>,
    responses((status = 200, description = "They count from now on"), (status = "4XX", description = "What is wrong with the request")))]
pub(crate) async fn set_scales(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    respond(scaled(&shared, request).await)
}

async fn scaled(shared: &Shared, request: Request<Body>) -> Result<Value, ApiError> {
    is_json(request.headers())?;
    let body = guard::read_body(request.into_body(), shared.config.body_bytes_max).await?;
    let scales: Vec<Scale> =
        serde_json::from_slice(&body).map_err(|error| ApiError::bad_request(format!("a list of adapters: {error}")))?;
    let mut adapters = shared.adapters.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(wrong) = scales.iter().find(|scale| scale.id >= adapters.len() || !scale.scale.is_finite()) {
        let why = format!("there is no adapter number {}, or its scale is not finite", wrong.id);
        return Err(ApiError::field("id", why));
    }
    adapters.iter_mut().for_each(|adapter| adapter.scale = 0.0);
    for Scale { id, scale } in scales {
        adapters[id].scale = scale;
    }
    Ok(json!({"success": true}))
}

/// Loads an adapter; from now on its name may be asked for as a model.
#[utoipa::path(post, path = "/v1/load_lora_adapter", tag = "Operation", request_body = LoadAdapter,
    responses((status = 200, description = "It is loaded"), (status = "4XX", description = "What is wrong with the request or the folder")))]
pub(crate) async fn load(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    respond(loaded(&shared, request).await)
}

async fn loaded(shared: &Shared, request: Request<Body>) -> Result<Value, ApiError> {
    shared.engine.check_ready()?;
    let input = Input::read(request, shared.config.body_bytes_max).await?;
    let LoadAdapter { lora_name: name, lora_path } = input.parse()?;
    let path = allowed(shared.config.adapter_folder.as_deref(), &lora_path)?;
    if name.is_empty() || name.len() > NAME_BYTES_MAX || shared.model.names.contains(&name) {
        return Err(ApiError::field("lora_name", "it is empty, too long, or the model's own"));
    }
    if shared.adapters().len() >= ADAPTERS_MAX {
        return Err(ApiError::bad_request(format!(
            "{ADAPTERS_MAX} adapters are loaded, as many as may; unload one first"
        )));
    }
    let command = |done| Command::LoadAdapter { name: name.clone(), path, done };
    let loaded = shared.engine.ask(command).await?;
    loaded.map_err(|error| ApiError::field("lora_path", error.to_string()))?;
    let adapter = ServedAdapter { name: name.clone(), path: lora_path, scale: 0.0 };
    shared.adapters.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(adapter);
    Ok(json!({"success": true, "lora_name": name}))
}

/// The folder, if it is below the one from which adapters may be loaded.
fn allowed(root: Option<&Path>, path: &str) -> Result<PathBuf, ApiError> {
    let Some(root) = root else {
        return Err(ApiError::forbidden("adapters are not loaded by requests; start the server with `--lora-dir DIR`"));
    };
    // Whether something else is there is not told.
    let outside = || ApiError::field("lora_path", "there is no such folder below that of `--lora-dir`");
    let root = root.canonicalize().map_err(|_| outside())?;
    let path = root.join(path).canonicalize().map_err(|_| outside())?;
    if path.starts_with(&root) && path.is_dir() { Ok(path) } else { Err(outside()) }
}

/// Unloads an adapter that no sequence goes through.
#[utoipa::path(post, path = "/v1/unload_lora_adapter", tag = "Operation", request_body = UnloadAdapter,
    responses((status = 200, description = "It is unloaded"), (status = "4XX", description = "It is not loaded, or in use")))]
pub(crate) async fn unload(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    respond(unloaded(&shared, request).await)
}

async fn unloaded(shared: &Shared, request: Request<Body>) -> Result<Value, ApiError> {
    shared.engine.check_ready()?;
    let input = Input::read(request, shared.config.body_bytes_max).await?;
    let UnloadAdapter { lora_name: name } = input.parse()?;
    let command = |done| Command::UnloadAdapter { name: name.clone(), done };
    let unloaded = shared.engine.ask(command).await?;
    unloaded.map_err(|error| ApiError::field("lora_name", error.to_string()))?;
    shared.adapters.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).retain(|adapter| adapter.name != name);
    Ok(json!({"success": true, "lora_name": name}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_below_the_operators_are_opened() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("adapters");
        std::fs::create_dir_all(root.join("a")).unwrap();
        std::fs::create_dir_all(outer.path().join("b")).unwrap();
        std::os::unix::fs::symlink(outer.path().join("b"), root.join("link")).unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        assert!(allowed(Some(&root), "a").is_ok());
        assert!(allowed(Some(&root), root.join("a").to_str().unwrap()).is_ok());
        for path in ["../b", "link", "file", "/etc", "none", "a/../../b", "a\0"] {
            assert!(allowed(Some(&root), path).is_err(), "{path}");
        }
        assert!(allowed(None, "a").is_err());
    }
}
