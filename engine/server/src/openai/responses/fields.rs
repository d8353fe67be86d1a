//! Fields of a response, read as those of a chat wherever they mean the same.

use std::collections::BTreeMap;

use engine_core::session::Priority;
use engine_core::text::Message;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::document::ResponseDocument;
use super::items::{Item, Status, messages};
use crate::error::ApiError;
use crate::generation::{Controls, Form, refuse_unsupported};
use crate::input::Input;
use crate::openai::chat::{ChatFields, ChatRequest, Tool};
use crate::served::{Shared, unix_seconds};

/// What a response has beside [`Controls`].
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ResponseFields {
    /// What the user says, or a list of items: messages with parts `input_text` and `output_text`, `reasoning`,
    /// `function_call` and `function_call_output`.
    #[schema(value_type = Value)]
    input: InputField,
    /// A system message before all; it does not stay for responses that go on from this one.
    instructions: Option<String>,
    /// Most tokens of the answer, thoughts included; without it, until the context is full.
    max_output_tokens: Option<i64>,
    /// How much to think.
    reasoning: Option<ReasoningField>,
    /// Functions that the model may ask to be called, each with `type`, `name`, `description`, `parameters`.
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<Map<String, Value>>>,
    /// `none`, `auto`, `required`, or one function by its name.
    #[schema(value_type = Option<Value>)]
    tool_choice: Option<Value>,
    /// `false`: the answer ends after its first call.
    parallel_tool_calls: Option<bool>,
    /// What the text has to be.
    text: Option<TextField>,
    /// Keep the response, so that it can be asked for again; the default.
    store: Option<bool>,
    /// Answer at once, and make the response while nobody waits. It needs `store`.
    background: Option<bool>,
    /// The response that this one goes on from.
    previous_response_id: Option<String>,
    /// Up to 16 texts by name, told again with the response.
    metadata: Option<BTreeMap<String, String>>,
    /// Only `disabled`: a conversation is never cut.
    truncation: Option<String>,
    /// Only `reasoning.encrypted_content` is taken: thoughts are told as text anyhow.
    include: Option<Vec<String>>,
    /// Further variables of the chat template; `enable_thinking` is known to most.
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Map<String, Value>>,
}

/// A text or items.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a text or a list of items")]
enum InputField {
    Text(String),
    Items(Vec<Value>),
}

/// How much to think.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct ReasoningField {
    /// As far as the chat template knows it; `none`: not at all.
    effort: Option<String>,
    /// Thoughts are told as they are, so there is only `auto`: no summary.
    summary: Option<String>,
}

/// What a text has to be.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct TextField {
    /// `text`, `json_object`, or `json_schema` with `name`, `schema` and `strict`.
    #[schema(value_type = Option<Object>)]
    format: Option<Map<String, Value>>,
    /// Only `medium`: templates know of no other.
    verbosity: Option<String>,
}

/// Most entries of `metadata`, and their longest names and texts. (OpenAI's.)
const METADATA_MAX: usize = 16;
const METADATA_NAME_CHARS_MAX: usize = 64;
const METADATA_TEXT_CHARS_MAX: usize = 512;

/// What was asked for, checked as far as its fields say.
pub(super) struct Asked {
    pub(super) chat: ChatRequest,
    pub(super) document: ResponseDocument,
    /// All before the answer but the instructions.
    pub(super) conversation: Vec<Item>,
}

