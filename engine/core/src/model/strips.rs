//! The work of loading, cut into strips: some panels of a matrix, a few MiB of a file that lie together.
//!
//! Strips are taken in the order of the files, by threads that wait for the disk as often as they compute; that is why
//! they are not the workers of the step loop. A tensor without a place is read and checked all the same.

use std::collections::{BTreeMap, HashSet};
use std::mem;
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

/// Cuts all tensors into strips, in the order of the files. `placed` ascends in each of `regions`; a strip is one panel or
/// more, and no more than `most` bytes where a panel is not.
pub(super) fn cut<'a>(
    checkpoint: &Checkpoint,
    tensors: &'a [TensorSpec],
    placed: &'a [Placed],
    regions: Vec<&'a mut [u8]>,
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
    // What is left of each region, and where that begins.
    let mut rests: Vec<(&mut [u8], usize)> = regions.into_iter().map(|region| (region, 0)).collect();
    for placed in placed {
        let (rest, at) = &mut rests[placed.home];
        let (_, tail) = mem::take(rest).split_at_mut(placed.bytes.start - *at);
        let (panels, tail) = tail.split_at_mut(placed.bytes.len());
        (*rest, *at) = (tail, placed.bytes.end);
        let unit = placed.source.bytes_of_panel(placed.dtype, placed.cols);
        let of_strip = if placed.source.is_whole() { 1 } else { (most / unit).max(1) };
        let strip_bytes = of_strip * unit;
        let chunk = match placed.source.is_whole() {
            true => panels.len(),
            false => of_strip * placed.source.panel_bytes(placed.dtype, placed.cols),
        };
        let chunks = panels.chunks_mut(chunk);
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

    use proptest::collection::vec;
    use proptest::prelude::*;
    use simd::Isa;
    use simd::matmul::{Activations, PANEL};

    use super::*;
    use crate::homes::Homes;
    use crate::model::place::Place;
    use crate::model::weights::{FeedForward, GatedMlp, Layer, Linear};

    /// A golden model whose panels were read.
    struct Loaded {
        matrices: Vec<Linear>,
        regions: Vec<Vec<u8>>,
        strips: usize,
    }

    impl Loaded {
        /// The panels of a matrix, from all of its slices.
        fn panels(&self, matrix: &Linear) -> Vec<u8> {
            matrix.slices.iter().flat_map(|slice| &self.regions[slice.home][slice.bytes.clone()]).copied().collect()
        }
    }

    fn matrices_of(layer: Layer) -> Vec<Linear> {
        let of_mlp = |GatedMlp { gate, up, down }| [gate, up, down];
        let feed_forward: Vec<Linear> = match layer.feed_forward {
            FeedForward::Dense(mlp) => of_mlp(*mlp).into(),
            FeedForward::Sparse { router, experts, .. } => {
                experts.into_iter().flat_map(of_mlp).chain([router]).collect()
            }
        };
        [layer.query, layer.key, layer.value, layer.output].into_iter().chain(feed_forward).collect()
    }

    /// Reads a golden model in strips of `most` bytes.
    fn load(homes: &Homes, family: &str, most: usize, threads: usize) -> Loaded {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        load_folder(homes, &golden.join(family), most, threads)
    }

    fn load_folder(homes: &Homes, folder: &Path, most: usize, threads: usize) -> Loaded {
        let checkpoint = Checkpoint::open(folder).unwrap();
        let config = checkpoint.config();
        let load = Load::Resident;
        let mut place = Place::new(&checkpoint, load, homes);
        let mut matrices: Vec<Linear> =
            (0..config.layers.len()).flat_map(|layer| matrices_of(place.layer(config, layer))).collect();
        matrices.push(place.linear(checkpoint.lm_head_name()));
        let (bytes, placed) = place.finish();
        let mut regions: Vec<Vec<u8>> = bytes.into_iter().map(|bytes| vec![0; bytes]).collect();
        let tensors = checkpoint.tensors();
        let strips = cut(&checkpoint, &tensors, &placed, regions.iter_mut().map(Vec::as_mut_slice).collect(), most);
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
        Loaded { matrices, regions, strips: count }
    }

    #[test]
    fn packed_panels_are_checked_strip_by_strip_wherever_they_live() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama");
        let folder = tempfile::tempdir().unwrap();
        crate::pack::pack_folder(&golden, folder.path(), &crate::pack::PackOptions::default(), &mut |_| {}).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert!(checkpoint.has_packed());
        for load in [Load::Mapped, Load::Resident] {
            let homes = Homes::one();
            let mut place = Place::new(&checkpoint, load, &homes);
            (0..checkpoint.config().layers.len()).for_each(|layer| drop(place.layer(checkpoint.config(), layer)));
            place.linear(checkpoint.lm_head_name());
            let (bytes, placed) = place.finish();
            let mut region = vec![0; bytes[0]];
            let tensors = checkpoint.tensors();
            let strips = cut(&checkpoint, &tensors, &placed, vec![&mut region[..]], 3000);
            assert!(strips.len() > tensors.len(), "{load}: matrices are cut");
            let options = ModelOptions { isa: Isa::detect(), activations: Activations::Bf16x2, load, threads: 2 };
            read(&checkpoint, strips, &options, &mut |_| {}).unwrap();
            for placed in &placed {
                let stored = checkpoint.tensor(&placed.tensor).bytes;
                assert!(region[placed.bytes.clone()] == *stored, "{load}: {}", placed.tensor);
            }
        }
    }

    #[test]
    fn panels_that_are_published_as_such_are_cut_over_nodes_like_any() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama");
        let folder = tempfile::tempdir().unwrap();
        let plain = crate::pack::PackOptions { plain: true, ..Default::default() };
        crate::pack::pack_folder(&golden, folder.path(), &plain, &mut |_| {}).unwrap();
        let [rows, panels] =
            [&golden, folder.path()].map(|folder| load_folder(&Homes::with_workers(&[2, 1]), folder, 4096, 1));
        for (rows_of, panels_of) in rows.matrices.iter().zip(&panels.matrices) {
            assert_eq!(panels_of.slices.len(), 2.min(panels_of.rows.div_ceil(PANEL)));
            assert!(rows.panels(rows_of) == panels.panels(panels_of));
        }
    }

    #[test]
    fn where_strips_are_cut_and_who_reads_them_changes_no_byte() {
        for family in ["llama", "mixtral", "gpt_oss"] {
            let whole = load(&Homes::one(), family, STRIP_BYTES, 1);
            let cut = load(&Homes::one(), family, 4096, 3);
            assert!(cut.strips > whole.strips, "{family}: {} strips, {} of them large", cut.strips, whole.strips);
            assert!(whole.regions == cut.regions, "{family}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 12, ..ProptestConfig::default() })]

        #[test]
        fn on_any_nodes_every_panel_has_one_place_and_its_bytes(
            workers in vec(1_usize..5, 1..6),
            family in prop_oneof![Just("llama"), Just("qwen3_moe"), Just("gpt_oss")],
            most in prop_oneof![Just(4096), Just(STRIP_BYTES)],
        ) {
            let one = load(&Homes::one(), family, STRIP_BYTES, 1);
            let all = load(&Homes::with_workers(&workers), family, most, 2);
            prop_assert_eq!(all.regions.len(), workers.len());
            let mut taken: Vec<Vec<_>> = vec![Vec::new(); workers.len()];
            for (want, got) in one.matrices.iter().zip(&all.matrices) {
                let mut rows = 0;
                for slice in &got.slices {
                    prop_assert_eq!((slice.rows.start, slice.rows.start % PANEL), (rows, 0));
                    prop_assert!(!slice.rows.is_empty());
                    rows = slice.rows.end;
                    taken[slice.home].push(slice.bytes.clone());
                }
                prop_assert_eq!(rows, got.rows);
                prop_assert!(got.slices.is_sorted_by_key(|slice| slice.home));
                prop_assert!(one.panels(want) == all.panels(got), "{}: other bytes", family);
            }
            for (region, mut taken) in all.regions.iter().zip(taken) {
                taken.sort_by_key(|bytes| bytes.start);
                prop_assert!(taken.windows(2).all(|pair| pair[0].end <= pair[1].start));
                prop_assert_eq!(taken.last().map_or(0, |bytes| bytes.end), region.len());
            }
        }
    }
}
