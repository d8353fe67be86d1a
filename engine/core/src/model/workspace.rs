//! Every buffer of a step, a named field each, allocated once for the most rows that a step may have.

use std::num::NonZeroUsize;
use std::ops::Range;

use numa::{Pool, TileMut};
use simd::Dtype;
use simd::attention::{AttendScratch, KV_BLOCK, KV_RUN};
use simd::matmul::{PANEL, PanelScratch, Rows};

use super::attention::spread_units;
use super::load::Load;
use super::low_rank::{AdapterRoom, LowRank, LowRankScratch};
use super::routing::{Assignments, Choice};
use super::weights::{Linear, Model};
use crate::config::{ExpertStorage, Mlp, ModelConfig};

/// Rows of one sequence that attend together, so that keys and values are read once for all of them.
pub(super) const QUERY_TILE: usize = 16;

/// Sums that a worker holds at a time: rows times panels. 128 KiB stay in a core's own cache.
const SUMS: usize = 2048;

/// Panels of a task, at most: about a MiB of weights, so that whoever is last keeps the others waiting for no longer than
/// that takes to read.
const TASK_PANELS: usize = 16;

/// Runs of one row and head whose parts are held at a time: some, for there is a join after these; not so many that parts,
/// a thirtieth of the keys and values that they are of, leave the workers' caches.
const PARTS_OF_UNIT: usize = 16;

pub(super) const RUN_BLOCKS: usize = KV_RUN / KV_BLOCK;

/// Buffers and workers of the step loop.
pub struct Workspace {
    pub(super) crew: Crew,
    pub(super) buffers: Buffers,
    shape: WorkspaceShape,
}

/// Who computes: the pool, each worker's own scratch, and where output columns are cut into tasks of which nodes.
pub(super) struct Crew {
    pub(super) pool: Pool,
    pub(super) workers: Vec<Worker>,
    pub(super) cuts: Vec<usize>,
    /// The node of the pool that computes what lies between a cut and the next.
    pub(super) homes: Vec<usize>,
    /// Bytes of weights, keys and values that the step under way has read.
    pub(super) bytes_read: usize,
}

/// What one worker needs for itself.
pub(super) struct Worker {
    pub(super) panel: PanelScratch,
    pub(super) sums: Vec<[f32; PANEL]>,
    pub(super) up_sums: Vec<[f32; PANEL]>,
    pub(super) attend: AttendScratch,
    pub(super) query: Vec<f32>, // [QUERY_TILE * group_size, head_dim]
    pub(super) part: Vec<f32>,  // [QUERY_TILE * group_size, head_dim + 2]
    pub(super) state: Vec<f32>, // the same, over all runs so far
    pub(super) visible: Vec<Range<usize>>,
    pub(super) row: Vec<f32>,           // [hidden_size]
    pub(super) probabilities: Vec<f32>, // [num_experts]
    pub(super) chosen: Vec<u32>,        // [most_experts_per_tok]
    pub(super) low_rank: LowRankScratch,
}

/// Activations of a step of `rows` rows.
pub(super) struct Buffers {
    pub(super) residual: Vec<f32>, // [rows, hidden_size]
    pub(super) prepared: Rows,     // the input of the product under way
    pub(super) identity: Vec<u32>, // 0, 1, 2, …
    pub(super) cos: Vec<f32>,      // [rows, rotary_dim / 2]
    pub(super) sin: Vec<f32>,
    pub(super) qkv: Vec<f32>,      // [rows, query_size + 2 * key_value_size]
    pub(super) attended: Vec<f32>, // [rows, query_size]
    pub(super) tiles: Vec<Range<usize>>,
    pub(super) parts: Vec<f32>, // [parts at once, group_size * (head_dim + 2)], of runs that are spread over workers
    pub(super) states: Vec<f32>, // [rows and heads that are spread, group_size * (head_dim + 2)]
    pub(super) activated: Vec<f32>, // [rows, intermediate_size] or [assignments, moe_intermediate_size]
    pub(super) router_logits: Vec<f32>, // [rows, num_experts]
    /// What each row's request says of its experts.
    pub(super) asked_experts: Vec<Option<NonZeroUsize>>, // [rows]
    pub(super) choices: Vec<Choice>, // [rows, most_experts_per_tok], best first
    pub(super) experts: Vec<u32>, // their experts
    pub(super) assignments: Assignments,
    pub(super) expert_out: Vec<f32>, // [assignments, hidden_size]
    pub(super) logits: Vec<f32>,     // [wanted rows, vocab_size]
    pub(super) low_rank: LowRank,
}

