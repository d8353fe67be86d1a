//! A model folder as Hugging Face publishes it, or as `nightmonk pack` writes it: config.json and shards of safetensors,
//! mapped and checked.
//!
//! Nothing is trusted: the shard's header passes the strict layer of `header`, and the tensors found must be exactly
//! those that config.json asks for, in name and shape. What comes out can be read without further checks.

mod direct;
mod error;
pub(crate) mod header;
mod map;
pub(crate) mod panels;
mod scan;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use simd::Dtype;

pub use direct::DirectShards;
pub use error::CheckpointError;
pub use map::MappedFile;
pub use panels::{Layout, TensorForm};

use crate::config::{DialError, Dials, ModelConfig, TensorKind, TensorSpec};
use header::{Element, TensorInfo};

/// A folder's config and tensors.
pub struct Checkpoint {
    folder: PathBuf,
    config: ModelConfig,
    shards: Vec<Shard>,
    tensors: HashMap<String, (usize, TensorInfo)>,
    /// Digest of what the folder's panels were made from.
    source: Option<String>,
    /// Tensors that hold the scales of blocks.
    scales: HashSet<String>,
}

struct Shard {
    path: PathBuf,
    map: MappedFile,
}

impl Shard {
    fn check_intact(&self) -> Result<(), CheckpointError> {
        match self.map.is_intact() {
            true => Ok(()),
            false => Err(CheckpointError::Broken { shard: self.path.clone() }),
        }
    }
}

/// A tensor of numbers, in the map.
#[derive(Clone, Copy)]
pub struct Tensor<'a> {
    /// Type of its values.
    pub dtype: Dtype,
    /// How they lie: only a matrix that steps multiply with lies otherwise than row after row.
    pub layout: Layout,
    /// Shape; a matrix is `[rows, cols]` however it lies.
    pub shape: &'a [usize],
    /// Little-endian values, aligned to the type, panels to a line.
    pub bytes: &'a [u8],
}

/// Where a tensor or a part of one lies, found once so that the forward pass looks up no names.
///
/// Places order as the files do: by shard, then by byte.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    shard: usize,
    start: usize,
    end: usize,
}

impl Location {
    /// Bytes at this place.
    pub fn size(&self) -> usize {
        self.end - self.start
    }

    /// The bytes `part` of this place: rows of a matrix, one matrix of a stack.
    ///
    /// # Panics
    /// If `part` does not lie within it.
    pub fn part(&self, part: Range<usize>) -> Self {
        assert!(part.start <= part.end && part.end <= self.size(), "{part:?} of {} bytes", self.size());
        Self { shard: self.shard, start: self.start + part.start, end: self.start + part.end }
    }

    /// Which bytes of `whole` this place is: the inverse of [`Location::part`].
    ///
    /// # Panics
    /// If it does not lie within `whole`.
    pub fn within(&self, whole: &Self) -> Range<usize> {
        let inside = self.shard == whole.shard && whole.start <= self.start && self.end <= whole.end;
        assert!(inside, "{self:?} is not within {whole:?}");
        self.start - whole.start..self.end - whole.start
    }

    fn range(&self) -> Range<usize> {
        self.start..self.end
    }
}

/// Files beside the shards that decide what the model says.
const SMALL_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// Is looked up by rows, so it is never laid into panels.
const EMBEDDING: &str = "model.embed_tokens.weight";
/// The output matrix; in a folder of panels also that of a tied model.
const LM_HEAD: &str = "lm_head.weight";

pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";
pub(crate) const SINGLE_FILE: &str = "model.safetensors";
const INDEX_BYTES_MAX: usize = 256 << 20;

