//! Reading a file past the page cache.
//!
//! A checkpoint is as large as the memory that it is loaded into. Read through the page cache it would be in memory
//! twice, and the kernel would make room for the second copy by dropping or swapping what others need. Direct reads leave
//! no copy behind, and are faster wherever the disk is. They ask for whole blocks, though: a read here takes the aligned
//! envelope of what is wanted into a buffer, and hands out the part.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, OFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::region::Region;

/// What offset, length and address of a direct read are multiples of, in bytes: the largest block that disks have.
pub const BLOCK: usize = 4096;

/// A file that many threads read at once, each into a buffer of its own, without filling the page cache.
///
/// File systems without direct reads (tmpfs, some network and overlay ones) are read through the page cache, and what
/// was read is dropped from it right away; [`is_direct`](Self::is_direct) tells.
#[derive(Debug)]
pub struct DirectFile {
    file: File,
    path: PathBuf,
    bytes: u64,
    direct: bool,
}

/// Memory for one read at a time, aligned as direct reads need it; made once, used for every read of a thread.
#[derive(Debug)]
pub struct AlignedBuffer {
    memory: Region,
    capacity: usize,
}

/// Why bytes of a file are not there; inside an [`io::Error`].
#[derive(Debug, Error)]
pub enum DirectError {
    /// The path names a folder, a pipe or a device.
    #[error("{} is not a regular file", path.display())]
    NotRegular {
        /// The file.
        path: PathBuf,
    },
    /// The system refused to open or to read.
    #[error("{} cannot be {what}: {source}", path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// What was tried, as in "read at 4096".
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The file ends before the wanted bytes do.
    #[error(
        "{} ends before byte {} ({wanted} bytes at offset {offset} are wanted, and it has {bytes}): it is incomplete or \
         was changed while it was read; fetch it again",
        path.display(), u128::from(*offset) + *wanted as u128
    )]
    Short {
        /// The file.
        path: PathBuf,
        /// Where the wanted bytes begin.
        offset: u64,
        /// How many are wanted.
        wanted: usize,
        /// How many the file had when it was opened.
        bytes: u64,
    },
    /// The caller's buffer was made for shorter reads.
    #[error("{wanted} bytes of {} do not fit into a buffer for {capacity}", path.display())]
    Buffer {
        /// The file.
        path: PathBuf,
        /// How many are wanted.
        wanted: usize,
        /// How many fit.
        capacity: usize,
    },
}

impl From<DirectError> for io::Error {
    fn from(error: DirectError) -> Self {
        let kind = match &error {
            DirectError::NotRegular { .. } | DirectError::Buffer { .. } => io::ErrorKind::InvalidInput,
            DirectError::System { source, .. } => source.kind(),
            DirectError::Short { .. } => io::ErrorKind::UnexpectedEof,
        };
        Self::new(kind, error)
    }
}

impl AlignedBuffer {
    /// Room for reads of up to `bytes` at any offset.
    ///
    /// # Errors
    /// When there is no such memory, as [`Region::anonymous`].
    pub fn new(bytes: usize) -> io::Result<Self> {
        // An envelope begins up to a block earlier and ends up to a block later; what overflows no region can hold.
        let memory = Region::anonymous(bytes.saturating_add(2 * BLOCK))?;
        Ok(Self { memory, capacity: bytes })
    }

    /// The longest read that fits, in bytes.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

impl DirectFile {
    /// Opens `path`, which must be a regular file.
    ///
    /// # Errors
    /// [`DirectError::NotRegular`], or [`DirectError::System`] with what the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let system = |source| DirectError::System { path: path.to_owned(), what: "opened".to_owned(), source };
        // Asked before the file is opened: opening a pipe waits for somebody to write.
        if !std::fs::metadata(path).map_err(system)?.is_file() {
            return Err(DirectError::NotRegular { path: path.to_owned() }.into());
        }
        let (file, direct) = match open_direct(path).map_err(system)? {
            Some(file) => (file, true),
            None => (File::open(path).map_err(system)?, false),
        };
        let bytes = file.metadata().map_err(system)?.len();
        Ok(Self { file, path: path.to_owned(), bytes, direct })
    }

