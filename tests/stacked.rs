//! Experts in stacks, as training programs export them, compute what the published ones do.
//!
//! A golden checkpoint is written again in the other layout, so every bit of the logits must stay: from memory, from the
//! map and over nodes. That the layouts are transformers' own is for `golden` to say.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use engine_core::checkpoint::{Checkpoint, CheckpointError};
use engine_core::config::ExpertStorage;
use engine_core::model::{Load, Model, ModelOptions};
use engine_core::pack::{PackOptions, PackReport, pack_folder};
use engine_core::session::Evaluator;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use simd::Isa;
use tempfile::TempDir;

use crate::models::{Reference, golden, load, load_for, options, pool, pool_on_nodes};

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn published(family: &str) -> Tensors {
    let mut tensors = Tensors::new();
    for entry in fs::read_dir(golden().join(family)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            let file = fs::read(&path).unwrap();
            let shard = SafeTensors::deserialize(&file).unwrap();
            let owned = |view: &TensorView| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
            tensors.extend(shard.iter().map(|(name, view)| (name.to_owned(), owned(&view))));
        }
    }
    tensors
}

fn write(tensors: &Tensors, config: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let view = |(dtype, shape, bytes): &'_ (Dtype, Vec<usize>, Vec<u8>)| (*dtype, shape.clone(), bytes.clone());
    let owned: Vec<_> = tensors.iter().map(|(name, tensor)| (name, view(tensor))).collect();
    let views = owned
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    folder
}

fn config(family: &str) -> Value {
    serde_json::from_slice(&fs::read(golden().join(family).join("config.json")).unwrap()).unwrap()
}

/// `gate_up_proj [experts, 2 * width, hidden]`, gate first, and `down_proj [experts, hidden, width]`.
fn fused(family: &str) -> TempDir {
    let mut tensors = published(family);
    let [at, gate, up, down] = match family {
        "mixtral" => ["block_sparse_moe", "w1", "w3", "w2"],
        _ => ["mlp", "gate_proj", "up_proj", "down_proj"],
    };
    let config = config(family);
    let count = config.get("num_experts").or(config.get("num_local_experts")).unwrap().as_u64().unwrap();
    for layer in 0..config["num_hidden_layers"].as_u64().unwrap() {
        let layer = format!("model.layers.{layer}");
        let Some(router) = tensors.remove(&format!("{layer}.{at}.gate.weight")) else { continue };
        tensors.insert(format!("{layer}.mlp.gate.weight"), router);
        for (name, parts) in [("gate_up_proj", vec![gate, up]), ("down_proj", vec![down])] {
            let (mut stack, mut shape) = (Vec::new(), vec![]);
            for expert in 0..count {
                for part in &parts {
                    let (_, of_part, bytes) =
                        tensors.remove(&format!("{layer}.{at}.experts.{expert}.{part}.weight")).unwrap();
                    shape = vec![count as usize, of_part[0] * parts.len(), of_part[1]];
                    stack.extend(bytes);
                }
            }
            tensors.insert(format!("{layer}.mlp.experts.{name}"), (Dtype::BF16, shape, stack));
        }
    }
    write(&tensors, &config)
}

/// Blocks of GPT-OSS as the BF16 numbers that they stand for, with inputs as rows.
fn expanded(family: &str) -> TempDir {
    const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let mut tensors = published(family);
    let names: Vec<String> =
        tensors.keys().filter_map(|name| name.strip_suffix("_blocks").map(str::to_owned)).collect();
    for name in names {
        let (_, shape, blocks) = tensors.remove(&format!("{name}_blocks")).unwrap();
        let (_, _, scales) = tensors.remove(&format!("{name}_scales")).unwrap();
        let [experts, rows, cols] = [shape[0], shape[1], shape[2] * 32];
        let mut stack = vec![0; experts * rows * cols * 2];
        for (at, byte) in blocks.iter().enumerate() {
            let scale = 2.0f32.powi(i32::from(scales[at / 16]) - 127);
            for (half, nibble) in [byte & 15, byte >> 4].into_iter().enumerate() {
                let sign = if nibble & 8 == 0 { 1.0 } else { -1.0 };
                let bits = (sign * MAGNITUDES[usize::from(nibble & 7)] * scale).to_bits();
                assert_eq!(bits & 0xffff, 0, "BF16 holds every value");
                let (row, col) = ((2 * at + half) / cols, (2 * at + half) % cols);
                let (expert, row) = (row / rows, row % rows);
                let place = 2 * ((expert * cols + col) * rows + row);
                stack[place..place + 2].copy_from_slice(&((bits >> 16) as u16).to_le_bytes());
            }
        }
        tensors.insert(name, (Dtype::BF16, vec![experts, cols, rows], stack));
    }
    let mut config = config(family);
    config.as_object_mut().unwrap().remove("quantization_config");
    write(&tensors, &config)
}

fn logits(model: &Model, pool: numa::Pool, tokens: &[u32]) -> Vec<u32> {
    let mut bits = Vec::new();
    let mut evaluator = Evaluator::new(model, pool, simd::Dtype::F16, tokens.len(), 17).unwrap();
    let fed = evaluator.feed(tokens, &mut (), |_, logits| {
        bits.extend(logits.iter().map(|logit| logit.to_bits()));
        Ok::<_, CheckpointError>(())
    });
    fed.unwrap();
    bits
}

