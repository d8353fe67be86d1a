//! What the engine's thread does: take commands, step, tell.

use std::collections::HashMap;
use std::error::Error;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use engine_core::checkpoint::CheckpointError;
use engine_core::sampler::SamplingParams;
use engine_core::session::{Engine, Event, Refused, Request, SequenceError, SequenceId};
use engine_core::text::Tokenizer;
use tokio::sync::{mpsc, oneshot};

use crate::engine_thread::{Command, EngineThread, SequenceEvent, Start, Started};
use crate::error::ApiError;
use crate::vitals::{Phase, Vitals};

/// Why the engine's thread ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum EngineEnded {
    /// The model did not load.
    #[error("{0}")]
    Start(Box<dyn Error + Send + Sync>),
    /// Weights were lost while they were mapped.
    #[error(transparent)]
    Weights(#[from] CheckpointError),
    /// The first token did not come.
    #[error("the model is loaded, but gives no token: {0}")]
    Probe(String),
}

/// While blocks wait for the disk, an idle engine looks after them this often.
const SAVING_PAUSE: Duration = Duration::from_millis(20);

/// Whom to tell about a sequence.
enum Listener {
    Client { ticket: u64, events: mpsc::UnboundedSender<SequenceEvent> },
    Probe(oneshot::Sender<()>),
}

struct Driver<'t> {
    engine: Engine<'t>,
    listeners: HashMap<SequenceId, Listener>,
    tickets: HashMap<u64, SequenceId>,
    events: Vec<Event>,
}

impl EngineThread {
    /// Loads, then drives the engine until it is told to stop. The phase says where it is; whatever ends the thread, a panic
    /// included, enters [`Phase::Ended`].
    ///
    /// # Errors
    /// [`EngineEnded`], after which no request is answered any more.
    pub(crate) fn run(self, start: Start, tokenizer: &Tokenizer) -> Result<(), EngineEnded> {
        struct Ends<'a>(&'a Vitals);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.enter(Phase::Ended);
            }
        }
        let Self { commands, vitals } = self;
        let _ends = Ends(&vitals);
        let Started { engine, keep: _keep, read_bandwidth } = start(tokenizer).map_err(EngineEnded::Start)?;
        vitals.set_bandwidth(read_bandwidth);
        vitals.blocks.store(engine.free_blocks(), Relaxed);
        let mut driver = Driver { engine, listeners: HashMap::new(), tickets: HashMap::new(), events: Vec::new() };
        // Nobody is told that it is ready before a token came.
        let (sender, mut probed) = oneshot::channel();
        driver.probe(sender).map_err(|refused| EngineEnded::Probe(refused.to_string()))?;
        while !driver.engine.is_idle() {
            driver.step(&vitals)?;
        }
        probed.try_recv().map_err(|_| EngineEnded::Probe("its numbers are not finite".into()))?;
        vitals.enter(Phase::Ready);

        loop {
            // With nothing to do the thread sleeps in the channel.
            let mut next = if !driver.engine.is_idle() {
                commands.try_recv()
            } else if driver.engine.save_blocks() > 0 {
                // The disk takes no more for now; a command goes before it.
                commands.recv_timeout(SAVING_PAUSE).map_err(|error| match error {
                    RecvTimeoutError::Timeout => TryRecvError::Empty,
                    RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
                })
            } else {
                commands.recv().map_err(|_| TryRecvError::Disconnected)
            };
            loop {
                match next {
                    Ok(Command::Stop) | Err(TryRecvError::Disconnected) => {
                        driver.engine.cancel_all();
                        driver.engine.finish_saving();
                        return Ok(());
                    }
                    Ok(command) => driver.obey(command),
                    Err(TryRecvError::Empty) => break,
                }
                next = commands.try_recv();
            }
            driver.tell_sizes(&vitals);
            if !driver.engine.is_idle() {
                driver.step(&vitals)?;
            }
        }
    }
}

