//! From a folder to a model in memory.
//!
//! First every matrix gets its place (`place`), then memory is taken once, then the files are read once, in strips
//! (`strips`): checked for numbers that are none, and laid into panels on the way. So a damaged file is refused by name,
//! progress is true, and a model that nearly fills the memory is not read twice.

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;

use numa::Region;
use simd::Isa;
use simd::matmul::Activations;

use super::place::Place;
use super::rope_table::RopeTable;
use super::strips;
use super::weights::{Layer, Model};
use crate::checkpoint::{Checkpoint, CheckpointError, DirectShards};
use crate::config::{ExpertStorage, Mlp, Sparse, expert_names, layer_names};
use crate::homes::Homes;

/// Where weights live while the model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Load {
    /// In the page cache, as the folder holds them.
    Mapped,
    /// In anonymous memory, as panels.
    Resident,
}

impl FromStr for Load {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "mapped" => Ok(Self::Mapped),
            "resident" => Ok(Self::Resident),
            other => Err(format!("`{other}` is not a way to load weights; known: mapped, resident")),
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Mapped => "mapped",
            Self::Resident => "resident",
        })
    }
}

/// What decides how a model computes: with the checkpoint these decide every bit of its logits.
#[derive(Clone, Copy, Debug)]
pub struct ModelOptions {
    /// Instructions of the kernels.
    pub isa: Isa,
    /// Terms of the activations in products with BF16 weights.
    pub activations: Activations,
    /// Where weights live; changes speed only.
    pub load: Load,
    /// Threads that load.
    pub threads: usize,
}

/// How far loading is.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadProgress {
    /// Bytes of weights read and checked.
    pub done_bytes: usize,
    /// Those of them that came from the disk; the others were in the page cache.
    pub disk_bytes: usize,
    /// Bytes of weights in the checkpoint.
    pub total_bytes: usize,
}

/// Why a model did not load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The folder is wrong or damaged.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Matrices that take the same activations differ in type.
    #[error(
        "layer {layer}: `{first}` is {first_dtype} and `{second}` is {second_dtype}, but matrices that share their input must have one type; convert the checkpoint to one type"
    )]
    MixedTypes {
        /// Decoder layer.
        layer: usize,
        /// A tensor.
        first: String,
        /// Its type.
        first_dtype: &'static str,
        /// Another tensor with the same input.
        second: String,
        /// Its type.
        second_dtype: &'static str,
    },
    /// The weights did not get their memory.
    #[error("cannot get {bytes} bytes of memory for the weights: {source}; try `--load mapped`, or free memory")]
    Memory {
        /// Bytes asked for.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The threads that load could not start.
    #[error("cannot start {threads} threads: {why}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// What the system said.
        why: String,
    },
}

/// Reads a checkpoint past the page cache with the threads and in the strips of [`Model::load`] for `threads` workers, and
/// does nothing with it. Returns the bytes; how long that takes is what loading is to be compared with. What the page cache
/// holds of the checkpoint is dropped before, so that loading has to wait for the disk as this does.
///
/// # Errors
/// Shards that cannot be read, or threads that do not start.
pub fn read_only(checkpoint: &Checkpoint, threads: usize) -> Result<u64, CheckpointError> {
    let total = checkpoint.shards().map(|(_, bytes)| bytes.len()).sum();
    let shards = DirectShards::open(checkpoint)?;
    shards.drop_cached()?;
    shards.read_all(strips::readers(threads, total), strips::STRIP_BYTES)
}

