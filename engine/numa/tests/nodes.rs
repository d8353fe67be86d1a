//! Pages and threads on the nodes of the machine that runs this, whatever it is.
//!
//! On most machines that is one node, and half of it goes without saying. `cargo tools numa-vm` runs the same program in
//! emulated machines with several, and tells it what it should find there.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use numa::region::HUGE_PAGE;
use numa::{AlignedBuffer, DirectFile, Node, NodeId, Pinning, Placement, Pool, Region, Slices, Topology, affinity};

const PAGE: usize = 4096;

/// Not whole large pages: the last ones are small.
const BYTES: usize = 8 * HUGE_PAGE + 5 * PAGE + 1;

/// Nodes, and CPUs of each, of the emulated machine that this runs in.
fn emulated() -> Option<[usize; 2]> {
    let number = |name| std::env::var(name).ok().map(|text: String| text.parse().unwrap());
    Some([number("NUMA_VM_NODES")?, number("NUMA_VM_CPUS")?])
}

fn nodes() -> Vec<Node> {
    Topology::discover().unwrap().nodes
}

/// Every pair of a node whose CPUs work and a node whose memory they use.
fn pairs() -> Vec<(Vec<usize>, NodeId)> {
    let nodes = nodes();
    let from = nodes.iter().filter(|node| !node.cores.is_empty());
    let to = || nodes.iter().filter(|node| node.memory_bytes > 0).map(|node| node.id);
    from.flat_map(|node| to().map(|id| (node.cpus(), id))).collect()
}

/// Runs `work` on one of `cpus`.
fn on<T: Send>(cpus: &[usize], work: impl FnOnce() -> T + Send) -> T {
    let work = || {
        affinity::pin_current_thread(cpus).unwrap();
        assert!(cpus.contains(&rustix::thread::sched_getcpu()));
        work()
    };
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

fn all_on(node: NodeId, bytes: usize) -> Placement {
    Placement { pages: vec![(node, bytes.div_ceil(PAGE))], untouched: 0 }
}

/// The policy of the memory at `address`: its mode, and the node if it is one.
fn policy(address: *const u8) -> (i32, Option<usize>) {
    let (mut mode, mut mask) = (0, [0_u64; 16]);
    const MPOL_F_ADDR: libc::c_ulong = 2;
    // SAFETY: the kernel writes one number and a mask of as many bits as it is told.
    let rc = unsafe {
        libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, mask.as_mut_ptr(), 1024_usize, address, MPOL_F_ADDR)
    };
    assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
    let nodes: Vec<_> = (0..1024).filter(|node| mask[node / 64] >> (node % 64) & 1 == 1).collect();
    (mode, if let [node] = nodes[..] { Some(node) } else { None })
}

#[test]
fn the_topology_is_that_of_the_emulated_machine() {
    let Some([count, cpus]) = emulated() else { return };
    let nodes = nodes();
    assert_eq!(nodes.len(), count);
    for (index, node) in nodes.iter().enumerate() {
        assert_eq!(node.id, NodeId(index));
        assert_eq!(node.cpus(), (index * cpus..(index + 1) * cpus).collect::<Vec<_>>());
        assert_eq!(node.cores.len(), cpus);
        let distance = |other| if other == index { 10 } else { 21 };
        assert_eq!(node.distances, (0..count).map(distance).collect::<Vec<_>>());
        assert!(node.memory_bytes > 256 << 20, "node {index} has {} bytes", node.memory_bytes);
    }
}

#[test]
fn a_region_has_its_policy_before_it_is_touched_and_all_its_pages_on_its_node_whoever_fills_it() {
    for (cpus, node) in pairs() {
        let mut region = Region::on_node(BYTES, node).unwrap();
        let want = (libc::MPOL_BIND | libc::MPOL_F_STATIC_NODES, Some(node.0));
        for at in [0, BYTES / 2, BYTES - 1] {
            assert_eq!(policy(&raw const region.as_slice()[at]), want);
        }
        assert_eq!(region.exact_placement().unwrap().touched(), 0);
        on(&cpus, || region.prefault(None).unwrap());
        assert_eq!(region.exact_placement().unwrap(), all_on(node, BYTES));
        assert_eq!(region.placement().unwrap(), Placement { pages: vec![(node, 9)], untouched: 0 });
        assert_eq!(region.placement().unwrap().share_on(node), 1.0);
    }
}

