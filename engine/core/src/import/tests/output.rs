//! What lies on disk afterwards, and what does not.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;

use safetensors::SafeTensors;
use serde_json::{Value as Json, json};

use super::sample::{F32, HIDDEN, INNER, Sample, Value, f32_bytes, numbers, text};
use crate::import::folder::{Workspace, WriteError};
use crate::import::{Dtype, ImportError, ImportOptions, Stage, import_gguf};

#[test]
fn the_settings_are_those_of_the_metadata() {
    let mut sample = Sample::llama();
    sample.set("llama.rope.freq_base", Value::F32(50_000.0));
    sample.set("llama.rope.scaling.type", text("yarn"));
    sample.set("llama.rope.scaling.factor", Value::F32(4.0));
    sample.set("llama.rope.scaling.original_context_length", Value::U32(32));
    let imported = sample.import().expect("a sound file");
    let mut config = imported.json("config.json");
    let provenance = config.as_object_mut().expect("an object").remove("nightmonk").expect("provenance");
    let wanted = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 50000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
        },
        "vocab_size": 10,
        "tie_word_embeddings": true,
        "attention_bias": false,
        "mlp_bias": false,
        "torch_dtype": "float32",
        "bos_token_id": null,
        "eos_token_id": 0,
        "pad_token_id": null,
    });
    assert_eq!(config, wanted);
    assert_eq!(provenance["source"], "model.gguf");
    let digest = blake3::hash(&sample.bytes()).to_hex().to_string();
    assert_eq!(provenance["source_blake3"], digest);
    assert_eq!(provenance["source_tensors"], json!({"F32": 11}));
    assert_eq!(imported.report.parameters, 9632);
    let lengths = fs::read_dir(&imported.target).expect("the folder").flatten();
    let bytes: u64 = lengths.map(|entry| entry.metadata().expect("a file").len()).sum();
    assert_eq!(imported.report.bytes, bytes);
    let report: Json = serde_json::to_value(&imported.report).expect("a report is JSON");
    assert_eq!(report["expanded_to"], "F32");
}

#[test]
fn an_output_matrix_of_its_own_is_not_tied() {
    let mut sample = Sample::llama();
    let values = numbers(HIDDEN * 10, 7.0);
    sample.set_tensor("output.weight", &[HIDDEN, 10], F32, f32_bytes(&values));
    let imported = sample.import().expect("a sound file");
    assert_eq!(imported.json("config.json")["tie_word_embeddings"], false);
    assert_eq!(imported.f32s("lm_head.weight"), values);
}

#[test]
fn data_begin_at_64_bytes_and_tensors_go_layer_by_layer() {
    let imported = Sample::llama().import().expect("a sound file");
    let bytes = fs::read(imported.target.join("model.safetensors")).expect("a shard");
    let header_len = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    assert_eq!((8 + header_len) % 64, 0);
    let header: Json = serde_json::from_slice(&bytes[8..8 + header_len]).expect("a JSON header");
    let names: Vec<&String> = header.as_object().expect("an object").keys().collect();
    assert_eq!(names[1], "model.embed_tokens.weight");
    assert_eq!(names[2], "model.layers.0.input_layernorm.weight");
    assert_eq!(*names[names.len() - 1], "model.norm.weight");
    SafeTensors::deserialize(&bytes).expect("a sound shard");
}

#[test]
fn shards_hold_every_tensor_once() {
    let options = ImportOptions { max_shard_bytes: 10_000, ..ImportOptions::default() };
    let imported = Sample::llama().import_with(&options).expect("a sound file");
    let index = imported.json("model.safetensors.index.json");
    let map = index["weight_map"].as_object().expect("an object");
    assert_eq!(map.len(), 11);
    let files: BTreeSet<&str> = map.values().filter_map(Json::as_str).collect();
    let first = format!("model-00001-of-{:05}.safetensors", files.len());
    assert!(files.len() > 2 && files.contains(first.as_str()), "{files:?}");
    let mut total = 0;
    for file in files {
        let bytes = fs::read(imported.target.join(file)).expect("a shard");
        let shard = SafeTensors::deserialize(&bytes).expect("a sound shard");
        for (name, tensor) in shard.tensors() {
            assert_eq!(map[&name], file);
            total += tensor.data().len();
        }
    }
    assert_eq!(index["metadata"]["total_size"], total);
    assert!(!imported.target.join("model.safetensors").exists());
}

