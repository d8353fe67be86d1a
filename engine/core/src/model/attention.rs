//! Attention of one layer: projections, QK-norm, rotary embedding, keys and values into the cache, softmax over the
//! visible positions, output projection.
//!
//! A query's positions are cut into runs of fixed length that begin at multiples of it; runs are folded in their order.
//! So a row's bits do not depend on the rows beside it, on the chunk of the prompt that it came in, or on workers. Where
//! there are fewer queries and heads than workers, the runs themselves are spread, and their parts are folded later: in
//! the same order, with the same bits.

use std::iter;
use std::ops::Range;
use std::slice;

use numa::TileMut;
use simd::attention::{self, AttendScratch, KV_BLOCK, KV_RUN};
use simd::elementwise;

use super::forward::{Batch, NormOf, Row};
use super::linear::{Into, Product};
use super::low_rank::Input;
use super::weights::{Layer, Model};
use super::workspace::{Buffers, Crew, QUERY_TILE, RUN_BLOCKS, Worker, Workspace};
use crate::adapter::{Module, Norm};
use crate::kv_cache::{BlockId, KvCache};

/// Runs of a task that are spread, at most. While a worker is at one it asks for the next; only the first comes unasked.
const RUNS_OF_TASK: usize = 4;
/// Tasks that each worker should find, so that all end at about the same time.
const TASKS_OF_WORKER: usize = 16;

impl Model {
    /// `residual += attention(norm(residual))`
    pub(super) fn attention(
        &self,
        index: usize,
        layer: &Layer,
        batch: &Batch,
        kv: &mut KvCache,
        space: &mut Workspace,
    ) {
        let config = self.config();
        let rows = batch.rows.len();
        let Workspace { crew, buffers, .. } = space;
        let norm = NormOf { batch, layer: index, norm: Norm::Input, weight: &layer.input_norm };
        self.prepare_normed(norm, &layer.query, rows, buffers, crew);
        let modules = [Module::Query, Module::Key, Module::Value];
        if buffers.low_rank.adapts(batch, index, &modules) {
            self.prepare_normed_exact(norm, rows, buffers, crew);
        }

        let width = config.query_size() + 2 * config.key_value_size();
        let Buffers { prepared, identity, qkv, low_rank, .. } = buffers;
        let deltas = low_rank.deltas(self, batch, index, modules, Input::Rows, crew);
        let product = Product { linears: [&layer.query, &layer.key, &layer.value], deltas };
        self.project(product, prepared, identity, Into::Store, &mut qkv[..rows * width], crew);

        self.rotate(index, layer, batch, buffers, crew);
        let key_at = config.query_size();
        let value_at = key_at + config.key_value_size();
        for (row, values) in batch.rows.iter().zip(buffers.qkv.chunks_exact(width)) {
            kv.store(index, &batch.tables[row.sequence], row.position, &values[key_at..value_at], &values[value_at..]);
        }
        self.attend(index, layer, batch, kv, buffers, crew);

        let Buffers { attended, prepared, identity, residual, low_rank, .. } = buffers;
        let attended = &attended[..rows * config.query_size()];
        self.prepare(&layer.output, attended, prepared, crew);
        if low_rank.adapts(batch, index, &[Module::Output]) {
            self.prepare_exact(&layer.output, attended, &mut low_rank.input, crew);
        }
        let deltas = low_rank.deltas(self, batch, index, [Module::Output], Input::Rows, crew);
        let residual = &mut residual[..rows * config.hidden_size];
        let product = Product { linears: [&layer.output], deltas };
        self.project(product, prepared, identity, Into::Add, residual, crew);
    }

