//! The engine as a night job's generator.

use std::error::Error;

use engine_core::NUMERICS;
use engine_core::model::ModelOptions;
use engine_core::sampler::SamplingParams;
use engine_core::session::{self, Engine, Event, Request, SequenceId};
use engine_core::text::{ChatTemplate, Message, RenderOptions, Speech, SpeechFormat, TextError, Tokenizer, Tools};
use simd::Dtype;

use crate::generator::{Abort, Completion, FinishReason, GenerateError, Generator, Prompt, PromptRequest, Sampling};

/// What decides the bytes of an engine's answers, known before the engine is there.
pub struct Settings<'t> {
    /// Tokenizer of the model.
    pub tokenizer: &'t Tokenizer,
    /// Its chat template.
    pub template: ChatTemplate,
    /// What it is told beside the messages. `now` is the job's date ([`Night::date`](crate::Night::date)); tools are
    /// not offered.
    pub rendering: RenderOptions,
    /// Digest of the model folder.
    pub digest: String,
    /// How the engine will compute.
    pub options: ModelOptions,
    /// What was turned of the model ([`Dials::words`](engine_core::config::Dials::words)); empty where nothing was.
    pub dials: String,
    /// Type of keys and values.
    pub kv_dtype: Dtype,
    /// Positions of a sequence.
    pub ctx_size: usize,
    /// Adapters that the engine will have loaded, and that every answer goes through.
    pub adapters: Vec<AdapterChoice>,
}

/// An adapter of all answers.
#[derive(Clone, Debug)]
pub struct AdapterChoice {
    /// Its name in the engine, which decides nothing.
    pub name: String,
    /// Factor of what it adds.
    pub scale: f32,
    /// Digest of its files.
    pub digest: String,
}

/// An engine that answers chat prompts. It is started when the first prompt comes, so a job of which every step is
/// recorded loads no model.
pub struct EngineGenerator<'t> {
    settings: Settings<'t>,
    start: Option<Start<'t>>,
    engine: Option<Engine<'t>>,
    watch: Box<dyn FnMut(&Engine) + 't>,
}

/// Loads the model and starts the engine.
pub type Start<'t> = Box<dyn FnOnce() -> Result<Engine<'t>, Box<dyn Error + Send + Sync>> + 't>;

impl<'t> EngineGenerator<'t> {
    /// `start` makes the engine that `settings` describe; `watch` sees it after every step.
    pub fn new(settings: Settings<'t>, start: Start<'t>, watch: Box<dyn FnMut(&Engine) + 't>) -> Self {
        Self { settings, start: Some(start), engine: None, watch }
    }

