//! Which experts each row goes through, and the rows of each expert.

use std::ops::Range;

use simd::elementwise;

use super::workspace::{Buffers, Crew, Worker};
use crate::config::{ExpertWeights, Sparse};

/// In the place of an expert where a row goes through fewer than others may.
pub(super) const NO_EXPERT: u32 = u32::MAX;

/// One of a row's experts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Choice {
    /// Its index in the layer; `u32::MAX` where a row goes through fewer experts than others may.
    pub expert: u32,
    /// Factor of the expert's output; 0 where there is no expert.
    pub weight: f32,
}

impl Choice {
    /// The expert's index, if there is one.
    pub fn index(self) -> Option<usize> {
        (self.expert != NO_EXPERT).then_some(self.expert as usize)
    }
}

/// The experts of the greatest logits, as many as each row asks for, best first, with the factors of their outputs; fills
/// `choices`, `experts` and `assignments` from `router_logits`.
pub(super) fn choose(isa: simd::Isa, shape: &Sparse, rows: usize, buffers: &mut Buffers, crew: &mut Crew) {
    let (num_experts, most) = (shape.num_experts, shape.most_experts_per_tok);
    let Buffers { router_logits, choices, experts, assignments, asked_experts, .. } = buffers;
    let choices = &mut choices[..rows * most];
    crew.pool.chunks(&mut crew.workers, choices, most, |worker, row, choices| {
        let k = asked_experts[row].map_or(shape.num_experts_per_tok, |asked| asked.get().min(most));
        let (choices, others) = choices.split_at_mut(k);
        others.fill(Choice { expert: NO_EXPERT, weight: 0.0 });
        let Worker { probabilities, chosen, .. } = worker;
        let (probabilities, chosen) = (&mut probabilities[..num_experts], &mut chosen[..k]);
        probabilities.copy_from_slice(&router_logits[row * num_experts..][..num_experts]);
        if shape.weights == ExpertWeights::OfChosen {
            simd::top_k(probabilities, chosen);
            for (at, expert) in chosen.iter().enumerate() {
                probabilities[at] = router_logits[row * num_experts + *expert as usize];
            }
            elementwise::softmax(isa, &mut probabilities[..k]);
            for ((choice, expert), weight) in choices.iter_mut().zip(&*chosen).zip(&*probabilities) {
                *choice = Choice { expert: *expert, weight: *weight };
            }
            return;
        }
        elementwise::softmax(isa, probabilities);
        simd::top_k(probabilities, chosen);
        for (choice, expert) in choices.iter_mut().zip(&*chosen) {
            *choice = Choice { expert: *expert, weight: probabilities[*expert as usize] };
        }
        if shape.weights == ExpertWeights::OfAllNormed {
            let sum: f32 = choices.iter().map(|choice| choice.weight).sum();
            choices.iter_mut().for_each(|choice| choice.weight /= sum);
        }
    });
    for (expert, choice) in experts.iter_mut().zip(&*choices) {
        *expert = choice.expert;
    }
    assignments.group(&experts[..rows * most], most, num_experts);
}

/// Rows grouped by expert: an assignment is one row at one expert.
pub(super) struct Assignments {
    /// Row of each assignment, grouped by expert.
    pub(super) rows: Vec<u32>,
    /// Assignment of each row's choice: `[rows, most_experts_per_tok]`; without meaning where there is no expert.
    pub(super) of_choice: Vec<u32>,
    /// Experts that have rows, ascending.
    pub(super) experts: Vec<usize>,
    /// Their assignments.
    pub(super) groups: Vec<Range<usize>>,
    /// Where each expert's next assignment goes, while grouping.
    next: Vec<u32>,
}

impl Assignments {
    pub(super) fn with_capacity(choices: usize, num_experts: usize) -> Self {
        Self {
            rows: Vec::with_capacity(choices),
            of_choice: Vec::with_capacity(choices),
            experts: Vec::with_capacity(num_experts),
            groups: Vec::with_capacity(num_experts),
            next: vec![0; num_experts],
        }
    }

    /// Bytes that [`Assignments::with_capacity`] allocates.
    pub(super) fn bytes_for(choices: usize, num_experts: usize) -> usize {
        choices * 8 + num_experts * (size_of::<usize>() + size_of::<Range<usize>>() + 4)
    }

    #[cfg(test)]
    pub(super) fn allocated_bytes(&self) -> usize {
        let words = self.rows.capacity() + self.of_choice.capacity() + self.next.capacity();
        let experts = self.experts.capacity() * size_of::<usize>();
        words * 4 + experts + self.groups.capacity() * size_of::<Range<usize>>()
    }

    /// Groups the rows of `chosen` `[rows, k]` by counting; rows of an expert keep their order.
    fn group(&mut self, chosen: &[u32], k: usize, num_experts: usize) {
        let next = &mut self.next[..num_experts];
        next.fill(0);
        let mut count = 0;
        for expert in chosen.iter().filter(|expert| **expert != NO_EXPERT) {
            next[*expert as usize] += 1;
            count += 1;
        }
        self.experts.clear();
        self.groups.clear();
        let mut start = 0;
        for (expert, next) in next.iter_mut().enumerate() {
            let end = start + *next as usize;
            if end > start {
                self.experts.push(expert);
                self.groups.push(start..end);
            }
            (*next, start) = (start as u32, end);
        }
        self.rows.resize(count, 0);
        self.of_choice.resize(chosen.len(), 0);
        for (choice, expert) in chosen.iter().enumerate().filter(|(_, expert)| **expert != NO_EXPERT) {
            let assignment = &mut next[*expert as usize];
            self.rows[*assignment as usize] = (choice / k) as u32;
            self.of_choice[choice] = *assignment;
            *assignment += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_has_one_assignment_and_rows_of_an_expert_keep_their_order() {
        let chosen = [3, 1, 0, 3, 1, 3, 3, 0]; // four rows, two choices each
        let mut assignments = Assignments::with_capacity(8, 5);
        for _ in 0..2 {
            assignments.group(&chosen, 2, 5);
            assert_eq!(assignments.experts, [0, 1, 3]);
            assert_eq!(assignments.groups, [0..2, 2..4, 4..8]);
            assert_eq!(assignments.rows, [1, 3, 0, 2, 0, 1, 2, 3]);
            for (choice, assignment) in assignments.of_choice.iter().enumerate() {
                assert_eq!(assignments.rows[*assignment as usize] as usize, choice / 2);
            }
        }
    }
    #[test]
    fn rows_that_ask_for_fewer_experts_leave_the_others_alone() {
        let chosen = [3, NO_EXPERT, 0, 3, 1, NO_EXPERT]; // three rows of one, two and one experts
        let mut assignments = Assignments::with_capacity(6, 4);
        assignments.group(&chosen, 2, 4);
        assert_eq!(assignments.experts, [0, 1, 3]);
        assert_eq!(assignments.groups, [0..1, 1..2, 2..4]);
        assert_eq!(assignments.rows, [1, 2, 0, 1]);
        assert_eq!([0, 2, 3, 4].map(|choice| assignments.of_choice[choice]), [2, 0, 3, 1]);
    }
}