    /// Whether reads go past the page cache. If not, the file system cannot, and reads cost more time and, for a moment,
    /// more memory.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the file when it was opened, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The `len` bytes of the file from `offset`, in `buffer`.
    ///
    /// # Errors
    /// [`DirectError::Short`] where the file ends earlier, [`DirectError::Buffer`] where `len` is more than the buffer's
    /// capacity, [`DirectError::System`] with what the system says.
    pub fn read_at<'a>(&self, offset: u64, len: usize, buffer: &'a mut AlignedBuffer) -> io::Result<&'a [u8]> {
        if len > buffer.capacity {
            return Err(DirectError::Buffer { path: self.path.clone(), wanted: len, capacity: buffer.capacity }.into());
        }
        let short = || DirectError::Short { path: self.path.clone(), offset, wanted: len, bytes: self.bytes };
        // Before anything is read: one sum that overflows or one header that lies is no reason to read a gigabyte.
        if offset.checked_add(len as u64).is_none_or(|end| end > self.bytes) {
            return Err(short().into());
        }
        let (start, skip) = (offset - offset % BLOCK as u64, (offset % BLOCK as u64) as usize);
        let wanted = skip + len;
        let envelope = &mut buffer.memory.as_mut_slice()[..wanted.next_multiple_of(BLOCK)];
        let mut filled = 0;
        while filled < wanted {
            let at = start + filled as u64;
            let end = match rustix::io::pread(&self.file, &mut envelope[filled..], at) {
                Ok(got) => filled + got,
                Err(Errno::INTR) => continue,
                Err(errno) => {
                    let what = format!("read at {at}");
                    return Err(DirectError::System { path: self.path.clone(), what, source: errno.into() }.into());
                }
            };
            // The next direct read has to begin on a block again. Half a block is all there is at the end of a file.
            let next = if end < wanted { end - end % BLOCK } else { end };
            if next == filled {
                return Err(short().into());
            }
            filled = next;
        }
        if !self.direct {
            self.drop_from_page_cache(start, envelope.len())?;
        }
        Ok(&envelope[skip..wanted])
    }

    /// Drops what the page cache holds of the file, but for pages that somebody has mapped or changed: the next reader has
    /// to wait for the disk. For comparing ways to read.
    ///
    /// # Errors
    /// What the system says.
    pub fn drop_cached(&self) -> io::Result<()> {
        Ok(rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed)?)
    }

    /// A page that is shared with a neighbouring read may be read twice, and no page stays.
    fn drop_from_page_cache(&self, start: u64, bytes: usize) -> io::Result<()> {
        // For the kernel a length of zero means all the rest.
        let Some(bytes) = NonZeroU64::new(bytes as u64) else { return Ok(()) };
        Ok(rustix::fs::fadvise(&self.file, start, Some(bytes), Advice::DontNeed)?)
    }
}

