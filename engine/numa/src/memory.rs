//! How much memory there is, for the planner before a load and for the report after it.

use std::fmt;
use std::io;

use thiserror::Error;

use crate::cgroup;
pub use crate::cgroup::CgroupLimit;
use crate::kernel_files::{self, Read};

const MEMINFO: &str = "/proc/meminfo";
const STATUS: &str = "/proc/self/status";
const TRANSPARENT_HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// The kernel's default for memory that did not ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransparentHugePages {
    /// Every mapping may get large pages.
    Always,
    /// Mappings that ask get them, as a [`Region`](crate::Region) does.
    Madvise,
    /// Nobody gets them: reads of weights will cost more page walks.
    Never,
    /// The kernel was built without them, or does not say.
    Unknown,
}

impl fmt::Display for TransparentHugePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Always => "always",
            Self::Madvise => "for memory that asks (madvise)",
            Self::Never => "never; enabling them for madvise makes reads of weights faster",
            Self::Unknown => "not told by this kernel",
        })
    }
}

/// Memory of this machine at one moment, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryFacts {
    /// All memory that the kernel manages.
    pub total_bytes: u64,
    /// The kernel's estimate of what can be allocated without swapping.
    pub available_bytes: u64,
    /// The control group's limit that leaves least, if there is one.
    pub cgroup: Option<CgroupLimit>,
    /// Whether large pages come by asking.
    pub transparent_huge_pages: TransparentHugePages,
    /// Reserved pages of the default large size: all, and those free. They are not part of `available_bytes`.
    pub hugetlb_pages: [u64; 2],
    /// The default large size; 0 where the kernel has none.
    pub hugetlb_page_bytes: u64,
}

/// Memory of this process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessMemory {
    /// The most that was ever resident at one time (VmHWM), mapped files included.
    pub peak_resident_bytes: u64,
    /// Resident now (VmRSS).
    pub resident_bytes: u64,
    /// Resident now and not backed by a file (RssAnon): what cannot be dropped and read again.
    pub anonymous_bytes: u64,
}

/// A file without the number it should hold.
#[derive(Debug, Error)]
#[error("{path} is not readable or has no {field}: is /proc mounted?")]
struct NoFact {
    path: &'static str,
    field: &'static str,
}

impl From<NoFact> for io::Error {
    fn from(error: NoFact) -> Self {
        Self::new(io::ErrorKind::NotFound, error)
    }
}

impl MemoryFacts {
    /// The facts of this moment.
    ///
    /// # Errors
    /// When `/proc/meminfo` lacks MemTotal or MemAvailable (Linux before 3.14).
    pub fn discover() -> io::Result<Self> {
        Ok(Self::from_files(&kernel_files::read)?)
    }

    fn from_files(read: Read<'_>) -> Result<Self, NoFact> {
        let meminfo = read(MEMINFO).unwrap_or_default();
        let bytes = |field| kernel_files::bytes_field(&meminfo, field).ok_or(NoFact { path: MEMINFO, field });
        let pages = |field| kernel_files::field(&meminfo, field).and_then(|pages| pages.parse().ok()).unwrap_or(0);
        Ok(Self {
            total_bytes: bytes("MemTotal")?,
            available_bytes: bytes("MemAvailable")?,
            cgroup: cgroup::tightest(read),
            transparent_huge_pages: transparent_huge_pages(&read(TRANSPARENT_HUGE_PAGES).unwrap_or_default()),
            hugetlb_pages: ["HugePages_Total", "HugePages_Free"].map(pages),
            hugetlb_page_bytes: bytes("Hugepagesize").unwrap_or(0),
        })
    }

    /// What a plan may count on now, in bytes: available memory, or what the control group leaves, whichever is less.
    ///
    /// Nothing is held back for others; a plan keeps its own reserve.
    pub fn usable_ram(&self) -> u64 {
        self.cgroup.as_ref().map_or(self.available_bytes, |limit| limit.free_bytes.min(self.available_bytes))
    }
}

