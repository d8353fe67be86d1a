//! The engine: a model, its cache and workspace, and the sequences that share them.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use numa::{Pinning, Pool};
use simd::Dtype;

use super::embedding::Pool as EmbeddingPool;
use super::event::{Event, Output, Priority, Refused, Request, SequenceId, Slot};
use super::prefix;
use super::routing::{ROUTING_BYTES_MAX, Routing};
use super::sequence::{After, Drawn, Sequence};
use super::timing::Totals;
use super::watch::Watch;
use crate::adapter::{Adapter, AdapterError, AdapterFolder, AdapterSet};
use crate::checkpoint::CheckpointError;
use crate::expert_counts::ExpertCounts;
use crate::homes::NodePages;
use crate::kv_cache::disk::DiskCache;
use crate::kv_cache::prefix::{ChainHash, Prefixes};
use crate::kv_cache::{BlockId, KvCache, KvShape, blocks_for};
use crate::model::{AdapterRoom, Batch, Model, Row, Workspace};
use crate::sampler::{Sampler, TOP_LOGPROBS_MAX};
use crate::text::{Detokenizer, StopStrings, Tokenizer};

/// Sizes of an engine; with them every byte that it will ever take is known.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Workers.
    pub threads: NonZeroUsize,
    /// Type of keys and values in the cache.
    pub kv_dtype: Dtype,
    /// Positions that a sequence may have.
    pub ctx_size: usize,
    /// Sequences that run side by side.
    pub width: usize,
    /// Rows of prompts that a step takes.
    pub ubatch_size: usize,
    /// Sequences that begin alike share what was computed of their beginnings. Takes no memory of its own, and changes no
    /// bit.
    pub prefix_cache: bool,
}

/// Name of all that an engine computes, among workloads.
const WORKLOAD: &str = "served";

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The workers did not start.
    #[error("cannot start {threads} workers: {source}")]
    Workers {
        /// Workers asked for.
        threads: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The cache did not get its memory.
    #[error("cannot get {bytes} bytes for keys and values: {source}; lower `--ctx-size`")]
    KvCache {
        /// Bytes asked for.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
}

/// A model and its sequences.
pub struct Engine<'t> {
    pub(super) model: Model,
    pub(super) tokenizer: &'t Tokenizer,
    pub(super) eos: Vec<u32>,
    pub(super) options: EngineOptions,
    pub(super) kv: KvCache,
    pub(super) prefixes: Prefixes,
    pub(super) disk: Option<DiskCache>,
    /// Named blocks that are not on disk yet.
    pub(super) unsaved: VecDeque<(ChainHash, BlockId)>,
    /// How it computes, at the root of all names.
    pub(super) described: String,
    pub(super) space: Workspace,
    /// Those that go first, then the others, each in the order in which they came.
    pub(super) waiting: VecDeque<Sequence<'t>>,
    pub(super) running: Vec<Sequence<'t>>,
    /// Block tables of the running sequences, in their order.
    pub(super) tables: Vec<Vec<BlockId>>,
    /// Adapters of the running sequences, in their order.
    pub(super) chosen: Vec<AdapterSet>,
    /// Loaded adapters, by name.
    pub(super) adapters: BTreeMap<String, Arc<Adapter>>,
    pub(super) next_id: u64,
    pub(super) rows: Vec<Row>,
    pub(super) wanted: Vec<usize>,
    /// Rows that the step under way takes of each running sequence.
    pub(super) taken: Vec<usize>,
    pub(super) totals: Totals,
    /// Of a model with experts.
    pub(super) counts: Option<ExpertCounts>,
}

impl<'t> Engine<'t> {
    /// Starts workers and takes all memory that steps will need. `eos` are the tokens that end a sequence.
    ///
    /// # Errors
    /// [`EngineError`] if threads or memory are not to be had.
    pub fn new(
        model: Model,
        tokenizer: &'t Tokenizer,
        eos: Vec<u32>,
        options: EngineOptions,
    ) -> Result<Self, EngineError> {
        let pool = Pool::new(options.threads, Pinning::Pinned)
            .map_err(|source| EngineError::Workers { threads: options.threads.get(), source })?;
        Self::with_pool(model, pool, tokenizer, eos, options)
    }