impl Driver<'_> {
    fn probe(&mut self, done: oneshot::Sender<()>) -> Result<(), Refused> {
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let id = self.engine.submit(Request { is_probe: true, ..Request::new(vec![0], 1, greedy) })?;
        self.listeners.insert(id, Listener::Probe(done));
        Ok(())
    }

    fn obey(&mut self, command: Command) {
        // Whoever asked and does not listen any more needs no answer.
        match command {
            Command::Submit { ticket, request, events } => match self.engine.submit(*request) {
                Ok(id) => {
                    self.listeners.insert(id, Listener::Client { ticket, events });
                    self.tickets.insert(ticket, id);
                }
                Err(refused) => _ = events.send(SequenceEvent::Failed(of_refused(&refused))),
            },
            Command::Cancel { ticket } => {
                if let Some(id) = self.tickets.remove(&ticket) {
                    self.listeners.remove(&id);
                    self.engine.cancel(id);
                }
            }
            // A probe that is refused gives no answer, which says enough.
            Command::Probe { done } => _ = self.probe(done),
            Command::LoadAdapter { name, path, done } => {
                _ = done.send(self.engine.load_adapter(&name, &path).map(|_| ()));
            }
            Command::UnloadAdapter { name, done } => _ = done.send(self.engine.unload_adapter(&name)),
            Command::Experts { done } => _ = done.send(self.engine.expert_counts().cloned().map(Box::new)),
            Command::Slots { done } => _ = done.send(self.engine.slots().collect()),
            Command::Stop => unreachable!("the loop ends with it"),
        }
    }

    fn step(&mut self, vitals: &Vitals) -> Result<(), CheckpointError> {
        let start = Instant::now();
        let stepped = self.engine.step(&mut self.events);
        if let Err(error) = stepped {
            // What they have is not sure to be right.
            for (_, listener) in self.listeners.drain() {
                if let Listener::Client { events, .. } = listener {
                    let _ = events.send(SequenceEvent::Failed(ApiError::engine(error.to_string())));
                }
            }
            return Err(error);
        }
        vitals.busy.fetch_add(self.engine.running() as u64, Relaxed);
        vitals.stepped(start.elapsed());
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            match event {
                Event::Prefill { id, done, total } => self.tell(id, SequenceEvent::Prefill { done, total }),
                Event::Token { id, text, logprobs, .. } => self.tell(id, SequenceEvent::Token { text, logprobs }),
                Event::Embedded { id, values, .. } => self.end(id, SequenceEvent::Embedded(values)),
                Event::Finished { id, completion } => {
                    vitals.cached_tokens.fetch_add(completion.cached_tokens, Relaxed);
                    self.end(id, SequenceEvent::Finished(Box::new(completion)));
                }
                Event::Failed { id, error } => self.end(id, SequenceEvent::Failed(of_failed(&error))),
            }
        }
        self.events = events;
        self.tell_sizes(vitals);
        Ok(())
    }

    fn tell_sizes(&self, vitals: &Vitals) {
        let totals = self.engine.totals();
        vitals.prefill_tokens.store(totals.prefill_tokens, Relaxed);
        vitals.generated_tokens.store(totals.generated_tokens, Relaxed);
        vitals.step_micros.store(u64::try_from(totals.time.as_micros()).unwrap_or(u64::MAX), Relaxed);
        vitals.bytes_read.store(totals.bytes as u64, Relaxed);
        vitals.free_blocks.store(self.engine.free_blocks(), Relaxed);
        vitals.running.store(self.engine.running(), Relaxed);
        vitals.waiting.store(self.engine.waiting(), Relaxed);
    }

    /// An event for a client; if it is gone, its sequence ends.
    fn tell(&mut self, id: SequenceId, event: SequenceEvent) {
        let Some(Listener::Client { ticket, events }) = self.listeners.get(&id) else { return };
        if events.send(event).is_err() {
            self.tickets.remove(ticket);
            self.listeners.remove(&id);
            self.engine.cancel(id);
        }
    }

    fn end(&mut self, id: SequenceId, event: SequenceEvent) {
        match self.listeners.remove(&id) {
            Some(Listener::Client { ticket, events }) => {
                self.tickets.remove(&ticket);
                let _ = events.send(event);
            }
            Some(Listener::Probe(done)) if matches!(event, SequenceEvent::Finished(_)) => _ = done.send(()),
            Some(Listener::Probe(_)) | None => {}
        }
    }
}

/// What a request's grammar makes too much to follow is the request's affair; broken numbers are not.
fn of_failed(error: &SequenceError) -> ApiError {
    match error {
        SequenceError::Constraint(_) => ApiError::field("response_format", error.to_string()),
        SequenceError::Sample(_) | SequenceError::Text(_) | SequenceError::NonFiniteEmbedding { .. } => {
            ApiError::engine(error.to_string())
        }
    }
}

/// The server checks what it can before it sends a request; the engine has the last word.
fn of_refused(refused: &Refused) -> ApiError {
    match refused {
        Refused::Context { prompt, max_tokens, ctx_size } => {
            ApiError::context(*prompt, *max_tokens, *ctx_size, "messages")
        }
        Refused::Experts { .. } => ApiError::field("experts_per_token", refused.to_string()),
        Refused::Sampling(error) => ApiError::field(error.field, error.to_string()),
        Refused::Stop(_) => ApiError::field("stop", refused.to_string()),
        Refused::NoAdapter { .. } | Refused::Adapters(_) => ApiError::field("lora", refused.to_string()),
        Refused::BiasedToken { .. } => ApiError::field("logit_bias", refused.to_string()),
        Refused::Logprobs { .. } => ApiError::field("logprobs", refused.to_string()),
        Refused::NoRouter | Refused::RouterOfNothing | Refused::RouterBytes { .. } => {
            ApiError::field("return_router", refused.to_string())
        }
        Refused::ForeignConstraint => ApiError::field("response_format", refused.to_string()),
        Refused::NotForEmbedding { field } => ApiError::field(*field, refused.to_string()),
        Refused::EmptyPrompt | Refused::Token { .. } => ApiError::field("prompt", refused.to_string()),
    }
}
