//! What adapters add to products: `y += scale * B (A x)`, for the rows that chose them.
//!
//! Rows are gathered by adapter: a slot is one row in one adapter, a piece the slots of one adapter in one group of rows
//! (of an expert, or all). Before a product that some adapter adds to, one more join computes `A x` of all slots; `B` of
//! that is added where the product itself is computed, tile by tile, so that nothing passes through memory twice. A row
//! adds its adapters up in the order of their digests and every sum is one lane of a panel, so the bits of a row depend
//! on its own adapters only. Steps without adapters pay nothing.

use std::ops::Range;

use numa::TileMut;
use simd::Dtype;
use simd::elementwise;
use simd::matmul::{Activations, Matrix, PANEL, PanelScratch, Rows, multiply};

use super::forward::Batch;
use super::weights::Model;
use super::workspace::{Crew, Worker, WorkspaceShape};
use crate::adapter::{Adapter, LowRankPair, Module};

/// Slots of a task of `A x`: enough to use each panel often, few enough for every worker to have a task.
const RUN_SLOTS: usize = 16;

/// Products of one input that lie side by side, at most.
const MODULES_MAX: usize = 3;

/// Room for the adapters of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdapterRoom {
    /// Different adapters that a step may have.
    pub adapters: usize,
    /// Greatest rank among them.
    pub rank: usize,
}

/// Which rows of a product go through which adapters.
struct Gathered {
    slots: Vec<Slot>,
    /// Input row of each slot where a group's rows share the rows of the step, and where each has its own.
    sources: Vec<u32>,
    assignments: Vec<u32>,
    pieces: Vec<Piece>,
    /// Pieces of each group.
    of_group: Vec<Range<usize>>,
    /// Slots that are computed together, and the piece that they belong to.
    runs: Vec<Range<usize>>,
    piece_of_run: Vec<usize>,
}

struct Slot {
    /// Row in its group.
    row: u32,
    scale: f32,
}

/// Rows of one group that go through one adapter.
struct Piece {
    adapter: Named,
    expert: Option<usize>,
    slots: Range<usize>,
}

/// An adapter of a batch, by a sequence that has it and its place among that one's.
#[derive(Clone, Copy)]
struct Named {
    sequence: usize,
    nth: usize,
}

impl Named {
    fn of<'b>(self, batch: &Batch<'b>) -> &'b Adapter {
        batch.adapters[self.sequence].get(self.nth)
    }
}

/// Buffers for the adapters of a step.
pub(super) struct LowRank {
    room: AdapterRoom,
    /// Input of the products under way, as float32.
    pub(super) input: Rows,
    products: Vec<f32>, // [slots, modules, rank]
    /// The adapters of the step under way, in the order in which rows add them up.
    named: Vec<Named>,
    rows: Gathered,
    experts: Gathered,
}

/// What one worker needs for adapters.
pub(super) struct LowRankScratch {
    rows: Rows,
    sums: Vec<[f32; PANEL]>,
    identity: Vec<u32>, // 0, 1, 2, …
}

/// Which rows a product is for, and where the input of each is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    /// All rows of the step, or all with logits, each with its own.
    Rows,
    /// Rows grouped by expert, which share the inputs of the step's rows.
    OfExperts,
    /// Rows grouped by expert, each with its own.
    Assignments,
}

/// What adapters add to products of one input: nothing, if there is none.
pub(super) struct Deltas<'a, const N: usize> {
    batch: &'a Batch<'a>,
    layer: usize,
    modules: [Module; N],
    gathered: &'a Gathered,
    products: &'a [f32],
    rank: usize,
}

impl AdapterRoom {
    /// Room for both.
    pub fn and(self, other: Self) -> Self {
        Self { adapters: self.adapters.max(other.adapters), rank: self.rank.max(other.rank) }
    }

