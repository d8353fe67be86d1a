//! Files mapped for reading: the one place of this package where memory is not Rust's own.
//!
//! A mapped file is only there as long as its file is. One that is cut short, or on a disk that fails, is known when a
//! page of it is touched, and then the kernel sends SIGBUS, which ends a process without a word. Here a handler puts
//! zeros in place of the rest of that file and notes that its map is broken; whoever computes with mapped weights asks
//! [`MappedFile::is_intact`] before a result leaves, and ends with an error that names the file.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Once, OnceLock};

use memmap2::{Advice, Mmap, UncheckedAdvice};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::param::page_size;

/// A file of weights, mapped read-only and shared with the page cache.
pub struct MappedFile {
    map: Mmap,
    file: Option<File>,
    entry: Option<&'static Entry>,
    /// Whether the kernel tells this user which pages are in the page cache.
    tells_cached: bool,
}

impl MappedFile {
    /// Maps `path`, which must be a regular file. An empty file maps to no bytes.
    ///
    /// # Errors
    /// Those of opening and mapping; `InvalidInput` if it is not a regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Asked before the file is opened: opening a pipe waits for somebody to write.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let file = File::open(path)?;
        // SAFETY: the map is private to this process and read-only; weights are not changed while a model is open, which
        // is the contract of a model folder. Of one that is cut short all the same, `guard` puts zeros in the place.
        let map = unsafe { Mmap::map(&file)? };
        let entry = guard(&map)?;
        let me = rustix::process::geteuid();
        // Of others' files that it may not write, the kernel says to everyone but root that all pages are there.
        let tells_cached = me.is_root()
            || file.metadata()?.uid() == me.as_raw()
            || accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok();
        Ok(Self { map, file: Some(file), entry, tells_cached })
    }

    /// Bytes without a file.
    #[cfg(test)]
    pub(super) fn anonymous(bytes: &[u8]) -> Self {
        let mut map = memmap2::MmapMut::map_anon(bytes.len()).unwrap();
        map.copy_from_slice(bytes);
        Self { map: map.make_read_only().unwrap(), file: None, entry: None, tells_cached: false }
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Whether all that was read from the map so far was the file's: it was neither cut short nor unreadable.
    pub fn is_intact(&self) -> bool {
        // Within the file's last page a cut leaves zeros and raises no signal, so the length is asked too.
        let is_shorter = |file: &File| file.metadata().is_ok_and(|now| now.len() < self.map.len() as u64);
        let broken = self.entry.is_some_and(|entry| entry.broken.load(Ordering::Acquire));
        !broken && !self.file.as_ref().is_some_and(is_shorter)
    }

    /// Whether `path` still names the file that is mapped.
    pub fn is_at(&self, path: &Path) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        let (mapped, named) = (file.metadata()?, std::fs::metadata(path)?);
        Ok((mapped.dev(), mapped.ino()) == (named.dev(), named.ino()))
    }

    /// Whether the page cache holds all of `range`, as far as the kernel tells.
    pub fn is_cached(&self, range: Range<usize>) -> bool {
        let bytes = &self.map[range];
        let skip = bytes.as_ptr().addr() % page_size();
        let mut pages = vec![0_u8; (skip + bytes.len()).div_ceil(page_size())];
        let start = bytes.as_ptr().wrapping_sub(skip).cast_mut();
        // SAFETY: the pages of `bytes` belong to the map, and the kernel writes a byte for each of them.
        let rc = unsafe { libc::mincore(start.cast(), skip + bytes.len(), pages.as_mut_ptr()) };
        self.tells_cached && rc == 0 && pages.iter().all(|page| page & 1 == 1)
    }

    /// Reads `range` into the page cache, and its pages into this process, in one call: touched one by one they would
    /// come a read-ahead window at a time, and every one with a fault.
    ///
    /// # Errors
    /// What the system says of a range that cannot be read.
    pub fn populate(&self, range: Range<usize>) -> io::Result<()> {
        match self.map.advise_range(Advice::PopulateRead, range.start, range.len()) {
            // Linux before 5.14.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                for byte in self.map[range].iter().step_by(page_size()) {
                    std::hint::black_box(*byte);
                }
                Ok(())
            }
            other => other,
        }
    }

    /// Says that of this file single pages will be read through the map, but for those of `whole`. Otherwise every page
    /// that is touched brings a read-ahead window of others with it, up to several MiB, for nobody.
    ///
    /// # Errors
    /// What the system says; only time is lost by it.
    pub fn expect_single_pages(&self, whole: Option<Range<usize>>) -> io::Result<()> {
        self.map.advise(Advice::Random)?;
        whole.map_or(Ok(()), |whole| self.map.advise_range(Advice::Normal, whole.start, whole.len()))
    }

    /// Takes the file's pages out of this process; those that are read again come back from the page cache. Without it a
    /// file that was read once counts as this process's memory, beside the copy that was made of it.
    ///
    /// # Errors
    /// What the system says; nothing is lost by it.
    pub fn release(&self) -> io::Result<()> {
        // SAFETY: the map is of a file, shared and read-only: pages that are dropped come back with the same bytes.
        unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) }
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // Before its addresses can belong to others.
        if let Some(entry) = self.entry {
            entry.start.store(FREE, Ordering::Release);
        }
    }
}