#[test]
fn pages_of_a_region_that_are_taken_one_by_one_are_on_its_node_too() {
    for (cpus, node) in pairs() {
        let mut region = Region::on_node(BYTES, node).unwrap();
        on(&cpus, || region.as_mut_slice().iter_mut().step_by(PAGE).for_each(|byte| *byte = 1));
        assert_eq!(region.exact_placement().unwrap(), all_on(node, BYTES));
    }
}

#[test]
fn memory_without_a_node_is_on_that_of_the_first_thread_that_touches_it() {
    for node in nodes().iter().filter(|node| !node.cores.is_empty() && node.memory_bytes > 0) {
        let mut region = Region::anonymous(BYTES).unwrap();
        assert_eq!(policy(region.as_slice().as_ptr()).0, libc::MPOL_DEFAULT);
        on(&node.cpus(), || region.as_mut_slice().fill(1));
        assert_eq!(region.exact_placement().unwrap(), all_on(node.id, BYTES));
    }
}

#[test]
fn a_node_that_is_not_there_is_an_error_that_names_it() {
    let beyond = nodes().last().unwrap().id.0 + 1;
    for node in [beyond, 1023] {
        let error = Region::on_node(BYTES, NodeId(node)).unwrap_err().to_string();
        assert!(error.contains(&format!("to node {node} ")) && error.contains("no such node"), "{error}");
    }
}

#[test]
fn a_region_larger_than_what_its_node_has_left_is_refused_before_it_takes_a_page() {
    // Elsewhere the whole machine may be one node, and a mapping of its size may be refused already.
    if emulated().is_none_or(|[nodes, _]| nodes == 1) {
        return;
    }
    for node in nodes() {
        let bytes = usize::try_from(node.memory_bytes).unwrap();
        let mut region = Region::on_node(bytes, node.id).unwrap();
        let error = region.prefault(None).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::OutOfMemory);
        assert!(error.to_string().contains(&format!("node {} has ", node.id)), "{error}");
        assert_eq!(region.placement().unwrap().touched(), 0);
    }
}

#[test]
fn slices_of_a_matrix_lie_on_their_nodes_and_together_are_one_matrix() {
    const PANELS: usize = 37;
    const PANEL_BYTES: usize = 160 * 1024;
    let topology = Topology::discover().unwrap();
    let mut pool = pinned(&topology);
    let slices = Slices::new(PANELS, &pool.worker_counts());
    let region = |(node, panels): (&numa::WorkerNode, std::ops::Range<usize>)| {
        Region::on_node(panels.len() * PANEL_BYTES, node.id.unwrap()).unwrap()
    };
    let mut regions: Vec<_> = pool.nodes().iter().zip(slices.iter()).map(region).collect();
    Region::prefault_all(&mut regions, &mut pool).unwrap();
    for (region, node) in regions.iter().zip(pool.nodes()) {
        let bytes = region.as_slice().len();
        assert!(bytes.is_multiple_of(PANEL_BYTES));
        assert_eq!(region.exact_placement().unwrap(), all_on(node.id.unwrap(), bytes));
    }
    assert_eq!(regions.iter().map(|region| region.as_slice().len()).sum::<usize>(), PANELS * PANEL_BYTES);
}

/// A pool with all cores of the nodes.
fn pinned(topology: &Topology) -> Pool {
    let pool = Pool::on_nodes(NonZeroUsize::new(topology.core_count()).unwrap(), Pinning::Pinned, topology).unwrap();
    assert!(pool.pinned());
    pool
}

