//! Where test models come from: golden checkpoints of each family, and ways to run them.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use engine_core::model::{Load, Model, ModelOptions};
use numa::{Pinning, Pool};
use safetensors::SafeTensors;
use simd::Isa;
use simd::matmul::Activations;

/// Families with golden data.
pub(crate) const FAMILIES: [&str; 9] =
    ["llama", "llama3", "mistral", "qwen2", "qwen3", "qwen3_moe", "qwen3_moe_unnormed", "mixtral", "gpt_oss"];

/// `tests/golden`.
pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

pub(crate) fn pool(threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(threads).unwrap(), Pinning::Free).unwrap()
}

pub(crate) fn options(isa: Isa) -> ModelOptions {
    ModelOptions { isa, activations: Activations::Bf16x2, load: Load::Resident, threads: 1 }
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
