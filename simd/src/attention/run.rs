//! Scores, probabilities and weighted values of one run.

use std::array;
use std::ops::Range;

use bytemuck::cast_slice;

use super::{KV_BLOCK, KV_RUN, block_bytes};
use crate::arch::Compute;
use crate::arch::step::{self, Single, Step};
use crate::elementwise::{exp, sum_of_lanes};
use crate::isa::with_lanes;
use crate::matmul::PANEL;
use crate::{Dtype, Isa};

/// Scores of the rows of one call.
#[derive(Debug)]
pub struct AttendScratch {
    scores: Vec<[f32; KV_RUN]>,
}

impl AttendScratch {
    /// Room for `rows` rows.
    pub fn with_capacity(rows: usize) -> Self {
        Self { scores: vec![[0.0; KV_RUN]; rows] }
    }

    /// Bytes that scratch for `rows` rows takes.
    pub const fn bytes_for(rows: usize) -> usize {
        rows * size_of::<[f32; KV_RUN]>()
    }
}

/// Attention of `query`, `[rows, head_dim]`, over the positions of one run and one KV head.
///
/// `blocks` are the blocks of the run, at most four, each as [`store`](super::store) filled it; `visible[row]` are the
/// positions, counted from the start of the run, that a row sees. A row's part, `[head_dim + 2]`, is the maximum of its
/// scores `query·key * scale`, the sum of `exp(score - maximum)`, and the sum of values weighted by these. Where nothing
/// is visible it is -∞, 0 and zeros. A visible score that is not finite makes maximum and sum NaN; a visible value that
/// is not finite makes its accumulators so.
///
/// `next` are the blocks of the run that the same thread attends to afterwards, as far as it knows: while this run is
/// computed, the first of them are asked for. They change no bits.
///
/// The bits of a part depend on its row of `query`, the positions visible to it and the ISA: not on the other rows, nor
/// on what positions hold that it does not see.
///
/// # Panics
/// If lengths do not fit together, a row sees a position beyond `blocks`, or `scratch` is for fewer rows.
#[expect(clippy::too_many_arguments, reason = "each is one thing; a struct would only repeat the names")]
pub fn attend_run(
    isa: Isa,
    query: &[f32],
    head_dim: usize,
    scale: f32,
    dtype: Dtype,
    blocks: &[&[u8]],
    next: &[&[u8]],
    visible: &[Range<usize>],
    scratch: &mut AttendScratch,
    parts: &mut [f32],
) {
    let rows = visible.len();
    assert!(head_dim > 0, "a head of no dimensions");
    assert_eq!(query.len(), rows * head_dim, "query for {rows} rows");
    assert_eq!(parts.len(), rows * (head_dim + 2), "parts for {rows} rows");
    assert!(blocks.len() <= KV_RUN / KV_BLOCK, "{} blocks in a run", blocks.len());
    assert!(blocks.iter().all(|block| Some(block.len()) == block_bytes(dtype, head_dim)), "bytes of a block");
    let end = blocks.len() * KV_BLOCK;
    assert!(visible.iter().all(|seen| seen.is_empty() || seen.end <= end), "a row sees beyond {end} positions");
    assert!(rows <= scratch.scores.len(), "{rows} rows in scratch for {}", scratch.scores.len());
    let run = Run { head_dim, blocks, next, visible, scores: &mut scratch.scores[..rows] };
    with_lanes!(isa, lanes => match dtype {
        Dtype::Bf16 => run.attend(isa, step::Bf16(lanes), query, scale, parts),
        Dtype::F16 => run.attend(isa, step::F16(lanes), query, scale, parts),
        Dtype::F32 => run.attend(isa, step::F32(lanes), query, scale, parts),
    });
}

struct Run<'a> {
    head_dim: usize,
    blocks: &'a [&'a [u8]],
    next: &'a [&'a [u8]],
    visible: &'a [Range<usize>],
    scores: &'a mut [[f32; KV_RUN]],
}

