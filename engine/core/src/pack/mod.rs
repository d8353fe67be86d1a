//! `nightmonk pack`: a published model folder becomes one whose matrices lie as the kernels read them.
//!
//! Panels can be mapped and multiplied with at once, where a published folder is turned panel by panel; and of BF16
//! weights a quarter of the bytes goes away without loss, on the disk, in memory, and on the way to the processor. The
//! format is in docs/packed-checkpoint.md.
//!
//! ```text
//! layout            which tensor goes where, before the first byte is written
//! shard             written, synced, read back and compared, renamed
//! folder            what may be in the folder that is written; lock, and the way on after a crash
//! ```

mod error;
mod folder;
mod layout;
mod shard;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use simd::Isa;

pub use error::PackError;

use crate::checkpoint::{Checkpoint, INDEX_FILE};
use folder::Output;
use layout::PlannedShard;
use shard::{Counts, Job, available_bytes, sync_folder, write_small};

/// What the user may choose.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// Panels of the published types, nothing in 12 bits.
    pub plain: bool,
    /// A shard is not planned larger than this many bytes, unless a single tensor is.
    pub max_shard_bytes: u64,
    /// Threads that pack.
    pub threads: usize,
    /// Instructions that lay and compare panels; they change no byte.
    pub isa: Isa,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self { plain: false, max_shard_bytes: 5_000_000_000, threads: 1, isa: Isa::detect() }
    }
}

/// How far packing is. Every published byte counts twice: it is packed, and compared with what came back from the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackProgress {
    /// Published bytes that are done.
    pub done_bytes: u64,
    /// All of them, twice.
    pub total_bytes: u64,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackReport {
    /// The folder.
    pub folder: PathBuf,
    /// Whether all of it was there before.
    pub already_done: bool,
    /// Shards that an earlier run had finished.
    pub kept_shards: usize,
    /// Shards in all.
    pub shards: usize,
    /// Matrices in 12 bits.
    pub packed_matrices: u64,
    /// Their weights.
    pub packed_weights: u64,
    /// Their bytes, patches included.
    pub packed_bytes: u64,
    /// Matrices in plain panels.
    pub plain_matrices: u64,
    /// Bytes of the published shards.
    pub bytes_before: u64,
    /// Bytes of the shards that were written.
    pub bytes_after: u64,
    /// The output matrix was added to the embedding that it shares its numbers with.
    pub added_head: bool,
}

impl PackReport {
    /// Bits that a weight takes in the matrices that were packed, if any were.
    pub fn bits_per_weight(&self) -> Option<f64> {
        (self.packed_weights > 0).then(|| self.packed_bytes as f64 * 8.0 / self.packed_weights as f64)
    }
}

impl fmt::Display for PackReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let done = if self.already_done { "was packed before" } else { "is packed and compared with its source" };
        writeln!(f, "{} {done}: {} shards", self.folder.display(), self.shards)?;
        match self.bits_per_weight() {
            Some(bits) => writeln!(
                f,
                "{} matrices take {bits:.3} bits a weight, {} lie in plain panels",
                self.packed_matrices, self.plain_matrices
            )?,
            None => writeln!(f, "{} matrices lie in plain panels, none in 12 bits", self.plain_matrices)?,
        }
        if self.added_head {
            writeln!(f, "The output matrix is that of the embedding and stands beside it, in panels")?;
        }
        let bytes = crate::plan::bytes;
        let percent = self.bytes_after as f64 * 100.0 / self.bytes_before.max(1) as f64;
        writeln!(f, "{} before, {} after ({percent:.1} %)", bytes(self.bytes_before), bytes(self.bytes_after))
    }
}

/// Tells how far it is; a tensor that has to be written anew is not counted twice.
struct Progress<'a> {
    done: u64,
    tensor: u64,
    total: u64,
    tell: &'a mut (dyn FnMut(PackProgress) + Send),
}

impl Progress<'_> {
    fn add(&mut self, bytes: usize) {
        self.tensor += bytes as u64;
        let done_bytes = self.done + self.tensor;
        (self.tell)(PackProgress { done_bytes, total_bytes: self.total });
    }

    fn again(&mut self) {
        self.tensor = 0;
    }

    fn tensor_done(&mut self) {
        self.done += std::mem::take(&mut self.tensor);
    }
}

/// Writes the model in the folder `source` as panels to the folder `target`. Started again after whatever ended it, it
/// goes on with the first shard that is not there; the bytes are those of an undisturbed run.
///
/// # Errors
/// [`PackError`]: `source` is wrong or damaged, `target` belongs to something else, the disk is full. Finished shards stay.
pub fn pack_folder(
    source: &Path,
    target: &Path,
    options: &PackOptions,
    progress: &mut (dyn FnMut(PackProgress) + Send),
) -> Result<PackReport, PackError> {
    let checkpoint = Checkpoint::open(source)?;
    if checkpoint.packed_from().is_some() {
        return Err(PackError::AlreadyPacked { folder: source.into() });
    }
    if folder::is_same(source, target)? {
        return Err(PackError::SameFolder { folder: target.into() });
    }
    let threads = options.threads.max(1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|error| PackError::Threads { threads, why: error.to_string() })?;
    pool.install(|| pack(&checkpoint, target, options, progress))
}

