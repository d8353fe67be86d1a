//! A dense model as a mixture of experts that says the same.
//!
//! Every expert of a layer is a copy of its MLP and the chosen experts' weights add up to 1, so whatever the router
//! chooses, the text must be the dense model's: routing, grouping by expert and weighting are all in the way of it.

use std::fs;
use std::path::Path;

use engine_core::checkpoint::{Checkpoint, CheckpointError};
use engine_core::model::{Choice, Observer};
use engine_core::session::Evaluator;
use safetensors::tensor::TensorView;
use serde_json::Value;
use simd::Isa;

use crate::models::{load, options, pool};

const NUM_EXPERTS: usize = 4;
const NUM_EXPERTS_PER_TOK: usize = 2;

/// Writes the dense Llama in `dense` as a Mixtral into `folder`, with BF16 routers drawn from a fixed seed. Weights go
/// from the map to the file, one tensor after the other.
pub(crate) fn write_copy(dense: &Path, folder: &Path) {
    let checkpoint = Checkpoint::open(dense).unwrap();
    let config = checkpoint.config();
    let mut state = 1_u64;
    let routers: Vec<Vec<u8>> =
        config.layers.iter().map(|_| router(NUM_EXPERTS * config.hidden_size, &mut state)).collect();

    let mut tensors = Vec::new();
    for spec in config.tensors() {
        let tensor = checkpoint.tensor(&spec.name);
        let dtype = match tensor.dtype {
            simd::Dtype::Bf16 => safetensors::Dtype::BF16,
            simd::Dtype::F16 => safetensors::Dtype::F16,
            simd::Dtype::F32 => safetensors::Dtype::F32,
        };
        let view = TensorView::new(dtype, spec.shape, tensor.bytes).unwrap();
        match spec.name.split_once(".mlp.") {
            None => tensors.push((spec.name, view)),
            Some((layer, projection)) => {
                let part = match projection {
                    "gate_proj.weight" => "w1",
                    "down_proj.weight" => "w2",
                    "up_proj.weight" => "w3",
                    other => panic!("{other} is no part of a dense MLP"),
                };
                for expert in 0..NUM_EXPERTS {
                    tensors.push((format!("{layer}.block_sparse_moe.experts.{expert}.{part}.weight"), view.clone()));
                }
            }
        }
    }
    for (layer, router) in routers.iter().enumerate() {
        let view = TensorView::new(safetensors::Dtype::BF16, vec![NUM_EXPERTS, config.hidden_size], router).unwrap();
        tensors.push((format!("model.layers.{layer}.block_sparse_moe.gate.weight"), view));
    }
    safetensors::serialize_to_file(tensors, None, &folder.join("model.safetensors")).unwrap();

    let mut config: Value = serde_json::from_slice(&fs::read(dense.join("config.json")).unwrap()).unwrap();
    config["architectures"] = serde_json::json!(["MixtralForCausalLM"]);
    config["model_type"] = "mixtral".into();
    config["num_local_experts"] = NUM_EXPERTS.into();
    config["num_experts_per_tok"] = NUM_EXPERTS_PER_TOK.into();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::copy(dense.join(file), folder.join(file)).unwrap();
    }
}

/// BF16 values between -1 and 1.
fn router(len: usize, state: &mut u64) -> Vec<u8> {
    let mut next = || {
        // Knuth's linear congruential generator; its high bits are good enough for a router.
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).flat_map(|_| ((next().to_bits() >> 16) as u16).to_le_bytes()).collect()
}

/// How often each expert is chosen, over all layers and all of `tokens`.
pub(crate) fn chosen_experts(folder: &Path, tokens: &[u32]) -> [usize; NUM_EXPERTS] {
    struct Chosen([usize; NUM_EXPERTS]);
    impl Observer for Chosen {
        fn routed(&mut self, _: usize, _: &[f32], choices: &[Choice]) {
            for choice in choices {
                self.0[choice.expert as usize] += 1;
            }
        }
    }
    let model = load(folder, options(Isa::detect()));
    let mut chosen = Chosen([0; NUM_EXPERTS]);
    let mut evaluator = Evaluator::new(&model, pool(2), simd::Dtype::F16, tokens.len(), tokens.len()).unwrap();
    let fed = evaluator.feed(tokens, &mut chosen, |_, _| Ok::<_, CheckpointError>(()));
    fed.unwrap();
    chosen.0
}
