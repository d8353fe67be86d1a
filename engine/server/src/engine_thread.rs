//! The engine on a thread of its own, and the way to it.
//!
//! One thread owns all that a step changes. Commands come in over a channel, and between two steps all of them are taken;
//! with nothing to do the thread sleeps in it. Events of a sequence go out over a channel of its own, which never makes the
//! engine wait: there are as many as the request may have tokens, so the request's context bounds it, and clients that
//! read slowly keep no one else from their tokens.
//!
//! A sequence whose client is gone is cancelled by dropping its [`Running`]: wherever it is, the next time the engine takes
//! commands its blocks are back.

use std::any::Any;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc;

use engine_core::adapter::AdapterError;
use engine_core::expert_counts::ExpertCounts;
use engine_core::sampler::TokenLogprobs;
use engine_core::session::{Completion, Engine, Request, Slot};
use engine_core::text::Tokenizer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc as async_mpsc, oneshot};

use crate::error::ApiError;
use crate::vitals::{Phase, Vitals};

/// An engine that was started, and what has to live as long as it is driven.
pub struct Started<'t> {
    /// The engine.
    pub engine: Engine<'t>,
    /// Dropped after the engine (the pin of its thread).
    pub keep: Box<dyn Any>,
    /// How fast this machine reads weights with the engine's workers, bytes a second.
    pub read_bandwidth: f64,
}

/// Loads the model and starts the engine around this tokenizer, on the thread that will drive it.
pub type Start = Box<dyn for<'t> FnOnce(&'t Tokenizer) -> Result<Started<'t>, Box<dyn Error + Send + Sync>> + Send>;

/// What became of a sequence.
#[derive(Debug)]
pub(crate) enum SequenceEvent {
    Prefill { done: usize, total: usize },
    Token { text: String, logprobs: Option<Box<TokenLogprobs>> },
    Embedded(Vec<f32>),
    Finished(Box<Completion>),
    Failed(ApiError),
}

pub(crate) enum Command {
    Submit {
        ticket: u64,
        request: Box<Request>,
        events: async_mpsc::UnboundedSender<SequenceEvent>,
    },
    Cancel {
        ticket: u64,
    },
    /// One token, to see that one comes.
    Probe {
        done: oneshot::Sender<()>,
    },
    LoadAdapter {
        name: String,
        path: PathBuf,
        done: oneshot::Sender<Result<(), AdapterError>>,
    },
    UnloadAdapter {
        name: String,
        done: oneshot::Sender<Result<(), AdapterError>>,
    },
    Experts {
        done: oneshot::Sender<Option<Box<ExpertCounts>>>,
    },
    Slots {
        done: oneshot::Sender<Vec<Slot>>,
    },
    Stop,
}

/// The way to the engine.
#[derive(Clone)]
pub(crate) struct EngineHandle {
    commands: mpsc::Sender<Command>,
    pub(crate) vitals: Arc<Vitals>,
    admissions: Arc<Semaphore>,
    admissions_max: usize,
    tickets: Arc<AtomicU64>,
}

/// The engine's end of it.
pub(crate) struct EngineThread {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) vitals: Arc<Vitals>,
}

/// The two ends, for an engine of `width` beside which `queue` sequences may wait.
pub(crate) fn channel(width: usize, queue: usize) -> (EngineHandle, EngineThread) {
    let (sender, receiver) = mpsc::channel();
    let vitals = Arc::new(Vitals::default());
    let admissions_max = (width + queue).min(Semaphore::MAX_PERMITS);
    let handle = EngineHandle {
        commands: sender,
        vitals: Arc::clone(&vitals),
        admissions: Arc::new(Semaphore::new(admissions_max)),
        admissions_max,
        tickets: Arc::default(),
    };
    (handle, EngineThread { commands: receiver, vitals })
}

