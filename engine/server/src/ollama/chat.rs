//! `/api/chat` and `/api/generate`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use engine_core::text::Message;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::options::Options;
use super::{Lines, Shape, answered, call, figures};
use crate::error::ApiError;
use crate::generation::{
    Answer, ChatPrompt, Controls, Form, Generation, Prompted, TextPrompt, Wants, collect, in_background, patiently,
    refuse_unsupported_of, stream,
};
use crate::input::Input;
use crate::openai::chat::{Tool, check_parts, offered};
use crate::served::{ServedModel, Shared};

/// What both have.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct OllamaControls {
    model: String,
    /// Send the answer as it comes, which is the default.
    stream: Option<bool>,
    /// How it is made.
    options: Option<Options>,
    /// Whether to think, or how much.
    #[schema(value_type = Option<Value>)]
    think: Option<Value>,
    /// `json`, or a JSON schema that the answer has to follow.
    #[schema(value_type = Option<Value>)]
    format: Option<Value>,
}

/// A chat.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct OllamaChat {
    #[schema(value_type = Vec<Object>)]
    messages: Vec<Message>,
    tools: Option<Vec<Tool>>,
}

/// One prompt.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct OllamaGenerate {
    prompt: Option<String>,
    system: Option<String>,
    suffix: Option<String>,
    template: Option<String>,
    /// The prompt is the whole text, without a chat template.
    raw: Option<bool>,
    /// A context of an earlier answer; this server gives none.
    context: Option<Vec<u32>>,
    images: Option<Vec<String>>,
}

struct Asked {
    generation: Generation,
    model: String,
    streams: bool,
    shows_thoughts: bool,
}

/// Answers a chat.
#[utoipa::path(post, path = "/api/chat", tag = "Ollama", request_body = inline(crate::openapi::OllamaChatBody),
    responses((status = 200, description = "The answer, or lines of JSON"), (status = "4XX", description = "What is wrong with the request")))]
pub(crate) async fn chat(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    answered(shared, request, async |shared, request| answer(shared, request, Shape::Chat).await).await
}

/// Answers one prompt.
#[utoipa::path(post, path = "/api/generate", tag = "Ollama", request_body = inline(crate::openapi::OllamaGenerateBody),
    responses((status = 200, description = "The answer, or lines of JSON"), (status = "4XX", description = "What is wrong with the request")))]
pub(crate) async fn generate(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    answered(shared, request, async |shared, request| answer(shared, request, Shape::Generate).await).await
}

async fn answer(shared: Arc<Shared>, request: Request<Body>, shape: Shape) -> Result<Response, ApiError> {
    shared.engine.check_ready()?;
    let input = Input::read(request, shared.config.body_bytes_max).await?;
    let asked = in_background(&shared, move |shared| match shape {
        Shape::Chat => asked(shared, &input, |model, common| chat_prompt(model, common, &input)),
        Shape::Generate => asked(shared, &input, |model, common| generate_prompt(model, common, &input)),
    })
    .await?;
    let Some(Asked { generation, model, streams, shows_thoughts }) = asked else {
        // An empty prompt asks for the model to be loaded.
        let mut document = shape.document(shared.name(), "", "", Vec::new());
        document["done"] = true.into();
        document["done_reason"] = "load".into();
        return Ok(axum::Json(document).into_response());
    };
    let choices = generation.start(&shared)?;
    if streams {
        return Ok(stream(choices, Lines { shape, model, shows_thoughts }));
    }
    Ok(patiently(async move {
        let (answers, _) = collect(choices).await?;
        let Answer { content, reasoning, calls, end, .. } = answers.into_iter().next().unwrap_or_default();
        let end = end.ok_or_else(|| ApiError::engine("a sequence ended without an end"))?;
        let thoughts = if shows_thoughts { reasoning.as_str() } else { "" };
        let calls = calls.iter().map(|(_, made)| call(made)).collect();
        let mut document = shape.document(&model, &content, thoughts, calls);
        figures(&mut document, &end, end.prompt_tokens);
        Ok(document)
    })
    .await)
}

