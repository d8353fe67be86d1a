//! A call of a tool, and what a reader of calls finds.

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::json::with_control_characters_escaped;

/// A model wants this function to be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// The function.
    pub name: String,
    /// A JSON object, as the model wrote it: no digit of a number is changed.
    pub arguments: String,
}

/// What held text is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Perhaps a call; more text will tell.
    Open,
    /// The first `len` bytes are these calls.
    Calls { len: usize, calls: Vec<ToolCall> },
    /// The first `len` bytes are not a call. At least one, and a whole number of characters.
    NoCall { len: usize },
}

/// A call as most formats write it.
#[derive(serde::Deserialize)]
struct Written<'a> {
    name: String,
    #[serde(borrow, alias = "parameters")]
    arguments: Option<&'a RawValue>,
}

impl ToolCall {
    /// `{"name": …, "arguments": {…}}`, or with `parameters`. A line break in a string, which JSON does not allow, is
    /// forgiven.
    pub(super) fn from_json(text: &str) -> Option<Self> {
        let strict = |text: &str| serde_json::from_str::<Written>(text).ok().and_then(Self::from_written);
        strict(text).or_else(|| strict(&with_control_characters_escaped(text)?))
    }

    /// A list of such calls, at least one.
    pub(super) fn list_from_json(text: &str) -> Option<Vec<Self>> {
        let strict = |text: &str| -> Option<Vec<Self>> {
            let list: Vec<Written> = serde_json::from_str(text).ok()?;
            list.into_iter().map(Self::from_written).collect()
        };
        strict(text).or_else(|| strict(&with_control_characters_escaped(text)?)).filter(|calls| !calls.is_empty())
    }

    /// A name and its arguments, which stand apart.
    pub(super) fn new(name: &str, arguments: &str) -> Option<Self> {
        let arguments = arguments.trim();
        let arguments = if arguments.is_empty() { "{}" } else { arguments };
        let call = |text: &str| is_object(text).then(|| Self { name: name.into(), arguments: text.into() });
        let call = call(arguments).or_else(|| call(&with_control_characters_escaped(arguments)?));
        call.filter(|call| !call.name.is_empty())
    }

    fn from_written(written: Written) -> Option<Self> {
        let arguments = written.arguments.map_or("{}", RawValue::get);
        match arguments.as_bytes().first() {
            // Some models write the object into a string, as the OpenAI API has it.
            Some(b'"') => Self::new(&written.name, &serde_json::from_str::<String>(arguments).ok()?),
            Some(b'n') => Self::new(&written.name, "{}"),
            _ => Self::new(&written.name, arguments),
        }
    }

    /// The call as the OpenAI API and chat templates have it.
    pub fn to_openai(&self, id: &str) -> Value {
        json!({"id": id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}})
    }
}

fn is_object(text: &str) -> bool {
    serde_json::from_str::<Map<String, Value>>(text).is_ok()
}