    /// Queries and keys: QK-norm, then rotary embedding, in place.
    fn rotate(&self, index: usize, layer: &Layer, batch: &Batch, buffers: &mut Buffers, crew: &mut Crew) {
        let (config, rows) = (self.config(), batch.rows.len());
        let width = config.query_size() + 2 * config.key_value_size();
        let pairs = self.rope.pairs();
        let Buffers { qkv, cos, sin, .. } = buffers;
        let (cos, sin, isa) = (&*cos, &*sin, self.options.isa);
        crew.pool.chunks(&mut crew.workers, &mut qkv[..rows * width], width, |worker, row, values| {
            let (queries, rest) = values.split_at_mut(config.query_size());
            let keys = &mut rest[..config.key_value_size()];
            if let Some(norms) = &layer.head_norms {
                let both = [(&mut *queries, Norm::Query, &norms.query), (&mut *keys, Norm::Key, &norms.key)];
                for (heads, norm, weight) in both {
                    let weight = NormOf { batch, layer: index, norm, weight }.of_row(row);
                    for head in heads.chunks_exact_mut(config.head_dim) {
                        let copy = &mut worker.query[..config.head_dim];
                        copy.copy_from_slice(head);
                        elementwise::rms_norm(isa, copy, weight, config.rms_norm_eps, head);
                    }
                }
            }
            let of_row = row * pairs..(row + 1) * pairs;
            for heads in [queries, keys] {
                elementwise::rope(isa, heads, config.head_dim, &cos[of_row.clone()], &sin[of_row.clone()]);
            }
        });
    }

    /// Softmax over each query's visible positions, into `attended`.
    fn attend(&self, index: usize, layer: &Layer, batch: &Batch, kv: &KvCache, buffers: &mut Buffers, crew: &mut Crew) {
        let config = self.config();
        let Buffers { qkv, attended, tiles, .. } = buffers;
        batch.query_tiles(tiles);
        let position_bytes = kv.shape().position_bytes() / kv.shape().layers;
        for tile in &*tiles {
            let (first, last) = (batch.rows[tile.start].position, batch.rows[tile.end - 1].position);
            crew.bytes_read += (last + 1 - first_visible(layer.window, first)) * position_bytes;
        }
        if batch.spreads_runs(config.num_key_value_heads, crew.pool.threads()) {
            return self.attend_by_runs(index, layer, batch, kv, buffers, crew);
        }
        let group = config.group_size() * config.head_dim;
        let heads = 0..config.num_key_value_heads;
        crew.cut_evenly(group, heads.map(|head| kv.home_of_task(head, head)));
        let attended = &mut attended[..batch.rows.len() * config.query_size()];
        let qkv = &*qkv;
        crew.tiles(attended, config.query_size(), tiles, |worker, tile| {
            let head = tile.interval();
            self.attend_tile(layer, batch, kv, index, head, qkv, worker, tile);
        });
    }

    /// Rows of one sequence, query heads of one group: one pass over the keys and values that any of them sees.
    #[expect(clippy::too_many_arguments, reason = "one task's view of the step")]
    fn attend_tile(
        &self,
        layer: &Layer,
        batch: &Batch,
        kv: &KvCache,
        index: usize,
        head: usize,
        qkv: &[f32],
        worker: &mut Worker,
        mut tile: TileMut<'_, f32>,
    ) {
        let config = self.config();
        let (head_dim, group) = (config.head_dim, config.group_size());
        let (window, rows) = (layer.window, tile.rows());
        let width = config.query_size() + 2 * config.key_value_size();
        let kernel_rows = rows.len() * group;
        let query = &mut worker.query[..kernel_rows * head_dim];
        for (row, query) in rows.clone().zip(query.chunks_exact_mut(group * head_dim)) {
            query.copy_from_slice(&qkv[row * width + head * group * head_dim..][..group * head_dim]);
        }
        let part = &mut worker.part[..kernel_rows * (head_dim + 2)];
        let state = &mut worker.state[..kernel_rows * (head_dim + 2)];
        match &layer.sinks {
            None => attention::begin(state, head_dim),
            Some(sinks) => attention::begin_with_sinks(state, head_dim, &sinks[head * group..][..group]),
        }

        let (first, last) = (&batch.rows[rows.start], &batch.rows[rows.end - 1]);
        let table = &batch.tables[first.sequence];
        let runs = runs(window, first.position..last.position + 1);
        for run in runs.clone() {
            worker.visible.clear();
            for row in &batch.rows[rows.clone()] {
                worker.visible.extend(iter::repeat_n(visible(window, row.position, run), group));
            }
            let of_head = RunsOfHead { kv, layer: index, head, table, end: runs.end };
            self.attend_run(of_head, run, query, &worker.visible, &mut worker.attend, part);
            attention::fold_run(self.options.isa, state, part, head_dim);
        }
        for row in 0..rows.len() {
            let of_row = row * group * (head_dim + 2)..(row + 1) * group * (head_dim + 2);
            attention::finish(&state[of_row], head_dim, tile.row_mut(row));
        }
    }

