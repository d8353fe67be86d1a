//! A program of its own, because allocations are counted for the whole process and other tests would add theirs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use numa::{Pinning, Pool, Topology};

/// The system's allocator, and how often it was asked.
struct Counting(AtomicUsize);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.fetch_add(1, Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting(AtomicUsize::new(0));

#[test]
fn no_loop_allocates() {
    let threads = NonZeroUsize::new(4).unwrap();
    for nodes in [1, 2, 4] {
        let topology = Topology::parse(&format!("{nodes}x1")).unwrap();
        let mut pool = Pool::on_nodes(threads, Pinning::Free, &topology).unwrap();
        let (mut scratch, mut out) = ([0_u64; 4], [0_u64; 3 * 64]);
        let cuts: [usize; 9] = std::array::from_fn(|cut| 8 * cut);
        let owners: [usize; 8] = std::array::from_fn(|interval| interval % nodes);
        let groups = [0..1, 1..3];
        let before = ALLOCATOR.0.load(Relaxed);
        for _ in 0..100 {
            pool.run(&mut scratch, 10, |sum, index| *sum += index as u64);
            pool.broadcast(&mut scratch, |sum, worker| *sum += worker as u64);
            pool.chunks(&mut scratch, &mut out, 7, |_, _, part| part.fill(1));
            pool.tiles(&mut scratch, &mut out, 64, &groups, &cuts, |_, mut tile| tile.row_mut(0).fill(2));
            pool.tiles_on_nodes(&mut scratch, &mut out, 64, &groups, &cuts, &owners, |_, mut tile| {
                tile.row_mut(0).fill(3);
            });
        }
        assert_eq!(ALLOCATOR.0.load(Relaxed) - before, 0, "{nodes} nodes");
    }
}