/// Calls `$self.$method::<T, rows>(…)` with the number of rows as a constant.
macro_rules! for_rows {
    ($rows:expr, $step:ty, $self:ident.$method:ident $arguments:tt) => {
        for_rows!(@ $rows, $step, $self.$method $arguments, 1 2 3 4 5 6 7 8)
    };
    (@ $rows:expr, $step:ty, $self:ident.$method:ident $arguments:tt, $($count:literal)*) => {
        match $rows {
            $($count if const { $count <= <$step>::STREAMS } => $self.$method::<$step, $count> $arguments,)*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}

impl Run<'_> {
    fn attend<T: Single>(mut self, isa: Isa, step: T, query: &[f32], scale: f32, parts: &mut [f32]) {
        let (rows, head_dim) = (self.visible.len(), self.head_dim);
        // A block stays in cache while all tiles of rows pass over it.
        for block in 0..self.blocks.len() {
            for first in (0..rows).step_by(T::STREAMS) {
                let count = T::STREAMS.min(rows - first);
                for_rows!(count, T, self.score(step, block, first, query, scale));
            }
        }
        for ((scores, visible), part) in
            self.scores.iter_mut().zip(self.visible).zip(parts.chunks_exact_mut(head_dim + 2))
        {
            (part[0], part[1]) = isa.compute(Probabilities { scores, visible: visible.clone() });
            part[2..].fill(0.0);
        }
        for block in 0..self.blocks.len() {
            for (first, parts) in (0..rows).step_by(T::STREAMS).zip(parts.chunks_mut(T::STREAMS * (head_dim + 2))) {
                let count = T::STREAMS.min(rows - first);
                for_rows!(count, T, self.add_values(step, block, first, parts));
            }
        }
    }

    /// A half of a block, numbered in the order in which they are read: keys of all blocks, their values, and keys of the
    /// blocks that come next. Empty if it is not known.
    fn half(&self, index: usize) -> &[u8] {
        let blocks = self.blocks.len();
        let half_of = |block: &&'_ [u8], half: usize| half * block.len() / 2..(half + 1) * block.len() / 2;
        let (block, half) = match index / blocks {
            half @ (0 | 1) => (self.blocks.get(index % blocks), half),
            _ => (self.next.get(index - 2 * blocks), 0),
        };
        block.map_or(&[], |block| &block[half_of(block, half)])
    }

    /// What to ask for while tiles of rows, from `first` on, pass over a half: once, by the first of them.
    fn ahead_of(&self, half: usize, first: usize) -> Ahead<'_> {
        Ahead(if first == 0 { self.half(half + HALVES_AHEAD) } else { &[] })
    }

    /// Positions of `block` that a row sees, counted from the start of the block.
    fn seen(&self, block: usize, row: usize) -> Range<usize> {
        let start = block * KV_BLOCK;
        let clip = |position: usize| position.clamp(start, start + KV_BLOCK) - start;
        clip(self.visible[row].start)..clip(self.visible[row].end)
    }

    /// Scores of `S` rows, from `first` on, for all panels of a block that any of them sees.
    fn score<T: Single, const S: usize>(&mut self, step: T, block: usize, first: usize, query: &[f32], scale: f32) {
        // Few rows leave registers for more panels: more sums that do not wait for one another.
        if const { T::PANELS >= 3 && S <= 4 } {
            self.score_panels::<T, 4, S>(step, block, first, query, scale);
        } else if const { T::PANELS >= 2 } {
            self.score_panels::<T, 2, S>(step, block, first, query, scale);
        } else {
            self.score_panels::<T, 1, S>(step, block, first, query, scale);
        }
    }

    fn score_panels<T: Single, const P: usize, const S: usize>(
        &mut self,
        step: T,
        block: usize,
        first: usize,
        query: &[f32],
        scale: f32,
    ) {
        let head_dim = self.head_dim;
        let keys: &[T::Raw] = &cast_slice(self.blocks[block])[..KV_BLOCK / PANEL * head_dim];
        let x: [&[f32]; S] = array::from_fn(|s| &query[(first + s) * head_dim..][..head_dim]);
        for (i, keys) in keys.chunks_exact(P * head_dim).enumerate() {
            let positions = i * P * PANEL..(i + 1) * P * PANEL;
            let some_row_sees = (first..first + S).any(|row| {
                let seen = self.seen(block, row);
                seen.start.max(positions.start) < seen.end.min(positions.end)
            });
            if !some_row_sees {
                continue;
            }
            let w = array::from_fn(|p| &keys[p * head_dim..][..head_dim]);
            let (ahead, done) = (self.ahead_of(block, first), size_of_val(keys) * i);
            let tile = step.vectorize(Scores::<T, P, S> { step, w, x, ahead, done });
            for (scores, sums) in self.scores[first..].iter_mut().zip(tile) {
                let scores = &mut scores[block * KV_BLOCK..][positions.clone()];
                for (score, sum) in scores.iter_mut().zip(sums.as_flattened()) {
                    *score = sum * scale;
                }
            }
        }
    }

    /// Adds the weighted values of a block to the parts of `S` rows, from `first` on; `parts` starts with the first.
    ///
    /// Positions that all rows see are added for all at once; those before and after that only some see, row by row. For
    /// each row positions come in order, and those that it does not see never touch it: not even as a zero, which would
    /// be a NaN where a value is infinite.
    fn add_values<T: Single, const S: usize>(&self, step: T, block: usize, first: usize, parts: &mut [f32]) {
        let seen: [Range<usize>; S] = array::from_fn(|s| self.seen(block, first + s));
        let start = seen.iter().map(|seen| seen.start).max().unwrap_or(0);
        let end = seen.iter().map(|seen| seen.end).min().unwrap_or(0);
        let alone = |s: usize, positions: Range<usize>, parts: &mut [f32]| {
            if !positions.is_empty() {
                let part = &mut parts[s * (self.head_dim + 2)..][..self.head_dim + 2];
                self.add_positions::<T, 1>(step, block, first + s, positions, part);
            }
        };
        if start >= end {
            for (s, seen) in seen.into_iter().enumerate() {
                alone(s, seen, parts);
            }
            return;
        }
        for (s, seen) in seen.iter().enumerate() {
            alone(s, seen.start..start, parts);
        }
        self.add_positions::<T, S>(step, block, first, start..end, parts);
        for (s, seen) in seen.iter().enumerate() {
            alone(s, end..seen.end, parts);
        }
    }

    fn add_positions<T: Single, const S: usize>(
        &self,
        step: T,
        block: usize,
        first: usize,
        positions: Range<usize>,
        parts: &mut [f32],
    ) {
        let head_dim = self.head_dim;
        let values: &[T::Element] = &cast_slice(self.blocks[block])[KV_BLOCK * head_dim..];
        let values = &values[positions.start * head_dim..positions.end * head_dim];
        let from = block * KV_BLOCK + positions.start;
        let weights = array::from_fn(|s| &self.scores[first + s][from..][..positions.len()]);
        let mut parts = parts.chunks_exact_mut(head_dim + 2);
        let out = array::from_fn(|_| parts.next().map_or(&mut [][..], |part| &mut part[2..]));
        let ahead = self.ahead_of(self.blocks.len() + block, first);
        step.vectorize(WeightedValues::<T, S> { step, head_dim, values, weights, out, ahead });
    }
}

