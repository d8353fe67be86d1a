//! `/v1/completions`: text that goes on from text, without a chat template.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{COMMENT, DONE, EVENT_STREAM, event, failed};
use crate::error::ApiError;
use crate::generation::{
    Controls, Dialect, Form, Generation, Reason, Router, TextPrompt, Update, Usage, Wants, check_top_logprobs, collect,
    in_background, logprobs, patiently, refuse_unsupported_but_router, stream,
};
use crate::input::Input;
use crate::served::{Shared, unix_seconds};

/// What a completion has beside [`Controls`].
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CompletionFields {
    /// A text, a list of texts, a list of token ids, or a list of those.
    #[schema(value_type = Value)]
    prompt: PromptField,
    /// Put the prompt before the answer.
    #[serde(default)]
    echo: Option<bool>,
    /// Tell how probable tokens were, and so many of the most probable ones.
    #[serde(default)]
    logprobs: Option<usize>,
    /// Tell the experts that each token went through, with the factors of their outputs; the prompt is computed anew for it.
    #[serde(default)]
    return_router: Option<bool>,
}

/// Prompts, in the forms that they may have.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a text, a list of texts, a list of token ids, or a list of those")]
pub(crate) enum PromptField {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

impl PromptField {
    pub(crate) fn into_prompts(self) -> Vec<TextPrompt> {
        match self {
            Self::Text(text) => vec![TextPrompt::Text(text)],
            Self::Texts(texts) => texts.into_iter().map(TextPrompt::Text).collect(),
            Self::Tokens(tokens) => vec![TextPrompt::Tokens(tokens)],
            Self::TokenLists(lists) => lists.into_iter().map(TextPrompt::Tokens).collect(),
        }
    }
}

/// A whole completion, or a chunk of one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Completion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<TextChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    timings: Option<Value>,
}

#[derive(Debug, Serialize, ToSchema)]
struct TextChoice {
    index: usize,
    text: String,
    finish_reason: Option<Reason>,
    #[schema(value_type = Option<Object>)]
    logprobs: Option<Value>,
    /// With `return_router`.
    #[serde(skip_serializing_if = "Option::is_none")]
    router: Option<Box<Router>>,
}

/// Completes texts.
#[utoipa::path(post, path = "/v1/completions", tag = "OpenAI",
    request_body = inline(crate::openapi::CompletionBody),
    responses((status = 200, description = "The answer, or a stream of chunks", body = Completion),
              (status = "4XX", description = "What is wrong with the request")))]