impl Checkpoint {
    /// Opens a folder: parses config.json, maps every shard, checks every header.
    ///
    /// # Errors
    /// [`CheckpointError`] says which file, which tensor, what was expected and what would help.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let config = ModelConfig::from_file(&folder.join("config.json"))?;
        let (files, placed) = shard_files(folder)?;
        let open = |file: &String| {
            let path = folder.join(file);
            match MappedFile::open(&path) {
                Ok(map) => Ok(Shard { path, map }),
                Err(source) => Err(CheckpointError::Open { path, source }),
            }
        };
        let shards = files.iter().map(open).collect::<Result<_, _>>()?;
        Self::from_shards(folder, config, shards, &placed)
    }

    fn from_shards(
        folder: &Path,
        mut config: ModelConfig,
        shards: Vec<Shard>,
        placed: &BTreeMap<String, String>,
    ) -> Result<Self, CheckpointError> {
        let mut tensors: HashMap<String, (usize, TensorInfo)> = HashMap::new();
        let mut sources: Vec<String> = Vec::new();
        for (index, Shard { path, map }) in shards.iter().enumerate() {
            let header = header::read(path, map.bytes())?;
            sources.push(header.source);
            if sources[index] != sources[0] {
                let (first, second) = (shards[0].path.clone(), path.clone());
                return Err(CheckpointError::TwoSources { first, second });
            }
            for (name, info) in header.tensors {
                if let Some((other, _)) = tensors.get(&name) {
                    let (first, second) = (shards[*other].path.clone(), path.clone());
                    return Err(CheckpointError::TwoShards { tensor: name, first, second });
                }
                tensors.insert(name, (index, info));
            }
        }
        config.find_experts(|name| tensors.contains_key(name));
        let is_scales = |spec: &TensorSpec| spec.kind == TensorKind::Mxfp4Scales;
        let scales = config.tensors().into_iter().filter(is_scales).map(|spec| spec.name).collect();
        let source = sources.pop().filter(|source| !source.is_empty());
        let checkpoint = Self { folder: folder.into(), config, shards, tensors, source, scales };
        checkpoint.check_index(placed)?;
        checkpoint.check_tensors()?;
        Ok(checkpoint)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What config.json says.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Turns what a user may turn; no tensor is touched.
    ///
    /// # Errors
    /// [`DialError`], and then nothing is turned.
    pub fn turn(&mut self, dials: &Dials) -> Result<(), DialError> {
        dials.turn(&mut self.config)
    }

    /// See [`ModelConfig::for_context`].
    pub fn for_context(&mut self, ctx_size: usize) {
        self.config.for_context(ctx_size);
    }

    /// Paths and sizes in bytes of the shards, in the order of their names.
    pub fn shards(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.shards.iter().map(|shard| (shard.path.as_path(), shard.map.bytes()))
    }

    /// A tensor of numbers by name. The names are those of [`ModelConfig::tensors`], whose presence `open` has checked.
    ///
    /// # Panics
    /// If the name is not one of them, or what it names holds no numbers but blocks or scales: that is a bug, not a bad
    /// file.
    pub fn tensor(&self, name: &str) -> Tensor<'_> {
        let Some((shard, info)) = self.tensors.get(name) else { panic!("`{name}` is not a tensor of this model") };
        let Element::Number(dtype) = info.element else { panic!("`{name}` holds no numbers") };
        let bytes = &self.shards[*shard].map.bytes()[info.bytes.clone()];
        Tensor { dtype, layout: info.layout, shape: &info.shape, bytes }
    }

    /// Digest of what the folder's panels were made from, if `nightmonk pack` wrote it.
    pub fn packed_from(&self) -> Option<&str> {
        self.source.as_deref()
    }

    /// Whether some matrices lie in packed panels.
    pub fn has_packed(&self) -> bool {
        self.tensors.values().any(|(_, info)| matches!(info.layout, Layout::Packed { .. }))
    }

    /// Every tensor that is read: those of [`ModelConfig::tensors`], and the output matrix that a folder of panels holds
    /// beside the embedding of a tied model.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut specs = self.config.tensors();
        if self.lm_head_name() != self.config.lm_head_name() {
            let shape = self.tensor(LM_HEAD).shape.to_vec();
            specs.push(TensorSpec { name: LM_HEAD.into(), shape, kind: TensorKind::Matrix });
        }
        specs
    }

    /// Name of the matrix that gives the logits.
    pub fn lm_head_name(&self) -> &'static str {
        match self.tensors.get(LM_HEAD) {
            Some((_, info)) if info.layout != Layout::RowMajor => LM_HEAD,
            _ => self.config.lm_head_name(),
        }
    }

    /// Type and layout of a tensor. Under the name `lm_head.weight` every model has one.
    ///
    /// # Panics
    /// As [`Checkpoint::tensor`].
    pub fn form(&self, name: &str) -> TensorForm {
        let Tensor { dtype, layout, .. } = self.tensor(if name == LM_HEAD { self.lm_head_name() } else { name });
        TensorForm { dtype, layout }
    }

    /// What the shard says of a tensor's type and shape, numbers or not; panics as [`Checkpoint::location`] does.
    pub(crate) fn element(&self, name: &str) -> (Element, &[usize]) {
        let Some((_, info)) = self.tensors.get(name) else { panic!("`{name}` is not a tensor of this model") };
        (info.element, &info.shape)
    }

    /// Place of the tensor `name`, numbers or not.
    ///
    /// # Panics
    /// If the name is not one of [`ModelConfig::tensors`].
    pub fn location(&self, name: &str) -> Location {
        let Some((shard, info)) = self.tensors.get(name) else { panic!("`{name}` is not a tensor of this model") };
        Location { shard: *shard, start: info.bytes.start, end: info.bytes.end }
    }

    /// The bytes at a place, in the map.
    pub fn bytes(&self, location: &Location) -> &[u8] {
        &self.shards[location.shard].map.bytes()[location.range()]
    }

    /// Whether the page cache holds all bytes at a place, as far as the kernel tells.
    pub fn is_cached(&self, location: &Location) -> bool {
        self.shards[location.shard].map.is_cached(location.range())
    }

    /// The bytes at a place, in the map, after they were read into the page cache.
    ///
    /// # Errors
    /// [`CheckpointError::Broken`] if they cannot be read.
    pub fn populate(&self, location: &Location) -> Result<&[u8], CheckpointError> {
        let Shard { path, map } = &self.shards[location.shard];
        map.populate(location.range()).map_err(|_| CheckpointError::Broken { shard: path.clone() })?;
        Ok(self.bytes(location))
    }

    /// Whether all that was read in the maps so far was the files'. What is computed with mapped weights may leave only
    /// after this was asked.
    ///
    /// # Errors
    /// [`CheckpointError::Broken`] with the first shard that was cut short, or that the disk did not give.
    pub fn check_intact(&self) -> Result<(), CheckpointError> {
        self.shards.iter().try_for_each(Shard::check_intact)
    }

    /// As [`Checkpoint::check_intact`], of the shard that `location` is in.
    ///
    /// # Errors
    /// As [`Checkpoint::check_intact`].
    pub fn check_intact_at(&self, location: &Location) -> Result<(), CheckpointError> {
        self.shards[location.shard].check_intact()
    }

    /// Says that of all shards only what is at `whole` will be read through the map in large pieces, see
    /// [`MappedFile::expect_single_pages`]. That is thrift too.
    pub fn expect_single_pages(&self, whole: &Location) {
        for (index, shard) in self.shards.iter().enumerate() {
            let _ = shard.map.expect_single_pages((index == whole.shard).then(|| whole.range()));
        }
    }

    /// Takes the shards' pages out of this process, see [`MappedFile::release`]. That is thrift, not need: a system that
    /// does not do it is asked in vain.
    pub fn release(&self) {
        for shard in &self.shards {
            let _ = shard.map.release();
        }
    }

    /// Keeps all bytes of all shards in memory, or those at `only`.
    ///
    /// # Errors
    /// What the system says, mostly about the limit for locked memory.
    pub fn lock(&self, only: Option<&Location>) -> io::Result<()> {
        match only {
            Some(location) => numa::lock(self.bytes(location)),
            None => self.shards.iter().try_for_each(|shard| numa::lock(shard.map.bytes())),
        }
    }

    /// Refuses NaN and infinite weights in tensor `name`, and scales that are none: a damaged file is found before it
    /// speaks.
    ///
    /// # Errors
    /// [`CheckpointError::NotFinite`] or [`CheckpointError::Scale`] with shard, tensor, index and value.
    pub fn check_finite(&self, name: &str) -> Result<(), CheckpointError> {
        let location = self.location(name);
        self.check_finite_part(name, &location, self.bytes(&location))
    }

    /// Bytes of the parts, up to `most` where a panel has no more, in which tensor `name` can be checked: packed panels
    /// are not cut.
    pub fn whole_parts(&self, name: &str, most: usize) -> usize {
        let TensorInfo { layout, shape, .. } = &self.tensors[name].1;
        let panel = match (layout, &shape[..]) {
            (Layout::Packed { .. }, [_, cols]) => simd::matmul::packed::panel_bytes(*cols).unwrap_or(1),
            _ => return most,
        };
        (most / panel).max(1) * panel
    }

    /// As [`Checkpoint::check_finite`], for the part of the tensor at `part`, whose bytes were read already. Of packed
    /// panels a part is whole ones; what follows the last of them is read in the map.
    ///
    /// # Errors
    /// As [`Checkpoint::check_finite`], and [`CheckpointError::Panels`] where packed panels cannot be what they claim.
    pub fn check_finite_part(&self, name: &str, part: &Location, bytes: &[u8]) -> Result<(), CheckpointError> {
        let location = self.location(name);
        let TensorInfo { element, layout, shape, .. } = &self.tensors[name].1;
        let shard = || self.shards[part.shard].path.clone();
        let before = part.start - location.start;
        if *layout != Layout::RowMajor && part.end == location.end {
            let fill = part.end..part.end.next_multiple_of(panels::ALIGNMENT);
            if self.shards[part.shard].map.bytes()[fill].iter().any(|byte| *byte != 0) {
                let why = "is filled up with other bytes than zeros".into();
                return Err(CheckpointError::Tensor { path: shard(), tensor: name.into(), why });
            }
        }
        let scanned = match (element, layout, &shape[..]) {
            (Element::Number(_), Layout::Packed { .. }, [rows, cols]) => {
                scan::packed_panels([*rows, *cols], self.bytes(&location), before, bytes)
                    .map_err(|source| CheckpointError::Panels { shard: shard(), tensor: name.into(), source })?
            }
            (Element::Number(dtype), Layout::Panels, [_, cols]) => scan::plain_panels(*dtype, *cols, before, bytes),
            (Element::Number(dtype), ..) => {
                scan::first_non_finite(*dtype, bytes).map(|(index, value)| (index + before / dtype.size(), value))
            }
            (Element::U8, ..) => match self.scales.contains(name).then(|| scan::first_bad_scale(bytes)).flatten() {
                None => None,
                Some((index, value)) => {
                    let index = index + before;
                    return Err(CheckpointError::Scale { shard: shard(), tensor: name.into(), index, value });
                }
            },
        };
        match scanned {
            None => Ok(()),
            Some((index, value)) => {
                Err(CheckpointError::NotFinite { shard: shard(), tensor: name.into(), index, value })
            }
        }
    }

    /// BLAKE3 of all files that decide what the model says: config, tokenizer, template, defaults, every shard.
    ///
    /// Shards are hashed on `threads` threads.
    ///
    /// # Errors
    /// A file that cannot be read, or threads that do not start.
    pub fn digest(&self, threads: usize) -> Result<String, CheckpointError> {
        let workers = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|error| CheckpointError::Threads { threads, why: error.to_string() })?;
        workers.install(|| self.hash())
    }

    fn hash(&self) -> Result<String, CheckpointError> {
        let mut hasher = blake3::Hasher::new();
        let mut add = |name: &str, bytes: &[u8]| {
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update_rayon(bytes);
        };
        for name in SMALL_FILES {
            let path = self.folder.join(name);
            match MappedFile::open(&path) {
                Ok(map) => {
                    add(name, map.bytes());
                    Shard { path, map }.check_intact()?;
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(CheckpointError::Open { path, source }),
            }
        }
        for shard in &self.shards {
            let name = shard.path.file_name().unwrap_or_default().to_string_lossy();
            add(&name, shard.map.bytes());
        }
        self.check_intact()?;
        Ok(hasher.finalize().to_hex().to_string())
    }

    fn check_index(&self, placed: &BTreeMap<String, String>) -> Result<(), CheckpointError> {
        for (tensor, file) in placed {
            let found = self.tensors.get(tensor).map(|(shard, _)| &self.shards[*shard].path);
            if found != Some(&self.folder.join(file)) {
                return Err(CheckpointError::NotInShard {
                    tensor: header::printable(tensor),
                    shard: self.folder.join(file),
                });
            }
        }
        Ok(())
    }

    /// Tensors that some exporters write though they follow from the others: rope tables, and the output matrix of a
    /// tied model where it repeats the embedding. (One that differs is refused: the model would be read wrongly. In panels
    /// it is what `nightmonk pack` made of the embedding.)
    fn follows(&self, name: &str) -> bool {
        if name == LM_HEAD && self.config.tie_word_embeddings {
            let [embedding, head] = [EMBEDDING, name].map(|name| &self.tensors[name].1);
            let is_alike = (embedding.element, &embedding.shape) == (head.element, &head.shape);
            let bytes = |name| self.bytes(&self.location(name));
            return is_alike && (head.layout != Layout::RowMajor || bytes(EMBEDDING) == bytes(name));
        }
        name.ends_with(".rotary_emb.inv_freq")
    }

    fn check_tensors(&self) -> Result<(), CheckpointError> {
        let specs = self.config.tensors();
        for spec in &specs {
            let Some((shard, info)) = self.tensors.get(&spec.name) else {
                return Err(CheckpointError::Missing { folder: self.folder.clone(), tensor: spec.name.clone() });
            };
            if info.shape != spec.shape {
                return Err(CheckpointError::WrongShape {
                    shard: self.shards[*shard].path.clone(),
                    tensor: spec.name.clone(),
                    want: spec.shape.clone(),
                    got: info.shape.clone(),
                });
            }
            if info.layout != Layout::RowMajor && (spec.kind != TensorKind::Matrix || spec.name == EMBEDDING) {
                return Err(CheckpointError::Tensor {
                    path: self.shards[*shard].path.clone(),
                    tensor: spec.name.clone(),
                    why: "lies in panels, but is read by rows".into(),
                });
            }
            if spec.kind.is_numbers() != (info.element != Element::U8) {
                let (numbers, bytes) = ("BF16, F16 or F32", "U8");
                let (want, got) = if spec.kind.is_numbers() { (numbers, bytes) } else { (bytes, numbers) };
                let shard = self.shards[*shard].path.clone();
                return Err(CheckpointError::WrongType { shard, tensor: spec.name.clone(), want, got });
            }
        }
        let wanted: HashSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        let mut extra: Vec<&String> =
            self.tensors.keys().filter(|name| !wanted.contains(name.as_str()) && !self.follows(name)).collect();
        extra.sort();
        match extra.first() {
            None => Ok(()),
            Some(name) => Err(CheckpointError::Unexpected {
                folder: self.folder.clone(),
                tensor: (*name).clone(),
                others: extra.len() - 1,
            }),
        }
    }
}

