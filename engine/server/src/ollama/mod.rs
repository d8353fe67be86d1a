//! The API of Ollama, which many note tools speak and nothing else. One model is served, so names are those of `/v1/models`,
//! with or without the tag `:latest`.

pub(crate) mod chat;
pub(crate) mod embed;
pub(crate) mod models;
mod options;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use engine_core::text::CivilTime;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::generation::{Dialect, End, Reason, Update, Usage};
use crate::served::{Shared, unix_seconds};

/// A time as Ollama writes it.
fn time(seconds: u64) -> String {
    let time = CivilTime::from_unix(i64::try_from(seconds).unwrap_or(i64::MAX), 0);
    time.strftime("%Y-%m-%dT%H:%M:%SZ").unwrap_or_default()
}

/// An error as Ollama's clients read it.
fn refused(error: ApiError) -> Response {
    let body = json!({"error": error.message});
    let mut response = error.into_response();
    let body = Body::from(body.to_string());
    response.headers_mut().remove(axum::http::header::CONTENT_LENGTH);
    *response.body_mut() = body;
    response
}

/// Figures at the end of an answer, in nanoseconds.
fn figures(document: &mut Value, end: &End, prompt_tokens: usize) {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let timings = &end.timings;
    document["done"] = true.into();
    // Ollama knows no reason for calls.
    document["done_reason"] = if end.reason == Reason::Length { "length" } else { "stop" }.into();
    document["total_duration"] = nanos(timings.prefill + timings.decode).into();
    document["load_duration"] = 0.into();
    document["prompt_eval_count"] = prompt_tokens.into();
    document["prompt_eval_duration"] = nanos(timings.prefill).into();
    document["eval_count"] = end.tokens.into();
    document["eval_duration"] = nanos(timings.decode).into();
}

/// What a piece of an answer is to `/api/chat` and `/api/generate`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    /// `message`, with calls.
    Chat,
    /// `response`.
    Generate,
}

impl Shape {
    fn document(self, model: &str, content: &str, thinking: &str, calls: Vec<Value>) -> Value {
        let mut document = json!({"model": model, "created_at": time(unix_seconds())});
        let mut fields = json!({});
        match self {
            Self::Chat => {
                fields["role"] = "assistant".into();
                fields["content"] = content.into();
                if !calls.is_empty() {
                    fields["tool_calls"] = calls.into();
                }
            }
            Self::Generate => document["response"] = content.into(),
        }
        let holder = if self == Self::Chat { &mut fields } else { &mut document };
        if !thinking.is_empty() {
            holder["thinking"] = thinking.into();
        }
        if self == Self::Chat {
            document["message"] = fields;
        }
        document["done"] = false.into();
        document
    }
}

/// A call as Ollama has it: its arguments are an object.
fn call(call: &engine_core::text::ToolCall) -> Value {
    let arguments: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
    json!({"function": {"name": call.name, "arguments": arguments}})
}

/// An answer as lines of JSON.
struct Lines {
    shape: Shape,
    model: String,
    shows_thoughts: bool,
}

impl Lines {
    fn line(document: &Value, out: &mut Vec<u8>) {
        out.extend_from_slice(document.to_string().as_bytes());
        out.push(b'\n');
    }
}

impl Dialect for Lines {
    const CONTENT_TYPE: &'static str = "application/x-ndjson";
    // White space before the next line's document.
    const KEEP_ALIVE: &'static [u8] = b" ";

    fn begin(&mut self, _: &mut Vec<u8>) {}

    fn update(&mut self, update: Update, out: &mut Vec<u8>) {
        let Self { shape, model, shows_thoughts } = self;
        match update {
            Update::Prefill { .. } => {}
            Update::Reasoning { text, .. } if *shows_thoughts => {
                Self::line(&shape.document(model, "", &text, Vec::new()), out);
            }
            Update::Reasoning { .. } => {}
            Update::Content { text, .. } => Self::line(&shape.document(model, &text, "", Vec::new()), out),
            Update::ToolCall { call: made, .. } => {
                Self::line(&shape.document(model, "", "", vec![call(&made)]), out);
            }
            Update::End { end, .. } => {
                let mut document = shape.document(model, "", "", Vec::new());
                figures(&mut document, &end, end.prompt_tokens);
                Self::line(&document, out);
            }
        }
    }

    fn end(&mut self, _: Usage, _: &mut Vec<u8>) {}

    fn failed(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        Self::line(&json!({"error": error.message}), out);
    }
}

/// A handler's answer, with errors in Ollama's shape.
async fn answered(
    shared: Arc<Shared>,
    request: Request<Body>,
    answer: impl AsyncFnOnce(Arc<Shared>, Request<Body>) -> Result<Response, ApiError>,
) -> Response {
    answer(shared, request).await.unwrap_or_else(refused)
}