/// Turns the visible scores of a row into `exp(score - maximum)`; gives the maximum and the sum.
struct Probabilities<'a> {
    scores: &'a mut [f32; KV_RUN],
    visible: Range<usize>,
}

impl Compute for Probabilities<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn compute(self) -> (f32, f32) {
        let Self { scores, visible } = self;
        if visible.is_empty() {
            return (f32::NEG_INFINITY, 0.0);
        }
        // What is not visible may hold anything: it becomes -inf, whose probability is 0.
        let first = visible.start / 16 * 16;
        let scores = &mut scores[first..visible.end.next_multiple_of(16)];
        scores[..visible.start - first].fill(f32::NEG_INFINITY);
        scores[visible.end - first..].fill(f32::NEG_INFINITY);
        let seen = &scores[visible.start - first..visible.end - first];
        let mut finite = true;
        for score in seen {
            finite &= score.is_finite();
        }
        if !finite {
            return (f32::NAN, f32::NAN);
        }
        let (chunks, _) = scores.as_chunks_mut::<16>();
        let mut max = [f32::NEG_INFINITY; 16];
        for chunk in &*chunks {
            for i in 0..16 {
                max[i] = if chunk[i] > max[i] { chunk[i] } else { max[i] };
            }
        }
        let mut max_of_lanes = max[0];
        for x in max {
            max_of_lanes = if x > max_of_lanes { x } else { max_of_lanes };
        }
        let mut sums = [0.0; 16];
        for chunk in chunks {
            for i in 0..16 {
                chunk[i] = exp(chunk[i] - max_of_lanes);
                sums[i] += chunk[i];
            }
        }
        (max_of_lanes, sum_of_lanes(sums))
    }
}