    /// Bytes that this room takes in a workspace.
    pub fn bytes(self, shape: &WorkspaceShape) -> usize {
        if self.adapters == 0 {
            return 0;
        }
        let (assignments, groups) = (shape.assignments(), shape.num_experts);
        let slots = assignments * self.adapters;
        let worker = Rows::bytes_for(shape.max_rows, self.padded())
            + shape.sums() * size_of::<[f32; PANEL]>()
            + shape.max_rows * 4;
        let gathered = |rows: usize, groups: usize| {
            let (slots, pieces) = (rows * self.adapters, (groups * self.adapters).min(rows * self.adapters));
            let runs = slots / RUN_SLOTS + pieces;
            slots * (size_of::<Slot>() + 8)
                + pieces * size_of::<Piece>()
                + groups * size_of::<Range<usize>>()
                + runs * (size_of::<Range<usize>>() + size_of::<usize>())
        };
        Rows::bytes_for(assignments, shape.widest)
            + slots * MODULES_MAX * self.padded() * 4
            + self.adapters * size_of::<Named>()
            + gathered(shape.max_rows, 1)
            + gathered(assignments, groups)
            + shape.threads * worker
            + 2 * self.cuts().saturating_sub(shape.cuts()) * size_of::<usize>()
    }

    /// Columns of a product: whole panels.
    fn padded(self) -> usize {
        self.rank.next_multiple_of(PANEL)
    }

    /// Cuts of the products of one input.
    pub(super) fn cuts(self) -> usize {
        MODULES_MAX * self.padded() / PANEL + 1
    }
}

impl Gathered {
    fn with_capacity(rows: usize, groups: usize, adapters: usize) -> Self {
        let (slots, pieces) = (rows * adapters, (groups * adapters).min(rows * adapters));
        let (runs, groups) = (slots / RUN_SLOTS + pieces, if adapters == 0 { 0 } else { groups });
        Self {
            slots: Vec::with_capacity(slots),
            sources: Vec::with_capacity(slots),
            assignments: Vec::with_capacity(slots),
            pieces: Vec::with_capacity(pieces),
            of_group: Vec::with_capacity(groups),
            runs: Vec::with_capacity(runs),
            piece_of_run: Vec::with_capacity(runs),
        }
    }

    fn clear(&mut self) {
        self.slots.clear();
        self.sources.clear();
        self.assignments.clear();
        self.pieces.clear();
        self.of_group.clear();
        self.runs.clear();
        self.piece_of_run.clear();
    }

    /// Adds a group of assignments; `row_of` gives the step's row of each, and `source_of` the row of its input.
    fn add_group(
        &mut self,
        batch: &Batch,
        named: impl Iterator<Item = Named>,
        expert: Option<usize>,
        assignments: Range<usize>,
        row_of: impl Fn(usize) -> usize,
        source_of: impl Fn(usize) -> u32,
    ) {
        let first_piece = self.pieces.len();
        for adapter in named {
            let first = self.slots.len();
            for assignment in assignments.clone() {
                let chosen = batch.adapters_of(row_of(assignment));
                let Some(scale) = chosen.and_then(|set| set.scale_of(adapter.of(batch))) else { continue };
                self.slots.push(Slot { row: (assignment - assignments.start) as u32, scale });
                self.sources.push(source_of(assignment));
                self.assignments.push(assignment as u32);
            }
            let slots = first..self.slots.len();
            for start in slots.clone().step_by(RUN_SLOTS) {
                self.runs.push(start..slots.end.min(start + RUN_SLOTS));
                self.piece_of_run.push(self.pieces.len());
            }
            if !slots.is_empty() {
                self.pieces.push(Piece { adapter, expert, slots });
            }
        }
        self.of_group.push(first_piece..self.pieces.len());
    }
}

impl LowRank {
    /// Buffers with room for adapters.
    pub(super) fn new(room: AdapterRoom, shape: &WorkspaceShape) -> Self {
        let assignments = if room.adapters == 0 { 0 } else { shape.assignments() };
        Self {
            room,
            input: Rows::with_capacity(assignments, shape.widest),
            products: vec![0.0; assignments * room.adapters * MODULES_MAX * room.padded()],
            named: Vec::with_capacity(room.adapters),
            rows: Gathered::with_capacity(shape.max_rows, 1, room.adapters),
            experts: Gathered::with_capacity(assignments, shape.num_experts, room.adapters),
        }
    }

    pub(super) fn room(&self) -> AdapterRoom {
        self.room
    }

    /// Whether an adapter of the step adds to one of these matrices.
    pub(super) fn adapts(&self, batch: &Batch, layer: usize, modules: &[Module]) -> bool {
        self.named.iter().any(|named| modules.iter().any(|module| named.of(batch).adapts(layer, *module)))
    }