/// A mapped file, as the signal handler sees it. Handlers may not lock, allocate or wait, so the table is fixed and each
/// field is an atomic.
struct Entry {
    /// First address, or `FREE`, or `TAKEN`.
    start: AtomicUsize,
    end: AtomicUsize,
    broken: AtomicBool,
}

const FREE: usize = 0;
/// No map begins at address 1.
const TAKEN: usize = 1;

/// Several of the largest published models at a time: the one with most shards has fewer than 300.
const ENTRIES: usize = 4096;

static TABLE: [Entry; ENTRIES] =
    [const { Entry { start: AtomicUsize::new(FREE), end: AtomicUsize::new(0), broken: AtomicBool::new(false) } };
        ENTRIES];

/// Notes the map in the table, and the handler with the first of them.
fn guard(map: &Mmap) -> io::Result<Option<&'static Entry>> {
    if map.is_empty() {
        return Ok(None);
    }
    static INSTALL: Once = Once::new();
    INSTALL.call_once(install);
    let take = |entry: &&Entry| entry.start.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok();
    let Some(entry) = TABLE.iter().find(take) else {
        return Err(io::Error::other(format!("{ENTRIES} files are mapped already")));
    };
    entry.broken.store(false, Ordering::Relaxed);
    entry.end.store(map.as_ptr().addr() + map.len(), Ordering::Relaxed);
    entry.start.store(map.as_ptr().addr(), Ordering::Release);
    Ok(Some(entry))
}

/// Who had the signal before: the runtime, which uses it to tell stack overflows.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

fn install() {
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
    // SAFETY: all fields of the struct are numbers or pointers that may be zero.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    let mut previous = action;
    // SAFETY: the handler has the signature that SA_SIGINFO promises and makes only calls that are safe in a handler.
    let rc = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut previous) };
    assert_eq!(rc, 0, "SIGBUS is a signal that can be handled");
    let _ = PREVIOUS.set(previous);
}

extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel gives a valid pointer.
    let info = unsafe { &*info };
    // A signal that somebody sent has no address.
    let is_fault = info.si_code == libc::BUS_ADRERR || info.si_code == libc::BUS_MCEERR_AR;
    // SAFETY: the kernel fills in the address of faults, and nobody uses it of others.
    let address = unsafe { info.si_addr() }.addr();
    if is_fault && put_zeros(address) {
        return;
    }
    // Not ours: the one who had the signal before gets it as it comes again, which a fault does by itself.
    if let Some(previous) = PREVIOUS.get() {
        // SAFETY: what was a valid action before is one now.
        unsafe { libc::sigaction(signal, previous, ptr::null_mut()) };
    }
    if !is_fault {
        // SAFETY: raise may be called in a handler; the signal comes when this one is over.
        unsafe { libc::raise(signal) };
    }
}

