//! Answers that are sent as they come.

use std::convert::Infallible;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::choices::{Choices, Update, Usage};
use crate::config::KEEP_ALIVE;
use crate::error::ApiError;

/// How an API writes a stream.
pub(crate) trait Dialect: Send + 'static {
    /// Type of the body.
    const CONTENT_TYPE: &'static str;
    /// What is sent when there is nothing to send.
    const KEEP_ALIVE: &'static [u8];

    /// Before anything is known.
    fn begin(&mut self, out: &mut Vec<u8>);
    /// A piece of an answer.
    fn update(&mut self, update: Update, out: &mut Vec<u8>);
    /// All answers have ended.
    fn end(&mut self, usage: Usage, out: &mut Vec<u8>);
    /// Something went wrong, and no more will come.
    fn failed(&mut self, error: &ApiError, out: &mut Vec<u8>);
}

enum State<D> {
    Begins(Choices, D),
    Runs(Choices, D),
    Ended,
}

/// Headers at once, then pieces, with something every ten seconds. When the client goes, the body is dropped, and with it
/// the sequences.
pub(crate) fn stream<D: Dialect>(choices: Choices, dialect: D) -> Response {
    let pieces = futures_util::stream::unfold(State::Begins(choices, dialect), |state| async move {
        let (piece, state) = next(state).await?;
        Some((Ok::<_, Infallible>(piece), state))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(D::CONTENT_TYPE)),
        // Proxies keep back what they can, or they would lose the keep-alives' sense.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(pieces)).into_response()
}

async fn next<D: Dialect>(state: State<D>) -> Option<(Bytes, State<D>)> {
    let mut out = Vec::new();
    let (mut choices, mut dialect) = match state {
        State::Begins(choices, mut dialect) => {
            dialect.begin(&mut out);
            if !out.is_empty() {
                return Some((out.into(), State::Runs(choices, dialect)));
            }
            (choices, dialect)
        }
        State::Runs(choices, dialect) => (choices, dialect),
        State::Ended => return None,
    };
    // Chunks of a long prompt, and text that is held back, are events too; clients hear nothing of them.
    let deadline = Instant::now() + KEEP_ALIVE;
    loop {
        match timeout_at(deadline, choices.next()).await {
            Err(_) => return Some((Bytes::from_static(D::KEEP_ALIVE), State::Runs(choices, dialect))),
            Ok(None) => {
                dialect.end(choices.usage(), &mut out);
                return Some((out.into(), State::Ended));
            }
            Ok(Some(Err(error))) => {
                dialect.failed(&error, &mut out);
                return Some((out.into(), State::Ended));
            }
            Ok(Some(Ok(updates))) => updates.into_iter().for_each(|update| dialect.update(update, &mut out)),
        }
        if !out.is_empty() {
            return Some((out.into(), State::Runs(choices, dialect)));
        }
    }
}
