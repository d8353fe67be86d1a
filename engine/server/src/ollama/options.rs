//! `options` of a request: the names that Ollama took from llama.cpp.

use serde::Deserialize;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::generation::{Controls, OneOrMany};
use crate::served::ServedModel;

/// How an answer is made.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct Options {
    /// Positions of the context. A sequence of this run has as many as the server was started with.
    num_ctx: Option<i64>,
    /// Most tokens of the answer; -1 and -2: until the context is full.
    num_predict: Option<i64>,
    temperature: Option<f32>,
    top_k: Option<i64>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    seed: Option<i64>,
    repeat_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    stop: Option<OneOrMany>,
}

impl Options {
    pub(super) fn controls(self, model: &ServedModel, name: Option<String>) -> Result<Controls, ApiError> {
        if let Some(num_ctx) = self.num_ctx
            && usize::try_from(num_ctx).is_ok_and(|num_ctx| num_ctx > model.ctx_size)
        {
            let why = format!(
                "{num_ctx} positions were asked for, but this run has {}; start the server with `--ctx-size {num_ctx}`",
                model.ctx_size
            );
            return Err(ApiError::unsupported("options.num_ctx", why));
        }
        Ok(Controls {
            model: name,
            max_tokens: self.num_predict.map(|n| if n == -2 { -1 } else { n }),
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed,
            repetition_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            stop: self.stop,
            ..Controls::default()
        })
    }
}