/// Puts zeros from the page of `address` to the end of its map, if it belongs to one, so that whoever reads goes on to
/// where the break is asked for.
fn put_zeros(address: usize) -> bool {
    for entry in &TABLE {
        let start = entry.start.load(Ordering::Acquire);
        let end = entry.end.load(Ordering::Relaxed);
        if start <= TAKEN || !(start..end).contains(&address) {
            continue;
        }
        entry.broken.store(true, Ordering::Release);
        let page = ptr::without_provenance_mut(address - address % page_size());
        let bytes = end - address + address % page_size();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: the pages belong to a map that is alive, since one of its bytes is being read, and that nobody writes.
        let zeros = unsafe { libc::mmap(page, bytes, libc::PROT_READ, flags, -1, 0) };
        return zeros != libc::MAP_FAILED;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(pages: usize) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; pages * page_size()]).unwrap();
        file
    }

    #[test]
    fn a_file_that_is_cut_short_reads_as_zeros_and_is_known_to_be_broken() {
        let (cut, whole) = (file_of(64), file_of(64));
        let [cut_map, whole_map] = [&cut, &whole].map(|file| MappedFile::open(file.path()).unwrap());
        assert_eq!(cut_map.bytes()[40 * page_size()], 7);
        cut.as_file().set_len(8 * page_size() as u64).unwrap();
        let read = |map: &MappedFile| map.bytes().iter().map(|byte| usize::from(*byte)).sum::<usize>();
        assert_eq!(read(&cut_map), 7 * 8 * page_size(), "what is left, and zeros");
        cut.as_file().set_len(64 * page_size() as u64).unwrap();
        assert!(!cut_map.is_intact(), "also when the length is right again");
        assert_eq!(read(&whole_map), 7 * 64 * page_size());
        assert!(whole_map.is_intact());
    }

    #[test]
    fn a_cut_within_the_last_page_raises_no_signal_and_is_known_all_the_same() {
        let file = file_of(2);
        let map = MappedFile::open(file.path()).unwrap();
        assert!(map.is_intact());
        file.as_file().set_len(2 * page_size() as u64 - 1).unwrap();
        assert_eq!(map.bytes().last(), Some(&0));
        assert!(!map.is_intact());
    }

    #[test]
    fn populating_what_is_no_longer_there_is_an_error_or_marks_the_map() {
        let file = file_of(16);
        let map = MappedFile::open(file.path()).unwrap();
        map.populate(3..16 * page_size() - 5).unwrap();
        file.as_file().set_len(page_size() as u64).unwrap();
        assert!(map.populate(0..16 * page_size()).is_err() || !map.is_intact());
    }

    #[test]
    fn an_entry_is_free_again_when_its_file_is_unmapped() {
        let file = file_of(1);
        for _ in 0..2 * ENTRIES {
            assert!(MappedFile::open(file.path()).unwrap().is_intact());
        }
    }

    #[test]
    fn what_was_just_written_is_cached_and_what_was_dropped_is_not() {
        // Beside this program, since the usual folder may be no disk.
        let beside = std::env::current_exe().unwrap();
        let file = tempfile::NamedTempFile::new_in(beside.parent().unwrap()).unwrap();
        std::fs::write(file.path(), vec![1; 64 * page_size()]).unwrap();
        let map = MappedFile::open(file.path()).unwrap();
        assert!(map.is_cached(5..64 * page_size() - 5));
        file.as_file().sync_all().unwrap();
        rustix::fs::fadvise(file.as_file(), 0, None, rustix::fs::Advice::DontNeed).unwrap();
        assert!(!map.is_cached(5..64 * page_size() - 5));
        map.populate(10..64 * page_size()).unwrap();
        assert!(map.is_cached(0..64 * page_size()));
    }

    #[test]
    fn a_path_that_names_another_file_is_told_from_the_one_that_is_mapped() {
        let (file, other) = (file_of(1), file_of(1));
        let map = MappedFile::open(file.path()).unwrap();
        assert!(map.is_at(file.path()).unwrap());
        assert!(!map.is_at(other.path()).unwrap());
    }
}