    /// Finds the adapters of a step, and gathers its rows.
    ///
    /// # Panics
    /// If there is no room for them.
    pub(super) fn begin(&mut self, batch: &Batch) {
        self.named.clear();
        self.rows.clear();
        self.experts.clear();
        if batch.adapters.is_empty() {
            return;
        }
        let mut before = None;
        for row in batch.rows.iter().filter(|row| before.replace(row.sequence) != Some(row.sequence)) {
            let Some(set) = batch.adapters.get(row.sequence) else { continue };
            for (nth, (adapter, _)) in set.iter().enumerate() {
                let order = |named: &Named| named.of(batch).order().cmp(&adapter.order());
                if let Err(at) = self.named.binary_search_by(order) {
                    let AdapterRoom { adapters, rank } = self.room;
                    assert!(self.named.len() < adapters, "more adapters in a step than the {adapters} with room");
                    assert!(adapter.rank() <= rank, "an adapter of rank {} in room for {rank}", adapter.rank());
                    self.named.insert(at, Named { sequence: row.sequence, nth });
                }
            }
        }
        if self.named.is_empty() {
            return;
        }
        let named = self.named.iter().copied();
        self.rows.add_group(batch, named, None, 0..batch.rows.len(), |row| row, |row| row as u32);
    }

    /// Gathers the rows whose logits are wanted, which lie one after the other from now on.
    pub(super) fn gather_wanted(&mut self, batch: &Batch) {
        self.rows.clear();
        if self.named.is_empty() {
            return;
        }
        let named = self.named.iter().copied();
        self.rows.add_group(batch, named, None, 0..batch.logits.len(), |row| batch.logits[row], |row| row as u32);
    }

    /// Gathers the rows of experts `chosen`: assignments `groups` of rows `rows`.
    pub(super) fn gather_experts(
        &mut self,
        batch: &Batch,
        layer: usize,
        chosen: &[usize],
        groups: &[Range<usize>],
        rows: &[u32],
    ) {
        self.experts.clear();
        if !self.named.iter().any(|named| named.of(batch).adapts_experts(layer)) {
            return;
        }
        for (expert, assignments) in chosen.iter().zip(groups) {
            let named = self.named.iter().copied().filter(|named| named.of(batch).adapts_experts(layer));
            let row_of = |assignment: usize| rows[assignment] as usize;
            self.experts
                .add_group(batch, named, Some(*expert), assignments.clone(), row_of, |assignment| rows[assignment]);
        }
    }

    /// Bytes of the buffers as they lie in memory.
    #[cfg(test)]
    pub(super) fn allocated_bytes(&self, shape: &WorkspaceShape) -> usize {
        fn of<T>(buffer: &Vec<T>) -> usize {
            buffer.capacity() * size_of::<T>()
        }
        let gathered = |gathered: &Gathered| {
            let Gathered { slots, sources, assignments, pieces, of_group, runs, piece_of_run } = gathered;
            of(slots) + of(sources) + of(assignments) + of(pieces) + of(of_group) + of(runs) + of(piece_of_run)
        };
        let Self { room, input: _, products, named, rows, experts } = self;
        let input = if room.adapters == 0 { 0 } else { Rows::bytes_for(shape.assignments(), shape.widest) };
        input + of(products) + of(named) + gathered(rows) + gathered(experts)
    }

    /// Calls `each` with every output matrix that replaces the model's, and those rows with logits that it is for.
    pub(super) fn each_lm_head(&self, batch: &Batch, mut each: impl FnMut(&Matrix, &[u32])) {
        for piece in &self.rows.pieces {
            if let Some(matrix) = piece.adapter.of(batch).lm_head() {
                each(&matrix, &self.rows.sources[piece.slots.clone()]);
            }
        }
    }