fn with_experts(sample: &mut Sample, stacked: bool) {
    sample.set("llama.expert_count", Value::U32(3));
    sample.set("llama.expert_used_count", Value::U32(2));
    sample.set_tensor("blk.0.ffn_gate_inp.weight", &[HIDDEN, 3], F32, f32_bytes(&numbers(HIDDEN * 3, 0.0)));
    for (part, dims) in [("gate", [HIDDEN, INNER]), ("up", [HIDDEN, INNER]), ("down", [INNER, HIDDEN])] {
        sample.remove_tensor(&format!("blk.0.ffn_{part}.weight"));
        let values = numbers(HIDDEN * INNER * 3, part.len() as f32);
        if stacked {
            let name = format!("blk.0.ffn_{part}_exps.weight");
            sample.set_tensor(&name, &[dims[0], dims[1], 3], F32, f32_bytes(&values));
        } else {
            for (expert, values) in values.chunks((HIDDEN * INNER) as usize).enumerate() {
                sample.set_tensor(&format!("blk.0.ffn_{part}.{expert}.weight"), &dims, F32, f32_bytes(values));
            }
        }
    }
}

#[test]
fn experts_are_written_one_by_one_however_they_are_stored() {
    for stacked in [true, false] {
        let mut sample = Sample::llama();
        with_experts(&mut sample, stacked);
        let imported = sample.import().expect("a sound file");
        let config = imported.json("config.json");
        assert_eq!(config["architectures"], json!(["MixtralForCausalLM"]));
        assert_eq!((&config["num_local_experts"], &config["num_experts_per_tok"]), (&json!(3), &json!(2)));
        for (name, part) in [("w1", "gate"), ("w2", "down"), ("w3", "up")] {
            let values = numbers(HIDDEN * INNER * 3, part.len() as f32);
            for (expert, values) in values.chunks((HIDDEN * INNER) as usize).enumerate() {
                let name = format!("model.layers.0.block_sparse_moe.experts.{expert}.{name}.weight");
                assert_eq!(imported.f32s(&name), values, "{name}");
            }
        }
    }
}

#[test]
fn a_second_import_finds_the_first_and_leaves_it() {
    let first = Sample::llama().import().expect("a sound file");
    let written = |path| fs::metadata(path).and_then(|metadata| metadata.modified()).expect("a time");
    let config = first.target.join("config.json");
    let before = written(&config);
    let again = |options: &ImportOptions| import_gguf(&first.source, &first.target, options, &mut |_| {});
    let report = again(&ImportOptions::default()).expect("done before");
    assert!(report.already_done && report.to_string().contains("was imported before"));
    assert_eq!(report.bytes, first.report.bytes);
    assert_eq!(written(&config), before);

    let other = ImportOptions { expand_to: Dtype::BF16, ..ImportOptions::default() };
    assert!(matches!(again(&other), Err(ImportError::TargetExists { .. })), "other options");
    File::options().append(true).open(&first.source).expect("the file").set_len(1 << 20).expect("a longer file");
    assert!(matches!(again(&ImportOptions::default()), Err(ImportError::TargetExists { .. })), "another file");
    File::create(first.target.join("tokenizer.json")).expect("an emptied file");
    fs::write(&first.source, Sample::llama().bytes()).expect("the same file again");
    assert!(matches!(again(&ImportOptions::default()), Err(ImportError::TargetExists { .. })), "an incomplete folder");
}

#[test]
fn what_is_in_the_way_is_left_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = folder.path().join("model.gguf");
    fs::write(&source, Sample::llama().bytes()).expect("the sample is written");
    let import =
        |target: &str| import_gguf(&source, &folder.path().join(target), &ImportOptions::default(), &mut |_| {});
    fs::create_dir(folder.path().join("notes")).expect("a folder");
    fs::write(folder.path().join("notes/private.md"), "mine").expect("a note");
    assert!(matches!(import("notes"), Err(ImportError::TargetExists { .. })));
    assert!(matches!(import("model.gguf"), Err(ImportError::TargetExists { .. })), "the file itself");
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 2);
    assert_eq!(fs::read(folder.path().join("notes/private.md")).expect("the note"), b"mine");

    fs::create_dir(folder.path().join("empty")).expect("a folder");
    assert!(import("empty").is_ok(), "an empty folder is no loss");
    assert!(import("new/deep/er").is_ok(), "parents are made");
}

