//! Cutting one output buffer into parts that tasks may write at the same time.
//!
//! # Why no two tasks overlap
//!
//! A loop over a buffer holds its `&mut [T]` for as long as it runs, so nobody outside has it. Inside, each part
//! belongs to one task index, and a pool hands each index to one worker once:
//!
//! * chunk `i` is `[i * chunk, min((i + 1) * chunk, len))`, disjoint for different `i`;
//! * a tile is a row group times a column interval. Two tiles of one group have different intervals between ascending
//!   cuts, so they share no column; two tiles of different groups have disjoint rows, which is asserted, so they share no
//!   element either. On nodes, the `i`-th task of a node is a group times the `i`-th interval that this node owns; every
//!   interval has one owner, so two tasks still differ in group or interval.
//!
//! A part cannot outlive its task: tasks are generic over its lifetime, so nothing they can reach may hold it.

use std::marker::PhantomData;
use std::ops::Range;

use crate::pool::Pool;

/// A slice whose elements are lent to different threads.
pub(crate) struct Slots<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: a shared `Slots` only gives out exclusive borrows, which is what `T: Send` allows to cross threads.
unsafe impl<T: Send> Sync for Slots<'_, T> {}

impl<'a, T> Slots<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// # Safety
    /// `index` is inside the slice, and no other borrow of this element is alive.
    // The point of the type: `&self` is shared, the elements are not.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slot(&self, index: usize) -> &mut T {
        debug_assert!(index < self.len);
        // SAFETY: the caller promises an element of the slice that nobody else borrows.
        unsafe { &mut *self.start.wrapping_add(index) }
    }

    /// # Safety
    /// `range` is inside the slice, and no other borrow of its elements is alive.
    #[allow(clippy::mut_from_ref)]
    unsafe fn range(&self, range: Range<usize>) -> &mut [T] {
        debug_assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the caller promises a part of the slice that nobody else borrows.
        unsafe { std::slice::from_raw_parts_mut(self.start.wrapping_add(range.start), range.len()) }
    }
}

/// A rectangle of a row-major matrix, written by one task.
pub struct TileMut<'a, T> {
    out: &'a Slots<'a, T>,
    out_cols: usize,
    group: usize,
    interval: usize,
    rows: Range<usize>,
    cols: Range<usize>,
}

impl<T> TileMut<'_, T> {
    /// Index of the row group.
    pub fn group(&self) -> usize {
        self.group
    }

    /// Index of the column interval: 0 lies between the first two cuts.
    pub fn interval(&self) -> usize {
        self.interval
    }

    /// Rows of the matrix: the row group.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Columns of the matrix: the interval between two cuts.
    pub fn cols(&self) -> Range<usize> {
        self.cols.clone()
    }

    /// The tile's columns of its row `row_in_tile`, counted from the tile's first.
    ///
    /// # Panics
    /// When the tile has fewer rows.
    pub fn row_mut(&mut self, row_in_tile: usize) -> &mut [T] {
        assert!(row_in_tile < self.rows.len(), "row {row_in_tile} of a tile of {} rows", self.rows.len());
        let row_start = (self.rows.start + row_in_tile) * self.out_cols;
        // SAFETY: the elements lie in this tile, and tiles share none (module comment); `&mut self` keeps it one row.
        unsafe { self.out.range(row_start + self.cols.start..row_start + self.cols.end) }
    }
}

impl Pool {
    /// Calls `task(scratch, index, part)` for every `chunk` neighbouring elements of `out`; the last part may be shorter.
    ///
    /// # Panics
    /// When `chunk` is zero, when `scratch` has not [`threads`](Self::threads) elements, and with a task's own panic.
    pub fn chunks<S: Send, T: Send>(
        &mut self,
        scratch: &mut [S],
        out: &mut [T],
        chunk: usize,
        task: impl Fn(&mut S, usize, &mut [T]) + Sync,
    ) {
        assert!(chunk > 0, "a chunk needs at least one element");
        let (len, tasks) = (out.len(), out.len().div_ceil(chunk));
        let out = Slots::new(out);
        self.run(scratch, tasks, |scratch, index| {
            let start = index * chunk;
            // SAFETY: chunks of different indices share no element (module comment), and this one ends inside `out`.
            let part = unsafe { out.range(start..start + chunk.min(len - start)) };
            task(scratch, index, part);
        });
    }