/// The file, opened and tried for direct reads; `None` where the file system has none.
fn open_direct(path: &Path) -> io::Result<Option<File>> {
    #[repr(align(4096))]
    struct Block([u8; BLOCK]);

    let flags = OFlags::DIRECT.bits().cast_signed();
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => return Ok(None),
        opened => opened?,
    };
    // Some file systems take the flag and refuse the read, or want larger blocks.
    let mut block = Block([0; BLOCK]);
    loop {
        match rustix::io::pread(&file, &mut block.0, 0) {
            Ok(_) => return Ok(Some(file)),
            Err(Errno::INVAL) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use proptest::prelude::*;
    use tempfile::{NamedTempFile, TempDir};

    use super::*;

    fn byte_at(offset: usize) -> u8 {
        (offset.wrapping_mul(0x9e37_79b9) >> 13) as u8
    }

    /// A file of `bytes` known bytes beside this program: the usual folder may be no disk.
    fn file_of(bytes: usize) -> NamedTempFile {
        let program = std::env::current_exe().unwrap();
        let file = NamedTempFile::new_in(program.parent().unwrap()).unwrap();
        std::fs::write(file.path(), (0..bytes).map(byte_at).collect::<Vec<_>>()).unwrap();
        file
    }

    /// The same file read directly where its file system can, and as one that cannot.
    fn both_ways(path: &Path) -> [DirectFile; 2] {
        let open = || DirectFile::open(path).unwrap();
        [open(), DirectFile { file: File::open(path).unwrap(), direct: false, ..open() }]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 32, ..ProptestConfig::default() })]

        #[test]
        fn a_read_gives_the_wanted_bytes_at_any_offset_and_length(
            bytes in 0_usize..5 * BLOCK,
            reads in proptest::collection::vec((0.0..=1.0_f64, 0.0..=1.0_f64), 1..6),
        ) {
            let file = file_of(bytes);
            let mut buffer = AlignedBuffer::new(bytes).unwrap();
            for file in both_ways(file.path()) {
                for (from, length) in &reads {
                    let offset = (from * bytes as f64) as usize;
                    let len = (length * (bytes - offset) as f64) as usize;
                    let read = file.read_at(offset as u64, len, &mut buffer).unwrap();
                    prop_assert_eq!(read.len(), len);
                    prop_assert!(read.iter().enumerate().all(|(at, &byte)| byte == byte_at(offset + at)));
                }
            }
        }
    }

    #[test]
    fn the_edges_of_blocks_and_of_the_file_are_readable() {
        const BYTES: usize = 3 * BLOCK + 17;
        let file = file_of(BYTES);
        let mut buffer = AlignedBuffer::new(BYTES).unwrap();
        let edges = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, BYTES - 1, BYTES];
        for file in both_ways(file.path()) {
            for offset in edges {
                for end in edges.into_iter().filter(|&end| end >= offset) {
                    let read = file.read_at(offset as u64, end - offset, &mut buffer).unwrap();
                    assert_eq!(read, (offset..end).map(byte_at).collect::<Vec<_>>(), "{offset}..{end}");
                }
            }
        }
    }

    #[test]
    fn many_threads_read_one_file_at_once() {
        const BYTES: usize = 64 * BLOCK;
        let file = file_of(BYTES);
        let file = DirectFile::open(file.path()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let file = &file;
                scope.spawn(move || {
                    let mut buffer = AlignedBuffer::new(1000).unwrap();
                    for offset in (thread * 1000..BYTES - 1000).step_by(4000) {
                        let read = file.read_at(offset as u64, 1000, &mut buffer).unwrap();
                        assert!(read.iter().enumerate().all(|(at, &byte)| byte == byte_at(offset + at)));
                    }
                });
            }
        });
    }

    #[test]
    fn a_file_system_without_direct_reads_is_read_all_the_same_and_the_file_says_so() {
        // Linux before 6.6 refuses the flag on tmpfs, later ones take it.
        let Ok(file) = NamedTempFile::new_in("/dev/shm") else { return };
        std::fs::write(file.path(), [7; 5000]).unwrap();
        let with_the_flag = File::options().read(true).custom_flags(libc::O_DIRECT).open(file.path());
        let opened = DirectFile::open(file.path()).unwrap();
        assert_eq!(opened.is_direct(), with_the_flag.is_ok());
        let mut buffer = AlignedBuffer::new(5000).unwrap();
        assert_eq!(opened.read_at(0, 5000, &mut buffer).unwrap(), [7; 5000]);
    }

    #[test]
    fn what_is_read_leaves_the_page_cache_as_it_was() {
        let file = file_of(64 * BLOCK);
        File::open(file.path()).unwrap().sync_all().unwrap();
        for file in both_ways(file.path()) {
            file.drop_from_page_cache(0, 64 * BLOCK).unwrap();
            let mut buffer = AlignedBuffer::new(64 * BLOCK).unwrap();
            file.read_at(5, 64 * BLOCK - 5, &mut buffer).unwrap();
            let cached = cached_pages(&file);
            assert_eq!(cached, 0, "direct: {}", file.is_direct());
        }
    }

    /// Pages of the file that are in the page cache.
    fn cached_pages(file: &DirectFile) -> usize {
        let bytes = usize::try_from(file.bytes()).unwrap();
        let (access, flags) = (rustix::mm::ProtFlags::READ, rustix::mm::MapFlags::SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses touches no other memory.
        let map = unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, access, flags, &file.file, 0) }.unwrap();
        let mut pages = vec![0_u8; bytes.div_ceil(rustix::param::page_size())];
        // SAFETY: the range is the mapping, and the kernel writes one byte for each of its pages.
        assert_eq!(unsafe { libc::mincore(map, bytes, pages.as_mut_ptr()) }, 0);
        // SAFETY: nothing else has the mapping.
        unsafe { rustix::mm::munmap(map, bytes) }.unwrap();
        pages.iter().filter(|&&page| page & 1 == 1).count()
    }

    #[test]
    fn a_file_that_ends_too_early_is_named_with_what_was_wanted() {
        let file = file_of(5000);
        let mut buffer = AlignedBuffer::new(8000).unwrap();
        for (offset, len) in [(0, 5001), (4999, 2), (5001, 0), (1 << 40, 1), (u64::MAX, 2)] {
            let error = DirectFile::open(file.path()).unwrap().read_at(offset, len, &mut buffer).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            for part in [file.path().display().to_string(), offset.to_string(), len.to_string()] {
                assert!(error.to_string().contains(&part), "{error}");
            }
        }
    }

    #[test]
    fn a_file_that_is_cut_while_it_is_read_is_an_error_and_not_old_bytes() {
        for cut in [0, 100, BLOCK, BLOCK + 100] {
            let named = file_of(3 * BLOCK);
            let mut buffer = AlignedBuffer::new(3 * BLOCK).unwrap();
            for file in both_ways(named.path()) {
                named.as_file().write_all_at(&[1; 3 * BLOCK], 0).unwrap();
                file.read_at(0, 3 * BLOCK, &mut buffer).unwrap();
                named.as_file().set_len(cut as u64).unwrap();
                let error = file.read_at(10, 2 * BLOCK, &mut buffer).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "cut to {cut}");
            }
        }
    }

    #[test]
    fn a_read_that_is_longer_than_the_buffer_is_refused() {
        let file = file_of(5000);
        let mut buffer = AlignedBuffer::new(4999).unwrap();
        let error = DirectFile::open(file.path()).unwrap().read_at(0, 5000, &mut buffer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().ends_with("do not fit into a buffer for 4999"), "{error}");
        assert_eq!(buffer.capacity(), 4999);
    }

    #[test]
    fn what_is_no_regular_file_is_refused_by_name() {
        let folder = TempDir::new().unwrap();
        let error = DirectFile::open(folder.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("is not a regular file"), "{error}");

        let absent = folder.path().join("absent");
        let error = DirectFile::open(&absent).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains(&absent.display().to_string()), "{error}");
    }
}