    /// As [`attend`](Self::attend), for a row each of few sequences: a task is some runs that follow each other.
    ///
    /// Parts go through a buffer of fixed size, as many at a time as it holds.
    fn attend_by_runs(
        &self,
        index: usize,
        layer: &Layer,
        batch: &Batch,
        kv: &KvCache,
        buffers: &mut Buffers,
        crew: &mut Crew,
    ) {
        let config = self.config();
        let (heads, head_dim, group) = (config.num_key_value_heads, config.head_dim, config.group_size());
        let (part_size, query_size) = (group * (head_dim + 2), group * head_dim);
        let width = config.query_size() + 2 * config.key_value_size();
        let Buffers { qkv, attended, parts, states, .. } = buffers;
        let (qkv, window) = (&*qkv, layer.window);
        // A unit is one row and one group of heads; units, and the runs within a unit, follow each other.
        let units = batch.rows.len() * heads;
        let runs_of = |unit: usize| {
            let position = batch.rows[unit / heads].position;
            runs(window, position..position + 1)
        };
        let states = &mut states[..units * part_size];
        for (unit, state) in states.chunks_exact_mut(part_size).enumerate() {
            match &layer.sinks {
                None => attention::begin(state, head_dim),
                Some(sinks) => attention::begin_with_sinks(state, head_dim, &sinks[unit % heads * group..][..group]),
            }
        }
        let total: usize = (0..units).map(|unit| runs_of(unit).len()).sum();
        let at_once = parts.len() / part_size;
        for first in (0..total).step_by(at_once) {
            let count = at_once.min(total - first);
            let parts = &mut parts[..count * part_size];
            let here = first..first + count;
            let of_task = (count / (TASKS_OF_WORKER * crew.pool.threads())).clamp(1, RUNS_OF_TASK);
            let mut end = 0;
            let tasks = (0..units).flat_map(|unit| {
                let start = end;
                end += runs_of(unit).len();
                let of_unit = start.max(here.start)..end.min(here.end);
                of_unit.clone().step_by(of_task).map(move |run| (unit % heads, of_task.min(of_unit.end - run)))
            });
            let tasks = tasks.enumerate();
            crew.cut_unevenly(tasks.map(|(task, (head, runs))| (runs * part_size, kv.home_of_task(head, task))));
            crew.tiles(parts, count * part_size, slice::from_ref(&(0..1)), |worker, mut tile| {
                let (mut unit, mut before) = (0, first + tile.cols().start / part_size);
                while before >= runs_of(unit).len() {
                    before -= runs_of(unit).len();
                    unit += 1;
                }
                let (row, head) = (unit / heads, unit % heads);
                let start = runs_of(unit).start + before;
                let of_tile = start..start + tile.cols().len() / part_size;
                let Row { position, sequence, .. } = batch.rows[row];
                let query = &qkv[row * width + head * query_size..][..query_size];
                let table = &batch.tables[sequence];
                let of_head = RunsOfHead { kv, layer: index, head, table, end: of_tile.end };
                for (run, part) in of_tile.zip(tile.row_mut(0).chunks_exact_mut(part_size)) {
                    worker.visible.clear();
                    worker.visible.extend(iter::repeat_n(visible(window, position, run), group));
                    self.attend_run(of_head, run, query, &worker.visible, &mut worker.attend, part);
                }
            });
            let parts = &*parts;
            let isa = self.options.isa;
            crew.pool.chunks(&mut crew.workers, states, part_size, |_, unit, state| {
                let start: usize = (0..unit).map(|unit| runs_of(unit).len()).sum();
                let here = start.max(first)..(start + runs_of(unit).len()).min(first + count);
                for part in here {
                    attention::fold_run(isa, state, &parts[(part - first) * part_size..][..part_size], head_dim);
                }
            });
        }
        // Units stand as their outputs do: rows, then heads.
        let outputs = attended.chunks_exact_mut(query_size);
        for (state, out) in states.chunks_exact(part_size).zip(outputs) {
            attention::finish(state, head_dim, out);
        }
    }

