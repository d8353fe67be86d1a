//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use engine_core::text::{Content, Message};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::chunks::ChatStream;
use crate::error::ApiError;
use crate::generation::{
    Answer, ChatPrompt, Controls, Form, Generation, Reason, Router, Usage, Wants, check_top_logprobs, collect,
    in_background, logprobs, patiently, refuse_unsupported_but_router, stream,
};
use crate::input::Input;
use crate::served::{Shared, unix_seconds};

/// What a chat has beside [`Controls`].
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct ChatFields {
    /// The conversation; content is text, or a list of parts of type `text`.
    #[schema(value_type = Vec<Object>)]
    pub(super) messages: Vec<Message>,
    /// Functions that the model may ask to be called.
    #[serde(default)]
    pub(super) tools: Option<Vec<Tool>>,
    /// `none`, `auto`, `required`, or one function by its name.
    #[serde(default)]
    #[schema(value_type = Option<Value>)]
    pub(super) tool_choice: Option<Value>,
    /// `false`: the answer ends after its first call.
    #[serde(default)]
    pub(super) parallel_tool_calls: Option<bool>,
    /// How much to think, as far as the chat template knows it; `none`: not at all.
    #[serde(default)]
    pub(super) reasoning_effort: Option<String>,
    /// Further variables of the chat template; `enable_thinking` is known to most.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub(super) chat_template_kwargs: Option<Map<String, Value>>,
    /// Tell how probable the answer's tokens were.
    #[serde(default)]
    pub(super) logprobs: Option<bool>,
    /// And so many of the most probable ones.
    #[serde(default)]
    pub(super) top_logprobs: Option<usize>,
    /// Tells in a stream how much of the prompt was computed.
    #[serde(default)]
    pub(super) return_progress: Option<bool>,
    /// Tell the experts that each token went through, with the factors of their outputs; the prompt is computed anew for it.
    #[serde(default)]
    pub(super) return_router: Option<bool>,
}

/// A tool of a chat.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct Tool {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[schema(value_type = Object)]
    pub(super) function: Map<String, Value>,
}

/// A whole chat answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatCompletion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
    /// llama-server's figures, of the first choice.
    #[schema(value_type = Object)]
    timings: Value,
}

#[derive(Debug, Serialize, ToSchema)]
struct ChatChoice {
    index: usize,
    message: AssistantMessage,
    finish_reason: Reason,
    #[schema(value_type = Option<Object>)]
    logprobs: Option<Value>,
    /// With `return_router`.
    #[serde(skip_serializing_if = "Option::is_none")]
    router: Option<Box<Router>>,
}

#[derive(Debug, Serialize, ToSchema)]
struct AssistantMessage {
    role: &'static str,
    content: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    reasoning_content: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    tool_calls: Vec<Value>,
    refusal: Option<String>,
}

/// A chat, checked as far as its fields say.
pub(crate) struct ChatRequest {
    pub(crate) controls: Controls,
    pub(crate) prompt: ChatPrompt,
    pub(crate) parallel_calls: bool,
    pub(super) wants: Wants,
    return_progress: bool,
}

impl ChatRequest {
    pub(crate) fn new(input: &Input) -> Result<Self, ApiError> {
        let fields: ChatFields = input.parse()?;
        let controls: Controls = input.parse()?;
        refuse_unsupported_but_router(input)?;
        Self::of(&fields, controls, Form::of_fields(input)?)
    }

    /// Of fields that were read already; `form` is what its text has to be.
    pub(super) fn of(fields: &ChatFields, controls: Controls, mut form: Option<Form>) -> Result<Self, ApiError> {
        let parallel_calls = fields.parallel_tool_calls.unwrap_or(true);
        let prompt = chat_prompt(fields)?;
        if let (ToolChoice::Forced(name), Some(tools)) = (tool_choice(fields)?, &prompt.tools) {
            if form.is_some() {
                return Err(ApiError::field("tool_choice", "calls are forced, so the answer cannot have another form"));
            }
            form = Some(Form::calls(tools.clone(), name, parallel_calls));
        }
        let router = fields.return_router.unwrap_or(false);
        if router && !parallel_calls {
            let why = "an answer that is cut after its first call tells no experts; leave `parallel_tool_calls` out";
            return Err(ApiError::unsupported("return_router", why));
        }
        check_top_logprobs(fields.top_logprobs, "top_logprobs")?;
        let logprobs = match (fields.logprobs.unwrap_or(false), fields.top_logprobs) {
            (true, top) => Some(top.unwrap_or(0)),
            (false, None | Some(0)) => None,
            (false, Some(_)) => return Err(ApiError::field("top_logprobs", "`top_logprobs` needs `logprobs`: true")),
        };
        Ok(Self {
            controls,
            prompt,
            parallel_calls,
            wants: Wants { form, logprobs, router },
            return_progress: fields.return_progress.unwrap_or(false),
        })
    }
}

