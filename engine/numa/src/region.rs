//! Anonymous memory for weights and KV blocks, in pages of 2 MiB.
//!
//! A decode step walks through gigabytes, and with pages of 4 KiB it would walk page tables as often as weights. The
//! kernel gives large pages only to whole aligned 2 MiB that asked before they were touched. Core dumps leave these
//! mappings out: they would be as large as the model, and hold a person's notes.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::Mutex;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use rustix::param::page_size;
use thiserror::Error;

use crate::pool::Pool;

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
        "cannot fill {bytes} bytes of memory with pages ({errno}): the machine or its control group has too little \
         free; `nightmonk plan` says what fits"
    )]
    Prefault {
        /// Size of the region.
        bytes: usize,
        /// The kernel's answer.
        errno: Errno,
    },
}

impl From<RegionError> for io::Error {
    fn from(error: RegionError) -> Self {
        let (RegionError::Map { errno, .. } | RegionError::Advise { errno, .. } | RegionError::Prefault { errno, .. }) =
            error;
        Self::new(Self::from(errno).kind(), error)
    }
}

impl Region {
    /// `bytes` of zeros, aligned to [`HUGE_PAGE`].
    ///
    /// # Errors
    /// [`RegionError`] when the kernel refuses the mapping.
    pub fn anonymous(bytes: usize) -> io::Result<Self> {
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
        let region = Self { mapping, mapping_bytes, start, bytes };
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

    /// Takes memory for every page now, and leaves the contents as they are.
    ///
    /// With a pool its workers share the work: zeroing 1 TB on one core takes minutes.
    ///
    /// # Errors
    /// [`RegionError::Prefault`] when the kernel has too few pages. A control group over its limit is killed instead,
    /// so a plan has to come first.
    pub fn prefault(&mut self, pool: Option<&mut Pool>) -> io::Result<()> {
        let bytes = self.bytes;
        let failure = match pool {
            None => self.as_mut_slice().chunks_mut(PREFAULT_STEP).find_map(|part| populate(part).err()),
            Some(pool) => {
                let failure = Mutex::new(None);
                let mut scratch = vec![(); pool.threads()];
                pool.chunks(&mut scratch, self.as_mut_slice(), PREFAULT_STEP, |(), _, part| {
                    if let Err(errno) = populate(part) {
                        *failure.lock().expect("nothing panics while it holds this") = Some(errno);
                    }
                });
                failure.into_inner().expect("nothing panics while it holds this")
            }
        };
        failure.map_or(Ok(()), |errno| Err(RegionError::Prefault { bytes, errno }.into()))
    }
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
mod tests {
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
}
