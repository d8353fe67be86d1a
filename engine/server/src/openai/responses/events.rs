//! A response as a stream of events.

use std::sync::Arc;

use serde_json::{Value, json};

use super::document::{ResponseDocument, Step};
use super::items::{Item, Part, Status};
use crate::error::ApiError;
use crate::generation::{Dialect, Update, Usage};
use crate::openai::{COMMENT, EVENT_STREAM};
use crate::served::Shared;

/// Writes events.
pub(super) struct ResponseStream {
    document: ResponseDocument,
    /// What the answer is kept with, where it is kept.
    conversation: Option<Vec<Item>>,
    numbered: Numbered,
    shared: Arc<Shared>,
}

/// Events have numbers.
#[derive(Default)]
struct Numbered(u64);

impl Numbered {
    fn event(&mut self, kind: &str, mut fields: Value, out: &mut Vec<u8>) {
        fields["type"] = kind.into();
        fields["sequence_number"] = self.0.into();
        self.0 += 1;
        out.extend_from_slice(format!("event: {kind}\ndata: {fields}\n\n").as_bytes());
    }

    fn step(&mut self, output_index: usize, item: &Item, step: &Step<'_>, out: &mut Vec<u8>) {
        let of_item = |name: &str, value: Value| {
            let mut fields = json!({"item_id": item.id(), "output_index": output_index});
            fields[name] = value;
            fields
        };
        let of_part = |name: &str, value: Value| {
            let mut fields = of_item(name, value);
            fields["content_index"] = 0.into();
            fields
        };
        let of_text = |name: &str, value: Value| {
            let mut fields = of_part(name, value);
            fields["logprobs"] = json!([]);
            fields
        };
        match step {
            Step::Opened => {
                let added = json!({"output_index": output_index, "item": item});
                self.event("response.output_item.added", added, out);
                let part = match item {
                    Item::Message { .. } => Part::output(String::new()),
                    Item::Reasoning { .. } => Part::ReasoningText { text: String::new() },
                    Item::FunctionCall { .. } | Item::FunctionCallOutput { .. } => return,
                };
                self.event("response.content_part.added", of_part("part", json!(part)), out);
            }
            Step::Said("") => {}
            Step::Said(text) => match item {
                Item::Message { .. } => {
                    self.event("response.output_text.delta", of_text("delta", json!(text)), out);
                }
                Item::Reasoning { .. } => {
                    self.event("response.reasoning_text.delta", of_part("delta", json!(text)), out);
                }
                Item::FunctionCall { .. } | Item::FunctionCallOutput { .. } => {
                    self.event("response.function_call_arguments.delta", of_item("delta", json!(text)), out);
                }
            },
            Step::Closed => {
                match item {
                    Item::Message { content, .. } | Item::Reasoning { content, .. } => {
                        for part in content {
                            let text = json!(part.text());
                            if let Part::ReasoningText { .. } = part {
                                self.event("response.reasoning_text.done", of_part("text", text), out);
                            } else {
                                self.event("response.output_text.done", of_text("text", text), out);
                            }
                            self.event("response.content_part.done", of_part("part", json!(part)), out);
                        }
                    }
                    Item::FunctionCall { name, arguments, .. } => {
                        let mut done = of_item("arguments", json!(arguments));
                        done["name"] = json!(name);
                        self.event("response.function_call_arguments.done", done, out);
                    }
                    Item::FunctionCallOutput { .. } => {}
                }
                let done = json!({"output_index": output_index, "item": item});
                self.event("response.output_item.done", done, out);
            }
        }
    }
}

impl ResponseStream {
    pub(super) fn new(document: ResponseDocument, conversation: Option<Vec<Item>>, shared: Arc<Shared>) -> Self {
        Self { document, conversation, numbered: Numbered::default(), shared }
    }

    /// Kept before it is told: who reads that it ended may ask for it at once.
    fn ended(&mut self, kind: &str, out: &mut Vec<u8>) {
        if let Some(conversation) = self.conversation.take() {
            self.shared.responses.keep(self.document.clone(), conversation);
        }
        self.numbered.event(kind, json!({"response": self.document}), out);
    }
}

impl Dialect for ResponseStream {
    const CONTENT_TYPE: &'static str = EVENT_STREAM;
    const KEEP_ALIVE: &'static [u8] = COMMENT;

    fn begin(&mut self, out: &mut Vec<u8>) {
        for kind in ["response.created", "response.in_progress"] {
            self.numbered.event(kind, json!({"response": self.document}), out);
        }
    }

    fn update(&mut self, update: Update, out: &mut Vec<u8>) {
        let Self { document, numbered, shared, .. } = self;
        document.update(update, shared, |index, item, step| numbered.step(index, item, &step, out));
    }

    fn end(&mut self, usage: Usage, out: &mut Vec<u8>) {
        self.document.end(usage);
        let kind = match self.document.status {
            Status::Incomplete => "response.incomplete",
            _ => "response.completed",
        };
        self.ended(kind, out);
    }

    fn failed(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        self.document.fail(error);
        self.ended("response.failed", out);
    }
}