impl ProcessMemory {
    /// This process at this moment.
    ///
    /// # Errors
    /// When `/proc/self/status` cannot be read or lacks a field (RssAnon came with Linux 4.5).
    pub fn now() -> io::Result<Self> {
        Ok(Self::from_files(&kernel_files::read)?)
    }

    fn from_files(read: Read<'_>) -> Result<Self, NoFact> {
        let status = read(STATUS).unwrap_or_default();
        let bytes = |field| kernel_files::bytes_field(&status, field).ok_or(NoFact { path: STATUS, field });
        Ok(Self {
            peak_resident_bytes: bytes("VmHWM")?,
            resident_bytes: bytes("VmRSS")?,
            anonymous_bytes: bytes("RssAnon")?,
        })
    }
}

/// The choice in brackets of `always [madvise] never`.
fn transparent_huge_pages(text: &str) -> TransparentHugePages {
    match text.split_whitespace().find(|word| word.starts_with('[')) {
        Some("[always]") => TransparentHugePages::Always,
        Some("[madvise]") => TransparentHugePages::Madvise,
        Some("[never]") => TransparentHugePages::Never,
        _ => TransparentHugePages::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_files::tests::files;

    const MEMINFO_TEXT: &str = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    800 kB\n\
                                HugePages_Total:      16\nHugePages_Free:       12\nHugepagesize:       2048 kB\n";

    #[test]
    fn facts_are_read_from_the_kernels_texts() {
        let texts = &[(MEMINFO, MEMINFO_TEXT), (TRANSPARENT_HUGE_PAGES, "always [madvise] never\n")];
        let facts = MemoryFacts::from_files(&files(texts)).unwrap();
        let want = MemoryFacts {
            total_bytes: 1000 * 1024,
            available_bytes: 800 * 1024,
            cgroup: None,
            transparent_huge_pages: TransparentHugePages::Madvise,
            hugetlb_pages: [16, 12],
            hugetlb_page_bytes: 2 << 20,
        };
        assert_eq!(facts, want);
        assert_eq!(facts.usable_ram(), 800 * 1024);
    }

    #[test]
    fn the_control_group_lowers_what_is_usable_and_never_raises_it() {
        for (max, usable) in [("500000", 400_000), ("90000000", 800 * 1024), ("100", 0)] {
            let texts = &[
                (MEMINFO, MEMINFO_TEXT),
                ("/proc/self/cgroup", "0::/x\n"),
                ("/proc/self/mountinfo", "30 23 0:26 / /cg rw - cgroup2 cgroup2 rw\n"),
                ("/cg/x/memory.max", max),
                ("/cg/x/memory.current", "100000"),
            ];
            assert_eq!(MemoryFacts::from_files(&files(texts)).unwrap().usable_ram(), usable);
        }
    }

    #[test]
    fn a_missing_number_is_named() {
        let error = io::Error::from(MemoryFacts::from_files(&files(&[(MEMINFO, "MemTotal: 5 kB\n")])).unwrap_err());
        assert!(error.to_string().contains("/proc/meminfo") && error.to_string().contains("MemAvailable"), "{error}");
    }

    #[test]
    fn the_mode_in_brackets_counts() {
        assert_eq!(transparent_huge_pages("[always] madvise never"), TransparentHugePages::Always);
        assert_eq!(transparent_huge_pages("always madvise [never]"), TransparentHugePages::Never);
        assert_eq!(transparent_huge_pages(""), TransparentHugePages::Unknown);
    }

    #[test]
    fn this_machine_and_process_are_of_plausible_size() {
        let (machine, process) = (MemoryFacts::discover().unwrap(), ProcessMemory::now().unwrap());
        assert!(machine.usable_ram() <= machine.available_bytes && machine.available_bytes <= machine.total_bytes);
        assert!(process.anonymous_bytes > 0 && process.peak_resident_bytes <= machine.total_bytes);
    }
}
