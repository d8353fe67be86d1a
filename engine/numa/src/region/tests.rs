//! Regions are asked for on the machine that runs the tests, and the kernel is asked what became of them.

use std::num::NonZeroUsize;

use super::*;
use crate::pool::Pinning;

/// Value of a field of the mapping that holds `address`, in `/proc/self/smaps`.
fn smaps(address: usize, name: &str) -> String {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in text.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        if let Some((from, to)) = range {
            let bound = |hex| usize::from_str_radix(hex, 16).unwrap();
            inside = (bound(from)..bound(to)).contains(&address);
        } else if let Some((_, value)) = line.split_once(':').filter(|(key, _)| inside && *key == name) {
            return value.trim().to_owned();
        }
    }
    panic!("no mapping with {name} at {address:#x}");
}

/// Pages of the region that have memory.
fn resident_pages(region: &Region) -> usize {
    let mut pages = vec![0_u8; region.bytes.div_ceil(page_size())];
    // SAFETY: the range is the region's own, and the kernel writes one byte for each of its pages.
    let rc = unsafe { libc::mincore(region.start.as_ptr().cast(), region.bytes, pages.as_mut_ptr()) };
    assert_eq!(rc, 0);
    pages.iter().filter(|&&page| page & 1 == 1).count()
}

#[test]
fn a_region_is_aligned_zero_writable_and_of_the_length_asked_for() {
    for bytes in [1, 4096, HUGE_PAGE - 1, HUGE_PAGE, HUGE_PAGE + 1, 3 * HUGE_PAGE + 5] {
        let mut region = Region::anonymous(bytes).unwrap();
        assert_eq!(region.as_slice().as_ptr().addr() % HUGE_PAGE, 0);
        assert_eq!(region.as_slice().len(), bytes);
        assert!(region.as_slice().iter().all(|&byte| byte == 0));
        region.as_mut_slice()[bytes - 1] = 7;
        assert_eq!(region.as_slice()[bytes - 1], 7);
    }
}

#[test]
fn no_bytes_are_fine() {
    let mut region = Region::anonymous(0).unwrap();
    region.prefault(None).unwrap();
    assert!(region.as_mut_slice().is_empty());
}