fn chat_prompt(fields: &ChatFields) -> Result<ChatPrompt, ApiError> {
    if fields.messages.is_empty() {
        return Err(ApiError::field("messages", "`messages` is empty; send at least one"));
    }
    check_parts(&fields.messages)?;
    let tools = match (&fields.tools, tool_choice(fields)?) {
        (_, ToolChoice::None) => None,
        (Some(tools), _) if !tools.is_empty() => Some(offered(tools)?),
        (_, ToolChoice::Auto) => None,
        (_, ToolChoice::Forced(_)) => {
            return Err(ApiError::field("tool_choice", "calls are forced, but there are no `tools`"));
        }
    };
    let mut template_kwargs = fields.chat_template_kwargs.clone().unwrap_or_default();
    let mut enable_thinking = None;
    if let Some(value) = template_kwargs.remove("enable_thinking") {
        let wrong = || ApiError::field("chat_template_kwargs.enable_thinking", "it must be true or false");
        enable_thinking = Some(value.as_bool().ok_or_else(wrong)?);
    }
    match fields.reasoning_effort.as_deref() {
        None => {}
        Some("none") => enable_thinking = Some(false),
        Some(effort @ ("minimal" | "low" | "medium" | "high" | "xhigh")) => {
            // What a template was told by name goes before what it is told by this field.
            template_kwargs.entry("reasoning_effort").or_insert_with(|| effort.into());
        }
        Some(_) => {
            return Err(ApiError::unsupported("reasoning_effort", "known are none, minimal, low, medium, high, xhigh"));
        }
    }
    Ok(ChatPrompt { messages: fields.messages.clone(), tools, enable_thinking, template_kwargs })
}

enum ToolChoice {
    None,
    Auto,
    /// Of the one that is named, or of any.
    Forced(Option<String>),
}

fn tool_choice(fields: &ChatFields) -> Result<ToolChoice, ApiError> {
    match &fields.tool_choice {
        None | Some(Value::Null) => Ok(ToolChoice::Auto),
        Some(Value::String(choice)) if choice == "auto" => Ok(ToolChoice::Auto),
        Some(Value::String(choice)) if choice == "none" => Ok(ToolChoice::None),
        Some(Value::String(choice)) if choice == "required" => Ok(ToolChoice::Forced(None)),
        Some(choice) => {
            let name = choice.get("function").and_then(|function| function.get("name")).and_then(Value::as_str);
            let why = "known are `none`, `auto`, `required` and a function by its name";
            let name = name.ok_or_else(|| ApiError::unsupported("tool_choice", why))?;
            Ok(ToolChoice::Forced(Some(name.to_owned())))
        }
    }
}

/// The tools as a template and a reader of calls take them.
pub(crate) fn offered(tools: &[Tool]) -> Result<Value, ApiError> {
    for (index, tool) in tools.iter().enumerate() {
        if tool.kind != "function" {
            return Err(ApiError::unsupported(format!("tools[{index}].type"), "only `function` is known"));
        }
        let name = tool.function.get("name").and_then(Value::as_str).unwrap_or_default();
        if name.is_empty() {
            let field = format!("tools[{index}].function.name");
            return Err(ApiError::field(field, "a function must have a name"));
        }
        if tool.function.get("parameters").is_some_and(|parameters| !parameters.is_object() && !parameters.is_null()) {
            let field = format!("tools[{index}].function.parameters");
            return Err(ApiError::field(field, "parameters must be a JSON schema, an object"));
        }
    }
    serde_json::to_value(tools).map_err(|error| ApiError::field("tools", error.to_string()))
}

