//! Sequences that begin alike share the blocks of their beginnings, in memory and, if asked, over runs on disk.
//!
//! A sequence's table begins with blocks that have a name and may be shared; nobody writes to them any more. Behind them
//! are its own. Its full blocks get their names when a token was drawn from what they led to, so after a step that was
//! found intact, and only if their numbers are finite: what went wrong in one sequence stays there. The bits of a row do not
//! depend on how the tokens before it were fed, so a block that was taken is the block that would have been computed.

use std::path::Path;

use simd::Dtype;
use simd::attention::KV_BLOCK;

use super::engine::Engine;
use super::sequence::Sequence;
use crate::NUMERICS;
use crate::kv_cache::disk::{DiskCache, DiskCacheError, DiskUse};
use crate::kv_cache::prefix::{ChainHash, Prefixes};
use crate::kv_cache::{BlockId, KvCache, KvShape};
use crate::model::Model;

/// Bytes that a step reads from disk at most, one block at least: those that run beside are not to wait for long.
const STEP_BYTES: usize = 64 << 20;

/// What stands at the root of all names: how an engine computes.
pub(super) fn describe(model: &Model, kv_dtype: Dtype, digest: &str) -> String {
    let options = model.options();
    let how = format!("isa {}, activations {}, kv {}", options.isa, options.activations, kv_dtype.name());
    format!("numerics {NUMERICS}, model {digest}, {how}, {:?}", model.config())
}

/// The name that a sequence's first block stands behind.
pub(super) fn root(described: &str, sequence: &Sequence) -> ChainHash {
    let mut all = described.to_owned();
    for (adapter, scale) in sequence.adapters.iter() {
        all += &format!(", adapter {} x {:08x}", adapter.digest(), scale.to_bits());
    }
    if let Some(experts) = sequence.experts_per_token {
        all += &format!(", {experts} experts per token");
    }
    ChainHash::root(all.as_bytes())
}

/// How numbers lie in a block: a hash of one with known numbers.
fn layout(shape: &KvShape, kv: &mut KvCache) -> Option<String> {
    let block = kv.take(1)?;
    let numbers = shape.heads * shape.head_dim;
    for layer in 0..shape.layers {
        for position in 0..KV_BLOCK {
            let known =
                |from: usize| (0..numbers).map(move |at| ((at * 31 + position * 17 + layer + from) % 2039) as f32);
            let (keys, values): (Vec<f32>, Vec<f32>) = (known(0).collect(), known(1000).collect());
            kv.store(layer, &block, position, &keys, &values);
        }
    }
    let mut bytes = Vec::new();
    kv.copy_out(block[0], &mut bytes);
    kv.give_back(block);
    Some(blake3::hash(&bytes).to_hex().to_string())
}

/// The named blocks that a sequence could begin with. The last token is always computed: its logits are wanted.
pub(super) fn cached_path(prefixes: &Prefixes, sequence: &mut Sequence) -> Vec<BlockId> {
    let mut path = Vec::new();
    for at in 0..sequence.most_shared() {
        let (hash, tokens) = sequence.block(at);
        match prefixes.find(&hash, path.last().copied(), tokens) {
            Some(block) => path.push(block),
            None => break,
        }
    }
    path
}

