//! One shard: written under another name, synced, read back from the disk and compared, then renamed.
//!
//! Panels are packed a few MiB at a time, on all threads, and written in order; of a matrix only its patches stay in
//! memory until it ends. Nothing under a shard's final name is ever half a shard.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use rustix::fs::{Advice, fadvise};
use simd::Isa;
use simd::matmul::{Matrix, PANEL, packed};

use super::layout::{self, Planned, PlannedShard, Written};
use super::{PackError, Progress};
use crate::checkpoint::panels::ALIGNMENT;
use crate::checkpoint::{Checkpoint, CheckpointError, Layout, MappedFile, header};
use crate::whole_file::WholeFile;

/// Published bytes that are packed together: enough for all threads, little beside the page cache.
const BATCH_BYTES: usize = 8 << 20;
/// So many batches are mapped at a time.
const RELEASE_BATCHES: usize = 8;

/// What all shards share.
pub(super) struct Job<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) digest: &'a str,
    pub(super) folder: &'a Path,
    pub(super) isa: Isa,
    /// Bytes that what is left takes at least.
    pub(super) needed: u64,
}

/// A shard that is being written.
struct Unfinished {
    path: PathBuf,
    file: File,
    /// Where the next byte goes.
    at: u64,
}

impl Unfinished {
    fn create(path: PathBuf) -> Result<Self, PackError> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(PackError::io("cannot be created", &path))?;
        Ok(Self { path, file, at: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// What a shard's matrices came to.
#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    /// Matrices in 12 bits, their weights and bytes.
    pub(super) packed: u64,
    pub(super) packed_weights: u64,
    pub(super) packed_bytes: u64,
    /// Matrices in plain panels.
    pub(super) plain: u64,
    /// Bytes of the file.
    pub(super) file_bytes: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        self.packed += other.packed;
        self.packed_weights += other.packed_weights;
        self.packed_bytes += other.packed_bytes;
        self.plain += other.plain;
        self.file_bytes += other.file_bytes;
    }
}

impl Job<'_> {
    /// Where a shard is.
    pub(super) fn path(&self, shard: &PlannedShard) -> PathBuf {
        self.folder.join(&shard.file_name)
    }

    /// Writes and checks a shard. What does not succeed leaves nothing.
    pub(super) fn write(&self, shard: &PlannedShard, progress: &mut Progress) -> Result<(), PackError> {
        let target = self.path(shard);
        let unfinished = self.folder.join(format!("{}.unfinished", shard.file_name));
        let mut out = Unfinished::create(unfinished)?;
        let done = self.fill(shard, &mut out, progress).and_then(|()| self.verify(shard, &out.path, progress));
        if let Err(mut error) = done {
            // The error that led here matters more; the next run begins the file anew.
            let _ = fs::remove_file(&out.path);
            drop(out); // an open file keeps its space
            if let PackError::NoSpace { available, .. } = &mut error {
                *available = available_bytes(self.folder);
            }
            return Err(error);
        }
        fs::rename(&out.path, &target).map_err(PackError::io("cannot be renamed", &out.path))?;
        sync_folder(self.folder)
    }

    fn fill(&self, shard: &PlannedShard, out: &mut Unfinished, progress: &mut Progress) -> Result<(), PackError> {
        out.at = shard.header_bytes as u64;
        let mut written = Vec::with_capacity(shard.tensors.len());
        for tensor in &shard.tensors {
            let start = out.at;
            let layout = match tensor.wanted {
                Layout::RowMajor => self.copy(tensor, out, progress)?,
                Layout::Panels => self.plain(tensor, out, progress)?,
                Layout::Packed { .. } => match self.pack(tensor, out, progress)? {
                    Some(layout) => layout,
                    None => {
                        out.at = start;
                        progress.again();
                        self.plain(tensor, out, progress)?
                    }
                },
            };
            progress.tensor_done();
            if layout != Layout::RowMajor {
                let fill = out.at.next_multiple_of(ALIGNMENT as u64) - out.at;
                self.put(out, &[0; ALIGNMENT][..fill as usize])?;
            }
            let bytes = (out.at - start) as usize;
            written.push(Written { layout, start: start as usize - shard.header_bytes, bytes });
            self.checkpoint.release();
        }
        // Zeros in the place of a source that was cut short meanwhile are no weights.
        self.checkpoint.check_intact()?;
        let end = out.at;
        out.at = 0;
        self.put(out, &layout::header(shard, &written, self.digest))?;
        let finish = || {
            out.file.set_len(end)?;
            out.file.sync_all()?;
            // So that what is compared comes from the disk.
            Ok(fadvise(&out.file, 0, None, Advice::DontNeed)?)
        };
        finish().map_err(|error| self.failed(&out.path, error))
    }

