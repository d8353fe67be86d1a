//! Errors as clients of the OpenAI API read them: `{"error": {"message", "type", "param", "code"}}`.
//!
//! A status of 5xx says that the server is not well, and clients try again: so nothing that a request says may lead to
//! one. What is wrong with a request is a 400 with the field's name.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Most characters of a message: messages quote requests, and a request may be of any length.
const MESSAGE_CHARS_MAX: usize = 1000;

/// Why a request has no answer.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) kind: &'static str,
    pub(crate) code: Option<&'static str>,
    pub(crate) param: Option<String>,
    pub(crate) message: String,
    retry_after_seconds: Option<u32>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        let message: String = message.into();
        let message = match message.char_indices().nth(MESSAGE_CHARS_MAX) {
            Some((end, _)) => format!("{}…", &message[..end]),
            None => message,
        };
        Self { status, kind, code: None, param: None, message, retry_after_seconds: None }
    }

    /// The request is wrong as a whole.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A field of the request is wrong.
    pub(crate) fn field(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(name.into()), ..Self::bad_request(message) }
    }

    /// A field is known, but this version or this run cannot do what it asks.
    pub(crate) fn unsupported(name: impl Into<String>, why: impl std::fmt::Display) -> Self {
        let name = name.into();
        let message = format!("`{name}`: {why}");
        Self { code: Some("unsupported_value"), ..Self::field(name, message) }
    }

    /// Prompt and answer are longer than a sequence may be.
    pub(crate) fn context(prompt: usize, asked: usize, ctx_size: usize, param: &str) -> Self {
        let message = format!(
            "This model's maximum context length is {ctx_size} tokens. However, you requested {} tokens ({prompt} in the \
             prompt, {asked} in the completion). Please reduce the length of either one.",
            prompt.saturating_add(asked)
        );
        Self { code: Some("context_length_exceeded"), ..Self::field(param, message) }
    }

    /// No or a wrong key.
    pub(crate) fn no_key() -> Self {
        let message =
            "Invalid API key: send it as `Authorization: Bearer KEY`; the server said at its start where the key is";
        let error = Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message);
        Self { code: Some("invalid_api_key"), ..error }
    }

    /// Known, but not to be done from here.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    /// There is no such thing.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self { code: Some("not_found"), ..Self::new(StatusCode::NOT_FOUND, "not_found_error", message) }
    }

    /// There is no such model.
    pub(crate) fn no_model(name: &str, known: &str) -> Self {
        let message = format!("The model `{name}` does not exist; this server has: {known}");
        let error = Self { code: Some("model_not_found"), ..Self::not_found(message) };
        Self { param: Some("model".into()), ..error }
    }

    /// Another status of a request that is wrong.
    pub(crate) fn client(status: StatusCode, message: impl Into<String>) -> Self {
        debug_assert!(status.is_client_error());
        Self::new(status, "invalid_request_error", message)
    }

    /// More requests than may wait.
    pub(crate) fn overloaded(waiting: usize) -> Self {
        let message = format!("{waiting} requests are running or waiting already, as many as may; try again later");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        Self { code: Some("queue_full"), retry_after_seconds: Some(5), ..error }
    }

    /// The model is not in memory yet. (llama-server's words.)
    pub(crate) fn loading() -> Self {
        Self {
            retry_after_seconds: Some(5),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", "Loading model")
        }
    }

    /// The server ends, or its engine does not get on.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", message)
    }

    /// The engine could not go on; nothing that the request says.
    pub(crate) fn engine(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// The document that clients read.
    pub(crate) fn document(&self) -> Value {
        let Self { status, kind, code, param, message, .. } = self;
        let code = code.map_or_else(|| Value::from(status.as_u16()), Value::from);
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.document())).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_never_longer_than_a_screen() {
        let error = ApiError::bad_request("ж".repeat(5000));
        assert_eq!(error.message.chars().count(), MESSAGE_CHARS_MAX + 1);
    }

    #[test]
    fn an_error_has_the_four_fields() {
        let document = ApiError::context(10, 20, 16, "messages").document();
        assert_eq!(document["error"]["code"], "context_length_exceeded");
        assert_eq!(document["error"]["param"], "messages");
        assert!(document["error"]["message"].as_str().is_some_and(|text| text.contains("16") && text.contains("30")));
        assert_eq!(ApiError::bad_request("x").document()["error"]["code"], 400);
    }
}