/// Sizes of all buffers, from which the planner knows their bytes before they are allocated.
#[derive(Clone, Copy, Debug)]
pub struct WorkspaceShape {
    pub(super) max_rows: usize,
    max_logits: usize,
    pub(super) threads: usize,
    hidden_size: usize,
    vocab_size: usize,
    head_dim: usize,
    query_size: usize,
    qkv_size: usize,
    rotary_pairs: usize,
    /// Rows that one attention kernel takes.
    kernel_rows: usize,
    /// Floats of the attention of one group of heads over one run.
    part_size: usize,
    /// Columns of the widest matrix.
    pub(super) widest: usize,
    /// Floats between gate/up and down, of one row.
    activated: usize,
    pub(super) num_experts: usize,
    /// Experts that a row goes through; 0 in a model without experts.
    choices: usize,
    /// Largest type of the matrices that are laid into panels or expanded on the way, if any are.
    packs: Option<Dtype>,
}

impl WorkspaceShape {
    /// For steps of up to `max_rows` rows, `max_logits` of them with logits, on `threads` workers.
    /// `packed`: some matrices lie in packed panels.
    pub fn new(
        config: &ModelConfig,
        load: Load,
        packed: bool,
        max_rows: usize,
        max_logits: usize,
        threads: usize,
    ) -> Self {
        let mut shape = Self {
            max_rows,
            max_logits,
            threads,
            hidden_size: config.hidden_size,
            vocab_size: config.vocab_size,
            head_dim: config.head_dim,
            query_size: config.query_size(),
            qkv_size: config.query_size() + 2 * config.key_value_size(),
            rotary_pairs: config.rope.rotary_dim / 2,
            kernel_rows: QUERY_TILE * config.group_size(),
            part_size: config.group_size() * (config.head_dim + 2),
            widest: config.hidden_size.max(config.query_size()),
            activated: 0,
            num_experts: 0,
            choices: 0,
            packs: match load {
                Load::Mapped => Some(Dtype::F32),
                Load::Resident => packed.then_some(Dtype::Bf16),
            },
        };
        for layer in &config.layers {
            let (width, copies) = match &layer.mlp {
                Mlp::Dense { intermediate_size } => (*intermediate_size, 1),
                Mlp::Sparse(sparse) => {
                    shape.num_experts = shape.num_experts.max(sparse.num_experts);
                    shape.choices = shape.choices.max(sparse.most_experts_per_tok);
                    if sparse.storage == ExpertStorage::StackedMxfp4 {
                        shape.packs = shape.packs.or(Some(Dtype::Bf16));
                    }
                    (sparse.moe_intermediate_size, sparse.most_experts_per_tok)
                }
            };
            shape.widest = shape.widest.max(width);
            shape.activated = shape.activated.max(width * copies);
        }
        shape
    }

    /// Rows of a product, at most: those of a step, each for each of its experts.
    pub(super) fn assignments(&self) -> usize {
        self.max_rows * self.choices.max(1)
    }

    /// Rows and heads whose runs may be spread, and the parts of them that are held at a time.
    fn spread(&self) -> (usize, usize) {
        let units = spread_units(self.threads);
        (units, units * PARTS_OF_UNIT)
    }

    /// Cuts of the widest product into tasks, if each panel is one, or of as many runs as are spread at a time.
    pub(super) fn cuts(&self) -> usize {
        /// Products of one input that lie side by side, at most.
        const SIDE_BY_SIDE: usize = 3;
        let products = self.vocab_size.max(self.qkv_size).max(self.widest).div_ceil(PANEL) + 2 * SIDE_BY_SIDE;
        products.max(self.spread().1 + 1)
    }

    /// Sums that a worker holds at a time.
    pub(super) fn sums(&self) -> usize {
        SUMS.max(self.max_rows)
    }

    fn allocate(&self) -> (Vec<Worker>, Buffers) {
        let floats = |count: usize| vec![0.0; count];
        let panel =
            || PanelScratch::with_capacity(self.packs, self.widest).expect("config.json's limits keep this small");
        let worker = || Worker {
            panel: panel(),
            sums: vec![[0.0; PANEL]; self.sums()],
            up_sums: vec![[0.0; PANEL]; self.sums()],
            attend: AttendScratch::with_capacity(self.kernel_rows),
            query: floats(self.kernel_rows * self.head_dim),
            part: floats(self.kernel_rows * (self.head_dim + 2)),
            state: floats(self.kernel_rows * (self.head_dim + 2)),
            visible: Vec::with_capacity(self.kernel_rows),
            row: floats(self.hidden_size),
            probabilities: floats(self.num_experts),
            chosen: vec![0; self.choices],
            low_rank: LowRankScratch::new(AdapterRoom::default(), self),
        };
        let (rows, choices) = (self.max_rows, self.max_rows * self.choices);
        let buffers = Buffers {
            residual: floats(rows * self.hidden_size),
            prepared: Rows::with_capacity(self.assignments(), self.widest),
            identity: (0..self.assignments() as u32).collect(),
            cos: floats(rows * self.rotary_pairs),
            sin: floats(rows * self.rotary_pairs),
            qkv: floats(rows * self.qkv_size),
            attended: floats(rows * self.query_size),
            tiles: Vec::with_capacity(rows),
            parts: floats(self.spread().1 * self.part_size),
            states: floats(self.spread().0 * self.part_size),
            activated: floats(rows * self.activated),
            router_logits: floats(rows * self.num_experts),
            asked_experts: vec![None; rows],
            choices: vec![Choice::default(); choices],
            experts: vec![0; choices],
            assignments: Assignments::with_capacity(choices, self.num_experts),
            expert_out: floats(choices * self.hidden_size),
            logits: floats(self.max_logits * self.vocab_size),
            low_rank: LowRank::new(AdapterRoom::default(), self),
        };
        ((0..self.threads).map(|_| worker()).collect(), buffers)
    }

