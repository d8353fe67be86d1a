//! From messages or texts to tokens. It may take a while, so it is done beside the threads that answer, for few requests at
//! a time.

use std::sync::Arc;

use engine_core::text::{
    ChatTemplate, CivilTime, Content, Message, RenderOptions, SpeechFormat, SpeechParser, TextError, Tools,
};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::served::{ServedModel, Shared, unix_seconds};

/// A prompt as the engine takes it, and what is needed to read the answer.
#[derive(Debug)]
pub(crate) struct Prompted {
    pub(crate) tokens: Vec<u32>,
    pub(crate) shown_tokens: Vec<u32>,
    pub(super) format: SpeechFormat,
    tools: Tools,
    pub(super) end: String,
}

impl Prompted {
    /// A prompt of these tokens, whose answer is plain text.
    pub(crate) fn plain(tokens: Vec<u32>) -> Self {
        Self {
            tokens,
            shown_tokens: Vec::new(),
            format: SpeechFormat::PLAIN,
            tools: Tools::default(),
            end: String::new(),
        }
    }

    pub(crate) fn parser(&self) -> SpeechParser {
        SpeechParser::new(self.format, self.tools.clone(), &self.end)
    }
}

/// Text, or tokens as they are.
#[derive(Clone, Debug)]
pub(crate) enum TextPrompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl TextPrompt {
    pub(crate) fn prompted(self, model: &ServedModel, field: &str) -> Result<Prompted, ApiError> {
        let tokens = match self {
            Self::Text(text) => model.tokenizer.encode(&text, true).map_err(|error| of_text(&error, field))?,
            Self::Tokens(tokens) => tokens,
        };
        let vocab_size = model.config.vocab_size;
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab_size) {
            return Err(ApiError::field(field, format!("token {token} is not in the vocabulary of {vocab_size}")));
        }
        if tokens.is_empty() {
            return Err(ApiError::field(field, format!("`{field}` has no tokens; send at least one")));
        }
        Ok(Prompted::plain(tokens))
    }
}

/// A conversation, and how it is written down.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChatPrompt {
    pub(crate) messages: Vec<Message>,
    pub(crate) tools: Option<Value>,
    pub(crate) enable_thinking: Option<bool>,
    pub(crate) template_kwargs: Map<String, Value>,
}

impl ChatPrompt {
    fn options(&self) -> RenderOptions {
        RenderOptions {
            add_generation_prompt: true,
            enable_thinking: self.enable_thinking,
            tools: self.tools.clone(),
            // Some templates write the date.
            now: i64::try_from(unix_seconds()).ok().map(|seconds| CivilTime::from_unix(seconds, 0)),
            extra: self.template_kwargs.clone(),
        }
    }

    /// The prompt as text.
    pub(crate) fn rendered(&self, model: &ServedModel) -> Result<String, ApiError> {
        let template = template(model)?;
        template.render(&self.for_template(template)?, &self.options()).map_err(|error| of_text(&error, "messages"))
    }

    pub(crate) fn prompted(&self, model: &ServedModel) -> Result<Prompted, ApiError> {
        let template = template(model)?;
        let failed = |error: TextError| of_text(&error, "messages");
        let options = self.options();
        let messages = self.for_template(template)?;
        let tokens = template.render_to_tokens(&model.tokenizer, &messages, &options).map_err(failed)?;
        if tokens.is_empty() {
            return Err(ApiError::field("messages", "the chat template makes no prompt of these messages"));
        }
        let format = template.speech_format(&options).map_err(failed)?;
        let format = if self.tools.is_some() { format } else { format.without_calls() };
        Ok(Prompted {
            shown_tokens: format.shown_tokens(&model.tokenizer),
            end: model.tokenizer.decode_end(&tokens).map_err(failed)?,
            tools: self.tools.as_ref().map(Tools::from_openai).unwrap_or_default(),
            format,
            tokens,
        })
    }

    /// Messages with roles that the template knows. Templates build control tokens around roles, so there are no others.
    fn for_template(&self, template: &ChatTemplate) -> Result<Vec<Message>, ApiError> {
        let harmony = template.speech_format(&self.options()).is_ok_and(|format| format == SpeechFormat::Harmony);
        let mut messages = self.messages.clone();
        for (index, message) in messages.iter_mut().enumerate() {
            // Clients send back a turn of calls with the `null` that it came with; some templates look for thoughts in it.
            if message.tool_calls.is_some() && matches!(message.content, None | Some(Content::Null)) {
                message.content = Some(Content::Text(String::new()));
            }
            match message.role.as_str() {
                "system" | "user" | "assistant" | "tool" => {}
                "developer" if harmony => {}
                // The name of the same role in newer clients.
                "developer" => message.role = "system".into(),
                "function" => message.role = "tool".into(),
                _ => {
                    let why = "known roles are system, developer, user, assistant, tool";
                    return Err(ApiError::unsupported(format!("messages[{index}].role"), why));
                }
            }
        }
        Ok(messages)
    }
}

fn template(model: &ServedModel) -> Result<&ChatTemplate, ApiError> {
    model.template.as_ref().ok_or_else(|| {
        let why = "this is a base model without a chat template; send plain text to `/v1/completions`";
        ApiError::field("messages", why)
    })
}

/// What goes wrong between text and tokens is wrong with the request: files were checked at the start.
fn of_text(error: &TextError, field: &str) -> ApiError {
    match error {
        TextError::UnsupportedPart { index, .. } => ApiError::unsupported(format!("{field}[{index}].content"), error),
        error => ApiError::field(field, error.to_string()),
    }
}

/// Runs `work` on a thread for such work, when there is one free.
pub(crate) async fn in_background<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Shared) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    // Held by the work, not by the request: a client that goes makes no room before its work ends.
    let permit = Arc::clone(&shared.prompts).acquire_owned().await;
    let shared = Arc::clone(shared);
    let done = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        work(&shared)
    });
    done.await.unwrap_or_else(|_| Err(ApiError::bad_request("the text library broke off on this request")))
}