/// How many halves of blocks lie between what is used and what is asked for.
const HALVES_AHEAD: usize = 2;

/// What is asked for, into the second cache, while a half of a block is in use: a half that is read later, line for line.
///
/// Blocks lie apart, so that the machine's own prefetching ends with each. It follows what is asked for here, within a page
/// and some lines ahead: so the half is asked for as four streams side by side, which it follows further than one. Asked
/// for into the first cache, lines would wait in the few buffers between the caches that loads need too.
#[derive(Clone, Copy)]
struct Ahead<'a>(&'a [u8]);

impl Ahead<'_> {
    /// Asks for as many `bytes`, behind the first `done`, as are used: a line of each stream, when so many have been used.
    #[inline(always)]
    fn ask<T: Step>(self, step: T, done: usize, bytes: usize) {
        const LINE: usize = 64;
        const STREAMS: usize = 4;
        if self.0.is_empty() || !done.is_multiple_of(STREAMS * LINE) {
            return;
        }
        for lines in 0..bytes.div_ceil(STREAMS * LINE) {
            for stream in 0..STREAMS {
                step.prefetch_further(self.0, self.0.len() / STREAMS * stream + done / STREAMS + lines * LINE);
            }
        }
    }
}

/// Sums over the head dimension: `P` panels of keys for `S` rows.
struct Scores<'a, T: Single, const P: usize, const S: usize> {
    step: T,
    w: [&'a [T::Raw]; P],
    x: [&'a [f32]; S],
    ahead: Ahead<'a>,
    /// Bytes of the keys of this block that lie before these.
    done: usize,
}

impl<T: Single, const P: usize, const S: usize> Compute for Scores<'_, T, P, S> {
    type Output = [[[f32; 16]; P]; S];

    #[inline(always)]
    fn compute(self) -> Self::Output {
        let Self { step, mut w, mut x, ahead, done } = self;
        // One length for all slices, so that the loop needs no checks.
        let steps = w[0].len();
        for w in &mut w {
            *w = &w[..steps];
        }
        for x in &mut x {
            *x = &x[..steps];
        }
        let mut sums = [[step.zero(); P]; S];
        for k in 0..steps {
            let bytes = size_of::<T::Raw>() * P;
            ahead.ask(step, done + k * bytes, bytes);
            let mut weights = [step.weights(&w[0][k]); P];
            for p in 1..P {
                weights[p] = step.weights(&w[p][k]);
            }
            for s in 0..S {
                for p in 0..P {
                    sums[s][p] = step.step(weights[p], &x[s][k], sums[s][p]);
                }
            }
        }
        let mut out = [[[0.0; 16]; P]; S];
        for s in 0..S {
            for p in 0..P {
                out[s][p] = step.to_array(sums[s][p]);
            }
        }
        out
    }
}