    /// As [`Engine::new`], with workers that are there already: those whose nodes are the homes of the model.
    ///
    /// # Errors
    /// [`EngineError::KvCache`] if memory is not to be had.
    ///
    /// # Panics
    /// If the pool has another number of nodes than the model has homes.
    pub fn with_pool(
        model: Model,
        mut pool: Pool,
        tokenizer: &'t Tokenizer,
        eos: Vec<u32>,
        options: EngineOptions,
    ) -> Result<Self, EngineError> {
        let shape = KvShape::new(model.config(), options.kv_dtype, options.width * blocks_for(options.ctx_size));
        let kv = KvCache::on_nodes(shape, model.homes(), &mut pool)
            .map_err(|source| EngineError::KvCache { bytes: shape.bytes(), source })?;
        let space = Workspace::new(&model, pool, options.ubatch_size + options.width, options.width);
        Ok(Self {
            described: prefix::describe(&model, options.kv_dtype, ""),
            counts: ExpertCounts::new(model.config(), String::new(), String::new(), WORKLOAD).ok(),
            model,
            tokenizer,
            eos,
            options,
            kv,
            prefixes: Prefixes::new(shape.blocks),
            disk: None,
            unsaved: VecDeque::new(),
            space,
            waiting: VecDeque::new(),
            running: Vec::with_capacity(options.width),
            tables: Vec::with_capacity(options.width),
            chosen: Vec::with_capacity(options.width),
            adapters: BTreeMap::new(),
            next_id: 0,
            rows: Vec::with_capacity(options.ubatch_size + options.width),
            wanted: Vec::with_capacity(options.width),
            taken: Vec::with_capacity(options.width),
            totals: Totals::default(),
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tokenizer that text goes through.
    pub fn tokenizer(&self) -> &'t Tokenizer {
        self.tokenizer
    }

    /// Its sizes.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Whether any sequence waits or runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Sequences that wait for room.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sequences that have room.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// The sequences that run, then those that wait, each in the order in which they will be served.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        let running = self.running.iter().map(Sequence::running_slot);
        running.chain(self.waiting.iter().map(Sequence::waiting_slot))
    }

    /// Blocks of keys and values that no sequence owns: empty ones, and those of the prefix cache, which may be given up.
    pub fn free_blocks(&self) -> usize {
        self.kv.free_blocks() + self.prefixes.unowned()
    }

    /// What was done since the start.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// How often each expert was chosen since the start, by tokens that were computed, for requests to the model as it is:
    /// what goes through adapters, or through more or fewer experts than others, is not counted, nor are probes. `None` of a
    /// model without experts. Its model's digest and settings are empty: an engine does not know them.
    pub fn expert_counts(&self) -> Option<&ExpertCounts> {
        self.counts.as_ref()
    }

    /// Where the pages of keys and values are, of those that are bound to nodes.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn kv_placement(&self) -> io::Result<Vec<NodePages>> {
        self.kv.placement()
    }

    /// The workers and the weights, for measuring between steps.
    pub fn pool_and_weights(&mut self) -> (&mut Pool, &[u8]) {
        (self.space.pool(), self.model.weight_bytes())
    }

    /// Loads the adapter in the folder `path`, from now on known as `name`, and makes room for it in every later step. May
    /// be called between any two steps; what runs goes on as it was.
    ///
    /// # Errors
    /// [`AdapterError`] if the name is taken, or with what is wrong with the folder.
    pub fn load_adapter(&mut self, name: &str, path: &Path) -> Result<&Adapter, AdapterError> {
        self.load_adapter_folder(name, &AdapterFolder::open(path, self.model.config())?)
    }

    /// As [`Engine::load_adapter`], of a folder that was opened for this model already.
    ///
    /// # Errors
    /// As [`Engine::load_adapter`].
    pub fn load_adapter_folder(&mut self, name: &str, folder: &AdapterFolder) -> Result<&Adapter, AdapterError> {
        if self.adapters.contains_key(name) {
            return Err(AdapterError::NameTaken { name: name.into() });
        }
        let adapter = Arc::new(Adapter::load(name, folder, self.model.options().isa)?);
        self.space.make_room(AdapterRoom { adapters: self.adapters.len() + 1, rank: adapter.rank() });
        Ok(self.adapters.entry(name.into()).or_insert(adapter))
    }

    /// Gives the memory of an adapter back; the room for it in steps stays, for the next one.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`], or [`AdapterError::InUse`] while a sequence that chose it waits or runs: what such a
    /// sequence is does not change on its way.
    pub fn unload_adapter(&mut self, name: &str) -> Result<(), AdapterError> {
        let Some(adapter) = self.adapters.get(name) else {
            return Err(AdapterError::Unknown { name: name.into(), loaded: self.adapter_names() });
        };
        let waiting = self.waiting.iter().map(|sequence| &sequence.adapters);
        match waiting.chain(&self.chosen).filter(|set| set.iter().any(|(own, _)| std::ptr::eq(own, &**adapter))).count()
        {
            0 => self.adapters.remove(name),
            sequences => return Err(AdapterError::InUse { name: name.into(), sequences }),
        };
        Ok(())
    }