fn pack(
    checkpoint: &Checkpoint,
    target: &Path,
    options: &PackOptions,
    progress: &mut (dyn FnMut(PackProgress) + Send),
) -> Result<PackReport, PackError> {
    let digest = source_digest(checkpoint, options)?;
    let shards = layout::plan(checkpoint, &digest, options)?;
    let small_files = folder::small_files(checkpoint.folder())?;
    let output = Output::open(target, &digest, &small_files, &shards)?;

    let bytes = |shards: &[PlannedShard]| shards.iter().map(PlannedShard::source_bytes).sum::<u64>();
    let mut progress = Progress { done: 0, tensor: 0, total: 2 * bytes(&shards), tell: progress };
    let missing = |shard: &&PlannedShard| !target.join(&shard.file_name).exists();
    let needed: u64 = shards.iter().filter(missing).map(PlannedShard::least_bytes).sum();
    let mut job = Job { checkpoint, digest: &digest, folder: target, isa: options.isa, needed };
    if let Some(available) = available_bytes(target)
        && available < needed
    {
        return Err(PackError::NoSpace { path: target.into(), needed, available: Some(available) });
    }
    if !output.is_finished() {
        for name in &small_files {
            let mut from = File::open(checkpoint.folder().join(name))
                .map_err(PackError::io("cannot be read", &checkpoint.folder().join(name)))?;
            write_small(&target.join(name), needed, |file| io::copy(&mut from, file).map(drop))?;
        }
    }
    let mut kept_shards = 0;
    let mut counts = Counts::default();
    for shard in &shards {
        if job.path(shard).exists() {
            kept_shards += 1;
            progress.done += 2 * shard.source_bytes();
            progress.add(0);
        } else {
            job.write(shard, &mut progress)?;
            job.needed -= shard.least_bytes().min(job.needed);
        }
        counts.add(&job.count(shard)?);
    }
    if shards.len() > 1 && !output.is_finished() {
        let index = index(&shards, counts.file_bytes);
        write_small(&target.join(INDEX_FILE), 0, |file| file.write_all(index.as_bytes()))?;
    }
    sync_folder(target)?;
    let already_done = output.is_finished();
    output.finish()?;
    Ok(PackReport {
        folder: target.into(),
        already_done,
        kept_shards,
        shards: shards.len(),
        packed_matrices: counts.packed,
        packed_weights: counts.packed_weights,
        packed_bytes: counts.packed_bytes,
        plain_matrices: counts.plain,
        bytes_before: checkpoint.shards().map(|(_, bytes)| bytes.len() as u64).sum(),
        bytes_after: counts.file_bytes,
        added_head: checkpoint.config().tie_word_embeddings,
    })
}

fn index(shards: &[PlannedShard], total_size: u64) -> String {
    let tensors = shards.iter().flat_map(|shard| shard.tensors.iter().map(|tensor| (tensor, &shard.file_name)));
    let weight_map: serde_json::Map<_, _> =
        tensors.map(|(tensor, file_name)| (tensor.name.clone(), file_name.clone().into())).collect();
    let index = serde_json::json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
    format!("{index:#}\n")
}

/// Bytes at the beginning of every tensor that tell one model from another.
const SAMPLE_BYTES: usize = 256;

/// BLAKE3 of what decides the bytes that are written, as far as it can be told without reading all of them: version and
/// options, config.json, the shards' lengths and headers, and the beginning of every tensor: fine-tuned models have the
/// headers of what they were tuned from.
fn source_digest(checkpoint: &Checkpoint, options: &PackOptions) -> Result<String, PackError> {
    let mut hasher = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    };
    add(b"nightmonk pack 1");
    add(&[u8::from(options.plain)]);
    add(&options.max_shard_bytes.to_le_bytes());
    let config = checkpoint.folder().join("config.json");
    add(&fs::read(&config).map_err(PackError::io("cannot be read", &config))?);
    for (_, bytes) in checkpoint.shards() {
        add(&(bytes.len() as u64).to_le_bytes());
        let header = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length) as usize);
        add(&bytes[..bytes.len().min(header.saturating_add(8))]);
    }
    for spec in checkpoint.tensors() {
        let bytes = checkpoint.bytes(&checkpoint.location(&spec.name));
        add(&bytes[..bytes.len().min(SAMPLE_BYTES)]);
    }
    checkpoint.check_intact()?;
    Ok(hasher.finalize().to_hex().to_string())
}
