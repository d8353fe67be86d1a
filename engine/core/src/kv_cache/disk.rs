//! Named blocks in files, so that the next run finds what this one computed.
//!
//! One file a block, called by its name, written by a thread of its own: a step copies a block into a free buffer and goes
//! on, or does not if there is none. A file is complete when it has its name, and what it holds is checked before a byte of
//! it reaches the arena: it is a cache, so a file that is not as it was written is deleted and its block computed again, and
//! a folder that fails is no longer used. Keys and values tell what was read to get them: the folder is its owner's alone.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

use simd::attention::KV_BLOCK;

use super::prefix::ChainHash;

const MAGIC: [u8; 8] = *b"NMKV\0\0\0\x01";
const TOKENS_AT: usize = MAGIC.len() + 32;
const NUMBERS_AT: usize = TOKENS_AT + KV_BLOCK * 4;
const CHECKSUM_BYTES: usize = 32;
const EXTENSION: &str = ".kv";
const UNFINISHED: &str = ".part";
const LOCK: &str = "lock";

/// Memory for blocks on their way to the disk; at least two of them.
const BUFFERED_BYTES: usize = 64 << 20;

/// Why there is no cache in a folder.
#[derive(Debug, thiserror::Error)]
pub enum DiskCacheError {
    /// The folder cannot be made or read.
    #[error("{}: {source}", path.display())]
    Folder {
        /// The folder, or what of it.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others may look into the folder.
    #[error(
        "{} is open to others (owner {owner}, mode {mode:o}), and what is kept there tells what was read; give a folder \
         that is not there yet, or one of your own with mode 700", path.display()
    )]
    Open {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Its mode.
        mode: u32,
    },
    /// Another process keeps its blocks there.
    #[error("{} is in use by another process; give each its own folder", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// Not one block fits.
    #[error("{budget} bytes on disk are fewer than one block of this model takes ({block})")]
    Budget {
        /// Bytes allowed.
        budget: u64,
        /// Bytes of a file.
        block: u64,
    },
}

/// What a cache on disk has, and what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Files of blocks, those of other models included.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks written in this run.
    pub written: usize,
    /// Blocks read in this run.
    pub read: usize,
    /// Files that were not as they were written, and were deleted.
    pub damaged: usize,
    /// Files deleted for others' sake.
    pub evicted: usize,
    /// An error ended its use.
    pub off: bool,
}

/// The files, by when they were used.
#[derive(Default)]
struct Files {
    by_name: HashMap<ChainHash, (u64, u64)>,
    by_age: BTreeMap<u64, ChainHash>,
    clock: u64,
    counted: DiskUse,
}

impl Files {
    fn add(&mut self, name: ChainHash, bytes: u64) {
        self.remove(&name);
        self.clock += 1;
        self.by_name.insert(name, (self.clock, bytes));
        self.by_age.insert(self.clock, name);
        self.counted.bytes += bytes;
    }

    fn remove(&mut self, name: &ChainHash) {
        if let Some((age, bytes)) = self.by_name.remove(name) {
            self.by_age.remove(&age);
            self.counted.bytes -= bytes;
        }
    }
}

/// What the engine's thread and the writing one share.
struct Shared {
    folder: PathBuf,
    budget: u64,
    files: Mutex<Files>,
    report: Box<dyn Fn(&str) + Send + Sync>,
}

impl Shared {
    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, name: &ChainHash) -> PathBuf {
        self.folder.join(name.hex() + EXTENSION)
    }

    /// Ends the use of the folder, and says so once.
    fn turn_off(&self, error: &io::Error) {
        if !std::mem::replace(&mut self.files().counted.off, true) {
            let folder = self.folder.display();
            (self.report)(&format!("{folder}: {error}; keys and values are no longer kept on disk"));
        }
    }

    /// Deletes the files used longest ago until `more` bytes fit.
    fn make_room(&self, more: u64) -> io::Result<()> {
        loop {
            let oldest = {
                let mut files = self.files();
                if files.counted.bytes + more <= self.budget {
                    return Ok(());
                }
                let Some(oldest) = files.by_age.first_entry().map(|entry| *entry.get()) else { return Ok(()) };
                files.remove(&oldest);
                files.counted.evicted += 1;
                oldest
            };
            remove_if_there(&self.path(&oldest))?;
        }
    }

    /// Seals the contents of a file and writes it; it has its name only when it is complete.
    fn write(&self, name: ChainHash, contents: &mut Vec<u8>) -> io::Result<()> {
        let checksum = blake3::hash(contents);
        contents.extend_from_slice(checksum.as_bytes());
        self.make_room(contents.len() as u64)?;
        let unfinished = self.folder.join(name.hex() + UNFINISHED);
        let written = private_file(&unfinished).and_then(|mut file| file.write_all(contents));
        if let Err(error) = written.and_then(|()| fs::rename(&unfinished, self.path(&name))) {
            // The first error is the one to tell.
            let _ = fs::remove_file(&unfinished);
            return Err(error);
        }
        let mut files = self.files();
        files.add(name, contents.len() as u64);
        files.counted.written += 1;
        Ok(())
    }
}