impl Asked {
    pub(super) fn new(input: &Input, shared: &Shared) -> Result<Self, ApiError> {
        let fields: ResponseFields = input.parse()?;
        let mut controls: Controls = input.parse()?;
        refuse_unsupported(input)?;
        fields.refuse_unsupported(input)?;
        let background = fields.background.unwrap_or(false);
        if controls.n.is_some_and(|n| n != 1) {
            return Err(ApiError::unsupported("n", "a response is one answer"));
        }
        if background && fields.store == Some(false) {
            return Err(ApiError::field(
                "store",
                "a response in the background is asked for later, so it must be stored",
            ));
        }
        if background && controls.streams() {
            return Err(ApiError::unsupported("stream", "a response in the background is asked for by its id"));
        }
        if fields.max_output_tokens.is_some_and(|tokens| tokens < 1) {
            return Err(ApiError::field("max_output_tokens", "`max_output_tokens` must be at least 1"));
        }
        controls.max_completion_tokens = fields.max_output_tokens.or(controls.max_completion_tokens);
        if background {
            controls.priority = controls.priority.or(Some(Priority::Background));
        }

        let conversation = fields.conversation(shared)?;
        let instructions = fields.instructions.iter().map(|text| Message::new("system", text.clone()));
        let effort = fields.reasoning.as_ref().and_then(|reasoning| reasoning.effort.clone());
        let chat = ChatFields {
            messages: instructions.chain(messages(&conversation)).collect(),
            tools: Some(tools(fields.tools.as_deref().unwrap_or_default())?),
            tool_choice: fields.tool_choice.as_ref().map(tool_choice),
            parallel_tool_calls: fields.parallel_tool_calls,
            reasoning_effort: effort.clone(),
            chat_template_kwargs: fields.chat_template_kwargs.clone(),
            ..ChatFields::default()
        };
        let document = fields.document(effort, &controls, shared);
        let chat = ChatRequest::of(&chat, controls, fields.form(input)?)?;
        Ok(Self { chat, document, conversation })
    }
}

impl ResponseFields {
    /// Fields of this API alone.
    fn refuse_unsupported(&self, input: &Input) -> Result<(), ApiError> {
        for (field, help) in [
            ("prompt", "templates of prompts are not kept here; send `instructions` and `input`"),
            ("conversation", "conversations are not kept here; send `previous_response_id`"),
            ("context_management", "a conversation is never cut; send a shorter one"),
        ] {
            if input.field(field).is_some_and(|value| value.as_array().is_none_or(|list| !list.is_empty())) {
                return Err(ApiError::unsupported(field, help));
            }
        }
        if input.field("top_logprobs").is_some_and(|top| top.as_f64() != Some(0.0)) {
            return Err(ApiError::unsupported("top_logprobs", "`/v1/chat/completions` tells how probable tokens were"));
        }
        let only = |field: &str, value: Option<&str>, known: &[&str]| match value {
            Some(value) if !known.contains(&value) => {
                Err(ApiError::unsupported(field, format!("known is {}", known.join(", "))))
            }
            _ => Ok(()),
        };
        only("service_tier", input.field("service_tier").and_then(Value::as_str), &["auto", "default"])?;
        only("truncation", self.truncation.as_deref(), &["disabled"])?;
        only("reasoning.summary", self.reasoning.as_ref().and_then(|field| field.summary.as_deref()), &["auto"])?;
        only("text.verbosity", self.text.as_ref().and_then(|field| field.verbosity.as_deref()), &["medium"])?;
        for (index, include) in self.include.iter().flatten().enumerate() {
            only(&format!("include[{index}]"), Some(include), &["reasoning.encrypted_content"])?;
        }
        let too_long = |(name, text): (&String, &String)| {
            name.chars().count() > METADATA_NAME_CHARS_MAX || text.chars().count() > METADATA_TEXT_CHARS_MAX
        };
        let metadata = self.metadata.iter().flatten();
        if metadata.clone().count() > METADATA_MAX || metadata.into_iter().any(too_long) {
            let why = format!(
                "`metadata` may have {METADATA_MAX} entries, with names of {METADATA_NAME_CHARS_MAX} characters and texts of \
                 {METADATA_TEXT_CHARS_MAX}"
            );
            return Err(ApiError::field("metadata", why));
        }
        Ok(())
    }

    /// What was said before, and what is said now.
    fn conversation(&self, shared: &Shared) -> Result<Vec<Item>, ApiError> {
        let mut items = match self.previous_response_id.as_deref() {
            Some(id) => shared.responses.continued(id)?,
            None => Vec::new(),
        };
        match &self.input {
            InputField::Text(text) => items.push(Item::user(text.clone(), shared)),
            InputField::Items(input) if input.is_empty() => {
                return Err(ApiError::field("input", "`input` is empty; send at least one item"));
            }
            InputField::Items(input) => {
                for (index, item) in input.iter().enumerate() {
                    items.push(Item::read(item, index, shared)?);
                }
            }
        }
        Ok(items)
    }