    /// Bytes of everything that [`Workspace::new`] allocates.
    pub fn bytes(&self) -> usize {
        let Self { max_rows: rows, head_dim, kernel_rows, .. } = *self;
        let panel = PanelScratch::bytes_for(self.packs, self.widest).expect("config.json's limits keep this small");
        let worker = panel
            + 2 * self.sums() * size_of::<[f32; PANEL]>()
            + AttendScratch::bytes_for(kernel_rows)
            + kernel_rows * (head_dim + 2 * (head_dim + 2)) * 4
            + kernel_rows * size_of::<Range<usize>>()
            + (self.hidden_size + self.num_experts + self.choices) * 4;
        let per_row = self.hidden_size
            + 2 * self.rotary_pairs
            + self.qkv_size
            + self.query_size
            + self.activated
            + self.num_experts
            + self.choices * (3 + self.hidden_size);
        let (units, parts) = self.spread();
        let floats =
            rows * per_row + (units + parts) * self.part_size + self.max_logits * self.vocab_size + self.assignments();
        let ranges = rows * (size_of::<Range<usize>>() + size_of::<usize>())
            + Assignments::bytes_for(rows * self.choices, self.num_experts);
        self.threads * worker
            + 2 * self.cuts() * size_of::<usize>()
            + floats * 4
            + ranges
            + Rows::bytes_for(self.assignments(), self.widest)
    }
}

impl Workspace {
    /// Allocates the buffers for steps of a model; the pool's threads are the workers.
    ///
    /// # Panics
    /// If the pool has another number of nodes than the model has homes: some weights would have no workers.
    pub fn new(model: &Model, pool: Pool, max_rows: usize, max_logits: usize) -> Self {
        assert_eq!(pool.nodes().len(), model.homes().count(), "nodes of the pool, and of the model");
        let (load, packed) = (model.options().load, model.checkpoint().has_packed());
        let shape = WorkspaceShape::new(model.config(), load, packed, max_rows, max_logits, pool.threads());
        let (workers, buffers) = shape.allocate();
        let (cuts, homes) = (Vec::with_capacity(shape.cuts()), Vec::with_capacity(shape.cuts()));
        Self { crew: Crew { pool, workers, cuts, homes, bytes_read: 0 }, buffers, shape }
    }

    /// Makes room for steps with adapters; steps themselves take none. What there is already stays.
    pub fn make_room(&mut self, room: AdapterRoom) {
        let Self { crew, buffers, shape } = self;
        let room = buffers.low_rank.room().and(room);
        if room == buffers.low_rank.room() {
            return;
        }
        buffers.low_rank = LowRank::new(room, shape);
        for worker in &mut crew.workers {
            worker.low_rank = LowRankScratch::new(room, shape);
        }
        crew.cuts.clear();
        crew.cuts.reserve_exact(room.cuts());
        crew.homes.clear();
        crew.homes.reserve_exact(room.cuts());
    }

    /// The room for adapters that there is.
    pub fn adapter_room(&self) -> AdapterRoom {
        self.buffers.low_rank.room()
    }