/// Blocks in files of one folder.
pub struct DiskCache {
    shared: Arc<Shared>,
    /// Bytes of a block's file.
    file_bytes: usize,
    /// Buffers at hand; the others are on their way to the disk.
    buffers: Vec<Vec<u8>>,
    all_buffers: usize,
    returned: Receiver<Vec<u8>>,
    jobs: Option<Sender<(ChainHash, Vec<u8>)>>,
    writer: Option<JoinHandle<()>>,
    /// A file as it was read.
    scratch: Vec<u8>,
    /// Held as long as the folder is used.
    _lock: File,
}

impl DiskCache {
    /// Opens or makes `folder` for blocks of `block_bytes` bytes and deletes what is beyond `budget` bytes. `report` gets a
    /// line when an error ends its use.
    ///
    /// # Errors
    /// [`DiskCacheError`] if the folder cannot be used, or is not private.
    pub fn open(
        folder: &Path,
        budget: u64,
        block_bytes: usize,
        report: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<Self, DiskCacheError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| DiskCacheError::Folder { path, source }
        };
        let file_bytes = NUMBERS_AT + block_bytes + CHECKSUM_BYTES;
        if budget < file_bytes as u64 {
            return Err(DiskCacheError::Budget { budget, block: file_bytes as u64 });
        }
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed(folder))?;
        let facts = fs::metadata(folder).map_err(failed(folder))?;
        if facts.uid() != rustix::process::geteuid().as_raw() || facts.mode() & 0o077 != 0 {
            let (owner, mode) = (facts.uid(), facts.mode() & 0o7777);
            return Err(DiskCacheError::Open { path: folder.to_owned(), owner, mode });
        }
        let lock = private_file(&folder.join(LOCK)).map_err(failed(&folder.join(LOCK)))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DiskCacheError::InUse { path: folder.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed(&folder.join(LOCK))(source)),
        }
        let files = Mutex::new(list(folder).map_err(failed(folder))?);
        let shared = Arc::new(Shared { folder: folder.to_owned(), budget, files, report: Box::new(report) });
        shared.make_room(0).map_err(failed(folder))?;

        let all_buffers = (BUFFERED_BYTES / file_bytes).max(2);
        let buffers = (0..all_buffers).map(|_| Vec::with_capacity(file_bytes)).collect();
        let (jobs, taken) = channel::<(ChainHash, Vec<u8>)>();
        let (give_back, returned) = channel();
        let of_writer = Arc::clone(&shared);
        let write_all = move || {
            for (name, mut contents) in taken {
                // After an error what is queued is dropped, and its buffers still come back.
                if !of_writer.files().counted.off
                    && let Err(error) = of_writer.write(name, &mut contents)
                {
                    of_writer.turn_off(&error);
                }
                if give_back.send(contents).is_err() {
                    return;
                }
            }
        };
        let writer = thread::Builder::new().name("kv-writer".into()).spawn(write_all).map_err(failed(folder))?;
        Ok(Self {
            shared,
            file_bytes,
            buffers,
            all_buffers,
            returned,
            jobs: Some(jobs),
            writer: Some(writer),
            scratch: Vec::with_capacity(file_bytes),
            _lock: lock,
        })
    }

    /// Whether there is a file of this name. It may yet turn out to be damaged.
    pub fn contains(&self, name: &ChainHash) -> bool {
        let files = self.shared.files();
        !files.counted.off && files.by_name.contains_key(name)
    }

    /// What it has, and what became of it.
    pub fn usage(&self) -> DiskUse {
        let files = self.shared.files();
        DiskUse { files: files.by_name.len(), ..files.counted }
    }

    /// Queues a block to be written; `numbers` appends its bytes to what it is given. False if all buffers are on their
    /// way: then nothing happens.
    pub fn offer(&mut self, name: ChainHash, tokens: &[u32; KV_BLOCK], numbers: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.buffers.extend(self.returned.try_iter());
        let Some(jobs) = &self.jobs else { return false };
        let Some(mut contents) = self.buffers.pop() else { return false };
        contents.clear();
        contents.extend_from_slice(&MAGIC);
        contents.extend_from_slice(name.bytes());
        contents.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        numbers(&mut contents);
        debug_assert_eq!(contents.len() + CHECKSUM_BYTES, self.file_bytes);
        jobs.send((name, contents)).is_ok()
    }

    /// Waits until one more buffer has come back from the disk; false if none is on its way.
    pub fn wait(&mut self) -> bool {
        self.buffers.extend(self.returned.try_iter());
        if self.buffers.len() == self.all_buffers {
            return false;
        }
        let returned = self.returned.recv().ok();
        let came = returned.is_some();
        self.buffers.extend(returned);
        came
    }

    /// The bytes of a block, checked. `None` if there is no such file, or none any more: one that is damaged is deleted.
    pub fn read(&mut self, name: &ChainHash, tokens: &[u32; KV_BLOCK]) -> Option<&[u8]> {
        if !self.contains(name) {
            return None;
        }
        let path = self.shared.path(name);
        match read_into(&path, self.file_bytes, &mut self.scratch) {
            Ok(()) if is_whole(&self.scratch, self.file_bytes, name, tokens) => {
                let mut files = self.shared.files();
                let bytes = self.file_bytes as u64;
                files.add(*name, bytes);
                files.counted.read += 1;
                drop(files);
                Some(&self.scratch[NUMBERS_AT..self.file_bytes - CHECKSUM_BYTES])
            }
            Ok(()) => {
                let mut files = self.shared.files();
                files.remove(name);
                files.counted.damaged += 1;
                drop(files);
                if let Err(error) = remove_if_there(&path) {
                    self.shared.turn_off(&error);
                }
                None
            }
            // The writer may have deleted it for another's sake just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.shared.files().remove(name);
                None
            }
            Err(error) => {
                self.shared.turn_off(&error);
                None
            }
        }
    }
}