    /// The loaded adapters, by name.
    pub fn adapters(&self) -> impl Iterator<Item = &Adapter> {
        self.adapters.values().map(|adapter| &**adapter)
    }

    fn adapter_names(&self) -> String {
        match self.adapters.is_empty() {
            true => "none".into(),
            false => self.adapters.keys().cloned().collect::<Vec<_>>().join(", "),
        }
    }

    /// Takes a request; its sequence runs as soon as there is room.
    ///
    /// # Errors
    /// [`Refused`] with the number that would fit. A request that is taken is never cut short for lack of room.
    pub fn submit(&mut self, mut request: Request) -> Result<SequenceId, Refused> {
        let vocab_size = self.model.config().vocab_size;
        let pool = match request.output {
            Output::Text => None,
            Output::Embedding(pooling) => {
                request.refuse_what_embeddings_have_not()?;
                request.max_tokens = 0;
                Some(EmbeddingPool::new(pooling, request.tokens.len(), self.model.config().hidden_size))
            }
        };
        if request.tokens.is_empty() {
            return Err(Refused::EmptyPrompt);
        }
        if let Some(position) = request.tokens.iter().position(|token| *token as usize >= vocab_size) {
            return Err(Refused::Token { token: request.tokens[position], position, vocab_size });
        }
        let (prompt, max_tokens, ctx_size) = (request.tokens.len(), request.max_tokens, self.options.ctx_size);
        if prompt.checked_add(max_tokens).is_none_or(|all| all > ctx_size) {
            return Err(Refused::Context { prompt, max_tokens, ctx_size });
        }
        if let Some(asked) = request.experts_per_token.map(NonZeroUsize::get) {
            let sparse = self.model.config().sparse_layers();
            let most = sparse.map(|(_, sparse)| sparse.most_experts_per_tok).min().unwrap_or(0);
            if asked > most {
                return Err(Refused::Experts { asked, most });
            }
        }
        let routing = match request.return_router {
            true => Some(self.routing(&request)?),
            false => None,
        };
        let id = SequenceId(self.next_id);
        let drawable = self.tokenizer.vocab_size().min(vocab_size);
        if let Some((token, _)) = request.logit_bias.iter().find(|(token, _)| *token as usize >= drawable) {
            return Err(Refused::BiasedToken { token: *token, vocab_size: drawable });
        }
        if let Some(asked) = request.logprobs.filter(|asked| *asked > TOP_LOGPROBS_MAX) {
            return Err(Refused::Logprobs { asked, most: TOP_LOGPROBS_MAX });
        }
        if request.constraint.as_ref().is_some_and(|constraint| !constraint.is_for(self.tokenizer, &self.eos)) {
            return Err(Refused::ForeignConstraint);
        }
        let sampler = Sampler::with_bias(request.sampling, request.logit_bias.clone(), drawable)?
            .reserving(request.constraint.is_some(), request.logprobs.unwrap_or(0));
        let stop = StopStrings::new(request.stop.clone())?;
        let detokenizer = Detokenizer::showing(self.tokenizer, request.shown_tokens.clone());
        let chosen = request.adapters.iter().map(|(name, scale)| match self.adapters.get(name) {
            Some(adapter) => Ok((Arc::clone(adapter), *scale)),
            None => Err(Refused::NoAdapter { name: name.clone(), loaded: self.adapter_names() }),
        });
        let adapters = AdapterSet::new(chosen.collect::<Result<_, _>>()?)?;
        self.next_id += 1;
        let is_counted = !request.is_probe && adapters.is_empty() && self.is_own_number(request.experts_per_token);
        let mut sequence = Sequence::new(id, request, pool, adapters, sampler, detokenizer, stop);
        (sequence.routing, sequence.is_counted) = (routing, is_counted);
        self.enqueue(sequence);
        Ok(id)
    }

    /// Room for what the routers of a request's tokens choose.
    fn routing(&self, request: &Request) -> Result<Routing, Refused> {
        let positions = request.tokens.len() + request.max_tokens.saturating_sub(1);
        let routing = Routing::new(self.model.config(), request.experts_per_token, positions);
        let routing = routing.ok_or(Refused::NoRouter)?;
        match routing.bytes_max() {
            _ if request.max_tokens == 0 => Err(Refused::RouterOfNothing),
            0..=ROUTING_BYTES_MAX => Ok(routing),
            bytes => Err(Refused::RouterBytes { bytes }),
        }
    }