    /// Calls `task(scratch, tile)` for every row group times every interval between neighbouring `col_cuts`.
    ///
    /// `out` is `[rows, cols]`, row-major. Tasks are numbered group by group, so neighbours share rows. Rows in no group
    /// and columns outside the cuts are left as they are; an empty group or interval still has its tasks.
    ///
    /// # Panics
    /// When `out` is not whole rows, when groups overlap, descend or leave the rows, when cuts descend or leave the
    /// columns, when `scratch` has not [`threads`](Self::threads) elements, and with a task's own panic.
    pub fn tiles<S: Send, T: Send>(
        &mut self,
        scratch: &mut [S],
        out: &mut [T],
        cols: usize,
        row_groups: &[Range<usize>],
        col_cuts: &[usize],
        task: impl Fn(&mut S, TileMut<'_, T>) + Sync,
    ) {
        let grid = Grid::new(out.len(), cols, row_groups, col_cuts);
        let (out, intervals) = (Slots::new(out), grid.intervals());
        self.run(scratch, grid.tasks(), |scratch, index| {
            task(scratch, grid.tile(&out, index / intervals, index % intervals));
        });
    }

    /// As [`tiles`](Self::tiles), but interval `i` is computed by workers of node `node_of_interval[i]` only, an index in
    /// [`nodes`](Self::nodes): by those who have its weights near.
    ///
    /// Any node may own any intervals; within a node the order is that of [`tiles`](Self::tiles). With one node it is
    /// [`tiles`](Self::tiles).
    ///
    /// # Panics
    /// As [`tiles`](Self::tiles), and when `node_of_interval` has not one node of the pool for each interval.
    // One argument more than `tiles`, which has what a loop over a matrix needs.
    #[allow(clippy::too_many_arguments)]
    pub fn tiles_on_nodes<S: Send, T: Send>(
        &mut self,
        scratch: &mut [S],
        out: &mut [T],
        cols: usize,
        row_groups: &[Range<usize>],
        col_cuts: &[usize],
        node_of_interval: &[usize],
        task: impl Fn(&mut S, TileMut<'_, T>) + Sync,
    ) {
        let intervals = col_cuts.len().saturating_sub(1);
        assert_eq!(node_of_interval.len(), intervals, "each interval needs a node");
        let nodes = self.nodes().len();
        assert!(
            node_of_interval.iter().all(|&node| node < nodes),
            "an interval of {node_of_interval:?} belongs to none of the {nodes} nodes of the pool"
        );
        if nodes == 1 {
            return self.tiles(scratch, out, cols, row_groups, col_cuts, task);
        }
        let grid = Grid::new(out.len(), cols, row_groups, col_cuts);
        if grid.tasks() == 0 {
            return;
        }
        let out = Slots::new(out);
        self.claim_on_nodes(scratch, |scratch, node, claim| {
            let own = node_of_interval.iter().filter(|&&owner| owner == node).count();
            let mut walk = Walk { node_of_interval, node, group: 0, before: 0, interval: 0 };
            loop {
                let index = claim();
                if index >= row_groups.len() * own {
                    break;
                }
                let (group, nth) = (index / own, index % own);
                task(scratch, grid.tile(&out, group, walk.interval(group, nth)));
            }
        });
    }
}

/// A checked division of a row-major matrix into tiles.
struct Grid<'a> {
    cols: usize,
    row_groups: &'a [Range<usize>],
    col_cuts: &'a [usize],
}

impl<'a> Grid<'a> {
    fn new(len: usize, cols: usize, row_groups: &'a [Range<usize>], col_cuts: &'a [usize]) -> Self {
        // A matrix without columns has as many rows as anyone likes.
        let rows = len.checked_div(cols).unwrap_or(usize::MAX);
        assert!(rows.checked_mul(cols) == Some(len), "{len} elements are not whole rows of {cols} columns");
        let mut groups_end = 0;
        for group in row_groups {
            assert!(
                groups_end <= group.start && group.start <= group.end && group.end <= rows,
                "row group {group:?} overlaps the one before it, which ends at {groups_end}, or leaves the {rows} rows"
            );
            groups_end = group.end;
        }
        assert!(col_cuts.is_sorted(), "column cuts must ascend: {col_cuts:?}");
        assert!(col_cuts.last().is_none_or(|&last| last <= cols), "column cuts {col_cuts:?} leave the {cols} columns");
        Self { cols, row_groups, col_cuts }
    }