impl Drop for DiskCache {
    /// Waits for what is queued.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            // It has told what went wrong.
            let _ = writer.join();
        }
    }
}

fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The blocks of a folder, oldest first; what was not finished is deleted, and what is not ours left alone.
fn list(folder: &Path) -> io::Result<Files> {
    let mut found: Vec<(SystemTime, ChainHash, u64)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.strip_suffix(UNFINISHED).and_then(ChainHash::from_hex).is_some() {
            remove_if_there(&entry.path())?;
        } else if let Some(name) = name.strip_suffix(EXTENSION).and_then(ChainHash::from_hex) {
            let facts = entry.metadata()?;
            found.push((facts.modified()?, name, facts.len()));
        }
    }
    found.sort_unstable();
    let mut files = Files::default();
    for (_, name, bytes) in found {
        files.add(name, bytes);
    }
    Ok(files)
}

/// Reads a file, and no more of it than shows that it is too long.
fn read_into(path: &Path, file_bytes: usize, scratch: &mut Vec<u8>) -> io::Result<()> {
    scratch.clear();
    let file = File::open(path)?;
    (&file).take(file_bytes as u64 + 1).read_to_end(scratch)?;
    // Its age is that of its last use, in the next run too; that it is not told does no harm.
    let _ = file.set_modified(SystemTime::now());
    Ok(())
}

/// Whether a file is as it was written, and about these tokens.
fn is_whole(contents: &[u8], file_bytes: usize, name: &ChainHash, tokens: &[u32; KV_BLOCK]) -> bool {
    if contents.len() != file_bytes {
        return false;
    }
    let (sealed, checksum) = contents.split_at(file_bytes - CHECKSUM_BYTES);
    let told = sealed[TOKENS_AT..NUMBERS_AT].as_chunks::<4>().0.iter().map(|token| u32::from_le_bytes(*token));
    blake3::hash(sealed).as_bytes() == checksum
        && sealed[..MAGIC.len()] == MAGIC
        && sealed[MAGIC.len()..TOKENS_AT] == *name.bytes()
        && told.eq(tokens.iter().copied())
}

#[cfg(test)]
mod tests;
