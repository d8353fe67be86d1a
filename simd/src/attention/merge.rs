//! Runs become one output: a fold over the runs of a row, in their order.
//!
//! A fold needs no more memory for a hundred runs than for one, and whoever computed the parts, folding them in order
//! gives the same bits. The state has the form of a part: maximum, sum and accumulators, `[head_dim + 2]` a row.

use crate::Isa;
use crate::arch::Compute;
use crate::elementwise::exp;

/// Sets states of rows to "nothing seen": maximum -∞, sum and accumulators 0.
pub fn begin(states: &mut [f32], head_dim: usize) {
    for state in states.chunks_exact_mut(head_dim + 2) {
        state.fill(0.0);
        state[0] = f32::NEG_INFINITY;
    }
}

/// As [`begin`], for heads with attention sinks: one more score, `sinks[row % sinks.len()]`, that has no value.
///
/// The sink is what a row sees first, before all runs, so its place in the order of the fold does not depend on which
/// runs the row sees: maximum the sink, sum 1, accumulators 0.
///
/// # Panics
/// If there are states but no sinks.
pub fn begin_with_sinks(states: &mut [f32], head_dim: usize, sinks: &[f32]) {
    for (row, state) in states.chunks_exact_mut(head_dim + 2).enumerate() {
        state.fill(0.0);
        (state[0], state[1]) = (sinks[row % sinks.len()], 1.0);
    }
}

/// Adds the parts of one more run, as [`attend_run`](super::attend_run) wrote them, to the states of the same rows.
///
/// With M the greater maximum, sums and accumulators of both sides are multiplied by `exp(max - M)` and added. Whatever
/// is not finite stays so: never a silent zero.
///
/// # Panics
/// If there are not as many states as parts.
pub fn fold_run(isa: Isa, states: &mut [f32], parts: &[f32], head_dim: usize) {
    assert_eq!(states.len(), parts.len(), "a state for each part");
    isa.compute(Fold { states, parts, head_dim });
}

struct Fold<'a> {
    states: &'a mut [f32],
    parts: &'a [f32],
    head_dim: usize,
}

impl Compute for Fold<'_> {
    type Output = ();

    #[inline(always)]
    fn compute(self) {
        let Self { states, parts, head_dim } = self;
        for (state, part) in states.chunks_exact_mut(head_dim + 2).zip(parts.chunks_exact(head_dim + 2)) {
            if part[0] == f32::NEG_INFINITY {
                continue; // nothing of this run is visible to the row
            }
            // `f32::max` would drop a NaN.
            let max = if part[0] > state[0] || part[0].is_nan() { part[0] } else { state[0] };
            let (old, new) = (exp(state[0] - max), exp(part[0] - max));
            state[0] = max;
            for (state, part) in state[1..].iter_mut().zip(&part[1..]) {
                *state = *state * old + *part * new;
            }
        }
    }
}

/// Outputs of the rows, `[rows, head_dim]`: accumulators divided by sums. A row that saw nothing becomes NaN.
///
/// # Panics
/// If `out` is not for as many rows.
pub fn finish(states: &[f32], head_dim: usize, out: &mut [f32]) {
    assert_eq!(states.len() / (head_dim + 2), out.len() / head_dim, "an output for each state");
    for (state, out) in states.chunks_exact(head_dim + 2).zip(out.chunks_exact_mut(head_dim)) {
        // A quotient by infinity would be a zero.
        let sum = if state[1].is_finite() { state[1] } else { f32::NAN };
        for (out, acc) in out.iter_mut().zip(&state[2..]) {
            *out = acc / sum;
        }
    }
}