/// `out[row][d] += weights[row][j] * values[j][d]` with `j` in order, for `S` rows.
struct WeightedValues<'a, T: Single, const S: usize> {
    step: T,
    head_dim: usize,
    values: &'a [T::Element],
    weights: [&'a [f32]; S],
    out: [&'a mut [f32]; S],
    ahead: Ahead<'a>,
}

impl<T: Single, const S: usize> Compute for WeightedValues<'_, T, S> {
    type Output = ();

    #[inline(always)]
    fn compute(mut self) {
        let mut d = 0;
        // Few rows leave registers for more columns: values are then read more nearly in the order in which they lie.
        if const { T::PANELS >= 3 && S <= 2 } {
            while d + 8 * PANEL <= self.head_dim {
                self.columns::<8>(d);
                d += 8 * PANEL;
            }
        }
        if const { T::PANELS >= 3 && S <= 4 } {
            while d + 4 * PANEL <= self.head_dim {
                self.columns::<4>(d);
                d += 4 * PANEL;
            }
        }
        if const { T::PANELS >= 2 } {
            while d + 2 * PANEL <= self.head_dim {
                self.columns::<2>(d);
                d += 2 * PANEL;
            }
        }
        while d + PANEL <= self.head_dim {
            self.columns::<1>(d);
            d += PANEL;
        }
        if d < self.head_dim {
            self.last_columns(d);
        }
    }
}

impl<T: Single, const S: usize> WeightedValues<'_, T, S> {
    /// `P` times 16 columns, from `d` on.
    #[inline(always)]
    fn columns<const P: usize>(&mut self, d: usize) {
        let Self { step, head_dim, values, weights, out, ahead } = self;
        let positions = weights[0].len();
        let done = size_of::<T::Element>() * positions * d;
        for weights in &mut *weights {
            *weights = &weights[..positions];
        }
        let mut sums = [[step.zero(); P]; S];
        for s in 0..S {
            let (chunks, _) = out[s][d..][..P * 16].as_chunks::<16>();
            for p in 0..P {
                sums[s][p] = step.resume(&chunks[p]);
            }
        }
        for (j, value) in values.chunks_exact(*head_dim).enumerate().take(positions) {
            let (chunks, _) = value[d..][..P * 16].as_chunks::<16>();
            ahead.ask(*step, done + j * size_of_val(chunks), size_of::<[T::Element; 16]>() * P);
            let mut v = [step.weights(&chunks[0]); P];
            for p in 1..P {
                v[p] = step.weights(&chunks[p]);
            }
            for s in 0..S {
                for p in 0..P {
                    sums[s][p] = step.step(v[p], &weights[s][j], sums[s][p]);
                }
            }
        }
        for s in 0..S {
            let (chunks, _) = out[s][d..][..P * 16].as_chunks_mut::<16>();
            for p in 0..P {
                chunks[p] = step.to_array(sums[s][p]);
            }
        }
    }

    /// Fewer than 16 columns: the same steps, on lanes filled up with zeros.
    #[inline(always)]
    fn last_columns(&mut self, d: usize) {
        let width = self.head_dim - d;
        for (weights, out) in self.weights.iter().zip(&mut self.out) {
            let mut sums = [0.0; 16];
            sums[..width].copy_from_slice(&out[d..]);
            let mut resumed = self.step.resume(&sums);
            for (value, weight) in self.values.chunks_exact(self.head_dim).zip(*weights) {
                let mut lanes = <[T::Element; 16] as bytemuck::Zeroable>::zeroed();
                lanes[..width].copy_from_slice(&value[d..]);
                resumed = self.step.step(self.step.weights(&lanes), weight, resumed);
            }
            out[d..].copy_from_slice(&self.step.to_array(resumed)[..width]);
        }
    }
}