    /// Whether a request for so many experts gets what all get.
    fn is_own_number(&self, asked: Option<NonZeroUsize>) -> bool {
        let mut sparse = self.model.config().sparse_layers();
        asked.is_none_or(|asked| sparse.all(|(_, sparse)| sparse.num_experts_per_tok == asked.get()))
    }

    /// Computes one step and appends what it brought to `events`.
    ///
    /// # Errors
    /// [`CheckpointError::Broken`] if weights were lost while they were mapped: nothing that this step computed is told,
    /// and every later step ends in the same way.
    pub fn step(&mut self, events: &mut Vec<Event>) -> Result<(), CheckpointError> {
        self.admit(events);
        self.take_cached();
        self.choose_rows();
        if !self.rows.is_empty() {
            self.compute()?;
        }
        events.extend(self.running.iter_mut().filter_map(Sequence::progress));
        self.draw(events);
        self.save_blocks();
        Ok(())
    }

    /// Computes the rows of this step.
    fn compute(&mut self) -> Result<(), CheckpointError> {
        let batch = Batch { rows: &self.rows, tables: &self.tables, logits: &self.wanted, adapters: &self.chosen };
        let start = Instant::now();
        let (running, counts) = (&mut self.running[..], self.counts.as_mut());
        let mut watch = Watch { model: &self.model, batch: &batch, running, counts };
        self.model.forward(&batch, &mut self.kv, &mut self.space, &mut watch);
        let time = start.elapsed();
        self.model.check_intact()?;

        let bytes = self.space.bytes_read();
        self.totals.steps += 1;
        self.totals.sequences += self.running.len();
        self.totals.time += time;
        self.totals.bytes += bytes;
        for (sequence, rows) in self.running.iter_mut().zip(&self.taken).filter(|(_, rows)| **rows > 0) {
            sequence.count(*rows, time, bytes, &mut self.totals);
        }
        Ok(())
    }

    /// One row of every sequence that decodes, and rows of prompts up to the chunk's size: of those that go first, then of
    /// the others, oldest first.
    fn choose_rows(&mut self) {
        self.rows.clear();
        self.wanted.clear();
        self.taken.clear();
        self.taken.extend(self.running.iter().map(|sequence| usize::from(sequence.decodes())));
        let mut room = self.options.ubatch_size;
        for priority in [Priority::Interactive, Priority::Background] {
            let prompts = self.running.iter().zip(&mut self.taken);
            for (sequence, taken) in prompts.filter(|(own, _)| own.priority == priority && own.prefills()) {
                *taken = sequence.pending().min(room);
                room -= *taken;
            }
        }
        for (index, (sequence, rows)) in self.running.iter().zip(&self.taken).enumerate() {
            let positions = sequence.computed..sequence.computed + rows;
            self.rows.extend(positions.map(|position| Row {
                token: sequence.tokens[position],
                position,
                sequence: index,
                experts_per_token: sequence.experts_per_token,
            }));
            if *rows > 0 && *rows == sequence.pending() && sequence.pool.is_none() {
                self.wanted.push(self.rows.len() - 1);
            }
        }
    }

    /// Draws a token for every sequence whose last token was computed; those that end give their blocks back.
    fn draw(&mut self, events: &mut Vec<Event>) {
        let vocab_size = self.model.config().vocab_size;
        let (mut index, mut wanted) = (0, 0);
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            if sequence.pending() > 0 {
                index += 1;
                continue;
            }
            if let Some(pool) = &sequence.pool {
                events.push(pool.event(sequence.id));
                self.remove(index);
                continue;
            }
            // The logits of every sequence without pending tokens were wanted, in this order.
            let logits = &self.space.logits()[wanted * vocab_size..][..vocab_size];
            wanted += 1;
            let id = sequence.id;
            let drawn = sequence.draw(logits, &self.eos);
            // Logits that no token came of are counted as read bytes, but not as a token.
            self.totals.generated_tokens += usize::from(drawn.is_ok());
            match drawn {
                Ok(Drawn { token, text, logprobs, after: After::GoesOn }) => {
                    events.push(Event::Token { id, token, text, logprobs });
                    self.publish(index);
                    index += 1;
                }
                Ok(Drawn { token, text, logprobs, after: After::Ended(reason) }) => {
                    events.push(Event::Token { id, token, text, logprobs });
                    self.publish(index);
                    events.push(self.remove(index).finished(reason));
                }
                Err(error) => {
                    self.remove(index);
                    events.push(Event::Failed { id, error });
                }
            }
        }
    }
}
