//! What a conversation consists of in `/v1/responses`, and the messages that a chat template is given for it.
//!
//! The same type is read, kept and answered: so an answer that is sent back, or found again by its id, is the same text to
//! the model.

use engine_core::text::{Content, Message};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::served::Shared;

/// How far a response or one of its items is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Queued,
    InProgress,
    Completed,
    Incomplete,
    Failed,
    Cancelled,
}

/// A piece of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Item {
    Message { id: String, role: String, status: Status, content: Vec<Part> },
    Reasoning { id: String, summary: [(); 0], content: Vec<Part>, status: Status },
    FunctionCall { id: String, call_id: String, name: String, arguments: String, status: Status },
    FunctionCallOutput { id: String, call_id: String, output: String, status: Status },
}

/// Text of a message or a thought.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Part {
    InputText { text: String },
    OutputText { text: String, annotations: [(); 0], logprobs: [(); 0] },
    ReasoningText { text: String },
}

impl Part {
    pub(super) fn output(text: String) -> Self {
        Self::OutputText { text, annotations: [], logprobs: [] }
    }

    pub(super) fn text(&self) -> &str {
        match self {
            Self::InputText { text } | Self::OutputText { text, .. } | Self::ReasoningText { text } => text,
        }
    }

    pub(super) fn text_mut(&mut self) -> &mut String {
        match self {
            Self::InputText { text } | Self::OutputText { text, .. } | Self::ReasoningText { text } => text,
        }
    }
}

impl Item {
    pub(super) fn id(&self) -> &str {
        match self {
            Self::Message { id, .. }
            | Self::Reasoning { id, .. }
            | Self::FunctionCall { id, .. }
            | Self::FunctionCallOutput { id, .. } => id,
        }
    }

    pub(super) fn status(&self) -> Status {
        match self {
            Self::Message { status, .. }
            | Self::Reasoning { status, .. }
            | Self::FunctionCall { status, .. }
            | Self::FunctionCallOutput { status, .. } => *status,
        }
    }

    pub(super) fn status_mut(&mut self) -> &mut Status {
        match self {
            Self::Message { status, .. }
            | Self::Reasoning { status, .. }
            | Self::FunctionCall { status, .. }
            | Self::FunctionCallOutput { status, .. } => status,
        }
    }

    /// What a user says.
    pub(super) fn user(text: String, shared: &Shared) -> Self {
        let (id, role) = (shared.new_id("msg_"), "user".into());
        Self::Message { id, role, status: Status::Completed, content: vec![Part::InputText { text }] }
    }

    /// An item as it came, at this place of `input`.
    pub(super) fn read(item: &Value, index: usize, shared: &Shared) -> Result<Self, ApiError> {
        let at = format!("input[{index}]");
        let fields = item.as_object().ok_or_else(|| ApiError::field(at.clone(), "an item must be an object"))?;
        let id = |prefix: &str| match fields.get("id").and_then(Value::as_str) {
            Some(id) if !id.is_empty() => id.to_owned(),
            _ => shared.new_id(prefix),
        };
        let text = |name: &str| {
            let text = fields.get(name).and_then(Value::as_str).map(str::to_owned);
            text.ok_or_else(|| ApiError::field(format!("{at}.{name}"), format!("`{name}` must be a text")))
        };
        let parts = |name: &str| parts(fields.get(name), &format!("{at}.{name}"));
        // Of finished conversations only the end may be missing, and the model is told nothing of that.
        let status = Status::Completed;
        match fields.get("type").and_then(Value::as_str).unwrap_or("message") {
            "message" => {
                let role = text("role")?;
                if !matches!(role.as_str(), "user" | "assistant" | "system" | "developer") {
                    let why = "known roles are user, assistant, system, developer";
                    return Err(ApiError::unsupported(format!("{at}.role"), why));
                }
                let content = parts("content")?.into_iter();
                let content = content.map(|text| match role.as_str() {
                    "assistant" => Part::output(text),
                    _ => Part::InputText { text },
                });
                Ok(Self::Message { id: id("msg_"), content: content.collect(), role, status })
            }
            "reasoning" => {
                let content = match fields.get("content") {
                    None | Some(Value::Null) => Vec::new(),
                    Some(_) => parts("content")?,
                };
                let content = content.into_iter().map(|text| Part::ReasoningText { text }).collect();
                Ok(Self::Reasoning { id: id("rs_"), summary: [], content, status })
            }
            "function_call" => {
                let (call_id, name, arguments) = (text("call_id")?, text("name")?, text("arguments")?);
                Ok(Self::FunctionCall { id: id("fc_"), call_id, name, arguments, status })
            }
            "function_call_output" => {
                let output = parts("output")?.concat();
                Ok(Self::FunctionCallOutput { id: id("fco_"), call_id: text("call_id")?, output, status })
            }
            kind => {
                let kind: String = kind.chars().take(40).collect();
                let why = format!(
                    "items of type `{kind}` are not read; known are message, reasoning, function_call, function_call_output"
                );
                Err(ApiError::unsupported(at, why))
            }
        }
    }
}

/// Texts of a content, which is a text or a list of parts.
fn parts(content: Option<&Value>, at: &str) -> Result<Vec<String>, ApiError> {
    match content {
        Some(Value::String(text)) => Ok(vec![text.clone()]),
        Some(Value::Array(parts)) => parts.iter().enumerate().map(|(index, part)| part_text(part, at, index)).collect(),
        _ => Err(ApiError::field(at, "it must be a text or a list of parts")),
    }
}

