//! From a request's fields to sequences, and from their events to what was said: the same for every API.

mod answer;
mod choices;
mod controls;
pub(crate) mod embed;
mod form;
pub(crate) mod logprobs;
mod prompt;
mod router;
mod stream;

pub(crate) use answer::{Answer, collect, patiently};
pub(crate) use choices::{Choices, End, Reason, Update, Usage};
pub(crate) use controls::{
    Controls, OneOrMany, check_top_logprobs, experts_per_token_max, refuse_unsupported, refuse_unsupported_but_router,
    refuse_unsupported_of,
};
pub(crate) use form::Form;
pub(crate) use prompt::{ChatPrompt, Prompted, TextPrompt, in_background};
pub(crate) use router::Router;
pub(crate) use stream::{Dialect, stream};

use std::sync::Arc;

use engine_core::session::Request;

use crate::error::ApiError;
use crate::served::{Shared, random};

/// What else is wanted of an answer.
#[derive(Debug, Default)]
pub(crate) struct Wants {
    /// What it has to be.
    pub(crate) form: Option<Form>,
    /// How probable its tokens were, and so many others.
    pub(crate) logprobs: Option<usize>,
    /// The experts of its tokens.
    pub(crate) router: bool,
}

/// What a request asks of the engine, checked.
pub(crate) struct Generation {
    requests: Vec<Request>,
    prompts: Vec<Arc<Prompted>>,
    pub(crate) parallel_calls: bool,
}

impl Generation {
    /// `controls.n` sequences of each prompt. `prompt_field` is where the API has the prompt.
    pub(crate) fn new(
        shared: &Shared,
        controls: &Controls,
        prompts: Vec<Prompted>,
        prompt_field: &str,
        wants: &Wants,
    ) -> Result<Self, ApiError> {
        let sampling = controls.sampling(&shared.model)?;
        let stop = controls.stop()?;
        let n = controls.n()?;
        let adapters = controls.adapters(shared)?;
        let logit_bias = controls.logit_bias(&shared.model)?;
        let mut this = Self { requests: Vec::new(), prompts: Vec::new(), parallel_calls: true };
        for prompted in prompts {
            let max_tokens = controls.max_tokens(&shared.model, prompted.tokens.len(), prompt_field)?;
            let constraint = wants.form.as_ref().map(|form| form.constraint(shared, &prompted)).transpose()?;
            let prompted = Arc::new(prompted);
            for choice in 0..n {
                let mut request = Request::new(prompted.tokens.clone(), max_tokens, sampling);
                // Choices differ by their seeds; where none is given, answers differ from time to time.
                let seed = controls.seed().unwrap_or_else(random);
                request.sampling.seed = seed.wrapping_add(choice as u64);
                request.stop.clone_from(&stop);
                request.shown_tokens.clone_from(&prompted.shown_tokens);
                request.adapters.clone_from(&adapters);
                request.experts_per_token = controls.experts_per_token(&shared.model)?;
                request.logit_bias.clone_from(&logit_bias);
                request.logprobs = wants.logprobs;
                request.return_router = wants.router;
                request.constraint.clone_from(&constraint);
                request.priority = controls.priority.unwrap_or_default();
                this.requests.push(request);
                this.prompts.push(Arc::clone(&prompted));
            }
        }
        if wants.router {
            router::check(&shared.model, &this.requests)?;
        }
        Ok(this)
    }

    /// Sends all sequences off.
    pub(crate) fn start(self, shared: &Arc<Shared>) -> Result<Choices, ApiError> {
        let admission = shared.engine.admit(self.requests.len())?;
        let running = shared.engine.submit(self.requests, admission)?;
        Ok(Choices::new(running, &self.prompts, self.parallel_calls, Arc::clone(shared)))
    }
}