    /// Computes `A x` of what adapters add to `modules` of a layer, from `input`, which was prepared; `None` if they add
    /// nothing.
    pub(super) fn deltas<'a, const N: usize>(
        &'a mut self,
        model: &Model,
        batch: &'a Batch<'a>,
        layer: usize,
        modules: [Module; N],
        input: Input,
        crew: &mut Crew,
    ) -> Option<Deltas<'a, N>> {
        const { assert!(N <= MODULES_MAX) };
        if !self.adapts(batch, layer, &modules) {
            return None;
        }
        let (gathered, select) = match input {
            Input::Rows => (&self.rows, &self.rows.sources),
            Input::OfExperts => (&self.experts, &self.experts.sources),
            Input::Assignments => (&self.experts, &self.experts.assignments),
        };
        let (rank, isa, rows) = (self.room.padded(), model.options.isa, &self.input);
        let width = N * rank;
        let pairs = gathered.pieces.iter().flat_map(|piece| {
            modules.iter().filter_map(|module| piece.adapter.of(batch).pair(layer, *module, piece.expert))
        });
        crew.bytes_read += pairs.map(|pair| pair.bytes()).sum::<usize>();
        let nodes = crew.pool.nodes().len();
        crew.cut_evenly(PANEL, (0..width / PANEL).map(|panel| panel % nodes));
        let products = &mut self.products[..gathered.slots.len() * width];
        crew.tiles(products, width, &gathered.runs, |worker, mut tile: TileMut<'_, f32>| {
            let piece = &gathered.pieces[gathered.piece_of_run[tile.group()]];
            let (module, panel) = (modules[tile.cols().start / rank], tile.cols().start % rank / PANEL);
            let Some(LowRankPair { a, .. }) = piece.adapter.of(batch).pair(layer, module, piece.expert) else { return };
            if panel >= a.panel_count() {
                return;
            }
            let select = &select[tile.rows()];
            let Worker { panel: scratch, low_rank: LowRankScratch { sums, .. }, .. } = worker;
            let sums = &mut sums[..select.len()];
            multiply(isa, &a, panel..panel + 1, rows, select, scratch, sums);
            for (slot, sums) in sums.iter().enumerate() {
                tile.row_mut(slot).copy_from_slice(sums);
            }
        });
        Some(Deltas { batch, layer, modules, gathered, products: &self.products, rank })
    }
}

impl LowRankScratch {
    pub(super) fn new(room: AdapterRoom, shape: &WorkspaceShape) -> Self {
        let (rows, sums) = if room.adapters == 0 { (0, 0) } else { (shape.max_rows, shape.sums()) };
        Self {
            rows: Rows::with_capacity(rows, room.padded()),
            sums: vec![[0.0; PANEL]; sums],
            identity: (0..rows as u32).collect(),
        }
    }
}

#[cfg(test)]
impl LowRankScratch {
    pub(super) fn allocated_bytes(&self, room: AdapterRoom, shape: &WorkspaceShape) -> usize {
        let rows = if room.adapters == 0 { 0 } else { Rows::bytes_for(shape.max_rows, room.padded()) };
        rows + self.sums.capacity() * size_of::<[f32; PANEL]>() + self.identity.capacity() * 4
    }
}

impl<const N: usize> Deltas<'_, N> {
    /// Adds what adapters give to columns `cols` of the `nth` product of group `group`, whose `sums` are
    /// `[panel][row][PANEL]`.
    #[expect(clippy::too_many_arguments, reason = "one tile of a product, and a worker's scratch")]
    pub(super) fn add(
        &self,
        isa: simd::Isa,
        nth: usize,
        group: usize,
        cols: &Range<usize>,
        rows: usize,
        scratch: &mut LowRankScratch,
        panel: &mut PanelScratch,
        sums: &mut [[f32; PANEL]],
    ) {
        let width = N * self.rank;
        for piece in &self.gathered.pieces[self.gathered.of_group[group].clone()] {
            let adapter = piece.adapter.of(self.batch);
            let Some(pair) = adapter.pair(self.layer, self.modules[nth], piece.expert) else { continue };
            let (slots, rank) = (&self.gathered.slots[piece.slots.clone()], pair.b.cols());
            let (form, words) = scratch.rows.start(isa, Dtype::F32, Activations::default(), slots.len(), rank);
            for (slot, words) in piece.slots.clone().zip(words.chunks_exact_mut(form.words())) {
                form.prepare(&self.products[slot * width + nth * self.rank..][..rank], words);
            }
            let panels = cols.start / PANEL..cols.end.div_ceil(PANEL);
            let deltas = &mut scratch.sums[..panels.len() * slots.len()];
            multiply(isa, &pair.b, panels, &scratch.rows, &scratch.identity[..slots.len()], panel, deltas);
            for (sums, deltas) in sums.chunks_exact_mut(rows).zip(deltas.chunks_exact(slots.len())) {
                for (slot, delta) in slots.iter().zip(deltas) {
                    let scale = (pair.scaling * f64::from(slot.scale)) as f32;
                    elementwise::add_scaled(isa, &mut sums[slot.row as usize], delta, scale);
                }
            }
        }
    }
}