impl Model {
    /// Opens `folder`, checks every weight, and places the matrices.
    ///
    /// # Errors
    /// [`LoadError`]: a wrong or damaged folder, or memory that is not there.
    pub fn load(
        folder: &Path,
        options: ModelOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, LoadError> {
        Self::from_checkpoint(Checkpoint::open(folder)?, options, progress)
    }

    /// As [`Model::load`], from a checkpoint that is open already.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_checkpoint(
        checkpoint: Checkpoint,
        options: ModelOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, LoadError> {
        Self::on_nodes(checkpoint, options, Homes::one(), progress)
    }

    /// Whether a model can have several homes. Weights that stay mapped cannot: pages of files are where the kernel put
    /// them. Nor can those of a folder with 12-bit panels, whose patches lie behind the panels of the whole matrix.
    pub fn can_be_cut(checkpoint: &Checkpoint, load: Load) -> bool {
        load == Load::Resident && !checkpoint.has_packed()
    }

    /// As [`Model::from_checkpoint`], with every matrix cut over `homes`: those of the pool that is to compute with it.
    ///
    /// # Errors
    /// As [`Model::load`], and where a node has too little memory for its part.
    ///
    /// # Panics
    /// If there are several homes and [`Model::can_be_cut`] says no.
    pub fn on_nodes(
        checkpoint: Checkpoint,
        options: ModelOptions,
        homes: Homes,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, LoadError> {
        assert!(
            homes.count() == 1 || Self::can_be_cut(&checkpoint, options.load),
            "these weights are not cut over nodes"
        );
        check_types(&checkpoint)?;
        let config = checkpoint.config();
        if options.load == Load::Resident {
            // Norms and biases are read through the map, and would bring what lies around them into the page cache.
            checkpoint.expect_single_pages(&checkpoint.location(strips::EMBEDDING));
        }
        let mut place = Place::new(&checkpoint, options.load, &homes);
        let layers: Vec<Layer> = (0..config.layers.len()).map(|layer| place.layer(config, layer)).collect();
        let lm_head = place.linear(checkpoint.lm_head_name());
        let final_norm = place.vector("model.norm.weight");
        let rope = RopeTable::new(&config.rope);

        let (bytes, placed) = place.finish();
        let memory = |source| LoadError::Memory { bytes: bytes.iter().sum(), source };
        let mut panels = homes.regions(&bytes).map_err(memory)?;
        let tensors = checkpoint.tensors();
        let regions = panels.iter_mut().map(Region::as_mut_slice).collect();
        let strips = strips::cut(&checkpoint, &tensors, &placed, regions, strips::STRIP_BYTES);
        strips::read(&checkpoint, strips, &options, progress)?;
        Ok(Self { checkpoint, options, rope, layers, final_norm, lm_head, homes, panels })
    }
}

/// Activations are laid out once for all matrices that take them, in the form that the matrices' type asks for.
fn check_types(checkpoint: &Checkpoint) -> Result<(), LoadError> {
    let config = checkpoint.config();
    for (layer, shape) in config.layers.iter().enumerate() {
        let attention = ["q", "k", "v"].map(|part| layer_names(layer, &format!("self_attn.{part}_proj.weight")));
        let mut sharing = vec![attention.to_vec()];
        match &shape.mlp {
            Mlp::Dense { .. } => {
                sharing
                    .push(["gate", "up"].map(|part| layer_names(layer, &format!("mlp.{part}_proj.weight"))).to_vec());
            }
            Mlp::Sparse(sparse @ Sparse { storage: ExpertStorage::Matrices, .. }) => {
                let experts: Vec<_> = (0..sparse.num_experts).map(|e| expert_names(config, layer, e)).collect();
                sharing.push(experts.iter().flat_map(|[gate, up, _]| [gate.clone(), up.clone()]).collect());
                sharing.push(experts.into_iter().map(|[_, _, down]| down).collect());
            }
            // A stack is of one type.
            Mlp::Sparse(_) => {}
        }
        for names in sharing {
            let dtype_of = |name: &String| checkpoint.tensor(name).dtype;
            let first = dtype_of(&names[0]);
            if let Some(second) = names.iter().find(|name| dtype_of(name) != first) {
                return Err(LoadError::MixedTypes {
                    layer,
                    first: names[0].clone(),
                    first_dtype: first.name(),
                    second_dtype: dtype_of(second).name(),
                    second: second.clone(),
                });
            }
        }
    }
    Ok(())
}
