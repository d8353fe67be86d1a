//! Which path is answered by what.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::FutureExt;
use tower::ServiceExt;

use crate::error::ApiError;
use crate::guard::{Guard, allow_origin};
use crate::listen::Answers;
use crate::openai::{chat, completions, embeddings, models, responses};
use crate::operation::{adapters, experts, health, metrics, props, slots, tokens};
use crate::served::Shared;
use crate::{ollama, openapi};

/// The guard, and the routes behind it.
pub(crate) struct Site {
    guard: Guard,
    router: Router,
}

impl Site {
    pub(crate) fn new(guard: Guard, shared: Arc<Shared>) -> Self {
        let router = Router::new()
            .route("/health", get(health::health))
            .route("/v1/health", get(health::health))
            .route("/v1/models", get(models::list))
            .route("/v1/models/{*id}", get(models::one))
            .route("/models", get(models::list))
            .route("/v1/chat/completions", post(chat::chat_completions))
            .route("/chat/completions", post(chat::chat_completions))
            .route("/v1/completions", post(completions::completions))
            .route("/completions", post(completions::completions))
            .route("/v1/responses", post(responses::create))
            .route("/responses", post(responses::create))
            .route("/v1/responses/{id}", get(responses::retrieve).delete(responses::delete))
            .route("/v1/responses/{id}/cancel", post(responses::cancel))
            .route("/v1/responses/{id}/input_items", get(responses::input_items))
            .route("/apply-template", post(chat::apply_template))
            .route("/metrics", get(metrics::metrics))
            .route("/slots", get(slots::slots))
            .route("/props", get(props::props))
            .route("/experts", get(experts::experts))
            .route("/tokenize", post(tokens::tokenize))
            .route("/detokenize", post(tokens::detokenize))
            .route("/lora-adapters", get(adapters::list).post(adapters::set_scales))
            .route("/v1/load_lora_adapter", post(adapters::load))
            .route("/v1/unload_lora_adapter", post(adapters::unload))
            .route("/api/tags", get(ollama::models::tags))
            .route("/api/ps", get(ollama::models::ps))
            .route("/api/version", get(ollama::models::version))
            .route("/api/show", post(ollama::models::show))
            .route("/api/chat", post(ollama::chat::chat))
            .route("/v1/embeddings", post(embeddings::embeddings))
            .route("/embeddings", post(embeddings::embeddings))
            .route("/api/embed", post(ollama::embed::embed))
            .route("/api/generate", post(ollama::chat::generate))
            .route("/openapi.json", get(openapi::openapi))
            .fallback(|| async { ApiError::not_found("There is nothing at this path") })
            .method_not_allowed_fallback(|| async {
                ApiError::client(StatusCode::METHOD_NOT_ALLOWED, "this path is not for this method")
            })
            .with_state(shared);
        Self { guard, router }
    }
}

impl Answers for Site {
    async fn answer(&self, request: Request<Body>) -> Response {
        let admitted = match self.guard.admit(&request) {
            Ok(admitted) => admitted,
            Err(response) => return finished(*response),
        };
        // A bug in a handler is that request's end, not the server's.
        let answered = AssertUnwindSafe(self.router.clone().oneshot(request)).catch_unwind().await;
        let mut response = match answered {
            Ok(Ok(response)) => response,
            Ok(Err(impossible)) => match impossible {},
            Err(_) => ApiError::engine("internal error; please report it").into_response(),
        };
        if let Some(origin) = &admitted.origin {
            allow_origin(response.headers_mut(), origin);
        }
        finished(response)
    }
}

/// Headers of all answers: they hold private text.
fn finished(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // A body that was not read to its end is in the way of the next request.
    if matches!(response.status(), StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
