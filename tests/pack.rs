//! Packed folders: the bits of the published model, whatever is packed, mapped or killed on the way; and damage refused.

mod damage;
mod full_disk;
mod interrupted;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use engine_core::checkpoint::{Checkpoint, Layout};
use engine_core::model::{Load, Model, ModelOptions};
use engine_core::pack::{PackError, PackOptions, PackReport, pack_folder};
use safetensors::tensor::TensorView;
use simd::matmul::Activations;
use simd::{Dtype, Isa};

use crate::damaged::{program, run, text};
use crate::models::{FAMILIES, Reference, golden, load, options};
use crate::same_bits::evaluate;

fn pack(source: &Path, target: &Path, plain: bool) -> Result<PackReport, PackError> {
    let options = PackOptions { plain, max_shard_bytes: 100_000, threads: 2, ..PackOptions::default() };
    let mut seen = Vec::new();
    let report = pack_folder(source, target, &options, &mut |at| seen.push((at.done_bytes, at.total_bytes)));
    if report.is_ok() {
        assert!(seen.is_sorted() && seen.iter().all(|(_, total)| *total == seen[0].1), "progress");
        assert_eq!(seen.last().unwrap().0, seen[0].1, "all is done at the end");
    }
    report
}

/// Names and bytes of all files in a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

#[test]
fn a_packed_model_has_the_bits_of_the_published_one_mapped_and_resident() {
    let mut packed_families = 0;
    for family in FAMILIES {
        let tokens = Reference::of(family).ids("token_ids");
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        let packed = folder.path().join("packed");
        assert_eq!(pack(&golden().join(family), &plain, true).unwrap().packed_matrices, 0);
        let report = pack(&golden().join(family), &packed, false).unwrap();
        packed_families += usize::from(report.packed_matrices > 0);
        assert!(report.shards > 1, "{family}");
        for isa in Isa::available() {
            for activations in [Activations::Bf16, Activations::Bf16x2] {
                let published = ModelOptions { activations, ..options(isa) };
                let want = evaluate(&load(&golden().join(family), published), &tokens, 2, 16, Dtype::F16);
                for (what, folder) in [("plain", &plain), ("packed", &packed)] {
                    for load_as in [Load::Mapped, Load::Resident] {
                        let model = load(folder, ModelOptions { load: load_as, ..published });
                        for (threads, chunk) in [(2, 16), (1, 1), (3, tokens.len())] {
                            let got = evaluate(&model, &tokens, threads, chunk, Dtype::F16);
                            assert!(
                                got == want,
                                "{family}, {what}, {load_as}, {isa}, {activations}, chunks of {chunk}"
                            );
                        }
                        if isa.name() != Isa::detect().name() {
                            break;
                        }
                    }
                }
            }
        }
    }
    assert!(packed_families >= 5, "{packed_families} families have matrices that shrink");
}

