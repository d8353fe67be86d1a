//! Sequences of one request, and what their tokens say.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use engine_core::sampler::TokenLogprobs;
use engine_core::session::{FinishReason, Timings};
use engine_core::text::{SpeechEvent, SpeechParser, ToolCall};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::prompt::Prompted;
use super::router::Router;
use crate::engine_thread::{Running, SequenceEvent};
use crate::error::ApiError;
use crate::served::Shared;

/// What a piece of an answer is.
#[derive(Debug)]
pub(crate) enum Update {
    Prefill {
        done: usize,
        total: usize,
    },
    Reasoning {
        index: usize,
        text: String,
    },
    /// With the tokens that it came of, where they were asked for.
    Content {
        index: usize,
        text: String,
        logprobs: Vec<TokenLogprobs>,
    },
    ToolCall {
        index: usize,
        number: usize,
        id: String,
        call: ToolCall,
    },
    End {
        index: usize,
        end: End,
    },
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reason {
    /// The model ended it, or a stop string.
    Stop,
    /// As many tokens as there may be.
    Length,
    /// The model wants tools to be called.
    ToolCalls,
}

/// How an answer ended.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) reason: Reason,
    pub(crate) tokens: usize,
    pub(crate) prompt_tokens: usize,
    pub(crate) cached_tokens: usize,
    pub(crate) timings: Timings,
    /// The experts of its tokens, where they were asked for.
    pub(crate) router: Option<Box<Router>>,
}

impl End {
    /// llama-server's figures.
    pub(crate) fn timings(&self) -> Value {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let per_token = |ms: f64, tokens: usize| if tokens == 0 { 0.0 } else { ms / tokens as f64 };
        let Timings { prefill, decode, .. } = self.timings;
        let (prompt_n, predicted_n) = (self.timings.prefill_tokens, self.tokens);
        json!({
            "cache_n": self.cached_tokens,
            "prompt_n": prompt_n,
            "prompt_ms": ms(prefill),
            "prompt_per_token_ms": per_token(ms(prefill), prompt_n),
            "prompt_per_second": self.timings.prefill_rate(),
            "predicted_n": predicted_n,
            "predicted_ms": ms(decode),
            "predicted_per_token_ms": per_token(ms(decode), predicted_n),
            "predicted_per_second": self.timings.decode_rate(),
        })
    }
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(crate) struct Usage {
    /// Tokens of the prompt that were fed.
    pub(crate) prompt_tokens: usize,
    /// Tokens of all answers.
    pub(crate) completion_tokens: usize,
    /// Both.
    pub(crate) total_tokens: usize,
    /// More about the prompt.
    pub(crate) prompt_tokens_details: PromptTokensDetails,
    /// More about the answers.
    pub(crate) completion_tokens_details: CompletionTokensDetails,
}

/// More about a prompt.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(crate) struct PromptTokensDetails {
    /// Tokens whose keys and values were there already.
    pub(crate) cached_tokens: usize,
}

/// More about answers.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(crate) struct CompletionTokensDetails {
    /// Tokens of thoughts.
    pub(crate) reasoning_tokens: usize,
}

/// The sequences of one request. Dropped, they are cancelled.
pub(crate) struct Choices {
    running: Running,
    choices: Vec<Choice>,
    parallel_calls: bool,
    usage: Usage,
    shared: Arc<Shared>,
}

struct Choice {
    parser: Option<SpeechParser>,
    calls: usize,
    tokens: usize,
    /// Tokens whose text was not told yet.
    untold: usize,
    untold_logprobs: Vec<TokenLogprobs>,
    reasoning_tokens: usize,
    prompt_tokens: usize,
}

impl Choices {
    /// `prompts` are those of the running sequences, one each.
    pub(super) fn new(running: Running, prompts: &[Arc<Prompted>], parallel_calls: bool, shared: Arc<Shared>) -> Self {
        let mut usage = Usage::default();
        let mut last: Option<&Arc<Prompted>> = None;
        for prompted in prompts {
            // Choices of one prompt share it.
            if !last.is_some_and(|last| Arc::ptr_eq(last, prompted)) {
                usage.prompt_tokens += prompted.tokens.len();
            }
            last = Some(prompted);
        }
        usage.total_tokens = usage.prompt_tokens;
        let choice = |prompted: &Arc<Prompted>| Choice {
            parser: Some(prompted.parser()),
            calls: 0,
            tokens: 0,
            untold: 0,
            untold_logprobs: Vec::new(),
            reasoning_tokens: 0,
            prompt_tokens: prompted.tokens.len(),
        };
        shared.counters.requests.fetch_add(1, Relaxed);
        Self { running, choices: prompts.iter().map(choice).collect(), parallel_calls, usage, shared }
    }

