//! A folder that appears as a whole or not at all.
//!
//! Files are written and synced in a temporary folder beside the target, which is renamed at the
//! very end. Its name is always the same for a target: what a killed run left there is found and
//! removed by the next one, and a lock on it keeps two runs apart.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::ImportError;

/// The temporary folder, locked. Removed when dropped unless [`Workspace::publish`] renamed it.
pub(super) struct Workspace {
    folder: PathBuf,
    target: PathBuf,
    /// Open folder: holds the lock, and is synced before the rename.
    handle: File,
    needed_bytes: u64,
    published: bool,
}

impl Workspace {
    /// Makes an empty, locked folder beside `target` after checking that `needed_bytes` are free there.
    pub(super) fn create(target: &Path, needed_bytes: u64) -> Result<Self, ImportError> {
        let parent = parent(target);
        fs::create_dir_all(&parent).map_err(ImportError::io("cannot be created", &parent))?;
        let folder = parent.join(temporary_name(target)?);
        let handle = lock(&folder)?;
        clear(&folder)?;
        let workspace = Self { folder, target: target.to_owned(), handle, needed_bytes, published: false };
        if let Some(available) = available_bytes(&parent)
            && available < needed_bytes
        {
            return Err(ImportError::NoSpace { folder: parent, needed: needed_bytes, available: Some(available) });
        }
        Ok(workspace)
    }

    /// Writes a file by `fill` and syncs it.
    pub(super) fn write(
        &self,
        name: &str,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), WriteError>,
    ) -> Result<(), ImportError> {
        let path = self.folder.join(name);
        let mut file = File::create_new(&path).map_err(|error| self.failed(&path, error))?;
        fill(&mut file).map_err(|error| match error {
            WriteError::Io(error) => self.failed(&path, error),
            WriteError::Import(error) => error,
        })?;
        file.sync_all().map_err(|error| self.failed(&path, error))
    }

    fn failed(&self, path: &Path, error: io::Error) -> ImportError {
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            let available = available_bytes(&self.folder);
            return ImportError::NoSpace { folder: self.folder.clone(), needed: self.needed_bytes, available };
        }
        ImportError::io("cannot be written", path)(error)
    }

    /// Renames the folder to the target. An existing target is never replaced, save an empty folder.
    pub(super) fn publish(mut self) -> Result<(), ImportError> {
        self.handle.sync_all().map_err(|error| self.failed(&self.folder, error))?;
        fs::rename(&self.folder, &self.target).map_err(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
                ImportError::TargetExists { target: self.target.clone() }
            }
            _ => ImportError::io("cannot be renamed to the target", &self.folder)(error),
        })?;
        self.published = true;
        let parent = parent(&self.target);
        let synced = File::open(&parent).and_then(|parent| parent.sync_all());
        synced.map_err(ImportError::io("cannot be synced", &parent))
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if !self.published {
            // The next run removes what cannot be removed now; the error that led here matters more.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Why a file could not be filled.
pub(super) enum WriteError {
    Io(io::Error),
    Import(ImportError),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Whether nothing is at `target`, or an empty folder, so that nothing can be lost there.
pub(super) fn is_free(target: &Path) -> Result<bool, ImportError> {
    let failed = |error| ImportError::io("cannot be looked at", target)(error);
    match fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(failed(error)),
        Ok(metadata) if metadata.is_dir() => Ok(fs::read_dir(target).map_err(failed)?.next().is_none()),
        Ok(_) => Ok(false),
    }
}

fn parent(target: &Path) -> PathBuf {
    match target.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn temporary_name(target: &Path) -> Result<OsString, ImportError> {
    let name = target.file_name().ok_or_else(|| ImportError::TargetExists { target: target.to_owned() })?;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(".importing");
    Ok(temporary)
}

fn lock(folder: &Path) -> Result<File, ImportError> {
    let failed = |error| ImportError::io("cannot be created", folder)(error);
    loop {
        match fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let handle = File::open(folder).map_err(failed)?;
        match handle.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ImportError::Busy { folder: folder.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // Between opening and locking another run may have renamed or removed the folder.
        let locked = handle.metadata().map_err(failed)?;
        match fs::symlink_metadata(folder) {
            Ok(now) if (now.dev(), now.ino()) == (locked.dev(), locked.ino()) => return Ok(handle),
            Ok(now) if !now.is_dir() => return Err(failed(io::ErrorKind::NotADirectory.into())),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
}

/// Removes what an interrupted run left: files. A folder in there is not ours, and stays.
fn clear(folder: &Path) -> Result<(), ImportError> {
    let doing = "what an interrupted import left cannot be removed";
    for entry in fs::read_dir(folder).map_err(ImportError::io(doing, folder))? {
        let path = entry.map_err(ImportError::io(doing, folder))?.path();
        fs::remove_file(&path).map_err(ImportError::io(doing, &path))?;
    }
    Ok(())
}

fn available_bytes(folder: &Path) -> Option<u64> {
    let space = rustix::fs::statvfs(folder).ok()?;
    space.f_bavail.checked_mul(space.f_frsize)
}