/// A Llama of one layer whose matrices are filled from `bits`, over and over.
fn write_model(folder: &Path, dtype: safetensors::Dtype, mut bits: impl FnMut() -> u16) {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 264, "vocab_size": 97, "max_position_embeddings": 64,
        "tie_word_embeddings": false, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
    });
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let parsed = engine_core::config::ModelConfig::from_file(&folder.join("config.json")).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = parsed
        .tensors()
        .into_iter()
        .map(|spec| {
            let words = spec.shape.iter().product::<usize>() * if dtype == safetensors::Dtype::F32 { 2 } else { 1 };
            (spec.name, spec.shape, (0..words).flat_map(|_| bits().to_le_bytes()).collect())
        })
        .collect();
    let views =
        tensors.iter().map(|(name, shape, bytes)| (name, TensorView::new(dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

/// Every matrix of a packed folder, laid out row by row again, is what was published.
fn assert_round_trip(source: &Path, target: &Path) -> usize {
    let (published, written) = (Checkpoint::open(source).unwrap(), Checkpoint::open(target).unwrap());
    let mut in_12_bits = 0;
    for spec in published.config().tensors() {
        let (want, got) = (published.tensor(&spec.name), written.tensor(&spec.name));
        assert_eq!((want.dtype, want.shape), (got.dtype, got.shape), "{}", spec.name);
        if got.layout == Layout::RowMajor {
            assert!(want.bytes == got.bytes, "{}", spec.name);
            continue;
        }
        let [rows, cols] = [want.shape[0], want.shape[1]];
        let size = want.dtype.size();
        let matrix = match got.layout {
            Layout::Packed { .. } => simd::matmul::Matrix::packed(got.bytes, [rows, cols]).unwrap(),
            _ => simd::matmul::Matrix::panels(got.dtype, got.bytes, [rows, cols]).unwrap(),
        };
        in_12_bits += usize::from(got.layout != Layout::Panels);
        let pair = 4 / size;
        let pair = if size == 2 && got.dtype == Dtype::Bf16 { pair } else { 1 };
        let mut panel = vec![0; matrix.bytes_of_panel()];
        for index in 0..matrix.panel_count() {
            matrix.pack_panel(index, &mut panel);
            for row in index * 16..rows.min(index * 16 + 16) {
                for col in 0..cols {
                    let at = ((col / pair * 16 + row % 16) * pair + col % pair) * size;
                    let from = (row * cols + col) * size;
                    assert_eq!(panel[at..at + size], want.bytes[from..from + size], "{} [{row}, {col}]", spec.name);
                }
            }
        }
    }
    in_12_bits
}

#[test]
fn every_finite_bf16_value_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    // In turn: all values, then trained-looking ones, so that matrices with many and with few patches are written.
    let finite: Vec<u16> = (0..=u16::MAX).filter(|bits| bits & 0x7f80 != 0x7f80).collect();
    let mut count = 0;
    write_model(&source, safetensors::Dtype::BF16, || {
        count += 1;
        match count / 65_280 % 2 {
            0 => finite[count % finite.len()],
            _ if count % 97 == 0 => finite[count / 97 * 31 % finite.len()],
            _ => 0x3c00 ^ (count as u16).wrapping_mul(40_503) & 0x83ff,
        }
    });
    let report = pack(&source, &target, false).unwrap();
    let in_12_bits = assert_round_trip(&source, &target);
    assert_eq!(in_12_bits as u64, report.packed_matrices);
    assert!(report.packed_matrices > 0 && report.plain_matrices > 0, "some shrink and some do not: {report}");
    // Other types lie in plain panels.
    for (dtype, mask) in [(safetensors::Dtype::F16, 0xbbff), (safetensors::Dtype::F32, 0xbf7f)] {
        let (source, target) =
            (folder.path().join(format!("{dtype:?}")), folder.path().join(format!("{dtype:?}-target")));
        write_model(&source, dtype, || {
            count += 1;
            (count as u16).wrapping_mul(40_503) & mask
        });
        assert_eq!(pack(&source, &target, false).unwrap().packed_matrices, 0);
        assert_eq!(assert_round_trip(&source, &target), 0);
    }
}

#[test]
fn what_is_no_model_to_pack_or_no_place_to_write_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = golden().join("llama");
    let refused = |source: &Path, target: &Path, parts: &[&str]| {
        let output = run(&["pack", "-m", text(source), "-o", text(target)]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(output.stdout.is_empty() && parts.iter().all(|part| said.contains(part)), "{parts:?}: {said}");
    };
    let output = run(&["pack", "-m", text(&source), "-o", text(&at("packed"))]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8(output.stdout).unwrap().contains("bits a weight"));
    let packed = files(&at("packed"));

    // Started again it says so, and changes nothing.
    let output = run(&["pack", "-m", text(&source), "-o", text(&at("packed"))]);
    assert!(output.status.success() && String::from_utf8(output.stdout).unwrap().contains("was packed before"));
    assert!(files(&at("packed")) == packed);

    refused(&at("packed"), &at("twice"), &["was written by `nightmonk pack` already"]);
    assert!(!at("twice").exists());
    let copy = at("copy");
    fs::create_dir(&copy).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(source.join(name), copy.join(name)).unwrap();
    }
    let published = files(&copy);
    refused(&copy, &copy.join("."), &["is the model itself"]);
    // Another published model in the place.
    refused(&golden().join("qwen3"), &copy, &["choose another folder"]);
    assert!(files(&copy) == published, "nothing of it is lost");
    fs::create_dir(at("notes")).unwrap();
    fs::write(at("notes").join("diary.md"), "mine").unwrap();
    refused(&source, &at("notes"), &["diary.md", "choose another folder"]);
    assert_eq!(files(&at("notes")).len(), 1);

    // A number that is none.
    let mut bytes = fs::read(copy.join("model.safetensors")).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&[0x80, 0x7f]);
    fs::write(copy.join("model.safetensors"), bytes).unwrap();
    refused(&copy, &at("infinite"), &["model.safetensors", "inf"]);
    assert!(!files(&at("infinite")).keys().any(|name| name.contains("safetensors")), "what was begun is removed");
    // The same folder takes the model when it is whole again: nothing of the other is there.
    fs::copy(source.join("model.safetensors"), copy.join("model.safetensors")).unwrap();
    refused(&copy, &at("infinite"), &["was begun from another model", "remove it"]);
}

#[test]
fn a_plan_of_a_packed_folder_counts_what_is_stored() {
    for family in ["qwen3_moe", "llama", "gpt_oss"] {
        let folder = tempfile::tempdir().unwrap();
        pack(&golden().join(family), folder.path(), false).unwrap();
        for load_as in [Load::Mapped, Load::Resident] {
            let options = ModelOptions { load: load_as, ..options(Isa::detect()) };
            let model = Model::load(folder.path(), options, &mut |_| {}).unwrap();
            let checkpoint = model.checkpoint();
            let request = engine_core::plan::PlanRequest {
                ctx_size: 64,
                width: 1,
                ubatch_size: 16,
                logits: 1,
                threads: 2,
                kv_dtype: Dtype::F16,
                load: load_as,
                nodes: 1,
                adapters: engine_core::adapter::AdapterNeeds::default(),
            };
            let plan = engine_core::plan::Plan::new(model.config(), |name| checkpoint.form(name), &request);
            let stored: usize = checkpoint.tensors().iter().map(|spec| checkpoint.location(&spec.name).size()).sum();
            assert_eq!(plan.checkpoint_bytes as usize, stored, "{family}");
            let floats: u64 = model.config().tensors().iter().map(|spec| spec.parameters()).sum::<u64>();
            assert_eq!(plan.parameters, floats, "{family}");
            let vectors: usize = model
                .config()
                .tensors()
                .iter()
                .filter(|spec| spec.kind == engine_core::config::TensorKind::Vector)
                .map(|spec| spec.parameters() as usize * 4)
                .sum();
            let rounding = plan.weight_bytes as usize - vectors - model.resident_bytes();
            assert!(rounding < 64, "{family}, {load_as}: {rounding}");
            // Experts differ a little in their patches: a mean stands for them.
            let (planned, real) = (plan.bytes_per_token as f64, model.bytes_per_token() as f64);
            assert!((planned / real - 1.0).abs() < 1e-3, "{family}: {planned} for {real}");
        }
    }
}
