//! What an operator asks: how the server is, what it is made of, what it would make of a text.

pub(crate) mod adapters;
pub(crate) mod experts;
pub(crate) mod health;
pub(crate) mod metrics;
pub(crate) mod props;
pub(crate) mod slots;
pub(crate) mod tokens;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::error::ApiError;

/// A document, or what is wrong.
pub(crate) fn respond(answer: Result<impl Serialize, ApiError>) -> Response {
    match answer {
        Ok(document) => Json(document).into_response(),
        Err(error) => error.into_response(),
    }
}