    pub(crate) fn len(&self) -> usize {
        self.choices.len()
    }

    /// Tokens so far.
    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    /// What comes next; `None` when all have ended. An error ends all. Nothing is lost where the future is dropped.
    pub(crate) async fn next(&mut self) -> Option<Result<Vec<Update>, ApiError>> {
        let (index, event) = self.running.next().await?;
        Some(match event {
            SequenceEvent::Prefill { done, total } => Ok(vec![Update::Prefill { done, total }]),
            SequenceEvent::Embedded(_) => Err(ApiError::engine("a vector came where text was asked for")),
            SequenceEvent::Token { text, logprobs } => {
                let choice = &mut self.choices[index];
                choice.untold_logprobs.extend(logprobs.map(|logprobs| *logprobs));
                choice.tokens += 1;
                choice.untold += 1;
                let events = choice.parser.as_mut().map(|parser| parser.push(&text)).unwrap_or_default();
                Ok(self.told(index, events))
            }
            SequenceEvent::Finished(completion) => {
                let parser = self.choices[index].parser.take();
                let mut updates = self.told(index, parser.map(SpeechParser::finish).unwrap_or_default());
                // Tokens without text of their own: the one that ends a text, or a character cut in half.
                let rest = std::mem::take(&mut self.choices[index].untold_logprobs);
                if !rest.is_empty() && self.choices[index].calls == 0 {
                    match updates.iter_mut().rev().find_map(|update| match update {
                        Update::Content { logprobs, .. } => Some(logprobs),
                        _ => None,
                    }) {
                        Some(logprobs) => logprobs.extend(rest),
                        None => updates.push(Update::Content { index, text: String::new(), logprobs: rest }),
                    }
                }
                // A choice that was cut after its call has its end already.
                if !updates.iter().any(|update| matches!(update, Update::End { .. })) {
                    let reason = match completion.finish_reason {
                        FinishReason::Stop if self.choices[index].calls > 0 => Reason::ToolCalls,
                        FinishReason::Stop => Reason::Stop,
                        FinishReason::Length => Reason::Length,
                    };
                    let routing = completion.routing.as_deref();
                    let router = routing.and_then(Router::new).map(Box::new);
                    updates.push(self.end(index, reason, completion.cached_tokens, completion.timings, router));
                }
                Ok(updates)
            }
            SequenceEvent::Failed(error) => Err(error),
        })
    }

    fn told(&mut self, index: usize, events: Vec<SpeechEvent>) -> Vec<Update> {
        let mut updates = Vec::with_capacity(events.len());
        let mut cut = false;
        for event in events {
            let choice = &mut self.choices[index];
            let untold = std::mem::take(&mut choice.untold);
            let logprobs = std::mem::take(&mut choice.untold_logprobs);
            match event {
                SpeechEvent::Reasoning(text) => {
                    choice.reasoning_tokens += untold;
                    updates.push(Update::Reasoning { index, text });
                }
                SpeechEvent::Content(text) => updates.push(Update::Content { index, text, logprobs }),
                SpeechEvent::ToolCall(call) => {
                    let number = choice.calls;
                    choice.calls += 1;
                    let id = self.shared.new_id("call_");
                    updates.push(Update::ToolCall { index, number, id, call });
                    cut = !self.parallel_calls;
                }
            }
            if cut {
                break;
            }
        }
        if cut {
            self.running.cancel(index);
            let timings = Timings { prefill_tokens: self.choices[index].prompt_tokens, ..Timings::default() };
            updates.push(self.end(index, Reason::ToolCalls, 0, timings, None));
        }
        updates
    }

    fn end(
        &mut self,
        index: usize,
        reason: Reason,
        cached_tokens: usize,
        timings: Timings,
        router: Option<Box<Router>>,
    ) -> Update {
        let Choice { tokens, reasoning_tokens, prompt_tokens, .. } = self.choices[index];
        let usage = &mut self.usage;
        usage.completion_tokens += tokens;
        usage.total_tokens += tokens;
        usage.completion_tokens_details.reasoning_tokens += reasoning_tokens;
        usage.prompt_tokens_details.cached_tokens = usage.prompt_tokens_details.cached_tokens.max(cached_tokens);

        let counters = &self.shared.counters;
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        counters.prompt_tokens.fetch_add(prompt_tokens as u64, Relaxed);
        counters.prompt_micros.fetch_add(micros(timings.prefill), Relaxed);
        counters.predicted_tokens.fetch_add(tokens as u64, Relaxed);
        counters.predicted_micros.fetch_add(micros(timings.decode), Relaxed);
        counters.tokens_max.fetch_max((prompt_tokens + tokens) as u64, Relaxed);
        Update::End { index, end: End { reason, tokens, prompt_tokens, cached_tokens, timings, router } }
    }
}
