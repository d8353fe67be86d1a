//! A message of a conversation, as chat templates know it.
//!
//! Templates look at fields that nobody has thought of yet, so every field that comes in goes on to the template.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// One turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`; some models know more.
    pub role: String,
    /// What was said. Absent and `null` are different things to some templates, so both are kept.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// What the assistant thought before it spoke. Templates that call it `thinking` find it there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls of tools. `arguments` that are JSON in a string reach the template as an object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<Value>>,
    /// All other fields (`name`, `tool_call_id`, …).
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Content of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// `null`: an assistant's turn that only calls tools.
    Null,
    /// Plain text.
    Text(String),
    /// Parts such as `{"type": "text", "text": …}`.
    Parts(Vec<Value>),
}

/// An explicit `null` is content, too.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Content>, D::Error> {
    Content::deserialize(deserializer).map(Some)
}

impl Message {
    /// A message of plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: Some(Content::Text(content.into())),
            reasoning_content: None,
            tool_calls: None,
            extra: Map::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_survives_a_round_trip() {
        for text in [
            r#"{"role":"user","content":"hi","name":"Ann","x":{"y":[1,null]}}"#,
            r#"{"role":"assistant","content":null,"reasoning_content":"hm","tool_calls":[{"function":{"name":"f"}}]}"#,
            r#"{"role":"assistant"}"#,
            r#"{"role":"user","content":[{"type":"text","text":"a"}]}"#,
        ] {
            let message: Message = serde_json::from_str(text).expect("a message");
            assert_eq!(serde_json::to_string(&message).expect("JSON"), text);
        }
    }

    #[test]
    fn a_message_without_role_or_with_a_number_as_content_is_refused() {
        assert!(serde_json::from_str::<Message>(r#"{"content":"hi"}"#).is_err());
        assert!(serde_json::from_str::<Message>(r#"{"role":"user","content":3}"#).is_err());
    }
}
