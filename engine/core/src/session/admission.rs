//! Who runs: sequences wait in order, get room, and give it back when they end or are cancelled.
//!
//! A sequence is admitted only with all blocks that it may ever need, so nothing that runs waits for memory.

use std::mem;

use super::engine::Engine;
use super::event::{Event, FinishReason, SequenceId};
use super::sequence::Sequence;
use crate::kv_cache::blocks_for;

impl<'t> Engine<'t> {
    /// Puts a sequence behind all that go before it, and behind those of its priority.
    pub(super) fn enqueue(&mut self, sequence: Sequence<'t>) {
        let behind = self.waiting.partition_point(|waiting| waiting.priority <= sequence.priority);
        self.waiting.insert(behind, sequence);
    }

    /// Lets waiting sequences run while there are blocks for all that they may need. In the order of the queue: a small
    /// request never overtakes a large one, or the large one might wait for ever.
    pub(super) fn admit(&mut self, events: &mut Vec<Event>) {
        while self.running.len() < self.options.width {
            let Some(next) = self.waiting.front() else { break };
            let Some(blocks) = self.kv.take(blocks_for(next.positions_max())) else { break };
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            if sequence.wants_nothing() {
                self.kv.give_back(blocks);
                events.push(sequence.finished(FinishReason::Length));
            } else {
                self.chosen.push(mem::take(&mut sequence.adapters));
                self.running.push(sequence);
                self.tables.push(blocks);
            }
        }
    }

    /// Ends a sequence without a result, wherever it is on its way: nothing is told of it any more, and its blocks are
    /// back. False if there is no such sequence, or none any more.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        if let Some(index) = self.waiting.iter().position(|sequence| sequence.id == id) {
            return self.waiting.remove(index).is_some();
        }
        let running = self.running.iter().position(|sequence| sequence.id == id);
        running.map(|index| self.remove(index)).is_some()
    }

    /// Ends all sequences without a result.
    pub fn cancel_all(&mut self) {
        self.waiting.clear();
        while let Some(last) = self.running.len().checked_sub(1) {
            self.remove(last);
        }
    }

    /// Takes a sequence out of those that run; its blocks are back.
    pub(super) fn remove(&mut self, index: usize) -> Sequence<'t> {
        self.chosen.remove(index);
        self.kv.give_back(self.tables.remove(index));
        self.running.remove(index)
    }
}
