//! Attention of one layer: projections, QK-norm, rotary embedding, keys and values into the cache, softmax over the
//! visible positions, output projection.
//!
//! A query's positions are cut into runs of fixed length that begin at multiples of it; runs are folded in their order.
//! So a row's bits do not depend on the rows beside it, on the chunk of the prompt that it came in, or on workers.

use numa::TileMut;
use simd::attention::{self, KV_BLOCK, KV_RUN};
use simd::elementwise;

use super::forward::Batch;
use super::linear::Into;
use super::weights::{Layer, Model};
use super::workspace::{Buffers, Crew, QUERY_TILE, RUN_BLOCKS, Worker, Workspace};
use crate::kv_cache::KvCache;

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
        self.prepare_normed(&layer.input_norm, &layer.query, rows, buffers, crew);

        let width = config.query_size() + 2 * config.key_value_size();
        let Buffers { prepared, identity, qkv, .. } = buffers;
        let linears = [&layer.query, &layer.key, &layer.value];
        self.project(linears, prepared, identity, Into::Store, &mut qkv[..rows * width], crew);

        self.rotate(layer, rows, buffers, crew);
        let key_at = config.query_size();
        let value_at = key_at + config.key_value_size();
        for (row, values) in batch.rows.iter().zip(buffers.qkv.chunks_exact(width)) {
            kv.store(index, &batch.tables[row.sequence], row.position, &values[key_at..value_at], &values[value_at..]);
        }
        self.attend(index, layer, batch, kv, buffers, crew);

        let Buffers { attended, prepared, identity, residual, .. } = buffers;
        self.prepare(&layer.output, &attended[..rows * config.query_size()], prepared, crew);
        let residual = &mut residual[..rows * config.hidden_size];
        self.project([&layer.output], prepared, identity, Into::Add, residual, crew);
    }

    /// Queries and keys: QK-norm, then rotary embedding, in place.
    fn rotate(&self, layer: &Layer, rows: usize, buffers: &mut Buffers, crew: &mut Crew) {
        let config = self.config();
        let width = config.query_size() + 2 * config.key_value_size();
        let pairs = self.rope.pairs();
        let Buffers { qkv, cos, sin, .. } = buffers;
        let (cos, sin, isa) = (&*cos, &*sin, self.options.isa);
        crew.pool.chunks(&mut crew.workers, &mut qkv[..rows * width], width, |worker, row, values| {
            let (queries, rest) = values.split_at_mut(config.query_size());
            let keys = &mut rest[..config.key_value_size()];
            if let Some(norms) = &layer.head_norms {
                for (heads, weight) in [(&mut *queries, &norms.query), (&mut *keys, &norms.key)] {
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
        let Crew { pool, workers, cuts, .. } = crew;
        let group = config.group_size() * config.head_dim;
        cuts.clear();
        cuts.extend((0..=config.num_key_value_heads).map(|head| head * group));
        let attended = &mut attended[..batch.rows.len() * config.query_size()];
        let qkv = &*qkv;
        pool.tiles(workers, attended, config.query_size(), tiles, cuts, |worker, tile| {
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
        let (isa, window) = (self.options.isa, layer.window);
        let rows = tile.rows();
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

        let table = &batch.tables[batch.rows[rows.start].sequence];
        let first = first_visible(window, batch.rows[rows.start].position) / KV_RUN;
        let last = batch.rows[rows.end - 1].position / KV_RUN;
        for run in first..=last {
            let run_start = run * KV_RUN;
            worker.visible.clear();
            for row in &batch.rows[rows.clone()] {
                let from = first_visible(window, row.position).clamp(run_start, run_start + KV_RUN) - run_start;
                let to = (row.position + 1).clamp(run_start, run_start + KV_RUN) - run_start;
                worker.visible.extend(std::iter::repeat_n(from..to, group));
            }
            let of_run = &table[run * RUN_BLOCKS..table.len().min((run + 1) * RUN_BLOCKS)];
            let mut blocks: [&[u8]; RUN_BLOCKS] = [&[]; RUN_BLOCKS];
            for (block, id) in blocks.iter_mut().zip(of_run) {
                *block = kv.block(index, *id, head);
            }
            attention::attend_run(
                isa,
                query,
                head_dim,
                1.0 / (head_dim as f32).sqrt(),
                kv.shape().dtype,
                &blocks[..of_run.len()],
                &worker.visible,
                &mut worker.attend,
                part,
            );
            attention::fold_run(state, part, head_dim);
        }
        for row in 0..rows.len() {
            let of_row = row * group * (head_dim + 2)..(row + 1) * group * (head_dim + 2);
            attention::finish(&state[of_row], head_dim, tile.row_mut(row));
        }
    }
}

/// First position that the query at `position` sees: a window counts the query itself.
fn first_visible(window: Option<usize>, position: usize) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

impl Batch<'_> {
    /// Cuts the rows into tiles of one sequence each.
    fn query_tiles(&self, tiles: &mut Vec<std::ops::Range<usize>>) {
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

const _: () = assert!(KV_RUN.is_multiple_of(KV_BLOCK), "a run is whole blocks");