    fn intervals(&self) -> usize {
        self.col_cuts.len().saturating_sub(1)
    }

    fn tasks(&self) -> usize {
        self.row_groups.len() * self.intervals()
    }

    fn tile<'t, T>(&self, out: &'t Slots<'t, T>, group: usize, interval: usize) -> TileMut<'t, T> {
        let (rows, cols) = (self.row_groups[group].clone(), self.col_cuts[interval]..self.col_cuts[interval + 1]);
        TileMut { out, out_cols: self.cols, group, interval, rows, cols }
    }
}

/// One worker's way through the intervals of its node: claims of a worker ascend, so it never has to look back within a
/// group, and there is no list of a node's intervals to keep in memory.
struct Walk<'a> {
    node_of_interval: &'a [usize],
    node: usize,
    group: usize,
    /// How many of the node's intervals lie before `interval`.
    before: usize,
    interval: usize,
}

impl Walk<'_> {
    /// The `nth` interval of the node, which has more than that, in a row group; never one before the last asked for.
    fn interval(&mut self, group: usize, nth: usize) -> usize {
        if group != self.group {
            (self.group, self.before, self.interval) = (group, 0, 0);
        }
        while self.node_of_interval[self.interval] != self.node || self.before < nth {
            self.before += usize::from(self.node_of_interval[self.interval] == self.node);
            self.interval += 1;
        }
        self.interval
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::Relaxed;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::pool::Pinning;

    fn pool(threads: usize) -> Pool {
        Pool::new(NonZeroUsize::new(threads).unwrap(), Pinning::Free).unwrap()
    }

    /// Ascending, disjoint ranges with gaps before each, from (gap, length) pairs.
    fn groups(steps: &[(usize, usize)]) -> Vec<Range<usize>> {
        let mut at = 0;
        let group = |&(gap, len): &(usize, usize)| {
            let start = at + gap;
            at = start + len;
            start..at
        };
        steps.iter().map(group).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn chunks_write_every_element_once(threads in 1_usize..5, len in 0_usize..200, chunk in 1_usize..50) {
            let mut out = vec![0; len];
            let mut written = vec![0_usize; threads];
            pool(threads).chunks(&mut written, &mut out, chunk, |written, index, part| {
                assert!(part.len() == chunk || (index + 1) * chunk > len);
                *written += part.len();
                for (at, element) in part.iter_mut().enumerate() {
                    *element += 1 + index * chunk + at;
                }
            });
            prop_assert!(out.iter().enumerate().all(|(at, &element)| element == at + 1));
            prop_assert_eq!(written.iter().sum::<usize>(), len);
        }

        #[test]
        fn tiles_write_their_own_elements_once_and_no_others(
            threads in 1_usize..5,
            steps in vec((0_usize..3, 0_usize..6), 0..6),
            rows_after in 0_usize..3,
            mut col_cuts in vec(0_usize..20, 0..6),
            cols_after in 0_usize..3,
        ) {
            col_cuts.sort_unstable();
            let row_groups = groups(&steps);
            let rows = row_groups.last().map_or(0, |group| group.end) + rows_after;
            let cols = col_cuts.last().map_or(0, |&last| last) + cols_after;
            let mut out = vec![0_u64; rows * cols];
            let mut tiles = vec![0_usize; threads];
            pool(threads).tiles(&mut tiles, &mut out, cols, &row_groups, &col_cuts, |tiles, mut tile| {
                *tiles += 1;
                for row in 0..tile.rows().len() {
                    let (first, id) = (tile.cols().start, 1000 * tile.group() as u64 + tile.interval() as u64);
                    let row_number = (tile.rows().start + row) as u64;
                    for (col, element) in tile.row_mut(row).iter_mut().enumerate() {
                        *element += ((1 + id) * 1000 + row_number) * 1000 + (first + col) as u64;
                    }
                }
            });
            prop_assert_eq!(tiles.iter().sum::<usize>(), row_groups.len() * col_cuts.len().saturating_sub(1));
            for (at, &got) in out.iter().enumerate() {
                let (row, col) = (at / cols, at % cols);
                let group = row_groups.iter().position(|group| group.contains(&row));
                let interval = col_cuts.windows(2).position(|cut| (cut[0]..cut[1]).contains(&col));
                let want = group.zip(interval).map_or(0, |(group, interval)| {
                    ((1 + 1000 * group + interval) * 1000 + row) * 1000 + col
                });
                prop_assert_eq!(got, want as u64, "row {}, column {}", row, col);
            }
        }
    }

    /// A pool of logical nodes, which needs no machine that has them.
    fn pool_on_nodes(threads: usize, nodes: usize) -> Pool {
        let topology = crate::Topology::parse(&format!("{nodes}x4")).unwrap();
        Pool::on_nodes(NonZeroUsize::new(threads).unwrap(), Pinning::Free, &topology).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn tiles_on_nodes_are_those_of_tiles_each_claimed_by_a_worker_of_its_node(
            (nodes, owners) in (1_usize..5).prop_flat_map(|nodes| (Just(nodes), vec(0..nodes, 0..9))),
            more_threads in 0_usize..3,
            steps in vec((0_usize..3, 0_usize..4), 0..4),
            widths in vec(0_usize..5, 9),
        ) {
            let row_groups = groups(&steps);
            let mut col_cuts = vec![1];
            col_cuts.extend(owners.iter().zip(&widths).scan(1, |at, (_, width)| { *at += width; Some(*at) }));
            let (rows, cols) = (row_groups.last().map_or(0, |group| group.end) + 1, col_cuts[owners.len()] + 1);
            let write = |mut tile: TileMut<'_, u64>| {
                let id = 1 + 1000 * tile.group() as u64 + tile.interval() as u64;
                (0..tile.rows().len()).for_each(|row| tile.row_mut(row).iter_mut().for_each(|element| *element += id));
            };
            let mut want = vec![0; rows * cols];
            pool(2).tiles(&mut [(); 2], &mut want, cols, &row_groups, &col_cuts, |(), tile| write(tile));

            let mut pool = pool_on_nodes(nodes + more_threads, nodes);
            let mut got = vec![0; rows * cols];
            let mut claims = vec![vec![]; pool.threads()];
            for _ in 0..2 {
                got.fill(0);
                claims.iter_mut().for_each(Vec::clear);
                pool.tiles_on_nodes(&mut claims, &mut got, cols, &row_groups, &col_cuts, &owners, |claims, tile| {
                    claims.push((tile.group(), tile.interval()));
                    write(tile);
                });
                prop_assert_eq!(&got, &want);
                for (worker, claims) in claims.iter().enumerate() {
                    let home = pool.node_of_worker(worker);
                    prop_assert!(claims.iter().all(|(_, interval)| owners[*interval] == home), "worker {}", worker);
                    prop_assert!(claims.is_sorted());
                }
                prop_assert_eq!(claims.iter().map(Vec::len).sum::<usize>(), row_groups.len() * owners.len());
            }
        }
    }

    #[test]
    fn no_worker_helps_another_node() {
        let mut pool = pool_on_nodes(4, 2);
        let finished = AtomicUsize::new(0);
        let mut counts = [0; 4];
        // Node 0 has all the work but one task, and that one waits until all else is done.
        let owners = [0, 0, 0, 0, 0, 0, 0, 1];
        let cuts: Vec<_> = (0..=8).collect();
        let all = 0..1;
        let groups = std::slice::from_ref(&all);
        pool.tiles_on_nodes(&mut counts, &mut [0; 8], 8, groups, &cuts, &owners, |count, tile| {
            while tile.interval() == 7 && finished.load(Relaxed) < 7 {
                std::thread::yield_now();
            }
            *count += 1;
            finished.fetch_add(1, Relaxed);
        });
        assert_eq!((counts[0] + counts[1], counts[2] + counts[3]), (7, 1));
    }

    #[test]
    fn a_panic_on_a_node_reaches_the_caller_and_the_pool_goes_on() {
        let mut pool = pool_on_nodes(3, 3);
        for bad in 0..3 {
            let tiles = |pool: &mut Pool, bad: usize| {
                let mut out = [0; 3];
                pool.tiles_on_nodes(
                    &mut [(); 3],
                    &mut out,
                    3,
                    std::slice::from_ref(&(0..1)),
                    &[0, 1, 2, 3],
                    &[2, 0, 1],
                    |(), mut tile| {
                        assert!(tile.interval() != bad, "interval {bad} went wrong");
                        tile.row_mut(0)[0] = 1;
                    },
                );
                out
            };
            let panic = catch_unwind(AssertUnwindSafe(|| tiles(&mut pool, bad))).unwrap_err();
            assert_eq!(panic.downcast_ref::<String>().unwrap(), &format!("interval {bad} went wrong"));
            assert_eq!(tiles(&mut pool, 9), [1; 3]);
        }
    }

    #[test]
    fn intervals_without_a_node_of_the_pool_are_refused() {
        let mut pool = pool_on_nodes(2, 2);
        for (owners, message) in [(&[0][..], "each interval needs a node"), (&[0, 2], "none of the 2 nodes")] {
            let refused = catch_unwind(AssertUnwindSafe(|| {
                pool.tiles_on_nodes(&mut [(); 2], &mut [0; 2], 2, &[], &[0, 1, 2], owners, |(), _| unreachable!());
            }));
            let panic = refused.expect_err("refused");
            let text = panic.downcast_ref::<String>().expect("a message");
            assert!(text.contains(message), "{text}");
        }
    }

    #[test]
    fn tiles_come_group_by_group() {
        let mut seen = [vec![]];
        pool(1).tiles(&mut seen, &mut [0; 12], 4, &[0..1, 1..3], &[0, 1, 4], |seen, tile| {
            seen.push((tile.group(), tile.interval(), tile.rows(), tile.cols()));
        });
        assert_eq!(seen[0], [(0, 0, 0..1, 0..1), (0, 1, 0..1, 1..4), (1, 0, 1..3, 0..1), (1, 1, 1..3, 1..4)]);
    }

    #[test]
    fn empty_inputs_are_fine() {
        let mut pool = pool(2);
        let scratch = &mut [(); 2];
        let none: &mut [u8] = &mut [];
        pool.chunks(scratch, none, 3, |(), _, _| unreachable!());
        pool.tiles(scratch, none, 0, &[], &[], |(), _| unreachable!());
        pool.tiles(scratch, none, 4, &[], &[0, 4], |(), _| unreachable!());
        pool.tiles(scratch, &mut [1, 2], 2, std::slice::from_ref(&(0..1)), &[1], |(), _| unreachable!());
        pool.tiles(scratch, none, 0, &[0..2, 2..9], &[0, 0], |(), mut tile| {
            assert!(tile.row_mut(1).is_empty());
        });
    }

    #[test]
    fn a_partition_that_overlaps_or_leaves_the_buffer_is_refused() {
        let mut pool = pool(2);
        /// Row groups, cuts, columns, and what the refusal says.
        type Case<'a> = (&'a [Range<usize>], &'a [usize], usize, &'a str);
        // The lint takes `[0..4]` for a mistyped `[0; 4]`.
        #[expect(clippy::reversed_empty_ranges, clippy::single_range_in_vec_init)]
        let cases: [Case<'_>; 7] = [
            (&[0..2, 1..3], &[0, 4], 4, "overlaps"),
            (&[1..2, 0..1], &[0, 4], 4, "overlaps"),
            (&[2..1], &[0, 4], 4, "overlaps"),
            (&[0..4], &[0, 4], 4, "leaves the 3 rows"),
            (&[0..3], &[0, 5], 4, "leave the 4 columns"),
            (&[0..3], &[2, 1, 4], 4, "must ascend"),
            (&[0..2], &[0, 5], 5, "not whole rows"),
        ];
        for (row_groups, col_cuts, cols, message) in cases {
            let refused = catch_unwind(AssertUnwindSafe(|| {
                pool.tiles(&mut [(); 2], &mut [0; 12], cols, row_groups, col_cuts, |(), _| unreachable!());
            }));
            let panic = refused.expect_err("refused");
            let text = panic.downcast_ref::<String>().expect("a message");
            assert!(text.contains(message), "{text}");
        }
    }

    #[test]
    #[should_panic(expected = "row 2 of a tile of 2 rows")]
    fn a_tile_has_no_row_beyond_its_last() {
        pool(1).tiles(&mut [()], &mut [0; 12], 4, std::slice::from_ref(&(0..2)), &[0, 4], |(), mut tile| {
            tile.row_mut(2).fill(1);
        });
    }

    #[test]
    #[should_panic(expected = "at least one element")]
    fn a_chunk_of_nothing_is_refused() {
        pool(1).chunks(&mut [()], &mut [0; 12], 0, |(), _, _| {});
    }
}