/// Sequences of one request. Dropped, they are cancelled.
pub(crate) struct Running {
    sequences: Vec<Sequence>,
    engine: EngineHandle,
    next: usize,
    _admission: OwnedSemaphorePermit,
}

struct Sequence {
    ticket: u64,
    events: async_mpsc::UnboundedReceiver<SequenceEvent>,
    ended: bool,
}

impl EngineHandle {
    /// Whether requests can be taken, and if not, why.
    pub(crate) fn check_ready(&self) -> Result<(), ApiError> {
        match self.vitals.phase() {
            Phase::Loading => Err(ApiError::loading()),
            Phase::Ready => Ok(()),
            Phase::Ended => Err(ApiError::unavailable("the server is ending")),
        }
    }

    /// Room for so many sequences, or a 429.
    pub(crate) fn admit(&self, sequences: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        self.check_ready()?;
        if sequences > self.admissions_max {
            let why = format!("{sequences} sequences in one request; at most {} run or wait", self.admissions_max);
            return Err(ApiError::bad_request(why));
        }
        let permits = u32::try_from(sequences).map_err(|_| ApiError::overloaded(self.admissions_max))?;
        let free = Arc::clone(&self.admissions).try_acquire_many_owned(permits);
        free.map_err(|_| ApiError::overloaded(self.admissions_max - self.admissions.available_permits()))
    }

    /// Sends requests off. Their answers come from [`Running::next`].
    pub(crate) fn submit(&self, requests: Vec<Request>, admission: OwnedSemaphorePermit) -> Result<Running, ApiError> {
        let mut running = Running { sequences: Vec::new(), engine: self.clone(), next: 0, _admission: admission };
        for request in requests {
            let ticket = self.tickets.fetch_add(1, Relaxed);
            let (sender, events) = async_mpsc::unbounded_channel();
            running.sequences.push(Sequence { ticket, events, ended: false });
            self.send(Command::Submit { ticket, request: Box::new(request), events: sender })?;
        }
        Ok(running)
    }

    /// Sends a command.
    pub(crate) fn send(&self, command: Command) -> Result<(), ApiError> {
        self.commands.send(command).map_err(|_| ApiError::unavailable("the engine has ended"))
    }

    /// Sends a command and waits for its answer.
    pub(crate) async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, ApiError> {
        let (sender, receiver) = oneshot::channel();
        self.send(command(sender))?;
        receiver.await.map_err(|_| ApiError::unavailable("the engine has ended"))
    }
}

impl Running {
    /// The next event of any of the sequences, with its number; `None` when all have ended. Nothing is lost where the
    /// future is dropped.
    pub(crate) async fn next(&mut self) -> Option<(usize, SequenceEvent)> {
        if self.sequences.iter().all(|sequence| sequence.ended) {
            return None;
        }
        std::future::poll_fn(|context| {
            let count = self.sequences.len();
            for turn in 0..count {
                // In turn, so that no choice waits for another.
                let index = (self.next + turn) % count;
                let sequence = &mut self.sequences[index];
                if sequence.ended {
                    continue;
                }
                if let std::task::Poll::Ready(event) = sequence.events.poll_recv(context) {
                    self.next = index + 1;
                    let event =
                        event.unwrap_or_else(|| SequenceEvent::Failed(ApiError::unavailable("the engine has ended")));
                    sequence.ended = !matches!(event, SequenceEvent::Prefill { .. } | SequenceEvent::Token { .. });
                    return std::task::Poll::Ready(Some((index, event)));
                }
            }
            std::task::Poll::Pending
        })
        .await
    }

    /// Ends one of the sequences.
    pub(crate) fn cancel(&mut self, index: usize) {
        let sequence = &mut self.sequences[index];
        if !sequence.ended {
            sequence.ended = true;
            // Without an engine there is nothing to cancel.
            let _ = self.engine.commands.send(Command::Cancel { ticket: sequence.ticket });
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        (0..self.sequences.len()).for_each(|index| self.cancel(index));
    }
}