    /// Bytes of the buffers as they lie in memory, each asked for its own length; the kernels' scratch knows its bytes.
    #[cfg(test)]
    pub(crate) fn allocated_bytes(&self, shape: &WorkspaceShape) -> usize {
        fn of<T>(buffer: &Vec<T>) -> usize {
            buffer.capacity() * size_of::<T>()
        }
        let panel = PanelScratch::bytes_for(shape.packs, shape.widest).unwrap();
        let worker = |worker: &Worker| {
            let Worker {
                panel: _,
                sums,
                up_sums,
                attend: _,
                query,
                part,
                state,
                visible,
                row,
                probabilities,
                chosen,
                low_rank,
            } = worker;
            let scratch = panel + AttendScratch::bytes_for(shape.kernel_rows);
            let floats = [query, part, state, row, probabilities].map(of).into_iter().sum::<usize>();
            let low_rank = low_rank.allocated_bytes(self.adapter_room(), shape);
            scratch + of(sums) + of(up_sums) + floats + of(visible) + of(chosen) + low_rank
        };
        let Buffers {
            residual,
            prepared: _,
            identity,
            cos,
            sin,
            qkv,
            attended,
            tiles,
            parts,
            states,
            activated,
            router_logits,
            asked_experts,
            choices,
            experts,
            assignments,
            expert_out,
            logits,
            low_rank,
        } = &self.buffers;
        let floats = [residual, cos, sin, qkv, attended, parts, states, activated, router_logits];
        let floats = floats.into_iter().chain([expert_out, logits]).map(of).sum::<usize>();
        let whole = of(identity) + of(choices) + of(experts) + assignments.allocated_bytes();
        let ranges = of(tiles) + of(asked_experts);
        let prepared = Rows::bytes_for(shape.assignments(), shape.widest);
        let cuts = of(&self.crew.cuts) + of(&self.crew.homes);
        let low_rank = low_rank.allocated_bytes(shape);
        self.crew.workers.iter().map(worker).sum::<usize>() + cuts + floats + whole + ranges + prepared + low_rank
    }

    /// Most rows that a step may have.
    pub fn max_rows(&self) -> usize {
        self.shape.max_rows
    }

    /// The logits of the rows that the last step wanted: `[wanted rows, vocab_size]`.
    pub fn logits(&self) -> &[f32] {
        &self.buffers.logits
    }

    /// What `row` makes of the index and the logits of each of the `rows` that the last step wanted, in their order; the
    /// workers share them.
    pub fn map_logits<T: Send>(&mut self, rows: usize, row: impl Fn(usize, &[f32]) -> T + Sync) -> Vec<T> {
        let Self { crew, buffers, shape } = self;
        let logits = |index| &buffers.logits[index * shape.vocab_size..][..shape.vocab_size];
        let mut made: Vec<Vec<(usize, T)>> = (0..crew.pool.threads()).map(|_| Vec::new()).collect();
        crew.pool.run(&mut made, rows, |made, index| made.push((index, row(index, logits(index)))));
        let mut made: Vec<_> = made.into_iter().flatten().collect();
        made.sort_unstable_by_key(|(index, _)| *index);
        made.into_iter().map(|(_, made)| made).collect()
    }

    /// Bytes of weights, keys and values that the last step read, each matrix and each chosen expert once.
    pub fn bytes_read(&self) -> usize {
        self.crew.bytes_read
    }

    /// The workers, for work between steps.
    pub fn pool(&mut self) -> &mut Pool {
        &mut self.crew.pool
    }
}

impl Crew {
    /// Cuts `[rows, their rows…]`, products with matrices side by side, into tasks of whole panels, each within a slice. A
    /// task's sums fit its worker, and every worker has a few tasks to take; where the cuts fall changes no bit.
    pub(super) fn cut<const N: usize>(&mut self, linears: [&Linear; N], rows: usize) {
        let panels: usize = linears.iter().map(|linear| linear.rows.div_ceil(PANEL)).sum();
        let fits = (SUMS / rows.max(1)).max(1);
        let fair = panels.div_ceil(self.pool.threads() * 4).max(1);
        let step = fits.min(fair).min(TASK_PANELS) * PANEL;
        self.cuts.clear();
        self.homes.clear();
        self.cuts.push(0);
        let mut end = 0;
        for (rows, home) in linears.iter().flat_map(|linear| linear.parts()) {
            let start = end;
            end += rows.len();
            self.cuts.extend((start + step..end).step_by(step));
            self.cuts.push(end);
            self.homes.resize(self.cuts.len() - 1, home);
        }
    }

    /// Cuts into tasks of `width` columns each, one for each node of `homes`.
    pub(super) fn cut_evenly(&mut self, width: usize, homes: impl Iterator<Item = usize>) {
        self.cut_unevenly(homes.map(|home| (width, home)));
    }

    /// Cuts into tasks of so many columns each, for the nodes beside them.
    pub(super) fn cut_unevenly(&mut self, tasks: impl Iterator<Item = (usize, usize)>) {
        self.homes.clear();
        self.cuts.clear();
        self.cuts.push(0);
        let mut end = 0;
        for (width, home) in tasks {
            end += width;
            self.cuts.push(end);
            self.homes.push(home);
        }
    }

    /// Computes `out`, of `cols` columns, by tasks as they were cut, each by a worker of its node.
    pub(super) fn tiles(
        &mut self,
        out: &mut [f32],
        cols: usize,
        row_groups: &[Range<usize>],
        task: impl Fn(&mut Worker, TileMut<'_, f32>) + Sync,
    ) {
        let Self { pool, workers, cuts, homes, .. } = self;
        pool.tiles_on_nodes(workers, out, cols, row_groups, cuts, homes, task);
    }
}