    fn form(&self, input: &Input) -> Result<Option<Form>, ApiError> {
        let own = Form::of_fields(input)?;
        let Some(format) = self.text.as_ref().and_then(|text| text.format.as_ref()) else { return Ok(own) };
        // A chat's format has the schema a level deeper.
        let format = json!({"type": format.get("type"), "json_schema": format});
        match (Form::of_response_format(&format, "text.format")?, own) {
            (Some(_), Some(_)) => Err(ApiError::field("text.format", "together with another form it has no meaning")),
            (form, own) => Ok(form.or(own)),
        }
    }

    fn document(&self, effort: Option<String>, controls: &Controls, shared: &Shared) -> ResponseDocument {
        let background = self.background.unwrap_or(false);
        let model = controls.model.clone().filter(|name| !name.is_empty());
        let format = self.text.as_ref().and_then(|text| text.format.clone());
        let format = format.map_or_else(|| json!({"type": "text"}), Value::Object);
        let sampling = shared.model.sampling;
        ResponseDocument {
            id: shared.new_id("resp_"),
            object: "response",
            created_at: unix_seconds(),
            completed_at: None,
            status: if background { Status::Queued } else { Status::InProgress },
            background,
            error: None,
            incomplete_details: None,
            instructions: self.instructions.clone(),
            max_output_tokens: self.max_output_tokens,
            metadata: self.metadata.clone().unwrap_or_default(),
            model: model.unwrap_or_else(|| shared.name().to_owned()),
            output: Vec::new(),
            parallel_tool_calls: self.parallel_tool_calls.unwrap_or(true),
            previous_response_id: self.previous_response_id.clone(),
            reasoning: json!({"effort": effort, "summary": null}),
            store: self.store.unwrap_or(true),
            temperature: decimal(controls.temperature.unwrap_or(sampling.temperature)),
            text: json!({"format": format}),
            tool_choice: self.tool_choice.clone().filter(|choice| !choice.is_null()).unwrap_or_else(|| "auto".into()),
            tools: self.tools.clone().unwrap_or_default(),
            top_p: decimal(controls.top_p.unwrap_or(sampling.top_p)),
            truncation: "disabled",
            usage: None,
        }
    }
}

/// The number as it was written: 0.7, not what float32 makes of it.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// Functions as chats have them.
fn tools(tools: &[Map<String, Value>]) -> Result<Vec<Tool>, ApiError> {
    let chat_tool = |(index, tool): (usize, &Map<String, Value>)| {
        let kind = tool.get("type").and_then(Value::as_str).unwrap_or_default();
        if kind != "function" {
            return Err(ApiError::unsupported(format!("tools[{index}].type"), "only `function` is known"));
        }
        let mut function = tool.clone();
        function.remove("type");
        Ok(Tool { kind: kind.into(), function })
    };
    tools.iter().enumerate().map(chat_tool).collect()
}

/// A choice as chats have it: what names a function does so a level deeper.
fn tool_choice(choice: &Value) -> Value {
    match (choice.get("type").and_then(Value::as_str), choice.get("name")) {
        (Some("function"), Some(name)) => json!({"type": "function", "function": {"name": name}}),
        _ => choice.clone(),
    }
}

/// An error of a chat under the names that its fields have here.
pub(super) fn of_response(mut error: ApiError) -> ApiError {
    let Some(param) = error.param.take() else { return error };
    let named = match param.as_str() {
        "reasoning_effort" => "reasoning.effort".into(),
        "max_completion_tokens" => "max_output_tokens".into(),
        "response_format" => "text.format".into(),
        "response_format.json_schema.schema" => "text.format.schema".into(),
        param if param.starts_with("messages") => "input".into(),
        param if param.starts_with("tools[") => param.replace(".function.", "."),
        param => param.to_owned(),
    };
    error.message = error.message.replace(&format!("`{param}`"), &format!("`{named}`"));
    error.param = Some(named);
    error
}
