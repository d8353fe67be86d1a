//! A chat as a stream of chunks.

use std::sync::Arc;

use engine_core::text::ToolCall;
use serde::Serialize;
use serde_json::{Value, json};

use super::{COMMENT, DONE, EVENT_STREAM, event, failed};
use crate::error::ApiError;
use crate::generation::{Dialect, Reason, Router, Update, Usage, logprobs};
use crate::served::{Shared, unix_seconds};

/// Writes chunks.
pub(crate) struct ChatStream {
    id: String,
    created: u64,
    model: String,
    shared: Arc<Shared>,
    choices: usize,
    pub(crate) include_usage: bool,
    pub(crate) return_progress: bool,
    timings: Option<Value>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: &'a [ChunkChoice<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_progress: Option<Value>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: usize,
    delta: Delta<'a>,
    finish_reason: Option<Reason>,
    logprobs: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    router: Option<Box<Router>>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[Value; 1]>,
}

impl ChatStream {
    pub(crate) fn new(id: String, model: String, shared: Arc<Shared>, choices: usize) -> Self {
        Self {
            id,
            created: unix_seconds(),
            model,
            shared,
            choices,
            include_usage: false,
            return_progress: false,
            timings: None,
        }
    }

    fn chunk<'a>(&'a self, choices: &'a [ChunkChoice<'a>]) -> Chunk<'a> {
        Chunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.shared.fingerprint,
            choices,
            // With a usage to come, all chunks before have a null.
            usage: self.include_usage.then_some(None),
            timings: None,
            prompt_progress: None,
        }
    }

    fn delta(&self, index: usize, delta: Delta<'_>, finish_reason: Option<Reason>, out: &mut Vec<u8>) {
        event(&self.chunk(&[ChunkChoice { index, delta, finish_reason, logprobs: None, router: None }]), out);
    }
}

impl Dialect for ChatStream {
    const CONTENT_TYPE: &'static str = EVENT_STREAM;
    const KEEP_ALIVE: &'static [u8] = COMMENT;

    fn begin(&mut self, out: &mut Vec<u8>) {
        for index in 0..self.choices {
            let delta = Delta { role: Some("assistant"), content: Some(""), ..Delta::default() };
            self.delta(index, delta, None, out);
        }
    }

    fn update(&mut self, update: Update, out: &mut Vec<u8>) {
        match update {
            Update::Prefill { done, total, .. } => {
                if self.return_progress {
                    let progress = json!({"total": total, "processed": done});
                    event(&Chunk { prompt_progress: Some(progress), ..self.chunk(&[]) }, out);
                }
            }
            Update::Reasoning { index, text } => {
                self.delta(index, Delta { reasoning_content: Some(&text), ..Delta::default() }, None, out);
            }
            Update::Content { index, text, logprobs } => {
                let delta = Delta { content: Some(&text), ..Delta::default() };
                let tokenizer = &self.shared.model.tokenizer;
                let logprobs = (!logprobs.is_empty()).then(|| logprobs::of_chat(tokenizer, &logprobs));
                event(&self.chunk(&[ChunkChoice { index, delta, finish_reason: None, logprobs, router: None }]), out);
            }
            Update::ToolCall { index, number, id, call: ToolCall { name, arguments } } => {
                let function = json!({"name": name, "arguments": arguments});
                let call = json!({"index": number, "id": id, "type": "function", "function": function});
                self.delta(index, Delta { tool_calls: Some([call]), ..Delta::default() }, None, out);
            }
            Update::End { index, end } => {
                let timings = end.timings();
                let choices = [ChunkChoice {
                    index,
                    delta: Delta::default(),
                    finish_reason: Some(end.reason),
                    logprobs: None,
                    router: end.router,
                }];
                event(&Chunk { timings: Some(&timings), ..self.chunk(&choices) }, out);
                self.timings = Some(timings);
            }
        }
    }

    fn end(&mut self, usage: Usage, out: &mut Vec<u8>) {
        if self.include_usage {
            event(&Chunk { usage: Some(Some(usage)), timings: self.timings.as_ref(), ..self.chunk(&[]) }, out);
        }
        out.extend_from_slice(DONE);
    }

    fn failed(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        failed(error, out);
    }
}
