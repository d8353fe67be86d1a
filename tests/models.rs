//! Where test models come from: golden checkpoints of each family, and ways to run them.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use engine_core::checkpoint::Checkpoint;
use engine_core::homes::Homes;
use engine_core::model::{Load, Model, ModelOptions};
use numa::{Pinning, Pool, Topology};
use safetensors::SafeTensors;
use simd::Isa;
use simd::matmul::Activations;

/// Families with golden data, as published.
pub(crate) const FAMILIES: [&str; 9] =
    ["llama", "llama3", "mistral", "qwen2", "qwen3", "qwen3_moe", "qwen3_moe_unnormed", "mixtral", "gpt_oss"];

/// Golden data of other layouts, and of contexts beyond the original length with each way to stretch them.
pub(crate) const VARIANTS: [&str; 8] = [
    "qwen3_moe_fused",
    "mixtral_fused",
    "gpt_oss_bf16",
    "rope_none",
    "rope_linear",
    "rope_dynamic",
    "rope_yarn",
    "rope_yarn_own",
];

/// `tests/golden`.
pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

pub(crate) fn pool(threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(threads).unwrap(), Pinning::Free).unwrap()
}

/// Workers on made-up nodes, as even as can be; they run anywhere.
pub(crate) fn pool_on_nodes(threads: usize, nodes: usize) -> Pool {
    let topology = Topology::parse(&format!("{nodes}x{threads}")).unwrap();
    Pool::on_nodes(NonZeroUsize::new(threads).unwrap(), Pinning::Free, &topology).unwrap()
}

/// A model that is cut over the nodes of a pool, in memory wherever the kernel puts it.
pub(crate) fn load_for(pool: &Pool, folder: &Path, options: ModelOptions) -> Model {
    Model::on_nodes(Checkpoint::open(folder).unwrap(), options, Homes::unbound(pool), &mut |_| {}).unwrap()
}

pub(crate) fn options(isa: Isa) -> ModelOptions {
    ModelOptions { isa, activations: Activations::Bf16x2, load: Load::Resident, threads: 1 }
}

/// A golden model for sequences of `ctx_size` tokens.
pub(crate) fn load_golden(family: &str, ctx_size: usize, options: ModelOptions) -> Model {
    let mut checkpoint = Checkpoint::open(&golden().join(family)).unwrap();
    checkpoint.for_context(ctx_size);
    Model::from_checkpoint(checkpoint, options, &mut |_| {}).unwrap()
}

pub(crate) fn load(folder: &Path, options: ModelOptions) -> Model {
    Model::load(folder, options, &mut |_| {}).unwrap()
}

/// Arrays of a family's `reference.safetensors`, as float32 or whole numbers.
pub(crate) struct Reference(HashMap<String, (Vec<usize>, Vec<u8>)>);

impl Reference {
    pub(crate) fn of(family: &str) -> Self {
        let bytes = std::fs::read(golden().join(family).join("reference.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        Self(tensors.iter().map(|(name, view)| (name.into(), (view.shape().to_vec(), view.data().to_vec()))).collect())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(crate) fn shape(&self, name: &str) -> &[usize] {
        &self.0[name].0
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        self.0[name].1.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    pub(crate) fn ids(&self, name: &str) -> Vec<u32> {
        self.0[name].1.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
    }
}
