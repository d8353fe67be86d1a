//! Answers that are sent as a whole.
//!
//! A client that hears nothing for minutes gives up, and a large model may take hours. So an answer that is not there after
//! ten seconds begins with white space, which JSON allows before a document, and gets more of it until it is there.

use std::convert::Infallible;
use std::pin::Pin;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use engine_core::sampler::TokenLogprobs;
use engine_core::text::ToolCall;
use serde_json::Value;
use tokio::time::timeout;

use super::choices::{Choices, End, Update, Usage};
use crate::config::KEEP_ALIVE;
use crate::error::ApiError;

/// A whole answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) content: String,
    pub(crate) reasoning: String,
    pub(crate) logprobs: Vec<TokenLogprobs>,
    /// Calls with their ids.
    pub(crate) calls: Vec<(String, ToolCall)>,
    pub(crate) end: Option<End>,
}

/// Waits for all of a request's answers.
pub(crate) async fn collect(mut choices: Choices) -> Result<(Vec<Answer>, Usage), ApiError> {
    let mut answers: Vec<Answer> = Vec::new();
    answers.resize_with(choices.len(), Answer::default);
    while let Some(updates) = choices.next().await {
        for update in updates? {
            match update {
                Update::Prefill { .. } => {}
                Update::Reasoning { index, text } => answers[index].reasoning.push_str(&text),
                Update::Content { index, text, logprobs } => {
                    answers[index].content.push_str(&text);
                    answers[index].logprobs.extend(logprobs);
                }
                Update::ToolCall { index, id, call, .. } => answers[index].calls.push((id, call)),
                Update::End { index, end } => answers[index].end = Some(end),
            }
        }
    }
    Ok((answers, choices.usage()))
}

/// The answer, or after a while headers, white space and the answer. What goes wrong then is in the body.
pub(crate) async fn patiently(answer: impl Future<Output = Result<Value, ApiError>> + Send + 'static) -> Response {
    let mut answer: Pin<Box<dyn Future<Output = Result<Value, ApiError>> + Send>> = Box::pin(answer);
    match timeout(KEEP_ALIVE, &mut answer).await {
        Ok(Ok(document)) => return axum::Json(document).into_response(),
        Ok(Err(error)) => return error.into_response(),
        Err(_) => {}
    }
    let pieces = futures_util::stream::unfold((Some(answer), true), |(answer, first)| async move {
        let mut answer = answer?;
        if first {
            return Some((Ok::<_, Infallible>(Bytes::from_static(b" ")), (Some(answer), false)));
        }
        Some(match timeout(KEEP_ALIVE, &mut answer).await {
            Err(_) => (Ok(Bytes::from_static(b" ")), (Some(answer), false)),
            Ok(done) => {
                let document = done.unwrap_or_else(|error| error.document());
                (Ok(Bytes::from(document.to_string())), (None, false))
            }
        })
    });
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (json, Body::from_stream(pieces)).into_response()
}