impl Engine<'_> {
    /// Keeps named blocks in files of `folder`, `budget` bytes of them at most, and takes them from there, in this run and
    /// the next. `digest` is that of the model's folder. If the folder fails later, `report` gets a line, and all goes on
    /// without it. Beyond the plan it takes up to 64 MiB, or the bytes of three blocks.
    ///
    /// # Errors
    /// [`DiskCacheError`] if the folder cannot be used, is not private, or has no room for one block.
    ///
    /// # Panics
    /// If the engine has no prefix cache, or any sequence waits or runs.
    pub fn keep_on_disk(
        &mut self,
        folder: &Path,
        budget: u64,
        digest: &str,
        report: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<(), DiskCacheError> {
        assert!(self.options.prefix_cache, "only the prefix cache is kept on disk");
        assert!(self.is_idle(), "names change with the model's digest");
        let shape = *self.kv.shape();
        let disk = DiskCache::open(folder, budget, shape.block_bytes(), report)?;
        while let Some(block) = self.prefixes.evict() {
            self.kv.give_back([block]);
        }
        self.unsaved.clear();
        let layout = layout(&shape, &mut self.kv).unwrap_or_default();
        self.described = describe(&self.model, self.options.kv_dtype, digest) + ", layout " + &layout;
        self.disk = Some(disk);
        Ok(())
    }

    /// What the cache on disk has, if there is one.
    pub fn disk_use(&self) -> Option<DiskUse> {
        self.disk.as_ref().map(DiskCache::usage)
    }

    /// Blocks that no sequence owns and that hold the beginning of some text.
    pub fn cached_blocks(&self) -> usize {
        self.prefixes.unowned()
    }

    /// Hands blocks to the thread that writes them, as many as it takes without waiting, and says how many are left. Every
    /// step does so; a server may when it is idle.
    pub fn save_blocks(&mut self) -> usize {
        let Some(disk) = &mut self.disk else { return 0 };
        while let Some((hash, block)) = self.unsaved.front() {
            // It may have been given up, and computed for another text.
            let tokens = self.prefixes.tokens(*block).filter(|_| self.prefixes.has_name(*block, hash));
            if let Some(tokens) = tokens.filter(|_| !disk.contains(hash))
                && !disk.usage().off
                && !disk.offer(*hash, tokens, |out| self.kv.copy_out(*block, out))
            {
                break;
            }
            self.unsaved.pop_front();
        }
        self.unsaved.len()
    }

    /// Waits until all that is named is on disk, for the end of a run.
    pub fn finish_saving(&mut self) {
        loop {
            let left = self.save_blocks();
            let waited = self.disk.as_mut().is_some_and(DiskCache::wait);
            if left == 0 && !waited {
                return;
            }
        }
    }

    /// Takes what is cached of those sequences that would compute it next. What another sequence of the same beginning has
    /// computed meanwhile is found as well.
    pub(super) fn take_cached(&mut self) {
        if !self.options.prefix_cache {
            return;
        }
        let mut blocks = (STEP_BYTES / self.kv.shape().block_bytes()).max(1);
        for index in 0..self.running.len() {
            self.take_cached_of(index, &mut blocks);
        }
    }

    fn take_cached_of(&mut self, index: usize, blocks: &mut usize) {
        let (sequence, table) = (&mut self.running[index], &mut self.tables[index]);
        sequence.is_reading = false;
        if sequence.decodes() {
            return;
        }
        while sequence.shared < sequence.most_shared() {
            let at = sequence.shared;
            let parent = at.checked_sub(1).map(|before| table[before]);
            let (hash, tokens) = sequence.block(at);
            if let Some(block) = self.prefixes.find(&hash, parent, tokens) {
                self.prefixes.own(block);
                self.kv.give_back([std::mem::replace(&mut table[at], block)]);
            } else {
                // What it has computed already is not read.
                let computed = sequence.computed >= (at + 1) * KV_BLOCK;
                let Some(disk) = self.disk.as_mut().filter(|disk| !computed && disk.contains(&hash)) else { return };
                if *blocks == 0 {
                    sequence.is_reading = true;
                    return;
                }
                *blocks -= 1;
                let (_, tokens) = sequence.block(at);
                let Some(numbers) = disk.read(&hash, tokens) else { return };
                self.kv.copy_in(table[at], numbers);
                if !self.prefixes.insert(hash, parent, tokens, table[at]) {
                    return;
                }
                self.totals.blocks_from_disk += 1;
            }
            sequence.shared += 1;
            self.totals.cached_tokens += sequence.took(sequence.shared * KV_BLOCK);
        }
    }

    /// Names the full blocks of a sequence of which good logits came, or that is to go on later. Where another has named
    /// the same block, that one is kept and its own is given back.
    pub(super) fn publish(&mut self, index: usize) {
        let (sequence, table) = (&mut self.running[index], &mut self.tables[index]);
        if !self.options.prefix_cache {
            return;
        }
        while sequence.shared < sequence.computed / KV_BLOCK {
            let at = sequence.shared;
            let parent = at.checked_sub(1).map(|before| table[before]);
            let (hash, tokens) = sequence.block(at);
            if let Some(block) = self.prefixes.find(&hash, parent, tokens) {
                self.prefixes.own(block);
                self.kv.give_back([std::mem::replace(&mut table[at], block)]);
            } else {
                if !self.kv.is_finite(table[at]) || !self.prefixes.insert(hash, parent, tokens, table[at]) {
                    return;
                }
                if self.disk.is_some() {
                    // No more are remembered than there are blocks.
                    if self.unsaved.len() == self.kv.shape().blocks {
                        self.unsaved.pop_front();
                    }
                    self.unsaved.push_back((hash, table[at]));
                }
            }
            sequence.shared += 1;
        }
    }

    /// Takes `count` blocks; where too few are free, named ones without owners are given up.
    pub(super) fn take_blocks(&mut self, count: usize) -> Option<Vec<BlockId>> {
        if count > self.free_blocks() {
            return None;
        }
        while self.kv.free_blocks() < count {
            let block = self.prefixes.evict()?;
            self.totals.evicted_blocks += 1;
            self.kv.give_back([block]);
        }
        self.kv.take(count)
    }
}
