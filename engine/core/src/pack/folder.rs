//! The folder that is written: nothing in it is ever lost that this program did not write.
//!
//! A file with the digest of the source stands there while the work lasts, and is locked by whoever does it. It tells a
//! folder that was begun from one that holds other things; a finished folder has its shards to tell by.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::PackError;
use super::layout::PlannedShard;
use super::shard::sync_folder;
use crate::checkpoint::INDEX_FILE;

const MARKER: &str = "nightmonk-pack.unfinished";
/// A digest has 64 bytes.
const MARKER_BYTES_MAX: u64 = 1 << 10;
/// Beside the weights a model folder has tokenizers, templates, licences; none is larger than this.
const SMALL_FILE_BYTES_MAX: u64 = 256 << 20;
/// Endings of weights in one form or another.
const WEIGHTS: [&str; 10] = ["safetensors", "bin", "gguf", "pt", "pth", "onnx", "h5", "msgpack", "unfinished", "ot"];

/// The folder, ready to be written; where it was begun but not finished, with a lock.
pub(super) struct Output {
    folder: PathBuf,
    marker: Option<File>,
}

impl Output {
    /// Makes the folder, or finds what an earlier run left of the same work.
    pub(super) fn open(
        folder: &Path,
        digest: &str,
        small_files: &[String],
        shards: &[PlannedShard],
    ) -> Result<Self, PackError> {
        fs::create_dir_all(folder).map_err(PackError::io("cannot be created", folder))?;
        let mut ours: HashSet<String> = small_files.iter().cloned().collect();
        ours.extend(shards.iter().map(|shard| shard.file_name.clone()));
        let is_single = shards.len() == 1;
        if !is_single {
            ours.insert(INDEX_FILE.into());
        }
        let is_ours = |name: &str| name == MARKER || ours.contains(name.strip_suffix(".unfinished").unwrap_or(name));
        let names = names(folder)?;
        if let Some(other) = names.iter().find(|name| !is_ours(name)) {
            return Err(PackError::NotEmpty { folder: folder.into(), other: other.clone() });
        }
        let is_there = |name: &String| names.contains(name);
        if !names.is_empty() && !is_there(&MARKER.to_owned()) {
            return match ours.iter().all(is_there) {
                true => Ok(Self { folder: folder.into(), marker: None }),
                false => Err(PackError::NotEmpty { folder: folder.into(), other: names[0].clone() }),
            };
        }
        let path = folder.join(MARKER);
        let failed = |error| PackError::io("cannot be written", &path)(error);
        let mut marker =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match marker.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PackError::Busy { folder: folder.into() }),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let mut begun = Vec::new();
        (&marker).take(MARKER_BYTES_MAX).read_to_end(&mut begun).map_err(failed)?;
        // A run that ended before it could write its digest wrote nothing else.
        if begun.is_empty() {
            marker.write_all(digest.as_bytes()).and_then(|()| marker.sync_all()).map_err(failed)?;
            sync_folder(folder)?;
        } else if begun != digest.as_bytes() {
            return Err(PackError::OtherSource { folder: folder.into() });
        }
        Ok(Self { folder: folder.into(), marker: Some(marker) })
    }

    /// Whether all was there before.
    pub(super) fn is_finished(&self) -> bool {
        self.marker.is_none()
    }

    /// Says that all is there.
    pub(super) fn finish(self) -> Result<(), PackError> {
        if self.marker.is_none() {
            return Ok(());
        }
        let path = self.folder.join(MARKER);
        fs::remove_file(&path).map_err(PackError::io("cannot be removed", &path))?;
        sync_folder(&self.folder)
    }
}

/// Names in a folder, in order.
fn names(folder: &Path) -> Result<Vec<String>, PackError> {
    let failed = |error: io::Error| PackError::io("cannot be looked at", folder)(error);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Files of a model folder that are copied as they are: all beside the weights, their index and what is hidden.
pub(super) fn small_files(folder: &Path) -> Result<Vec<String>, PackError> {
    let is_small = |name: &String| {
        let is_weights = Path::new(name).extension().is_some_and(|ending| WEIGHTS.iter().any(|known| ending == *known));
        let file = fs::metadata(folder.join(name));
        let fits = file.is_ok_and(|file| file.is_file() && file.len() <= SMALL_FILE_BYTES_MAX);
        !name.starts_with('.') && !is_weights && !name.ends_with(".index.json") && fits
    };
    let mut names = names(folder)?;
    names.retain(is_small);
    Ok(names)
}

/// Whether two paths name one folder.
pub(super) fn is_same(source: &Path, target: &Path) -> Result<bool, PackError> {
    let source = fs::canonicalize(source).map_err(PackError::io("cannot be looked at", source))?;
    match fs::canonicalize(target) {
        Ok(target) => Ok(target == source),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(PackError::io("cannot be looked at", target)(error)),
    }
}
