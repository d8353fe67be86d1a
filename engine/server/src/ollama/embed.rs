//! `/api/embed`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::Response;
use engine_core::session::{Output, Pooling, normalize};
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use super::answered;
use crate::error::ApiError;
use crate::generation::{OneOrMany, TextPrompt, embed as vectors_of, in_background, patiently};
use crate::input::Input;
use crate::served::Shared;

/// Texts to embed.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct OllamaEmbed {
    model: String,
    input: OneOrMany,
    /// The length of the vectors; only the model's own is known.
    dimensions: Option<usize>,
}

/// Vectors of texts.
#[utoipa::path(post, path = "/api/embed", tag = "Ollama", request_body = OllamaEmbed,
    responses((status = 200, description = "A vector for each text"), (status = "4XX", description = "What is wrong with the request")))]
pub(crate) async fn embed(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    answered(shared, request, answer).await
}

async fn answer(shared: Arc<Shared>, request: Request<Body>) -> Result<Response, ApiError> {
    shared.engine.check_ready()?;
    let input = Input::read(request, shared.config.body_bytes_max).await?;
    let (requests, model) = in_background(&shared, move |shared| {
        // A text that is too long is refused with the numbers, `truncate` or not: half of it is another text.
        let OllamaEmbed { model, input, dimensions } = input.parse()?;
        let hidden_size = shared.model.config.hidden_size;
        if dimensions.is_some_and(|dimensions| dimensions != hidden_size) {
            return Err(ApiError::unsupported(
                "dimensions",
                format!("vectors of this model have {hidden_size} numbers"),
            ));
        }
        let prompts = input.into_vec().into_iter().map(TextPrompt::Text).collect();
        let requests = vectors_of::requests(shared, prompts, Some(&model), Output::Embedding(Pooling::Last), "input")?;
        Ok((requests, model))
    })
    .await?;
    Ok(patiently(async move {
        let (mut vectors, prompt_tokens) = vectors_of::vectors(&shared, requests).await?;
        vectors.iter_mut().for_each(|values| normalize(values));
        Ok(json!({"model": model, "embeddings": vectors, "prompt_eval_count": prompt_tokens}))
    })
    .await)
}
