//! The engine as a night job's generator.

use engine_core::sampler::SamplingParams;
use engine_core::session::{self, Engine, Event, Request, SequenceId};
use engine_core::text::{ChatTemplate, Message, RenderOptions};

use crate::generator::{Abort, Completion, FinishReason, GenerateError, Generator, Prompt, PromptRequest, Sampling};

/// Summation orders, roundings and the sampler's chain. A change of any of them changes bytes, and so this number:
/// records of another one are not mixed with new ones.
const NUMERICS: u32 = 1;

/// An engine that answers chat prompts.
pub struct EngineGenerator<'t> {
    engine: Engine<'t>,
    template: ChatTemplate,
    fingerprint: String,
    watch: Box<dyn FnMut(&Engine) + 't>,
}

impl<'t> EngineGenerator<'t> {
    /// Takes an engine and its model's chat template. `digest` is that of the model folder; `watch` sees the engine
    /// after every step.
    pub fn new(engine: Engine<'t>, template: ChatTemplate, digest: &str, watch: Box<dyn FnMut(&Engine) + 't>) -> Self {
        let options = engine.model().options();
        let fingerprint = format!(
            "numerics {NUMERICS}, model {digest}, isa {}, activations {}, kv {}",
            options.isa,
            options.activations,
            engine.options().kv_dtype.name()
        );
        Self { engine, template, fingerprint, watch }
    }

    /// The engine.
    pub fn engine(&mut self) -> &mut Engine<'t> {
        &mut self.engine
    }

    fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, GenerateError> {
        let mut messages = Vec::new();
        messages.extend(prompt.system.iter().map(|system| Message::new("system", system.as_str())));
        messages.push(Message::new("user", prompt.user.as_str()));
        // A note may quote control tokens; only the template may write them.
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        self.template.render_to_tokens(self.engine.tokenizer(), &messages, &options).map_err(failed)
    }

    fn submit(&mut self, request: &PromptRequest) -> Result<SequenceId, GenerateError> {
        let Sampling { temperature, top_k, top_p, min_p } = request.sampling;
        let sampling = SamplingParams { temperature, top_k, top_p, min_p, seed: request.seed };
        let tokens = self.tokens(&request.prompt)?;
        let request = Request { tokens, max_tokens: request.max_tokens, sampling, stop: Vec::new() };
        self.engine.submit(request).map_err(failed)
    }

    fn run(
        &mut self,
        requests: &[PromptRequest],
        finished: &mut dyn FnMut(usize, Completion) -> Result<(), Abort>,
    ) -> Result<(), GenerateError> {
        let mut ids = Vec::with_capacity(requests.len());
        let mut events = Vec::new();
        loop {
            // One request waits at most: prompts are rendered when there is nearly room for them, so a night of
            // thousands of notes takes no more memory than one of ten.
            while ids.len() < requests.len() && self.engine.waiting() == 0 {
                ids.push(self.submit(&requests[ids.len()])?);
            }
            if self.engine.is_idle() {
                return Ok(());
            }
            self.engine.step(&mut events);
            (self.watch)(&self.engine);
            for event in events.drain(..) {
                match event {
                    Event::Finished { id, completion } => {
                        let index = ids.iter().position(|known| *known == id).expect("only these requests run");
                        finished(index, completion.into()).map_err(|Abort| GenerateError::Aborted)?;
                    }
                    Event::Failed { error, .. } => return Err(failed(error)),
                    Event::Prefill { .. } | Event::Token { .. } => {}
                }
            }
        }
    }
}

impl Generator for EngineGenerator<'_> {
    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    fn context_size(&self) -> usize {
        self.engine.options().ctx_size
    }

    fn count_tokens(&self, prompt: &Prompt) -> Result<usize, GenerateError> {
        Ok(self.tokens(prompt)?.len())
    }

    fn generate(
        &mut self,
        requests: &[PromptRequest],
        finished: &mut dyn FnMut(usize, Completion) -> Result<(), Abort>,
    ) -> Result<(), GenerateError> {
        let result = self.run(requests, finished);
        if result.is_err() {
            self.engine.cancel_all();
        }
        result
    }
}

impl From<session::Completion> for Completion {
    fn from(completion: session::Completion) -> Self {
        Self {
            text: completion.text,
            finish_reason: match completion.finish_reason {
                session::FinishReason::Stop => FinishReason::Stop,
                session::FinishReason::Length => FinishReason::Length,
            },
            prompt_tokens: completion.prompt_tokens,
            completion_tokens: completion.tokens.len(),
        }
    }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> GenerateError {
    GenerateError::Failed(Box::new(error))
}