    /// One run of one KV head for queries that see some of it.
    fn attend_run(
        &self,
        of_head: RunsOfHead,
        run: usize,
        query: &[f32],
        visible: &[Range<usize>],
        scratch: &mut AttendScratch,
        part: &mut [f32],
    ) {
        let head_dim = self.config().head_dim;
        let mut blocks: [&[u8]; RUN_BLOCKS] = [&[]; RUN_BLOCKS];
        let mut next = blocks;
        let (blocks, next) = (of_head.blocks(run, &mut blocks), of_head.blocks(run + 1, &mut next));
        let (isa, dtype) = (self.options.isa, of_head.kv.shape().dtype);
        let scale = 1.0 / (head_dim as f32).sqrt();
        attention::attend_run(isa, query, head_dim, scale, dtype, blocks, next, visible, scratch, part);
    }
}

/// Where the keys and values of some runs of a sequence lie.
#[derive(Clone, Copy)]
struct RunsOfHead<'a> {
    kv: &'a KvCache,
    layer: usize,
    head: usize,
    table: &'a [BlockId],
    /// Behind the last run that the same worker comes to.
    end: usize,
}

impl<'a> RunsOfHead<'a> {
    /// Blocks of a run: none if the worker does not come to it.
    fn blocks<'b>(&self, run: usize, blocks: &'b mut [&'a [u8]; RUN_BLOCKS]) -> &'b [&'a [u8]] {
        let end = if run < self.end { self.table.len().min((run + 1) * RUN_BLOCKS) } else { 0 };
        let of_run = self.table.get(run * RUN_BLOCKS..end).unwrap_or(&[]);
        for (block, id) in blocks.iter_mut().zip(of_run) {
            *block = self.kv.block(self.layer, *id, self.head);
        }
        &blocks[..of_run.len()]
    }
}

/// Runs that the queries at `positions`, some that follow each other, see.
fn runs(window: Option<usize>, positions: Range<usize>) -> Range<usize> {
    first_visible(window, positions.start) / KV_RUN..(positions.end - 1) / KV_RUN + 1
}

/// What of run `run` the query at `position` sees, counted from the start of the run.
fn visible(window: Option<usize>, position: usize, run: usize) -> Range<usize> {
    let within = |position: usize| position.clamp(run * KV_RUN, (run + 1) * KV_RUN) - run * KV_RUN;
    within(first_visible(window, position))..within(position + 1)
}

/// First position that the query at `position` sees: a window counts the query itself.
fn first_visible(window: Option<usize>, position: usize) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

impl Batch<'_> {
    /// Whether runs are worth spreading: a row each of so few sequences that heads alone would leave workers idle.
    fn spreads_runs(&self, heads: usize, threads: usize) -> bool {
        let alone = self.rows.windows(2).all(|pair| pair[0].sequence != pair[1].sequence);
        let long = self.rows.iter().any(|row| row.position >= KV_RUN);
        alone && long && self.rows.len() * heads < spread_units(threads)
    }

    /// Cuts the rows into tiles of one sequence each.
    fn query_tiles(&self, tiles: &mut Vec<Range<usize>>) {
        tiles.clear();
        let mut start = 0;
        for row in 1..=self.rows.len() {
            let ends = row == self.rows.len()
                || self.rows[row].sequence != self.rows[start].sequence
                || row - start == QUERY_TILE;
            if ends {
                tiles.push(start..row);
                start = row;
            }
        }
    }
}

/// Rows times heads from which on every worker has a few of them.
pub(super) fn spread_units(threads: usize) -> usize {
    if threads == 1 { 0 } else { 4 * threads }
}

const _: () = assert!(KV_RUN.is_multiple_of(KV_BLOCK), "a run is whole blocks");