fn asked(
    shared: &Shared,
    input: &Input,
    prompt: impl FnOnce(&ServedModel, &OllamaControls) -> Result<Option<(Prompted, &'static str)>, ApiError>,
) -> Result<Option<Asked>, ApiError> {
    let common: OllamaControls = input.parse()?;
    let shows_thoughts = common.think.as_ref().is_none_or(|think| think != &Value::Bool(false));
    let Some((prompted, field)) = prompt(&shared.model, &common)? else { return Ok(None) };
    if let Some(options) = input.field("options") {
        refuse_unsupported_of(|name| options.get(name), "options.")?;
    }
    let form = match common.format {
        None | Some(Value::Null) => None,
        Some(Value::String(format)) if format.is_empty() => None,
        Some(Value::String(format)) if format == "json" => Some(Form::json(None, "format")),
        Some(schema @ Value::Object(_)) => Some(Form::json(Some(schema), "format")),
        Some(_) => return Err(ApiError::unsupported("format", "known are `json` and a JSON schema")),
    };
    let wants = Wants { form, logprobs: None, router: false };
    let controls: Controls = common.options.unwrap_or_default().controls(&shared.model, Some(common.model.clone()))?;
    let generation = Generation::new(shared, &controls, vec![prompted], field, &wants)?;
    let streams = common.stream.unwrap_or(true);
    Ok(Some(Asked { generation, model: common.model, streams, shows_thoughts }))
}

fn chat_prompt(
    model: &ServedModel,
    common: &OllamaControls,
    input: &Input,
) -> Result<Option<(Prompted, &'static str)>, ApiError> {
    let OllamaChat { mut messages, tools } = input.parse()?;
    if messages.is_empty() {
        return Ok(None);
    }
    check_parts(&messages)?;
    for (index, message) in messages.iter_mut().enumerate() {
        let images = message.extra.remove("images").filter(|images| !images.is_null());
        if images.is_some_and(|images| images.as_array().is_none_or(|images| !images.is_empty())) {
            let field = format!("messages[{index}].images");
            return Err(ApiError::unsupported(field, "this server takes text only"));
        }
    }
    let tools = tools.filter(|tools| !tools.is_empty()).map(|tools| offered(&tools)).transpose()?;
    let prompt = ChatPrompt { messages, tools, ..thinking(common)? };
    Ok(Some((prompt.prompted(model)?, "messages")))
}

fn generate_prompt(
    model: &ServedModel,
    common: &OllamaControls,
    input: &Input,
) -> Result<Option<(Prompted, &'static str)>, ApiError> {
    let OllamaGenerate { prompt, system, suffix, template, raw, context, images } = input.parse()?;
    let given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    for (name, is_given, why) in [
        ("suffix", given(&suffix), "text is not filled in here"),
        ("template", given(&template), "the template is that of the model's folder; `raw` sends a text without one"),
        ("context", context.is_some_and(|context| !context.is_empty()), "send the conversation to `/api/chat`"),
        ("images", images.is_some_and(|images| !images.is_empty()), "this server takes text only"),
    ] {
        if is_given {
            return Err(ApiError::unsupported(name, why));
        }
    }
    let Some(prompt) = prompt.filter(|prompt| !prompt.is_empty()) else { return Ok(None) };
    if raw.unwrap_or(false) {
        return Ok(Some((TextPrompt::Text(prompt).prompted(model, "prompt")?, "prompt")));
    }
    let mut messages = Vec::new();
    messages.extend(system.filter(|system| !system.is_empty()).map(|system| Message::new("system", system)));
    messages.push(Message::new("user", prompt));
    let prompt = ChatPrompt { messages, ..thinking(common)? };
    Ok(Some((prompt.prompted(model)?, "prompt")))
}

/// A chat's options from `think`.
fn thinking(common: &OllamaControls) -> Result<ChatPrompt, ApiError> {
    let mut template_kwargs = Map::new();
    let enable_thinking = match &common.think {
        None | Some(Value::Null) => None,
        Some(Value::Bool(think)) => Some(*think),
        Some(Value::String(effort)) if matches!(effort.as_str(), "low" | "medium" | "high") => {
            template_kwargs.insert("reasoning_effort".into(), json!(effort));
            Some(true)
        }
        Some(_) => return Err(ApiError::unsupported("think", "known are true, false, low, medium, high")),
    };
    Ok(ChatPrompt { enable_thinking, template_kwargs, ..ChatPrompt::default() })
}
