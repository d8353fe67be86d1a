//! The API of OpenAI, with the fields that llama-server and vLLM added.

pub(crate) mod chat;
mod chunks;
pub(crate) mod completions;
pub(crate) mod embeddings;
pub(crate) mod models;
pub(crate) mod responses;

use crate::error::ApiError;

/// What every stream of this API has in common: `data:` lines with JSON.
pub(crate) fn event(document: &impl serde::Serialize, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(b"data: ");
    match serde_json::to_writer(&mut *out, document) {
        Ok(()) => out.extend_from_slice(b"\n\n"),
        // Text and numbers always are JSON; half a line would not be.
        Err(_) => out.truncate(start),
    }
}

/// An error in a stream.
pub(crate) fn failed(error: &ApiError, out: &mut Vec<u8>) {
    event(&error.document(), out);
}

/// The end of a stream.
pub(crate) const DONE: &[u8] = b"data: [DONE]\n\n";
/// A comment, which clients pass over.
pub(crate) const COMMENT: &[u8] = b": keep-alive\n\n";
/// Type of a stream.
pub(crate) const EVENT_STREAM: &str = "text/event-stream";