/// The files to map, and where the index says each tensor is (empty without an index).
fn shard_files(folder: &Path) -> Result<(Vec<String>, BTreeMap<String, String>), CheckpointError> {
    let index = folder.join(INDEX_FILE);
    if !index.exists() {
        if folder.join(SINGLE_FILE).exists() {
            return Ok((vec![SINGLE_FILE.into()], BTreeMap::new()));
        }
        return Err(CheckpointError::NoWeights { folder: folder.into() });
    }
    let map = MappedFile::open(&index).map_err(|source| CheckpointError::Open { path: index.clone(), source })?;
    if map.bytes().len() > INDEX_BYTES_MAX {
        return Err(CheckpointError::Index { path: index, why: format!("it is larger than {INDEX_BYTES_MAX} bytes") });
    }
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let parsed: Index = serde_json::from_slice(map.bytes())
        .map_err(|error| CheckpointError::Index { path: index.clone(), why: header::printable(&error.to_string()) })?;
    let mut files: Vec<String> = parsed.weight_map.values().cloned().collect();
    files.sort();
    files.dedup();
    if let Some(bad) = files.iter().find(|file| !is_shard_name(file)) {
        let bad = header::printable(bad);
        let why = format!("`{bad}` is not a shard's name: letters, digits, `.`, `_` and `-`, ending in .safetensors");
        return Err(CheckpointError::Index { path: index, why });
    }
    if files.is_empty() {
        return Err(CheckpointError::Index { path: index, why: "its weight_map is empty".into() });
    }
    Ok((files, parsed.weight_map))
}

fn is_shard_name(file: &str) -> bool {
    let plain = file.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    plain && file.ends_with(".safetensors") && !file.starts_with('.') && file.len() <= 255
}

#[cfg(test)]
mod tests;