#[test]
fn tiles_of_a_node_are_computed_on_its_cpus() {
    const INTERVALS: usize = 24;
    let topology = Topology::discover().unwrap();
    let mut pool = pinned(&topology);
    let _pin = pool.pin_caller().unwrap();
    let homes: Vec<_> = topology.nodes.iter().filter(|node| !node.cores.is_empty()).map(Node::cpus).collect();
    assert_eq!(homes.len(), pool.nodes().len());
    // Matrices side by side: each node owns several intervals that are not neighbours.
    let owners: Vec<_> = (0..INTERVALS).map(|interval| interval / 2 % homes.len()).collect();
    let cuts: Vec<_> = (0..=INTERVALS).map(|cut| cut * 16).collect();
    let groups = [0..1, 1..4];
    let strays = Mutex::new(vec![]);
    for _ in 0..50 {
        let mut out = vec![usize::MAX; 4 * INTERVALS * 16];
        let mut scratch = vec![(); pool.threads()];
        let cols = INTERVALS * 16;
        pool.tiles_on_nodes(&mut scratch, &mut out, cols, &groups, &cuts, &owners, |(), mut tile| {
            let cpu = rustix::thread::sched_getcpu();
            let owner = owners[tile.interval()];
            if !homes[owner].contains(&cpu) {
                strays.lock().unwrap().push((tile.interval(), cpu));
            }
            (0..tile.rows().len()).for_each(|row| tile.row_mut(row).fill(owner));
        });
        assert!(out.iter().enumerate().all(|(at, &owner)| owner == owners[at % cols / 16]));
    }
    assert_eq!(strays.into_inner().unwrap(), [], "(interval, CPU) of tiles that were computed elsewhere");
}

#[test]
fn a_file_is_read_past_the_page_cache_into_memory_of_a_node() {
    let bytes = |range: std::ops::Range<usize>| range.map(|at| (at >> 7) as u8).collect::<Vec<_>>();
    let folder = if emulated().is_some() { PathBuf::from("/data") } else { std::env::temp_dir() };
    let path = folder.join(format!("nodes-{}", std::process::id()));
    std::fs::write(&path, bytes(0..BYTES)).unwrap();
    let file = DirectFile::open(&path).unwrap();
    assert!(file.is_direct() || emulated().is_none());
    let mut buffer = AlignedBuffer::new(HUGE_PAGE).unwrap();
    for (cpus, node) in pairs() {
        let mut region = Region::on_node(BYTES, node).unwrap();
        on(&cpus, || {
            for (index, part) in region.as_mut_slice().chunks_mut(HUGE_PAGE - 1000).enumerate() {
                let offset = index * (HUGE_PAGE - 1000);
                part.copy_from_slice(file.read_at(offset as u64, part.len(), &mut buffer).unwrap());
            }
        });
        assert!(region.as_slice() == bytes(0..BYTES));
        assert_eq!(region.exact_placement().unwrap(), all_on(node, BYTES));
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_file_system_without_direct_reads_is_read_and_named() {
    // The emulated machine has Linux 6.1, whose tmpfs has no direct reads.
    if emulated().is_none() {
        return;
    }
    let path = Path::new("/run/tmpfs");
    std::fs::write(path, [7; 3 * PAGE + 5]).unwrap();
    let file = DirectFile::open(path).unwrap();
    assert!(!file.is_direct());
    let mut buffer = AlignedBuffer::new(3 * PAGE).unwrap();
    assert_eq!(file.read_at(5, 3 * PAGE, &mut buffer).unwrap(), [7; 3 * PAGE]);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn bound_memory_can_be_locked_where_the_limit_allows() {
    for node in nodes().iter().filter(|node| node.memory_bytes > 0) {
        let mut region = Region::on_node(BYTES, node.id).unwrap();
        region.prefault(None).unwrap();
        match numa::lock(region.as_slice()) {
            Ok(()) => {}
            Err(error) => assert!(emulated().is_none() && error.to_string().contains("ulimit -l"), "{error}"),
        }
        assert_eq!(region.exact_placement().unwrap(), all_on(node.id, BYTES));
    }
}