#[test]
fn stacked_experts_give_the_bits_of_published_ones_wherever_they_live() {
    for (family, stacked) in
        [("qwen3_moe", fused("qwen3_moe")), ("mixtral", fused("mixtral")), ("gpt_oss", expanded("gpt_oss"))]
    {
        let tokens = Reference::of(family).ids("token_ids");
        let resident = options(Isa::detect());
        let want = logits(&load(&golden().join(family), resident), pool(1), &tokens);
        for load_from in [Load::Resident, Load::Mapped] {
            let got = logits(&load(stacked.path(), ModelOptions { load: load_from, ..resident }), pool(2), &tokens);
            assert!(got == want, "{family}, {load_from}");
        }
        let pool = pool_on_nodes(3, 3);
        let got = logits(&load_for(&pool, stacked.path(), resident), pool, &tokens);
        assert!(got == want, "{family} over nodes");
    }
}

fn pack(source: &Path, target: &Path, plain: bool) -> PackReport {
    let options = PackOptions { plain, max_shard_bytes: 40_000, threads: 2, ..PackOptions::default() };
    pack_folder(source, target, &options, &mut |_| {}).unwrap()
}

#[test]
fn stacked_experts_are_packed_with_the_bits_of_stacked_ones_and_under_the_names_of_the_hub() {
    for (family, stacked) in [
        ("qwen3_moe_fused", None),
        ("mixtral_fused", None),
        ("gpt_oss_bf16", None),
        ("qwen3_moe", Some(fused("qwen3_moe"))),
        ("mixtral", Some(fused("mixtral"))),
        ("gpt_oss", Some(expanded("gpt_oss"))),
    ] {
        let source = stacked.as_ref().map_or(golden().join(family), |folder| folder.path().to_owned());
        let tokens = Reference::of(family).ids("token_ids");
        let resident = options(Isa::detect());
        let want = logits(&load(&source, resident), pool(1), &tokens);
        let folder = tempfile::tempdir().unwrap();
        for (name, plain) in [("plain", true), ("packed", false)] {
            let target = folder.path().join(name);
            let report = pack(&source, &target, plain);
            assert!(report.shards > 1 && report.packed_matrices + report.plain_matrices > 0, "{family}");
            let config = Checkpoint::open(&target).unwrap().config().clone();
            assert!(config.sparse_layers().all(|(_, sparse)| sparse.storage == ExpertStorage::Matrices), "{family}");
            for load_from in [Load::Resident, Load::Mapped] {
                let got = logits(&load(&target, ModelOptions { load: load_from, ..resident }), pool(2), &tokens);
                assert!(got == want, "{family}, {name}, {load_from}");
            }
        }
        let pool = pool_on_nodes(3, 3);
        let got = logits(&load_for(&pool, &folder.path().join("plain"), resident), pool, &tokens);
        assert!(got == want, "{family}, plain panels over nodes");

        // What was published in matrices comes out as it would have from them.
        if stacked.is_some() && family != "gpt_oss" {
            let apart = folder.path().join("apart");
            pack(&golden().join(family), &apart, false);
            let [apart, packed] = [apart, folder.path().join("packed")].map(|path| Checkpoint::open(&path).unwrap());
            assert_eq!(apart.tensors(), packed.tensors(), "{family}");
            for spec in apart.tensors() {
                let [want, got] = [&apart, &packed].map(|checkpoint| checkpoint.tensor(&spec.name));
                assert!(want.layout == got.layout && want.bytes == got.bytes, "{family}, {}", spec.name);
            }
        }
    }
}

#[test]
fn an_expert_that_is_not_finite_is_found_while_stacks_are_packed() {
    for (family, name) in [("qwen3_moe_fused", "gate_up_proj"), ("gpt_oss_bf16", "down_proj")] {
        let mut tensors = published(family);
        let name = format!("model.layers.1.mlp.experts.{name}");
        let bytes = &mut tensors.get_mut(&name).unwrap().2;
        let end = bytes.len();
        bytes[end - 2..].copy_from_slice(&0x7fc0u16.to_le_bytes());
        let (source, target) = (write(&tensors, &config(family)), tempfile::tempdir().unwrap());
        let refused = pack_folder(source.path(), target.path(), &PackOptions::default(), &mut |_| {}).unwrap_err();
        assert!(refused.to_string().contains(&name), "{family}: {refused}");
    }
}

#[test]
fn stacks_that_are_wrong_are_refused_by_name() {
    let mut tensors = published("gpt_oss");
    let config = config("gpt_oss");
    let name = "model.layers.1.mlp.experts.down_proj_blocks";
    tensors.get_mut(name).unwrap().1.swap(0, 1);
    let refused = Checkpoint::open(write(&tensors, &config).path()).err().unwrap().to_string();
    assert!(refused.contains(name), "{refused}");

    // Published weights whose config.json says that they are not quantised.
    let mut unquantised = config.clone();
    unquantised.as_object_mut().unwrap().remove("quantization_config");
    let refused = Checkpoint::open(write(&published("gpt_oss"), &unquantised).path()).err().unwrap().to_string();
    assert!(refused.contains("experts.gate_up_proj"), "{refused}");
}
