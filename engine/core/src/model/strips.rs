//! The work of loading, cut into strips: some panels of a matrix, a few MiB of a file that lie together.
//!
//! Strips are taken in the order of the files, by threads that wait for the disk as often as they compute; that is why
//! they are not the workers of the step loop. A tensor without a place is read and checked all the same.

use std::collections::{BTreeMap, HashSet};
use std::slice::ChunksMut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;

use numa::direct::BLOCK;
use simd::Isa;

use super::load::{Load, LoadError, LoadProgress, ModelOptions};
use super::place::Placed;
use super::reader::{Read, Reader};
use crate::checkpoint::{Checkpoint, CheckpointError, DirectShards, Location};
use crate::config::TensorSpec;

/// Bytes that are read together where a panel is not larger: enough for a disk to be at its best, few enough that a
/// core's cache still holds some of them when they are laid out.
pub(super) const STRIP_BYTES: usize = 8 << 20;

/// Is looked up by rows, in the map, also where it has panels as the output matrix of a tied model.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";

/// Reads under way at a time, at least: disks are at their best with several, and while one waits others compute.
const READERS_MIN: usize = 4;

/// And at most: with more, buffers grow and no disk gets faster.
const READERS_MAX: usize = 32;

/// Pages of the map are given back each time that so many bytes were read.
const RELEASE_BYTES: usize = 256 << 20;

/// One piece of work.
pub(super) struct Strip<'a> {
    tensor: &'a str,
    location: Location,
    /// The matrices whose rows are here: none for a tensor without a place, several where they are published together.
    lays: Vec<Lay<'a>>,
    /// Where the scales of these bytes lie, if they have some.
    scales: Option<Location>,
    /// Of a resident model too the run reads these bytes in the map, by rows.
    stays_mapped: bool,
}

/// Some panels of one matrix, to be filled.
struct Lay<'a> {
    placed: &'a Placed,
    panels: &'a mut [u8],
}

/// Threads that read `total` bytes for a run of `threads` workers: one has enough to do with a strip.
pub(super) fn readers(threads: usize, total: usize) -> usize {
    threads.clamp(READERS_MIN, READERS_MAX).min(total.div_ceil(STRIP_BYTES)).max(1)
}

/// Bytes of the largest strip of a matrix of `matrix` bytes, of which `panel` make a panel.
pub(crate) fn largest_strip(matrix: usize, panel: usize) -> usize {
    matrix.min(STRIP_BYTES.max(panel))
}

/// Bytes that the buffers of all readers take, for a resident model of `total` bytes and strips of up to `strip`.
pub(crate) fn buffer_bytes(threads: usize, total: usize, strip: usize) -> usize {
    // A buffer has room for the blocks around a strip; a second one, for scales, is a sixteenth of it.
    readers(threads, total).saturating_mul(strip.saturating_add(strip / 16).saturating_add(4 * BLOCK))
}

/// Cuts all tensors into strips, in the order of the files. `placed` ascends in `region`; a strip is one panel or more,
/// and no more than `most` bytes where a panel is not.
pub(super) fn cut<'a>(
    checkpoint: &Checkpoint,
    tensors: &'a [TensorSpec],
    placed: &'a [Placed],
    region: &'a mut [u8],
    most: usize,
) -> Vec<Strip<'a>> {
    /// What lies at one place of a file: how it is cut, and what it fills.
    struct Pieces<'a> {
        tensor: &'a str,
        strip_bytes: usize,
        fills: Vec<(&'a Placed, ChunksMut<'a, u8>)>,
    }
    let mut pieces: BTreeMap<Location, Pieces<'a>> = BTreeMap::new();
    let names: HashSet<&str> = placed.iter().map(|placed| placed.tensor.as_str()).collect();
    for spec in tensors.iter().filter(|spec| !names.contains(spec.name.as_str())) {
        let strip_bytes = checkpoint.whole_parts(&spec.name, most);
        let whole = Pieces { tensor: &spec.name, strip_bytes, fills: Vec::new() };
        pieces.insert(checkpoint.location(&spec.name), whole);
    }
    let (mut rest, mut at) = (region, 0);
    for placed in placed {
        let (_, tail) = rest.split_at_mut(placed.panels.start - at);
        let (panels, tail) = tail.split_at_mut(placed.panels.len());
        (rest, at) = (tail, placed.panels.end);
        let unit = placed.source.bytes_of_panel(placed.dtype, placed.cols);
        let strip_bytes = (most / unit).max(1) * unit;
        let panel_bytes = placed.source.panel_bytes(placed.dtype, placed.cols);
        let chunks = panels.chunks_mut(strip_bytes / unit * panel_bytes);
        let here = Pieces { tensor: &placed.tensor, strip_bytes, fills: Vec::new() };
        pieces.entry(placed.source.location().clone()).or_insert(here).fills.push((placed, chunks));
    }
    let mut strips = Vec::new();
    for (location, Pieces { tensor, strip_bytes, mut fills }) in pieces {
        for start in (0..location.size()).step_by(strip_bytes) {
            let end = location.size().min(start + strip_bytes);
            let lay =
                |(placed, chunks): &mut (&'a Placed, ChunksMut<'a, u8>)| Some(Lay { placed, panels: chunks.next()? });
            let lays: Vec<Lay> = fills.iter_mut().filter_map(lay).collect();
            let location = location.part(start..end);
            // Matrices that are published together share their scales.
            let scales = lays.first().and_then(|lay| lay.placed.source.scales_of(&location));
            strips.push(Strip { tensor, location, lays, scales, stays_mapped: tensor == EMBEDDING });
        }
    }
    strips
}