/// Text is all that is read; a picture that nobody looked at must not seem to have been seen.
pub(crate) fn check_parts(messages: &[Message]) -> Result<(), ApiError> {
    for (index, message) in messages.iter().enumerate() {
        let Some(Content::Parts(parts)) = &message.content else { continue };
        for (part_index, part) in parts.iter().enumerate() {
            let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
            let field = format!("messages[{index}].content[{part_index}]");
            match (kind, part.get("text").map(Value::is_string)) {
                ("text", Some(true)) => {}
                ("text", _) => return Err(ApiError::field(field, "a part of type `text` must have a text")),
                _ => {
                    let kind: String = kind.chars().take(40).collect();
                    let why = format!("parts of type `{kind}` are not read; this server takes text only");
                    return Err(ApiError::unsupported(field, why));
                }
            }
        }
    }
    Ok(())
}

/// Answers a chat.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "OpenAI",
    request_body = inline(crate::openapi::ChatBody),
    responses((status = 200, description = "The answer, or a stream of chunks", body = ChatCompletion),
              (status = "4XX", description = "What is wrong with the request")))]
pub(crate) async fn chat_completions(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    match answer(shared, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Body>) -> Result<Response, ApiError> {
    shared.engine.check_ready()?;
    let input = Input::read(request, shared.config.body_bytes_max).await?;
    let (generation, request) = in_background(&shared, move |shared| {
        let request = ChatRequest::new(&input)?;
        let prompted = request.prompt.prompted(&shared.model)?;
        let mut generation = Generation::new(shared, &request.controls, vec![prompted], "messages", &request.wants)?;
        generation.parallel_calls = request.parallel_calls;
        Ok((generation, request))
    })
    .await?;
    let choices = generation.start(&shared)?;
    let id = shared.new_id("chatcmpl-");
    let model = request.controls.model.clone().filter(|name| !name.is_empty());
    let model = model.unwrap_or_else(|| shared.name().to_owned());
    if request.controls.streams() {
        let mut writer = ChatStream::new(id, model, Arc::clone(&shared), choices.len());
        writer.include_usage = request.controls.includes_usage();
        writer.return_progress = request.return_progress;
        return Ok(stream(choices, writer));
    }
    Ok(patiently(async move {
        let (answers, usage) = collect(choices).await?;
        let completion = completion(id, model, &shared, answers, usage)?;
        serde_json::to_value(completion).map_err(|error| ApiError::engine(error.to_string()))
    })
    .await)
}

fn completion(
    id: String,
    model: String,
    shared: &Shared,
    answers: Vec<Answer>,
    usage: Usage,
) -> Result<ChatCompletion, ApiError> {
    let mut timings = Value::Null;
    let mut choices = Vec::with_capacity(answers.len());
    for (index, answer) in answers.into_iter().enumerate() {
        let end = answer.end.ok_or_else(|| ApiError::engine("a sequence ended without an end"))?;
        if index == 0 {
            timings = end.timings();
        }
        let tool_calls: Vec<Value> = answer.calls.iter().map(|(id, call)| call.to_openai(id)).collect();
        let content = (!answer.content.is_empty() || tool_calls.is_empty()).then_some(answer.content);
        let tokenizer = &shared.model.tokenizer;
        let logprobs = (!answer.logprobs.is_empty()).then(|| logprobs::of_chat(tokenizer, &answer.logprobs));
        let message = AssistantMessage {
            role: "assistant",
            content,
            reasoning_content: answer.reasoning,
            tool_calls,
            refusal: None,
        };
        choices.push(ChatChoice { index, message, finish_reason: end.reason, logprobs, router: end.router });
    }
    let (created, system_fingerprint) = (unix_seconds(), shared.fingerprint.clone());
    Ok(ChatCompletion { id, object: "chat.completion", created, model, system_fingerprint, choices, usage, timings })
}

/// The prompt that a chat would have, without an answer. (llama-server's.)
#[utoipa::path(post, path = "/apply-template", tag = "Operation", request_body = inline(crate::openapi::ChatBody),
    responses((status = 200, description = "`prompt`, as text"),
              (status = "4XX", description = "What is wrong with the request")))]
pub(crate) async fn apply_template(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    let rendered = async {
        let input = Input::read(request, shared.config.body_bytes_max).await?;
        in_background(&shared, move |shared| ChatRequest::new(&input)?.prompt.rendered(&shared.model)).await
    };
    match rendered.await {
        Ok(prompt) => Json(serde_json::json!({"prompt": prompt})).into_response(),
        Err(error) => error.into_response(),
    }
}