fn part_text(part: &Value, at: &str, index: usize) -> Result<String, ApiError> {
    let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
    let at = format!("{at}[{index}]");
    match (kind, part.get("text")) {
        ("input_text" | "output_text" | "reasoning_text", Some(Value::String(text))) => Ok(text.clone()),
        ("input_text" | "output_text" | "reasoning_text", _) => {
            Err(ApiError::field(at, format!("a part of type `{kind}` must have a text")))
        }
        _ => {
            let kind: String = kind.chars().take(40).collect();
            let why = format!("parts of type `{kind}` are not read; this server takes text only");
            Err(ApiError::unsupported(at, why))
        }
    }
}

/// The messages of a conversation. What the assistant thought, said and called in one turn is one message, as chats have it.
pub(super) fn messages(items: &[Item]) -> Vec<Message> {
    let mut messages: Vec<Message> = Vec::new();
    for item in items {
        match item {
            Item::Message { role, content, .. } => {
                let content = content_of(content);
                match messages.last_mut() {
                    // Only thoughts so far.
                    Some(turn) if role == "assistant" && is_open(turn) && turn.content.is_none() => {
                        turn.content = Some(content);
                    }
                    _ => messages.push(Message { content: Some(content), ..Message::new(role.clone(), "") }),
                }
            }
            Item::Reasoning { content, .. } => {
                let text: String = content.iter().map(Part::text).collect();
                match messages.last_mut() {
                    Some(turn) if is_open(turn) && turn.content.is_none() => {
                        turn.reasoning_content.get_or_insert_default().push_str(&text);
                    }
                    _ => {
                        let turn = Message { content: None, ..Message::new("assistant", "") };
                        messages.push(Message { reasoning_content: Some(text), ..turn });
                    }
                }
            }
            Item::FunctionCall { call_id, name, arguments, .. } => {
                let function = json!({"name": name, "arguments": arguments});
                let call = json!({"id": call_id, "type": "function", "function": function});
                if !messages.last().is_some_and(|turn| turn.role == "assistant") {
                    messages.push(Message { content: None, ..Message::new("assistant", "") });
                }
                if let Some(turn) = messages.last_mut() {
                    turn.tool_calls.get_or_insert_default().push(call);
                }
            }
            Item::FunctionCallOutput { call_id, output, .. } => {
                let extra = Map::from_iter([("tool_call_id".into(), call_id.clone().into())]);
                messages.push(Message { extra, ..Message::new("tool", output.clone()) });
            }
        }
    }
    for turn in &mut messages {
        // A turn of calls has no text, which chats write as null; one of thoughts alone was cut before it had some.
        if turn.content.is_none() {
            let calls = turn.tool_calls.is_some();
            turn.content = Some(if calls { Content::Null } else { Content::Text(String::new()) });
        }
    }
    messages
}

/// An assistant's turn that has called nothing yet.
fn is_open(turn: &Message) -> bool {
    turn.role == "assistant" && turn.tool_calls.is_none()
}

fn content_of(parts: &[Part]) -> Content {
    match parts {
        [part] => Content::Text(part.text().to_owned()),
        parts => Content::Parts(parts.iter().map(|part| json!({"type": "text", "text": part.text()})).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(id: &str, role: &str, text: &str) -> Item {
        let content = vec![Part::InputText { text: text.into() }];
        Item::Message { id: id.into(), role: role.into(), status: Status::Completed, content }
    }

    #[test]
    fn a_turn_of_thoughts_text_and_calls_is_one_message() {
        let status = Status::Completed;
        let thought = Part::ReasoningText { text: "hm".into() };
        let call = |id: &str| Item::FunctionCall {
            id: id.into(),
            call_id: id.into(),
            name: "f".into(),
            arguments: "{}".into(),
            status,
        };
        let output = Item::FunctionCallOutput { id: "o".into(), call_id: "a".into(), output: "1".into(), status };
        let items = [
            item("1", "user", "x"),
            Item::Reasoning { id: "r".into(), summary: [], content: vec![thought], status },
            item("2", "assistant", "y"),
            call("a"),
            call("b"),
            output,
            call("c"),
        ];
        let messages = serde_json::to_value(messages(&items)).expect("JSON");
        let call = |id: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}});
        let expected = json!([
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "y", "reasoning_content": "hm", "tool_calls": [call("a"), call("b")]},
            {"role": "tool", "content": "1", "tool_call_id": "a"},
            {"role": "assistant", "content": null, "tool_calls": [call("c")]},
        ]);
        assert_eq!(messages, expected);
    }

    #[test]
    fn items_have_the_fields_that_clients_read() {
        let part = Part::output("x".into());
        let expected = json!({"type": "output_text", "text": "x", "annotations": [], "logprobs": []});
        assert_eq!(serde_json::to_value(part).expect("JSON"), expected);
        let reasoning =
            Item::Reasoning { id: "r".into(), summary: [], content: Vec::new(), status: Status::InProgress };
        let expected = json!({"type": "reasoning", "id": "r", "summary": [], "content": [], "status": "in_progress"});
        assert_eq!(serde_json::to_value(reasoning).expect("JSON"), expected);
    }
}
