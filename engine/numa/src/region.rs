//! Anonymous memory for weights and KV blocks, in pages of 2 MiB.
//!
//! A decode step walks through gigabytes, and with pages of 4 KiB it would walk page tables as often as weights. The
//! kernel gives large pages only to whole aligned 2 MiB that asked before they were touched. Core dumps leave these
//! mappings out: they would be as large as the model, and hold a person's notes.
//!
//! On a machine with several nodes a region can be bound to one. The kernel then takes its pages from there or not at
//! all, and when the node is full it does not say so but ends the process; so [`Region::prefault`] counts first.

use std::io;
use std::ptr::{self, NonNull};
use std::slice::ChunksMut;
use std::sync::Mutex;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use rustix::param::page_size;
use thiserror::Error;

use crate::kernel_files::{self, Read};
use crate::placement::{self, Placement};
use crate::pool::Pool;
use crate::topology::NodeId;

/// Alignment of a region, and the page size that it asks for, in bytes.
pub const HUGE_PAGE: usize = 2 << 20;

/// Large enough that a system call is nothing, small enough that all workers have one to do.
const PREFAULT_STEP: usize = 32 * HUGE_PAGE;

/// An anonymous mapping, zero at first, that is given back when dropped.
///
/// Memory is taken when it is first touched: on the node of the thread that does, unless a policy says otherwise, and
/// slowly. [`prefault`](Self::prefault) takes all of it.
#[derive(Debug)]
pub struct Region {
    /// Start of the mapping.
    mapping: NonNull<u8>,
    mapping_bytes: usize,
    /// First multiple of [`HUGE_PAGE`] in the mapping.
    start: NonNull<u8>,
    bytes: usize,
    /// Where its pages have to be.
    node: Option<NodeId>,
}

// SAFETY: a region owns its mapping alone, as a boxed slice owns its bytes.
unsafe impl Send for Region {}
// SAFETY: through a shared region bytes can only be read.
unsafe impl Sync for Region {}

/// Why there is no such memory; inside an [`io::Error`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RegionError {
    /// The address space or the system's commit limit is too small.
    #[error(
        "cannot map {bytes} bytes of memory ({errno}): free memory, use a smaller context, or raise `ulimit -v` and \
         vm.overcommit_memory"
    )]
    Map {
        /// Size asked for.
        bytes: usize,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The kernel did not take the advice that goes with the mapping.
    #[error("cannot prepare {bytes} bytes of memory ({errno}): the limit vm.max_map_count may be reached")]
    Advise {
        /// Size asked for.
        bytes: usize,
        /// The kernel's answer.
        errno: Errno,
    },
    /// There are not enough pages behind the addresses.
    #[error(
        "cannot fill {bytes} bytes of memory{} with pages ({errno}): the machine or its control group has too little \
         free; `nightmonk plan` says what fits", on(*node)
    )]
    Prefault {
        /// Size of the region.
        bytes: usize,
        /// The node that it is bound to.
        node: Option<NodeId>,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The kernel does not bind memory to this node.
    #[error("cannot bind {bytes} bytes of memory to node {node} ({errno}): {}", bind_help(*errno))]
    Bind {
        /// Size asked for.
        bytes: usize,
        /// The node.
        node: NodeId,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The node has less memory than the region still needs.
    #[error(
        "node {node} has {free_bytes} bytes of memory that are free or can be freed, and {needed_bytes} more are needed \
         for {bytes} bytes there: end what else uses the node (`numastat -m` shows it), or use fewer bytes a node"
    )]
    NodeFull {
        /// Size of the region.
        bytes: usize,
        /// The node that it is bound to.
        node: NodeId,
        /// Of these, bytes that have no page yet.
        needed_bytes: u64,
        /// What the node could still give.
        free_bytes: u64,
    },
    /// The kernel does not say where pages are.
    #[error(
        "cannot ask on which nodes {bytes} bytes of memory are ({errno}): if this is a container, allow move_pages \
         (CAP_SYS_NICE or a seccomp profile)"
    )]
    Query {
        /// Size of the region.
        bytes: usize,
        /// The kernel's answer.
        errno: Errno,
    },
}

fn on(node: Option<NodeId>) -> String {
    node.map_or(String::new(), |node| format!(" on node {node}"))
}

fn bind_help(errno: Errno) -> &'static str {
    match errno {
        Errno::INVAL => {
            "the kernel has no such node with memory, or this process may not use it; see \
             /sys/devices/system/node/has_memory, and Mems_allowed_list in /proc/self/status"
        }
        Errno::NOSYS => "this kernel was built without memory policies (CONFIG_NUMA); run without placement",
        Errno::PERM => {
            "if this is a container, allow mbind (CAP_SYS_NICE or a seccomp profile), or run without placement"
        }
        _ => "run without placement",
    }
}

impl From<RegionError> for io::Error {
    fn from(error: RegionError) -> Self {
        let kind = match error {
            RegionError::NodeFull { .. } => io::ErrorKind::OutOfMemory,
            RegionError::Map { errno, .. }
            | RegionError::Advise { errno, .. }
            | RegionError::Prefault { errno, .. }
            | RegionError::Bind { errno, .. }
            | RegionError::Query { errno, .. } => Self::from(errno).kind(),
        };
        Self::new(kind, error)
    }
}