#[test]
fn nothing_looks_finished_before_the_end() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (source, target) = (folder.path().join("model.gguf"), folder.path().join("model"));
    fs::write(&source, Sample::llama().bytes()).expect("the sample is written");
    let unfinished = folder.path().join(".model.importing");
    // What a killed run would have left.
    fs::create_dir(&unfinished).expect("a folder");
    fs::write(unfinished.join("config.json"), "{}").expect("a leftover");
    fs::write(unfinished.join("model-00001-of-00009.safetensors"), "half").expect("a leftover");

    let mut last = (Stage::Digest, 0);
    let mut writes = 0;
    let report = import_gguf(&source, &target, &ImportOptions::default(), &mut |progress| {
        assert!(progress.done_bytes <= progress.total_bytes);
        assert!(progress.stage != last.0 || progress.done_bytes > last.1, "progress goes on");
        last = (progress.stage, progress.done_bytes);
        if progress.stage == Stage::Write {
            writes += 1;
            assert!(!target.exists());
            assert!(!unfinished.join("config.json").exists());
        }
    });
    assert!(!report.expect("a sound file").already_done);
    assert_eq!(writes, 11);
    let names: BTreeSet<_> =
        fs::read_dir(&target).expect("the folder").flatten().map(|entry| entry.file_name()).collect();
    let wanted =
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names, wanted.into_iter().map(Into::into).collect());
    assert!(!unfinished.exists());
}

#[test]
fn a_temporary_folder_that_is_not_ours_is_left_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (target, temporary) = (folder.path().join("model"), folder.path().join(".model.importing"));
    fs::create_dir_all(temporary.join("notes")).expect("a folder");
    assert!(matches!(Workspace::create(&target, 1), Err(ImportError::Io { .. })));
    assert!(temporary.join("notes").is_dir());
    fs::remove_dir_all(&temporary).expect("an end of it");
    std::os::unix::fs::symlink(folder.path(), &temporary).expect("a link");
    assert!(matches!(Workspace::create(&target, 1), Err(ImportError::Io { .. })), "a link to elsewhere");
}

#[test]
fn a_failed_import_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (source, target) = (folder.path().join("model.gguf"), folder.path().join("model"));
    let mut sample = Sample::llama();
    sample.set_tensor("output_norm.weight", &[HIDDEN], F32, f32_bytes(&[f32::INFINITY; HIDDEN as usize]));
    fs::write(&source, sample.bytes()).expect("the sample is written");
    let error = import_gguf(&source, &target, &ImportOptions::default(), &mut |_| {}).expect_err("infinite values");
    assert!(matches!(error, ImportError::NotFinite { .. }), "{error}");
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 1);

    fs::write(&source, Sample::llama().bytes()).expect("the sample is written");
    let changed = import_gguf(&source, &target, &ImportOptions::default(), &mut |progress| {
        if progress.stage == Stage::Write {
            File::options().append(true).open(&source).expect("the file").set_len(1 << 20).expect("a longer file");
        }
    });
    assert!(matches!(changed, Err(ImportError::SourceChanged { .. })));
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 1);
}

#[test]
fn two_imports_do_not_write_one_folder() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("model");
    let first = Workspace::create(&target, 1).expect("a workspace");
    assert!(matches!(Workspace::create(&target, 1), Err(ImportError::Busy { .. })));
    drop(first);
    assert!(Workspace::create(&target, 1).is_ok());
}

#[test]
fn a_disk_that_is_too_small_is_found_out_first() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let error = Workspace::create(&folder.path().join("model"), u64::MAX).err().expect("no disk is that large");
    let text = error.to_string();
    assert!(matches!(error, ImportError::NoSpace { needed: u64::MAX, available: Some(_), .. }), "{text}");
    assert!(text.contains(&folder.path().display().to_string()) && text.contains("18446744073709551615"), "{text}");
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 0);
}

#[test]
fn a_disk_that_fills_up_meanwhile_is_told_with_path_and_bytes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let workspace = Workspace::create(&folder.path().join("model"), 4321).expect("a workspace");
    let full = workspace.write("model.safetensors", |_| Err(WriteError::Io(io::ErrorKind::StorageFull.into())));
    let text = full.expect_err("no space").to_string();
    assert!(text.contains(".model.importing: 4321 bytes are needed"), "{text}");
}
