//! Who runs: sequences wait in order, get room, give it back when they end or are cancelled, and stand back for others.
//!
//! A sequence is admitted only with all blocks that it may ever need, so nothing that runs waits for memory. Where someone
//! waits for an answer and there is no room, what may wait is suspended between two steps: its full blocks become cache, and
//! it goes back to the head of its queue with all that it has said. When it is admitted again it takes from the cache what
//! is still there and computes the rest anew, with the same bits.

use std::mem;

use super::engine::Engine;
use super::event::{Event, FinishReason, Priority, SequenceId};
use super::prefix;
use super::sequence::Sequence;
use crate::kv_cache::blocks_for;

impl<'t> Engine<'t> {
    /// Puts a sequence behind all that go before it, and behind those of its priority.
    pub(super) fn enqueue(&mut self, mut sequence: Sequence<'t>) {
        sequence.root = prefix::root(&self.described, &sequence);
        let behind = self.waiting.partition_point(|waiting| waiting.priority <= sequence.priority);
        self.waiting.insert(behind, sequence);
    }

    /// Lets waiting sequences run while there are blocks for all that they may need. In the order of the queue: a small
    /// request never overtakes a large one, or the large one might wait for ever.
    pub(super) fn admit(&mut self, events: &mut Vec<Event>) {
        while let Some(next) = self.waiting.front_mut() {
            if next.wants_nothing() {
                events.extend(self.waiting.pop_front().map(|sequence| sequence.finished(FinishReason::Length)));
                continue;
            }
            let path = match self.options.prefix_cache {
                true => prefix::cached_path(&self.prefixes, next),
                false => Vec::new(),
            };
            let (priority, own) = (next.priority, blocks_for(next.positions_max()) - path.len());
            // Blocks that it takes out of the cache are not there to be given up.
            let kept = path.iter().filter(|block| self.prefixes.is_unowned(**block)).count();
            if self.running.len() == self.options.width || own + kept > self.free_blocks() {
                if priority == Priority::Interactive && self.suspend_youngest() {
                    continue;
                }
                break;
            }
            path.iter().for_each(|block| self.prefixes.own(*block));
            let Some(own) = self.take_blocks(own) else {
                self.prefixes.release(&path);
                break;
            };
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            sequence.shared = path.len();
            sequence.is_suspended = false;
            self.totals.cached_tokens += sequence.took(path.len() * simd::attention::KV_BLOCK);
            self.chosen.push(mem::take(&mut sequence.adapters));
            self.running.push(sequence);
            self.tables.push([path, own].concat());
        }
    }

    /// Suspends the youngest of those that may wait; false if all that run are waited for.
    fn suspend_youngest(&mut self) -> bool {
        let running = self.running.iter().enumerate();
        let may_wait = running.filter(|(_, sequence)| sequence.priority == Priority::Background);
        let Some((youngest, _)) = may_wait.max_by_key(|(_, sequence)| sequence.id) else { return false };
        self.publish(youngest);
        let mut sequence = self.remove(youngest);
        sequence.suspend();
        self.totals.suspensions += 1;
        let head = self.waiting.partition_point(|waiting| waiting.priority < sequence.priority);
        self.waiting.insert(head, sequence);
        true
    }

    /// Ends a sequence without a result, wherever it is on its way: nothing is told of it any more, and its blocks are
    /// back. What it has computed is kept as cache, since who gives up often asks again. False if there is no such sequence,
    /// or none any more.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        if let Some(index) = self.waiting.iter().position(|sequence| sequence.id == id) {
            return self.waiting.remove(index).is_some();
        }
        let Some(index) = self.running.iter().position(|sequence| sequence.id == id) else { return false };
        self.publish(index);
        self.remove(index);
        true
    }

    /// Ends all sequences without a result.
    pub fn cancel_all(&mut self) {
        self.waiting.clear();
        while let Some(last) = self.running.len().checked_sub(1) {
            self.remove(last);
        }
    }

    /// Takes a sequence out of those that run; its blocks are back, those with a name as cache.
    pub(super) fn remove(&mut self, index: usize) -> Sequence<'t> {
        let mut sequence = self.running.remove(index);
        sequence.adapters = self.chosen.remove(index);
        let mut table = self.tables.remove(index);
        self.kv.give_back(table.drain(mem::take(&mut sequence.shared)..));
        self.prefixes.release(&table);
        sequence
    }
}