    /// The engine, if anything had to be generated.
    pub fn engine(&mut self) -> Option<&mut Engine<'t>> {
        self.engine.as_mut()
    }

    fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, GenerateError> {
        let mut messages = Vec::new();
        messages.extend(prompt.system.iter().map(|system| Message::new("system", system.as_str())));
        messages.push(Message::new("user", prompt.user.as_str()));
        // A note may quote control tokens; only the template may write them.
        self.settings
            .template
            .render_to_tokens(self.settings.tokenizer, &messages, &self.settings.rendering)
            .map_err(failed)
    }

    /// What is thought before an answer is no part of a report. No tools are offered, so nothing is a call.
    fn speech_format(&self) -> Result<SpeechFormat, TextError> {
        Ok(self.settings.template.speech_format(&self.settings.rendering)?.without_calls())
    }

    /// The answer in a completion that followed `prompt_end`.
    fn answer(&self, completion: session::Completion, prompt_end: &str) -> Result<Completion, GenerateError> {
        let format = self.speech_format().map_err(failed)?;
        let text = Speech::parse(format, Tools::default(), prompt_end, &completion.text).content;
        Ok(Completion { text, ..completion.into() })
    }

    fn request(&self, request: &PromptRequest) -> Result<Request, GenerateError> {
        let Sampling { temperature, top_k, top_p, min_p } = request.sampling;
        let sampling =
            SamplingParams { temperature, top_k, top_p, min_p, seed: request.seed, ..SamplingParams::default() };
        let tokens = self.tokens(&request.prompt)?;
        let shown_tokens = self.speech_format().map_err(failed)?.shown_tokens(self.settings.tokenizer);
        let adapters = self.settings.adapters.iter().map(|adapter| (adapter.name.clone(), adapter.scale)).collect();
        Ok(Request { adapters, shown_tokens, ..Request::new(tokens, request.max_tokens, sampling) })
    }

    fn run(
        &mut self,
        engine: &mut Engine<'t>,
        requests: &[PromptRequest],
        finished: &mut dyn FnMut(usize, Completion) -> Result<(), Abort>,
    ) -> Result<(), GenerateError> {
        let mut ids: Vec<(SequenceId, String)> = Vec::with_capacity(requests.len());
        let mut events = Vec::new();
        let mut broken = None;
        loop {
            // One request waits at most: prompts are rendered when there is nearly room for them, so a night of
            // thousands of notes takes no more memory than one of ten.
            while broken.is_none() && ids.len() < requests.len() && engine.waiting() == 0 {
                let request = self.request(&requests[ids.len()])?;
                let prompt_end = self.settings.tokenizer.decode_end(&request.tokens).map_err(failed)?;
                ids.push((engine.submit(request).map_err(failed)?, prompt_end));
            }
            if engine.is_idle() {
                return broken.map_or(Ok(()), Err);
            }
            engine.step(&mut events).map_err(failed)?;
            (self.watch)(engine);
            for event in events.drain(..) {
                match event {
                    Event::Finished { id, completion } => {
                        let index = ids.iter().position(|(known, _)| *known == id).expect("only these requests run");
                        let answer = self.answer(completion, &ids[index].1)?;
                        finished(index, answer).map_err(|Abort| GenerateError::Aborted)?;
                    }
                    // Those beside it go on to their ends, and to their records.
                    Event::Failed { error, .. } => broken = broken.or(Some(failed(error))),
                    Event::Prefill { .. } | Event::Token { .. } | Event::Embedded { .. } => {}
                }
            }
        }
    }
}

impl Generator for EngineGenerator<'_> {
    fn fingerprint(&self) -> String {
        let Settings { template, rendering, digest, options, dials, kv_dtype, adapters, .. } = &self.settings;
        let thoughts = match self.speech_format() {
            Ok(SpeechFormat::PLAIN) | Err(_) => "",
            Ok(_) => ", thoughts left out",
        };
        let mut fingerprint = format!(
            "numerics {NUMERICS}, model {digest}, isa {}, activations {}, kv {}{thoughts}",
            options.isa,
            options.activations,
            kv_dtype.name()
        );
        if let Some(day) = rendering.now.filter(|_| template.asks_for_time()) {
            fingerprint += &format!(", date {}", day.iso_date());
        }
        if let Some(thinking) = rendering.enable_thinking {
            fingerprint += &format!(", thinking {thinking}");
        }
        for (name, value) in &rendering.extra {
            fingerprint += &format!(", {name} {value}");
        }
        if !dials.is_empty() {
            fingerprint += &format!(", {dials}");
        }
        // In the order in which they are added up, whoever named them in which.
        let mut adapters: Vec<_> = adapters.iter().map(|own| (&own.digest, own.scale)).collect();
        adapters.sort_by_key(|(digest, _)| *digest);
        for (digest, scale) in adapters {
            fingerprint += &format!(", adapter {digest} x {scale}");
        }
        fingerprint
    }

    fn context_size(&self) -> usize {
        self.settings.ctx_size
    }

    fn count_tokens(&self, prompt: &Prompt) -> Result<usize, GenerateError> {
        Ok(self.tokens(prompt)?.len())
    }

    fn generate(
        &mut self,
        requests: &[PromptRequest],
        finished: &mut dyn FnMut(usize, Completion) -> Result<(), Abort>,
    ) -> Result<(), GenerateError> {
        if requests.is_empty() {
            return Ok(());
        }
        let mut engine = match (self.engine.take(), self.start.take()) {
            (Some(engine), _) => engine,
            (None, Some(start)) => start().map_err(GenerateError::Failed)?,
            (None, None) => return Err(failed(NoEngine)),
        };
        let result = self.run(&mut engine, requests, finished);
        if result.is_err() {
            engine.cancel_all();
        }
        self.engine = Some(engine);
        result
    }
}

/// A second attempt after the engine did not start.
#[derive(Debug, thiserror::Error)]
#[error("the engine did not start before; its error was told then")]
struct NoEngine;

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
