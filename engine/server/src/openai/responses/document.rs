//! A response: what was asked for, and what came of it.
//!
//! However an answer is sent, its items are made here, of the same updates: so a stream, a whole answer and one that is
//! asked for later have the same text.

use std::collections::BTreeMap;

use engine_core::text::ToolCall;
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::items::{Item, Part, Status};
use crate::error::ApiError;
use crate::generation::{Reason, Update, Usage};
use crate::served::{Shared, unix_seconds};

/// A response.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ResponseDocument {
    pub(super) id: String,
    pub(super) object: &'static str,
    pub(super) created_at: u64,
    /// When it was completed.
    pub(super) completed_at: Option<u64>,
    #[schema(value_type = String)]
    pub(super) status: Status,
    pub(super) background: bool,
    /// Why it failed: `code` and `message`.
    #[schema(value_type = Option<Object>)]
    pub(super) error: Option<Value>,
    /// Why it is not complete: `reason`.
    #[schema(value_type = Option<Object>)]
    pub(super) incomplete_details: Option<Value>,
    pub(super) instructions: Option<String>,
    pub(super) max_output_tokens: Option<i64>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) model: String,
    /// Thoughts, messages and calls.
    #[schema(value_type = Vec<Object>)]
    pub(super) output: Vec<Item>,
    pub(super) parallel_tool_calls: bool,
    pub(super) previous_response_id: Option<String>,
    #[schema(value_type = Object)]
    pub(super) reasoning: Value,
    pub(super) store: bool,
    pub(super) temperature: f64,
    #[schema(value_type = Object)]
    pub(super) text: Value,
    #[schema(value_type = Value)]
    pub(super) tool_choice: Value,
    #[schema(value_type = Vec<Object>)]
    pub(super) tools: Vec<Map<String, Value>>,
    pub(super) top_p: f64,
    pub(super) truncation: &'static str,
    /// Tokens, once it has ended.
    #[schema(value_type = Option<Object>)]
    pub(super) usage: Option<Value>,
}

/// What happens to an item.
pub(super) enum Step<'a> {
    /// It is there, without text.
    Opened,
    /// It goes on with this.
    Said(&'a str),
    /// It has all its text.
    Closed,
}

impl ResponseDocument {
    /// Takes in what came. `tell` hears of each step, with the number of the item.
    pub(super) fn update(&mut self, update: Update, shared: &Shared, mut tell: impl FnMut(usize, &Item, Step<'_>)) {
        match update {
            Update::Prefill { .. } => {}
            Update::Reasoning { text, .. } => {
                if !matches!(self.open_item(), Some(Item::Reasoning { .. })) {
                    let (id, status) = (shared.new_id("rs_"), Status::InProgress);
                    self.open(Item::Reasoning { id, summary: [], content: Vec::new(), status }, &mut tell);
                }
                self.say(&text, &mut tell);
            }
            Update::Content { text, .. } => {
                // Tokens without text.
                if text.is_empty() {
                    return;
                }
                if !matches!(self.open_item(), Some(Item::Message { .. })) {
                    self.open(message(shared), &mut tell);
                }
                self.say(&text, &mut tell);
            }
            Update::ToolCall { id: call_id, call: ToolCall { name, arguments }, .. } => {
                let (id, status) = (shared.new_id("fc_"), Status::InProgress);
                let call = Item::FunctionCall { id, call_id, name, arguments: String::new(), status };
                self.open(call, &mut tell);
                self.say(&arguments, &mut tell);
                self.close(Status::Completed, &mut tell);
            }
            Update::End { end, .. } => {
                let cut = end.reason == Reason::Length;
                // Clients look for a message.
                if self.output.is_empty() && !cut {
                    self.open(message(shared), &mut tell);
                    self.say("", &mut tell);
                }
                self.status = if cut { Status::Incomplete } else { Status::Completed };
                self.incomplete_details = cut.then(|| json!({"reason": "max_output_tokens"}));
                self.completed_at = (!cut).then(unix_seconds);
                self.close(self.status, &mut tell);
            }
        }
    }

    /// All tokens have come.
    pub(super) fn end(&mut self, usage: Usage) {
        self.usage = Some(json!({
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.prompt_tokens_details.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.completion_tokens_details.reasoning_tokens},
            "total_tokens": usage.total_tokens,
        }));
    }

    /// No more will come.
    pub(super) fn fail(&mut self, error: &ApiError) {
        self.status = Status::Failed;
        self.error = Some(json!({"code": "server_error", "message": error.message}));
        if let Some(item) = self.open_item() {
            *item.status_mut() = Status::Incomplete;
        }
    }

    fn open_item(&mut self) -> Option<&mut Item> {
        self.output.last_mut().filter(|item| item.status() == Status::InProgress)
    }

    fn open(&mut self, item: Item, tell: &mut impl FnMut(usize, &Item, Step<'_>)) {
        self.close(Status::Completed, tell);
        tell(self.output.len(), &item, Step::Opened);
        self.output.push(item);
    }

    fn say(&mut self, text: &str, tell: &mut impl FnMut(usize, &Item, Step<'_>)) {
        let index = self.output.len().saturating_sub(1);
        let Some(item) = self.output.last_mut() else { return };
        match item {
            Item::Message { content, .. } => push(content, text, Part::output),
            Item::Reasoning { content, .. } => push(content, text, |text| Part::ReasoningText { text }),
            Item::FunctionCall { arguments: said, .. } | Item::FunctionCallOutput { output: said, .. } => {
                said.push_str(text);
            }
        }
        tell(index, item, Step::Said(text));
    }

    fn close(&mut self, status: Status, tell: &mut impl FnMut(usize, &Item, Step<'_>)) {
        let index = self.output.len().saturating_sub(1);
        if let Some(item) = self.open_item() {
            *item.status_mut() = status;
            tell(index, item, Step::Closed);
        }
    }
}

fn message(shared: &Shared) -> Item {
    let (id, role) = (shared.new_id("msg_"), "assistant".into());
    Item::Message { id, role, status: Status::InProgress, content: Vec::new() }
}

/// An item that the model makes has one part.
fn push(content: &mut Vec<Part>, text: &str, part: impl FnOnce(String) -> Part) {
    match content.first_mut() {
        Some(part) => part.text_mut().push_str(text),
        None => content.push(part(text.to_owned())),
    }
}
