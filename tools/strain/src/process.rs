//! What the kernel says about a process.
//!
//! RssAnon and VmSwap together, not Rss: mapped weights come and go with the page cache, and a leak that was swapped out is
//! still a leak.

use std::fs;
use std::io;

/// What a process holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holdings {
    /// Anonymous memory, in RAM or swapped out, in bytes.
    pub(crate) anonymous_bytes: u64,
    /// Open file descriptors.
    pub(crate) descriptors: usize,
    /// Threads.
    pub(crate) threads: usize,
}

/// What process `pid` holds now.
///
/// # Errors
/// There is no such process, or it is another user's.
pub(crate) fn holdings(pid: u32) -> io::Result<Holdings> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let (anonymous_bytes, threads) = of_status(&status).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/status lacks RssAnon, VmSwap or Threads"))
    })?;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok(Holdings { anonymous_bytes, descriptors, threads })
}

/// Whether a process runs. A dead one that nobody waited for does not.
pub(crate) fn is_alive(pid: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it, in brackets, may hold anything.
    state.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn of_status(status: &str) -> Option<(u64, usize)> {
    let value = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let bytes = (value("RssAnon")? + value("VmSwap")?) * 1024;
    Some((bytes, usize::try_from(value("Threads")?).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_counts_as_memory() {
        let status = "Name:\tx\nVmRSS:\t 99 kB\nRssAnon:\t  10 kB\nVmSwap:\t   3 kB\nThreads:\t4\n";
        assert_eq!(of_status(status), Some((13 << 10, 4)));
        assert_eq!(of_status("Threads:\t4\n"), None);
    }

    #[test]
    fn this_process_is_alive_and_holds_something() {
        let own = std::process::id();
        let before = holdings(own).unwrap();
        let file = fs::File::open("/proc/self/stat").unwrap();
        assert!(before.anonymous_bytes > 0 && before.threads > 0);
        assert!(holdings(own).unwrap().descriptors > 0 && is_alive(own));
        drop(file);
        assert!(!is_alive(u32::MAX));
    }
}