pub(crate) async fn completions(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    match answer(shared, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Body>) -> Result<Response, ApiError> {
    shared.engine.check_ready()?;
    let input = Input::read(request, shared.config.body_bytes_max).await?;
    let (generation, controls, echoes) = in_background(&shared, move |shared| {
        let CompletionFields { prompt, echo, logprobs, return_router } = input.parse()?;
        let controls: Controls = input.parse()?;
        refuse_unsupported_but_router(&input)?;
        let prompts = prompt.into_prompts();
        let n = controls.n()?;
        // Before anything is tokenised that could never run.
        drop(shared.engine.admit(prompts.len().saturating_mul(n))?);
        let prompts: Result<Vec<_>, _> =
            prompts.into_iter().map(|prompt| prompt.prompted(&shared.model, "prompt")).collect();
        let prompts = prompts?;
        if prompts.is_empty() {
            return Err(ApiError::field("prompt", "`prompt` is empty; send at least one"));
        }
        let mut echoes = vec![String::new(); prompts.len() * n];
        if echo.unwrap_or(false) {
            for (index, echo) in echoes.iter_mut().enumerate() {
                let text = shared.model.tokenizer.decode(&prompts[index / n].tokens, true);
                *echo = text.map_err(|error| ApiError::field("prompt", error.to_string()))?;
            }
        }
        check_top_logprobs(logprobs, "logprobs")?;
        if logprobs.is_some() && echo.unwrap_or(false) {
            return Err(ApiError::unsupported("logprobs", "with `echo` they are not told; leave one of the two out"));
        }
        let router = return_router.unwrap_or(false);
        let wants = Wants { form: Form::of_fields(&input)?, logprobs, router };
        let generation = Generation::new(shared, &controls, prompts, "prompt", &wants)?;
        Ok((generation, controls, echoes))
    })
    .await?;
    let choices = generation.start(&shared)?;
    let model = controls.model.clone().filter(|name| !name.is_empty());
    let form = Head {
        id: shared.new_id("cmpl-"),
        created: unix_seconds(),
        model: model.unwrap_or_else(|| shared.name().to_owned()),
        system_fingerprint: shared.fingerprint.clone(),
    };
    if controls.streams() {
        return Ok(stream(
            choices,
            TextStream {
                form,
                include_usage: controls.includes_usage(),
                offsets: vec![0; echoes.len()],
                echoes,
                shared,
            },
        ));
    }
    Ok(patiently(async move {
        let (answers, usage) = collect(choices).await?;
        let timings = answers.first().and_then(|answer| Some(answer.end.as_ref()?.timings()));
        let choices = answers.into_iter().zip(echoes).enumerate().map(|(index, (answer, echo))| TextChoice {
            index,
            text: echo + &answer.content,
            finish_reason: answer.end.as_ref().map(|end| end.reason),
            logprobs: (!answer.logprobs.is_empty())
                .then(|| logprobs::of_text(&shared.model.tokenizer, &answer.logprobs, &mut 0)),
            router: answer.end.and_then(|end| end.router),
        });
        let completion = Completion { usage: Some(usage), timings, ..form.of(choices.collect()) };
        serde_json::to_value(completion).map_err(|error| ApiError::engine(error.to_string()))
    })
    .await)
}

struct Head {
    id: String,
    created: u64,
    model: String,
    system_fingerprint: String,
}

impl Head {
    fn of(&self, choices: Vec<TextChoice>) -> Completion {
        Completion {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: self.system_fingerprint.clone(),
            choices,
            usage: None,
            timings: None,
        }
    }
}

struct TextStream {
    form: Head,
    include_usage: bool,
    echoes: Vec<String>,
    /// Characters told so far.
    offsets: Vec<usize>,
    shared: Arc<Shared>,
}

impl TextStream {
    fn piece(&self, index: usize, text: String, finish_reason: Option<Reason>) -> Completion {
        self.form.of(vec![TextChoice { index, text, finish_reason, logprobs: None, router: None }])
    }
}

impl Dialect for TextStream {
    const CONTENT_TYPE: &'static str = EVENT_STREAM;
    const KEEP_ALIVE: &'static [u8] = COMMENT;

    fn begin(&mut self, out: &mut Vec<u8>) {
        for (index, echo) in std::mem::take(&mut self.echoes).into_iter().enumerate() {
            if !echo.is_empty() {
                event(&self.piece(index, echo, None), out);
            }
        }
    }

    fn update(&mut self, update: Update, out: &mut Vec<u8>) {
        match update {
            Update::Content { index, text, logprobs: tokens } => {
                let mut piece = self.piece(index, text, None);
                if !tokens.is_empty() {
                    let told = logprobs::of_text(&self.shared.model.tokenizer, &tokens, &mut self.offsets[index]);
                    piece.choices[0].logprobs = Some(told);
                }
                event(&piece, out);
            }
            Update::End { index, end } => {
                let timings = Some(end.timings());
                let mut piece = self.piece(index, String::new(), Some(end.reason));
                piece.choices[0].router = end.router;
                event(&Completion { timings, ..piece }, out);
            }
            // Plain text has no thoughts and no calls.
            Update::Prefill { .. } | Update::Reasoning { .. } | Update::ToolCall { .. } => {}
        }
    }

    fn end(&mut self, usage: Usage, out: &mut Vec<u8>) {
        if self.include_usage {
            event(&Completion { usage: Some(usage), ..self.form.of(Vec::new()) }, out);
        }
        out.extend_from_slice(DONE);
    }

    fn failed(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        failed(error, out);
    }
}
