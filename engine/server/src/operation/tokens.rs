//! `/tokenize` and `/detokenize`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::respond;
use crate::error::ApiError;
use crate::generation::in_background;
use crate::input::Input;
use crate::served::Shared;

/// A text.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Tokenize {
    content: String,
    /// Put the tokens around it that the tokenizer puts around a text.
    #[serde(default)]
    add_special: Option<bool>,
    /// Take control tokens that the text spells as such; without it they are.
    #[serde(default)]
    parse_special: Option<bool>,
    /// Tell the text of each token, too.
    #[serde(default)]
    with_pieces: Option<bool>,
}

/// Tokens.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Detokenize {
    tokens: Vec<u32>,
}

/// The tokens of a text.
#[utoipa::path(post, path = "/tokenize", tag = "Operation", request_body = Tokenize,
    responses((status = 200, description = "`tokens`: ids, or ids with their pieces"), (status = "4XX", description = "What is wrong with the request")))]
pub(crate) async fn tokenize(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    respond(tokenized(shared, request).await)
}

async fn tokenized(shared: Arc<Shared>, request: Request<Body>) -> Result<Value, ApiError> {
    let input = Input::read(request, shared.config.body_bytes_max).await?;
    in_background(&shared, move |shared| {
        let Tokenize { content, add_special, parse_special, with_pieces } = input.parse()?;
        let tokenizer = &shared.model.tokenizer;
        let add_special = add_special.unwrap_or(false);
        let tokens = match parse_special.unwrap_or(true) {
            true => tokenizer.encode(&content, add_special),
            false if add_special => {
                let why = "together with `add_special` only control tokens that the text spells are taken";
                return Err(ApiError::unsupported("parse_special", why));
            }
            false => tokenizer.encode_text_only(&content),
        };
        let tokens = tokens.map_err(|error| ApiError::field("content", error.to_string()))?;
        if !with_pieces.unwrap_or(false) {
            return Ok(json!({"tokens": tokens}));
        }
        // A piece that is no text by itself is told by its bytes.
        let piece = |id: &u32| {
            let bytes = tokenizer.token_bytes(*id).unwrap_or_default();
            let piece = std::str::from_utf8(bytes).map_or_else(|_| json!(bytes), |text| json!(text));
            json!({"id": id, "piece": piece})
        };
        Ok(json!({"tokens": tokens.iter().map(piece).collect::<Vec<_>>()}))
    })
    .await
}

/// The text of tokens.
#[utoipa::path(post, path = "/detokenize", tag = "Operation", request_body = Detokenize,
    responses((status = 200, description = "`content`: the text"), (status = "4XX", description = "What is wrong with the request")))]
pub(crate) async fn detokenize(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    respond(detokenized(shared, request).await)
}

async fn detokenized(shared: Arc<Shared>, request: Request<Body>) -> Result<Value, ApiError> {
    let input = Input::read(request, shared.config.body_bytes_max).await?;
    in_background(&shared, move |shared| {
        let Detokenize { tokens } = input.parse()?;
        let text = shared.model.tokenizer.decode(&tokens, false);
        let content = text.map_err(|error| ApiError::field("tokens", error.to_string()))?;
        Ok(json!({"content": content}))
    })
    .await
}
