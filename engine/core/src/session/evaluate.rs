//! Logits of every position of given tokens: what `logits` prints, and what perplexity and conformance are made of.

use std::io;
use std::ops::Range;

use numa::Pool;
use simd::Dtype;

use crate::adapter::AdapterSet;
use crate::checkpoint::CheckpointError;
use crate::homes::NodePages;
use crate::kv_cache::{BlockId, KvCache, KvShape, blocks_for};
use crate::model::{AdapterRoom, Batch, Model, Observer, Row, Workspace};

/// One sequence of tokens that are known, fed chunk by chunk; then, after [`restart`](Evaluator::restart), another.
pub struct Evaluator<'m> {
    model: &'m Model,
    kv: KvCache,
    /// Block table of the one sequence.
    tables: [Vec<BlockId>; 1],
    adapters: [AdapterSet; 1],
    space: Workspace,
    ctx_size: usize,
    chunk: usize,
    position: usize,
}

impl<'m> Evaluator<'m> {
    /// Room for `ctx_size` tokens, `chunk` of them a step.
    ///
    /// # Errors
    /// If the system does not give the memory of the cache.
    ///
    /// # Panics
    /// If `chunk` is 0, or the pool has another number of nodes than the model has homes.
    pub fn new(model: &'m Model, mut pool: Pool, kv_dtype: Dtype, ctx_size: usize, chunk: usize) -> io::Result<Self> {
        assert!(chunk > 0, "a step of no rows");
        let shape = KvShape::new(model.config(), kv_dtype, blocks_for(ctx_size));
        let mut kv = KvCache::on_nodes(shape, model.homes(), &mut pool)?;
        let tables = [kv.take(shape.blocks).expect("a new cache has all of its blocks")];
        let space = Workspace::new(model, pool, chunk, chunk);
        Ok(Self { model, kv, tables, adapters: [AdapterSet::default()], space, ctx_size, chunk, position: 0 })
    }

    /// Feeds tokens through `adapters` from now on. They are of the model that this one evaluates.
    pub fn choose_adapters(&mut self, adapters: AdapterSet) {
        let rank = adapters.iter().map(|(adapter, _)| adapter.rank()).max().unwrap_or(0);
        self.space.make_room(AdapterRoom { adapters: adapters.iter().count(), rank });
        self.adapters = [adapters];
    }

    /// Forgets the tokens that were fed: the next one is the first of another sequence, in the same memory.
    pub fn restart(&mut self) {
        self.position = 0;
    }

    /// Forgets the tokens from `position` on: what is fed next comes there, in place of them, and has the bits that it
    /// would have if they had never been. So many questions share one reading of the text before them.
    ///
    /// # Panics
    /// If so many tokens were never fed.
    pub fn rewind(&mut self, position: usize) {
        assert!(position <= self.position, "{position} is beyond the {} tokens that were fed", self.position);
        self.position = position;
    }

    /// Where the pages of keys and values are, of those that are bound to nodes.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn kv_placement(&self) -> io::Result<Vec<NodePages>> {
        self.kv.placement()
    }

    /// Computes `tokens` after those fed before; `each` gets every position and its logits `[vocab_size]`.
    ///
    /// # Errors
    /// What `each` returns ends the feeding, and so does [`CheckpointError::Broken`]: logits that were computed with
    /// weights that were lost while they were mapped are not given to `each`.
    ///
    /// # Panics
    /// If there are more tokens than room, or one is not in the vocabulary.
    pub fn feed<E: From<CheckpointError>>(
        &mut self,
        tokens: &[u32],
        observer: &mut dyn Observer,
        each: impl FnMut(usize, &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.feed_from(tokens, self.position, observer, each)
    }

    /// Like [`feed`](Self::feed), but `each` gets the positions from `first` on alone. Those before are context, and cost no
    /// product with the output matrix.
    ///
    /// # Errors
    /// Those of [`feed`](Self::feed).
    ///
    /// # Panics
    /// Where [`feed`](Self::feed) does.
    pub fn feed_from<E: From<CheckpointError>>(
        &mut self,
        tokens: &[u32],
        first: usize,
        observer: &mut dyn Observer,
        mut each: impl FnMut(usize, &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let vocab_size = self.model.config().vocab_size;
        self.chunks_from(tokens, first, observer, |positions, space| {
            positions.zip(space.logits().chunks_exact(vocab_size)).try_for_each(|(at, logits)| each(at, logits))
        })
    }

    /// Like [`feed_from`](Self::feed_from), but `each` gets what `row` makes of a position and its logits. The workers share
    /// that, which beside a small model is no small part of the work.
    ///
    /// # Errors
    /// Those of [`feed`](Self::feed).
    ///
    /// # Panics
    /// Where [`feed`](Self::feed) does.
    pub fn map_from<T: Send, E: From<CheckpointError>>(
        &mut self,
        tokens: &[u32],
        first: usize,
        row: impl Fn(usize, &[f32]) -> T + Sync,
        mut each: impl FnMut(usize, T) -> Result<(), E>,
    ) -> Result<(), E> {
        self.chunks_from(tokens, first, &mut (), |positions, space| {
            let made = space.map_logits(positions.len(), |index, logits| row(positions.start + index, logits));
            positions.zip(made).try_for_each(|(at, made)| each(at, made))
        })
    }

    /// Computes `tokens` chunk by chunk; after each `each` gets the positions whose logits are in the workspace.
    fn chunks_from<E: From<CheckpointError>>(
        &mut self,
        tokens: &[u32],
        first: usize,
        observer: &mut dyn Observer,
        mut each: impl FnMut(Range<usize>, &mut Workspace) -> Result<(), E>,
    ) -> Result<(), E> {
        assert!(self.position + tokens.len() <= self.ctx_size, "{} tokens beyond the context", tokens.len());
        let wanted: Vec<usize> = (0..self.chunk).collect();
        for chunk in tokens.chunks(self.chunk) {
            let start = self.position;
            let context = first.saturating_sub(start).min(chunk.len());
            self.step(chunk, &wanted[context..chunk.len()], observer)?;
            each(start + context..start + chunk.len(), &mut self.space)?;
        }
        Ok(())
    }

    /// Computes `tokens` after those fed before, for what an observer sees: without logits.
    ///
    /// # Errors
    /// [`CheckpointError::Broken`], as [`feed`](Self::feed).
    ///
    /// # Panics
    /// If there are more tokens than room, or one is not in the vocabulary.
    pub fn observe(&mut self, tokens: &[u32], observer: &mut dyn Observer) -> Result<(), CheckpointError> {
        assert!(self.position + tokens.len() <= self.ctx_size, "{} tokens beyond the context", tokens.len());
        tokens.chunks(self.chunk).try_for_each(|chunk| self.step(chunk, &[], observer))
    }

    fn step(&mut self, chunk: &[u32], logits: &[usize], observer: &mut dyn Observer) -> Result<(), CheckpointError> {
        let row = |(index, token): (usize, &u32)| Row {
            token: *token,
            position: self.position + index,
            sequence: 0,
            experts_per_token: None,
        };
        let rows: Vec<Row> = chunk.iter().enumerate().map(row).collect();
        let batch = Batch { rows: &rows, tables: &self.tables, logits, adapters: &self.adapters };
        self.model.forward(&batch, &mut self.kv, &mut self.space, observer);
        self.model.check_intact()?;
        self.position += rows.len();
        Ok(())
    }
}