impl Region {
    /// `bytes` of zeros, aligned to [`HUGE_PAGE`].
    ///
    /// # Errors
    /// [`RegionError`] when the kernel refuses the mapping.
    pub fn anonymous(bytes: usize) -> io::Result<Self> {
        Self::new(bytes, None)
    }

    /// `bytes` of zeros like those of [`anonymous`](Self::anonymous), whose pages will be on `node` whoever touches them.
    ///
    /// # Errors
    /// [`RegionError`] when the kernel refuses the mapping, has no such node, or binds no memory.
    pub fn on_node(bytes: usize, node: NodeId) -> io::Result<Self> {
        Self::new(bytes, Some(node))
    }

    fn new(bytes: usize, node: Option<NodeId>) -> io::Result<Self> {
        let no_room = RegionError::Map { bytes, errno: Errno::NOMEM };
        // Whole large pages up to the last byte, and one more to align the first.
        let mapping_bytes =
            bytes.checked_next_multiple_of(HUGE_PAGE).and_then(|bytes| bytes.checked_add(HUGE_PAGE)).ok_or(no_room)?;
        // Not NORESERVE: a size that cannot be should fail here and not while it is filled.
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping at an address that the kernel chooses touches no other memory.
        let mapping = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), mapping_bytes, access, flags) }
            .map_err(|errno| RegionError::Map { bytes, errno })?;
        let mapping = NonNull::new(mapping.cast::<u8>()).ok_or(no_room)?;
        let start = mapping.map_addr(|address| address.saturating_add(address.get().wrapping_neg() % HUGE_PAGE));
        // From here on, an error drops the region and with it the mapping.
        let region = Self { mapping, mapping_bytes, start, bytes, node };
        if let Some(node) = node {
            // SAFETY: the mapping is this region's, and whole.
            let bound = unsafe { placement::bind(mapping, mapping_bytes, node) };
            bound.map_err(|errno| RegionError::Bind { bytes, node, errno })?;
        }
        match region.advise(Advice::LinuxHugepage) {
            // A kernel without large pages has no such advice; `MemoryFacts` tells, and small pages work.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(RegionError::Advise { bytes, errno }.into()),
        }
        region.advise(Advice::LinuxDontDump).map_err(|errno| RegionError::Advise { bytes, errno })?;
        Ok(region)
    }

    fn advise(&self, advice: Advice) -> Result<(), Errno> {
        // SAFETY: the whole mapping is ours, and the advices used here change how it is kept, not what it holds.
        unsafe { rustix::mm::madvise(self.mapping.as_ptr().cast(), self.mapping_bytes, advice) }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` and `bytes` lie in the mapping, which lives as long as `self` and is always initialised.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    /// The bytes, to write.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and `&mut self` makes this the only borrow.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// The node that it is bound to.
    pub fn node(&self) -> Option<NodeId> {
        self.node
    }

    /// Takes memory for every page now, and leaves the contents as they are.
    ///
    /// With a pool its workers share the work: zeroing 1 TB on one core takes minutes.
    ///
    /// # Errors
    /// [`RegionError::NodeFull`] when the node of a bound region has too little, [`RegionError::Prefault`] when the
    /// kernel has too few pages. A control group over its limit is killed instead, so a plan has to come first.
    pub fn prefault(&mut self, pool: Option<&mut Pool>) -> io::Result<()> {
        match pool {
            Some(pool) => Self::prefault_all(std::slice::from_mut(self), pool),
            None => {
                check_nodes(std::slice::from_ref(self), &kernel_files::read)?;
                let (bytes, node) = (self.bytes, self.node);
                let failed = |errno| RegionError::Prefault { bytes, node, errno }.into();
                self.as_mut_slice().chunks_mut(PREFAULT_STEP).try_for_each(populate).map_err(failed)
            }
        }
    }

    /// [`prefault`](Self::prefault) of several regions at once, each by the workers of its node: zeros that come from
    /// another node cross the machine.
    ///
    /// A region that is bound to no node of the pool is filled by all.
    ///
    /// # Errors
    /// As [`prefault`](Self::prefault), of the first region that fails.
    pub fn prefault_all(regions: &mut [Self], pool: &mut Pool) -> io::Result<()> {
        check_nodes(regions, &kernel_files::read)?;
        let filling = |region| Filling::new(region, pool);
        let fillings: Vec<_> = regions.iter_mut().map(filling).collect();
        let homes: Vec<_> = (0..pool.threads()).map(|worker| pool.node_of_worker(worker)).collect();
        let failure = Mutex::new(None);
        pool.broadcast(&mut vec![(); homes.len()], |(), worker| {
            for filling in fillings.iter().filter(|filling| filling.by.is_none_or(|node| node == homes[worker])) {
                while let Some(part) = filling.next_part() {
                    if let Err(errno) = populate(part) {
                        let Filling { bytes, node, .. } = *filling;
                        *failure.lock().expect(NO_PANIC) = Some(RegionError::Prefault { bytes, node, errno });
                        return;
                    }
                }
            }
        });
        failure.into_inner().expect(NO_PANIC).map_or(Ok(()), |error| Err(error.into()))
    }

    /// Refuses regions whose nodes have too little for all of them; takes nothing. [`prefault_all`](Self::prefault_all)
    /// asks by itself; memory that is filled without it should be asked for here.
    ///
    /// # Errors
    /// [`RegionError::NodeFull`], of the first region that has no room, and [`RegionError::Query`].
    pub fn check_room(regions: &[Self]) -> io::Result<()> {
        check_nodes(regions, &kernel_files::read)
    }

    /// Where its pages are, asked for the first page of each 2 MiB. Nothing is touched.
    ///
    /// # Errors
    /// [`RegionError::Query`] when the kernel does not say.
    pub fn placement(&self) -> io::Result<Placement> {
        self.placement_by(HUGE_PAGE)
    }

    /// Where each of its pages is, counted in pages of the machine's base size: exact, and slow for a large region.
    ///
    /// # Errors
    /// [`RegionError::Query`] when the kernel does not say.
    pub fn exact_placement(&self) -> io::Result<Placement> {
        self.placement_by(page_size())
    }

    fn placement_by(&self, step: usize) -> io::Result<Placement> {
        let bytes = self.bytes;
        placement::query(self.start, bytes, step).map_err(|errno| RegionError::Query { bytes, errno }.into())
    }
}

/// Why a lock is never poisoned.
const NO_PANIC: &str = "nothing panics while it holds this";

/// A region that workers fill, part by part.
struct Filling<'a> {
    bytes: usize,
    node: Option<NodeId>,
    /// The node of the pool whose workers do it; none if all do.
    by: Option<usize>,
    parts: Mutex<ChunksMut<'a, u8>>,
}

impl<'a> Filling<'a> {
    fn new(region: &'a mut Region, pool: &Pool) -> Self {
        let (bytes, node) = (region.bytes, region.node);
        let by = pool.nodes().iter().position(|home| home.id.is_some() && home.id == node);
        Self { bytes, node, by, parts: Mutex::new(region.as_mut_slice().chunks_mut(PREFAULT_STEP)) }
    }

    fn next_part(&self) -> Option<&'a mut [u8]> {
        self.parts.lock().expect(NO_PANIC).next()
    }
}

/// Refuses what the nodes of bound regions cannot give: past that point the kernel ends processes instead of failing.
fn check_nodes(regions: &[Region], read: Read<'_>) -> io::Result<()> {
    // What regions before this one will take from each node.
    let mut promised: Vec<(NodeId, u64)> = Vec::new();
    for region in regions {
        let Some(node) = region.node else { continue };
        let untouched = region.placement()?.untouched * HUGE_PAGE;
        let at = promised.iter().position(|(id, _)| *id == node).unwrap_or_else(|| {
            promised.push((node, 0));
            promised.len() - 1
        });
        promised[at].1 += untouched.min(region.bytes) as u64;
        let needed_bytes = promised[at].1;
        // Without the file there is nothing to count by, and the kernel has the last word anyway.
        let Some(free_bytes) = node_free_bytes(node, read) else { continue };
        if needed_bytes > free_bytes {
            return Err(RegionError::NodeFull { bytes: region.bytes, node, needed_bytes, free_bytes }.into());
        }
    }
    Ok(())
}

/// What a node can still give: its free memory, and what the kernel may drop for it, less what it keeps for itself.
fn node_free_bytes(node: NodeId, read: Read<'_>) -> Option<u64> {
    let meminfo = read(&format!("/sys/devices/system/node/node{node}/meminfo"))?;
    let bytes = |field| kernel_files::bytes_field(&meminfo, field);
    let droppable = ["Active(file)", "Inactive(file)", "SReclaimable"].into_iter().filter_map(bytes);
    let free = bytes("MemFree")?.saturating_add(droppable.fold(0, u64::saturating_add));
    let reserve_kib = read("/proc/sys/vm/min_free_kbytes").and_then(|text| text.trim().parse::<u64>().ok());
    Some(free.saturating_sub(reserve_kib.unwrap_or(0).saturating_mul(1024)))
}

/// Takes memory for `part`, which begins on a page.
fn populate(part: &mut [u8]) -> Result<(), Errno> {
    // SAFETY: the range is borrowed exclusively, and populating changes no byte of it.
    match unsafe { rustix::mm::madvise(part.as_mut_ptr().cast(), part.len(), Advice::LinuxPopulateWrite) } {
        // Linux before 5.14.
        Err(Errno::INVAL) => touch(part),
        other => return other,
    }
    Ok(())
}

/// Writes one byte of each page with what it holds.
fn touch(part: &mut [u8]) {
    for byte in part.iter_mut().step_by(page_size()) {
        // The compiler must not see that the write changes nothing.
        *byte = std::hint::black_box(*byte);
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone and every borrow of it has ended.
        let unmapped = unsafe { rustix::mm::munmap(self.mapping.as_ptr().cast(), self.mapping_bytes) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

#[cfg(test)]
mod tests;