#[test]
fn prefault_takes_every_page_and_changes_no_byte() {
    const BYTES: usize = PREFAULT_STEP + HUGE_PAGE + 4097;
    let mut pool = Pool::new(NonZeroUsize::new(3).unwrap(), Pinning::Free).unwrap();
    for pool in [None, Some(&mut pool)] {
        let mut region = Region::anonymous(BYTES).unwrap();
        assert_eq!(resident_pages(&region), 0);
        region.as_mut_slice()[BYTES - 1] = 9;
        region.prefault(pool).unwrap();
        assert_eq!(resident_pages(&region), BYTES.div_ceil(page_size()));
        assert_eq!(region.as_slice()[BYTES - 1], 9);
        assert!(region.as_slice()[..BYTES - 1].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_bound_region_has_all_its_pages_on_its_node() {
    const BYTES: usize = 2 * HUGE_PAGE + 4097;
    for node in bindable_nodes() {
        let mut region = Region::on_node(BYTES, node).unwrap();
        assert_eq!(region.node(), Some(node));
        assert_eq!(region.placement().unwrap(), Placement { pages: vec![], untouched: 3 });
        region.as_mut_slice()[HUGE_PAGE] = 1;
        region.prefault(None).unwrap();
        // A second time nothing is needed.
        region.prefault(None).unwrap();
        assert_eq!(region.placement().unwrap(), Placement { pages: vec![(node, 3)], untouched: 0 });
        let pages = BYTES.div_ceil(page_size());
        assert_eq!(region.exact_placement().unwrap(), Placement { pages: vec![(node, pages)], untouched: 0 });
        assert_eq!(region.as_slice()[HUGE_PAGE], 1);
    }
}

/// Nodes to which this process may bind memory, as the kernel's own list has them.
fn bindable_nodes() -> Vec<NodeId> {
    let nodes = crate::Topology::discover().unwrap().nodes;
    nodes.into_iter().filter(|node| node.memory_bytes > 0).map(|node| node.id).collect()
}

#[test]
fn a_node_that_the_kernel_does_not_have_is_an_error_that_names_it() {
    for node in [NodeId(777), NodeId(1023), NodeId(1024), NodeId(usize::MAX)] {
        let error = Region::on_node(HUGE_PAGE, node).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains(&format!("to node {node} ")), "{error}");
        assert!(error.to_string().contains("no such node"), "{error}");
    }
}

#[test]
fn each_way_to_be_refused_a_node_says_what_would_help() {
    for (errno, help) in [(Errno::NOSYS, "CONFIG_NUMA"), (Errno::PERM, "CAP_SYS_NICE")] {
        let error = RegionError::Bind { bytes: 5, node: NodeId(1), errno };
        assert!(error.to_string().contains(help), "{error}");
    }
}

#[test]
fn regions_are_filled_together_by_the_workers_of_their_nodes() {
    const BYTES: usize = 2 * PREFAULT_STEP + 5;
    let node = bindable_nodes()[0];
    let topology = crate::Topology::parse("2x1").unwrap();
    let mut pool = Pool::on_nodes(NonZeroUsize::new(3).unwrap(), Pinning::Free, &topology).unwrap();
    let mut regions = [Region::on_node(BYTES, node).unwrap(), Region::anonymous(BYTES).unwrap()];
    Region::prefault_all(&mut regions, &mut pool).unwrap();
    for region in &regions {
        assert_eq!(resident_pages(region), BYTES.div_ceil(page_size()));
    }
}

#[test]
fn a_node_that_is_too_full_is_an_error_before_anything_is_taken() {
    let texts = [
        ("/sys/devices/system/node/node0/meminfo", "Node 0 MemFree: 3072 kB\nNode 0 Inactive(file): 2048 kB\n"),
        ("/proc/sys/vm/min_free_kbytes", "1024\n"),
    ];
    let read = crate::kernel_files::tests::files(&texts);
    assert_eq!(node_free_bytes(NodeId(0), &read), Some(2 * HUGE_PAGE as u64));
    assert_eq!(node_free_bytes(NodeId(1), &read), None);

    let unbound = |bytes| Region::anonymous(bytes).unwrap();
    let region = |bytes| {
        let mut region = unbound(bytes);
        region.node = Some(NodeId(0));
        region
    };
    check_nodes(&[region(2 * HUGE_PAGE)], &read).unwrap();
    check_nodes(&[region(HUGE_PAGE), region(HUGE_PAGE), unbound(HUGE_PAGE)], &read).unwrap();
    let regions = [region(HUGE_PAGE), unbound(HUGE_PAGE), region(HUGE_PAGE + 1)];
    let error = check_nodes(&regions, &read).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
    for part in ["node 0 has 4194304 bytes", "4194305 more", "for 2097153 bytes"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert!(regions.iter().all(|region| resident_pages(region) == 0));

    // What has its pages already needs no more.
    let mut full = region(3 * HUGE_PAGE);
    touch(full.as_mut_slice());
    check_nodes(&[full], &read).unwrap();
}

#[test]
fn touching_takes_every_page_too() {
    let mut region = Region::anonymous(HUGE_PAGE + 1).unwrap();
    region.as_mut_slice()[3] = 5;
    touch(region.as_mut_slice());
    assert_eq!(resident_pages(&region), HUGE_PAGE / page_size() + 1);
    assert_eq!(region.as_slice()[..5], [0, 0, 0, 5, 0]);
}

#[test]
fn the_mapping_asks_for_large_pages_and_stays_out_of_core_dumps() {
    let region = Region::anonymous(HUGE_PAGE).unwrap();
    let flags = smaps(region.start.addr().get(), "VmFlags");
    assert!(flags.split(' ').any(|flag| flag == "dd"), "{flags}");
    let has_thp = std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists();
    assert_eq!(flags.split(' ').any(|flag| flag == "hg"), has_thp, "{flags}");
}

#[test]
fn an_impossible_size_is_an_error_that_names_it() {
    for bytes in [usize::MAX, usize::MAX / 2] {
        let error = Region::anonymous(bytes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        assert!(error.to_string().contains(&bytes.to_string()), "{error}");
    }
}

#[test]
fn a_dropped_region_is_unmapped() {
    let mapped_bytes = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        crate::kernel_files::bytes_field(&status, "VmSize").unwrap()
    };
    let before = mapped_bytes();
    for _ in 0..256 {
        drop(Region::anonymous(256 << 20).unwrap());
    }
    // All of them together are 64 GiB; other tests map a little meanwhile.
    assert!(mapped_bytes() < before + (16 << 30));
}