impl Strip<'_> {
    /// Reads, checks and lays; returns whether the bytes came from the disk.
    fn run(
        self,
        checkpoint: &Checkpoint,
        [reader, of_scales]: &mut [Reader; 2],
        isa: Isa,
    ) -> Result<bool, CheckpointError> {
        let Read { bytes, from_disk } = reader.read(&self.location, self.stays_mapped)?;
        checkpoint.check_finite_part(self.tensor, &self.location, bytes)?;
        // They are checked in strips of their own.
        let scales = match &self.scales {
            Some(scales) => of_scales.read(scales, false)?.bytes,
            None => &[],
        };
        for Lay { placed, panels } in self.lays {
            placed.source.lay(isa, placed.dtype, placed.cols, bytes, scales, panels);
        }
        Ok(from_disk)
    }
}

/// Reads all strips. Of several damaged tensors the first in the order of the files is the error, whoever finds it when.
pub(super) fn read(
    checkpoint: &Checkpoint,
    strips: Vec<Strip>,
    options: &ModelOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<(), LoadError> {
    let ModelOptions { isa, load, .. } = *options;
    let total_bytes = strips.iter().map(|strip| strip.location.size()).sum();
    let readers = readers(options.threads, total_bytes);
    let direct = match load {
        Load::Mapped => None,
        Load::Resident => Some(DirectShards::open(checkpoint)?),
    };
    let most = strips.iter().filter(|strip| !strip.stays_mapped).map(|strip| strip.location.size()).max().unwrap_or(0);
    let most_scales = strips.iter().filter_map(|strip| strip.scales.as_ref()).map(Location::size).max().unwrap_or(0);
    let pair = || match &direct {
        None => Ok([Reader::mapped(checkpoint), Reader::mapped(checkpoint)]),
        Some(shards) => {
            let reader = |most| {
                Reader::direct(checkpoint, shards, most).map_err(|source| LoadError::Memory { bytes: most, source })
            };
            Ok([reader(most)?, reader(most_scales)?])
        }
    };
    let mut at = LoadProgress { total_bytes, ..LoadProgress::default() };
    progress(at);

    let next = Mutex::new(strips.into_iter().enumerate());
    let take = || next.lock().expect("no thread panics while it holds this").next();
    let stop = AtomicBool::new(false);
    let (tell, told) = mpsc::channel::<Result<(usize, bool), (usize, CheckpointError)>>();
    let work = |mut readers: [Reader; 2], tell: mpsc::Sender<_>| {
        while !stop.load(Ordering::Relaxed)
            && let Some((index, strip)) = take()
        {
            let bytes = strip.location.size();
            let result = strip.run(checkpoint, &mut readers, isa);
            if result.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            let _ = tell.send(result.map(|from_disk| (bytes, from_disk)).map_err(|error| (index, error)));
        }
    };
    thread::scope(|scope| {
        for _ in 0..readers {
            let start = pair().and_then(|pair| {
                let (work, tell) = (&work, tell.clone());
                let thread = thread::Builder::new().name("load".into()).spawn_scoped(scope, move || work(pair, tell));
                thread.map_err(|error| LoadError::Threads { threads: readers, why: error.to_string() })
            });
            start.inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
        }
        drop(tell);
        let mut first: Option<(usize, CheckpointError)> = None;
        let mut kept = 0;
        for result in told {
            match result {
                Ok((bytes, from_disk)) => {
                    at.done_bytes += bytes;
                    at.disk_bytes += if from_disk { bytes } else { 0 };
                    progress(at);
                    kept += bytes;
                    if load == Load::Resident && kept >= RELEASE_BYTES {
                        checkpoint.release();
                        kept = 0;
                    }
                }
                Err(error) if first.as_ref().is_none_or(|(index, _)| error.0 < *index) => first = Some(error),
                Err(_) => {}
            }
        }
        first.map_or(Ok(()), |(_, error)| Err(LoadError::from(error)))
    })
    // Zeros in the place of a shard that was cut short meanwhile pass every other check.
    .and_then(|()| Ok(checkpoint.check_intact()?))?;
    if load == Load::Resident {
        checkpoint.release();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use simd::Isa;
    use simd::matmul::Activations;

    use super::*;
    use crate::model::place::Place;

    /// The panels of a golden model, read in strips of `most` bytes, and how many strips there were.
    fn panels(family: &str, most: usize, threads: usize) -> (Vec<u8>, usize) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(family);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let config = checkpoint.config();
        let load = Load::Resident;
        let mut place = Place::new(&checkpoint, load);
        for layer in 0..config.layers.len() {
            place.layer(config, layer);
        }
        place.linear(config.lm_head_name());
        let (bytes, placed) = place.finish();
        let mut region = vec![0; bytes];
        let tensors = config.tensors();
        let strips = cut(&checkpoint, &tensors, &placed, &mut region, most);
        let count = strips.len();

        let published: usize = tensors.iter().map(|spec| checkpoint.location(&spec.name).size()).sum();
        assert_eq!(strips.iter().map(|strip| strip.location.size()).sum::<usize>(), published, "each byte once");
        assert!(strips.is_sorted_by_key(|strip| strip.location.clone()), "in the order of the files");

        let options = ModelOptions { isa: Isa::detect(), activations: Activations::Bf16x2, load, threads };
        let mut seen = Vec::new();
        read(&checkpoint, strips, &options, &mut |at| {
            assert_eq!(at.total_bytes, published);
            seen.push(at.done_bytes);
        })
        .unwrap();
        assert!(seen.is_sorted() && seen.first() == Some(&0) && seen.last() == Some(&published));
        (region, count)
    }

    #[test]
    fn packed_panels_are_checked_strip_by_strip_wherever_they_live() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama");
        let folder = tempfile::tempdir().unwrap();
        crate::pack::pack_folder(&golden, folder.path(), &crate::pack::PackOptions::default(), &mut |_| {}).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert!(checkpoint.has_packed());
        for load in [Load::Mapped, Load::Resident] {
            let mut place = Place::new(&checkpoint, load);
            (0..checkpoint.config().layers.len()).for_each(|layer| drop(place.layer(checkpoint.config(), layer)));
            place.linear(checkpoint.lm_head_name());
            let (bytes, placed) = place.finish();
            let mut region = vec![0; bytes];
            let tensors = checkpoint.tensors();
            let strips = cut(&checkpoint, &tensors, &placed, &mut region, 3000);
            assert!(strips.len() > tensors.len(), "{load}: matrices are cut");
            let options = ModelOptions { isa: Isa::detect(), activations: Activations::Bf16x2, load, threads: 2 };
            read(&checkpoint, strips, &options, &mut |_| {}).unwrap();
            for placed in &placed {
                let stored = checkpoint.tensor(&placed.tensor).bytes;
                assert!(region[placed.panels.clone()] == *stored, "{load}: {}", placed.tensor);
            }
        }
    }

    #[test]
    fn where_strips_are_cut_and_who_reads_them_changes_no_byte() {
        for family in ["llama", "mixtral", "gpt_oss"] {
            let (whole, few) = panels(family, STRIP_BYTES, 1);
            let (cut, many) = panels(family, 4096, 3);
            assert!(many > few, "{family}: {many} strips, {few} of them large");
            assert!(whole == cut, "{family}");
        }
    }
}