    fn put(&self, out: &mut Unfinished, bytes: &[u8]) -> Result<(), PackError> {
        out.write(bytes).map_err(|error| self.failed(&out.path, error))
    }

    fn failed(&self, path: &Path, error: io::Error) -> PackError {
        match error.kind() {
            // What is free is known when the unfinished file is removed.
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                PackError::NoSpace { path: path.into(), needed: self.needed, available: None }
            }
            _ => PackError::io("cannot be written", path)(error),
        }
    }

    /// Published numbers of a tensor, some rows or panels at a time, checked.
    fn strip(&self, tensor: &Planned, start: usize, bytes: usize) -> Result<&[u8], PackError> {
        let location = tensor.location(self.checkpoint).part(start..start + bytes);
        let strip = self.checkpoint.populate(&location)?;
        self.checkpoint.check_finite_part(&tensor.source, &location, strip)?;
        Ok(strip)
    }

    /// Gives pages of the source back now and then: a large tensor counts as this process's memory while it is mapped.
    fn give_back(&self, start: usize) {
        if (start / BATCH_BYTES).is_multiple_of(RELEASE_BATCHES) {
            self.checkpoint.release();
        }
    }

    fn copy(&self, tensor: &Planned, out: &mut Unfinished, progress: &mut Progress) -> Result<Layout, PackError> {
        let all = layout::published_bytes(tensor);
        for start in (0..all).step_by(BATCH_BYTES) {
            let strip = self.strip(tensor, start, BATCH_BYTES.min(all - start))?;
            self.put(out, strip)?;
            progress.add(strip.len());
            self.give_back(start);
        }
        Ok(Layout::RowMajor)
    }

    fn plain(&self, tensor: &Planned, out: &mut Unfinished, progress: &mut Progress) -> Result<Layout, PackError> {
        let mut buffer = Vec::new();
        self.batches(tensor, |batch| {
            let panel = batch.bytes_of_panel();
            buffer.resize(batch.panel_count() * panel, 0);
            buffer.par_chunks_exact_mut(panel).enumerate().for_each(|(index, out)| {
                batch.pack_panel_with(self.isa, index, out);
            });
            self.put(out, &buffer)?;
            progress.add(batch.bytes().len());
            Ok(true)
        })?;
        Ok(Layout::Panels)
    }

    /// `None` if it would not shrink.
    fn pack(
        &self,
        tensor: &Planned,
        out: &mut Unfinished,
        progress: &mut Progress,
    ) -> Result<Option<Layout>, PackError> {
        let shape @ [_, cols] = tensor.matrix();
        let (Some(panel_bytes), Some(least)) = (packed::panel_bytes(cols), packed::matrix_bytes(shape, 0)) else {
            return Ok(None);
        };
        let plain = Matrix::panel_bytes(tensor.dtype(), shape).unwrap_or(usize::MAX);
        // As many as make it as large as it was, and as an index can count.
        let most_patches = (plain.saturating_sub(least) / size_of::<u32>()).min(u32::MAX as usize);
        let (mut starts, mut patches): (Vec<u32>, Vec<u32>) = (vec![0], Vec::new());
        let mut buffer = Vec::new();
        let whole = self.batches(tensor, |batch| {
            buffer.resize(batch.panel_count() * panel_bytes, 0);
            let of_panels: Vec<Vec<u32>> = buffer
                .par_chunks_exact_mut(panel_bytes)
                .enumerate()
                .map_init(
                    || vec![0; batch.bytes_of_panel()],
                    |plain, (index, out)| {
                        let mut patches = Vec::new();
                        batch.pack_panel_with(self.isa, index, plain);
                        packed::pack_panel(plain, cols, out, &mut patches);
                        patches
                    },
                )
                .collect();
            for of_panel in of_panels {
                patches.extend(of_panel);
                starts.push(patches.len() as u32);
            }
            if patches.len() >= most_patches {
                return Ok(false);
            }
            self.put(out, &buffer)?;
            progress.add(batch.bytes().len());
            Ok(true)
        })?;
        if !whole {
            return Ok(None);
        }
        for words in [&starts, &patches] {
            for words in words.chunks(BATCH_BYTES / size_of::<u32>()) {
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                self.put(out, &bytes)?;
            }
        }
        Ok(Some(Layout::Packed { patches: patches.len() }))
    }

    /// Gives a matrix as several, some whole panels each, until `each` says no; whether it never did.
    fn batches(
        &self,
        tensor: &Planned,
        mut each: impl FnMut(Matrix) -> Result<bool, PackError>,
    ) -> Result<bool, PackError> {
        let [rows, cols] = tensor.matrix();
        let row = cols * tensor.dtype().size();
        let batch = batch_panels(row) * PANEL;
        let mut turned = Vec::new();
        for first in (0..rows).step_by(batch) {
            self.give_back(first * row);
            let count = batch.min(rows - first);
            let strip = match tensor.part.as_ref().and_then(|part| part.columns) {
                None => self.strip(tensor, first * row, count * row)?,
                Some(columns) => self.turn(tensor, columns, first..first + count, &mut turned)?,
            };
            let matrix = Matrix::row_major(tensor.dtype(), strip, [count, cols]);
            if !each(matrix.expect("length and alignment were checked when the checkpoint was opened"))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Rows of a matrix that is published as columns among those of others, put into `turned`. Every row has a number in
    /// each published one, so all of the expert is read for each batch: from the page cache, but for the first.
    fn turn<'t>(
        &self,
        tensor: &Planned,
        [first_column, step, all_columns]: [usize; 3],
        rows: Range<usize>,
        turned: &'t mut Vec<u64>,
    ) -> Result<&'t [u8], PackError> {
        let size = tensor.dtype().size();
        let [_, cols] = tensor.matrix();
        let whole = self.strip(tensor, 0, tensor.location(self.checkpoint).size())?;
        // Words, so that any number may begin where they do.
        let bytes = rows.len() * cols * size;
        turned.resize(bytes.div_ceil(size_of::<u64>()), 0);
        let out = &mut bytemuck::cast_slice_mut::<u64, u8>(turned)[..bytes];
        // Lines of a few rows at a time stay in the nearest cache while their columns are gone through.
        out.par_chunks_mut(PANEL * cols * size).enumerate().for_each(|(panel, out)| {
            let first = rows.start + panel * PANEL;
            for (col, published) in whole.chunks_exact(all_columns * size).enumerate() {
                for (row, out) in out.chunks_exact_mut(cols * size).enumerate() {
                    let at = (first_column + (first + row) * step) * size;
                    out[col * size..][..size].copy_from_slice(&published[at..][..size]);
                }
            }
        });
        Ok(out)
    }

    /// Reads the file as loading does, expands every panel, and compares it with the source: a few batches of each at a
    /// time, so that a matrix of gigabytes is in this process neither once nor twice.
    fn verify(&self, shard: &PlannedShard, path: &Path, progress: &mut Progress) -> Result<(), PackError> {
        let map = MappedFile::open(path).map_err(PackError::io("cannot be read back", path))?;
        let found: HashMap<_, _> = header::read(path, map.bytes())?.tensors.into_iter().collect();
        let differs = |tensor: &Planned| PackError::Differs { shard: path.into(), tensor: tensor.name.clone() };
        for tensor in &shard.tensors {
            let info =
                found.get(&tensor.name).filter(|info| info.element == tensor.element && info.shape == tensor.shape);
            let info = info.ok_or_else(|| differs(tensor))?;
            let bytes = &map.bytes()[info.bytes.clone()];
            if info.layout == Layout::RowMajor {
                let published = tensor.location(self.checkpoint);
                if published.size() != bytes.len() {
                    return Err(differs(tensor));
                }
                for (index, written) in bytes.chunks(BATCH_BYTES).enumerate() {
                    let start = index * BATCH_BYTES;
                    if self.checkpoint.bytes(&published.part(start..start + written.len())) != written {
                        return Err(differs(tensor));
                    }
                    self.give_back(start);
                    let _ = map.release();
                    progress.add(written.len());
                }
            } else {
                let written = match info.layout {
                    Layout::Packed { .. } => Matrix::packed(bytes, tensor.matrix()).ok(),
                    _ => Matrix::panels(tensor.dtype(), bytes, tensor.matrix()),
                };
                let written = written.ok_or_else(|| differs(tensor))?;
                let mut first = 0;
                let equal = self.batches(tensor, |batch| {
                    let panel = batch.bytes_of_panel();
                    let equal = (0..batch.panel_count()).into_par_iter().map_init(
                        || (vec![0; panel], vec![0; panel]),
                        |(got, want), index| {
                            let panel = first + index;
                            if written.check_packed(panel..panel + 1).is_err() {
                                return false;
                            }
                            written.pack_panel_with(self.isa, panel, got);
                            batch.pack_panel_with(self.isa, index, want);
                            got == want
                        },
                    );
                    let equal = equal.all(|equal| equal);
                    first += batch.panel_count();
                    let _ = map.release();
                    progress.add(batch.bytes().len());
                    Ok(equal)
                })?;
                if !equal {
                    return Err(differs(tensor));
                }
            }
            progress.tensor_done();
            self.checkpoint.release();
            let _ = map.release();
        }
        self.checkpoint.check_intact()?;
        match map.is_intact() {
            true => Ok(()),
            false => Err(CheckpointError::Broken { shard: path.into() }.into()),
        }
    }

    /// What a finished shard holds.
    ///
    /// # Errors
    /// [`PackError::OtherSource`] if it is not the shard that this run would write.
    pub(super) fn count(&self, shard: &PlannedShard) -> Result<Counts, PackError> {
        let path = self.path(shard);
        let map = MappedFile::open(&path).map_err(PackError::io("cannot be read", &path))?;
        let header = header::read(&path, map.bytes())?;
        let is_ours = header.source == self.digest && header.tensors.len() == shard.tensors.len();
        if !is_ours {
            return Err(PackError::OtherSource { folder: self.folder.into() });
        }
        let mut counts = Counts { file_bytes: map.bytes().len() as u64, ..Counts::default() };
        for (_, info) in &header.tensors {
            match info.layout {
                Layout::RowMajor => {}
                Layout::Panels => counts.plain += 1,
                Layout::Packed { .. } => {
                    counts.packed += 1;
                    counts.packed_weights += info.shape.iter().map(|size| *size as u64).product::<u64>();
                    counts.packed_bytes += info.bytes.len() as u64;
                }
            }
        }
        Ok(counts)
    }
}

/// Panels of a batch.
fn batch_panels(row_bytes: usize) -> usize {
    (BATCH_BYTES / (PANEL * row_bytes)).max(rayon::current_num_threads())
}

/// Writes a small file as shards are: under another name, synced, renamed.
pub(super) fn write_small(
    path: &Path,
    needed: u64,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), PackError> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let write = || {
        let mut file = WholeFile::create_as(unfinished.into(), path.to_owned())?;
        fill(file.file())?;
        file.finish()
    };
    write().map_err(|error| match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            PackError::NoSpace { path: path.into(), needed, available: available_bytes(path.parent().unwrap_or(path)) }
        }
        _ => PackError::io("cannot be written", path)(error),
    })
}

pub(super) fn sync_folder(folder: &Path) -> Result<(), PackError> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(PackError::io("cannot be synced", folder))
}

pub(super) fn available_bytes(folder: &Path) -> Option<u64> {
    let space = rustix::fs::statvfs(folder).ok()?;
    space.f_bavail.checked_mul(space.f_frsize)
}
