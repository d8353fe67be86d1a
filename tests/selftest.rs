//! `selftest numerics`, on the repository's golden data and on data that are wrong.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;
use simd::Isa;
use tempfile::TempDir;

use crate::models::{FAMILIES, VARIANTS, golden};

fn numerics(golden: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nightmonk"));
    command.args(["selftest", "numerics", "--golden"]).arg(golden).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Golden data of one family, whose reference has other bytes in this array; without bytes, no such array.
fn with_reference(family: &str, array: &str, bytes: impl Fn(&[u8]) -> Option<Vec<u8>>) -> TempDir {
    let (from, to) = (golden().join(family), tempfile::tempdir().unwrap());
    let copy = to.path().join(family);
    fs::create_dir(&copy).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(from.join(name), copy.join(name)).unwrap();
    }
    let file = fs::read(from.join("reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&file).unwrap();
    let mut arrays = HashMap::new();
    for (name, view) in reference.iter() {
        let data = if name == array { bytes(view.data()) } else { Some(view.data().to_vec()) };
        if let Some(data) = data {
            arrays.insert(name, (view.dtype(), view.shape().to_vec(), data));
        }
    }
    let views = arrays
        .iter()
        .map(|(name, (dtype, shape, data))| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, &copy.join("reference.safetensors")).unwrap();
    to
}

#[test]
fn every_golden_family_keeps_its_bounds_on_the_lowest_and_the_best_instructions() {
    for isa in [Isa::Scalar, Isa::detect()] {
        let output = numerics(&golden(), &["--isa", isa.name(), "-o", "json"]);
        assert!(output.status.success(), "{}", said(&output));
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["isa"], isa.name());
        let families = document["families"].as_array().unwrap();
        for family in FAMILIES.into_iter().chain(VARIANTS) {
            let found = families.iter().find(|found| found["family"] == family).unwrap();
            let [error, bf16_error] = ["error", "bf16_error"].map(|name| found[name].as_f64().unwrap());
            assert!(error > 0.0 && error <= 1e-4 && error <= bf16_error / 20.0, "{family}: {error}");
            // The script that computed the reference wrote its own figure down.
            let written = fs::read(golden().join(family).join("reference.json")).unwrap();
            let written = serde_json::from_slice::<Value>(&written).unwrap()["bf16_error"].as_f64().unwrap();
            assert!((bf16_error / written - 1.0).abs() < 1e-3, "{family}: {bf16_error}, written {written}");
        }
    }
}

#[test]
fn logits_that_are_off_end_with_exit_code_1_and_the_line_says_which() {
    let scaled = |factor: f32| {
        with_reference("llama", "logits", move |logits| {
            let floats = logits.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes) * factor);
            Some(floats.flat_map(f32::to_le_bytes).collect())
        })
    };
    let output = numerics(scaled(1.0 + 2e-4).path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    let table = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(table.lines().any(|line| line.starts_with("llama ") && line.ends_with("missed")), "{table}");
    assert!(said(&output).contains("1 of 1 families"), "{}", said(&output));
    assert!(numerics(scaled(1.0).path(), &[]).status.success());
    assert_eq!(numerics(scaled(f32::NAN).path(), &[]).status.code(), Some(1));
}

#[test]
fn golden_data_that_are_missing_or_damaged_are_refused_with_where_they_come_from() {
    let refused = |folder: &Path, status: i32, parts: &[&str]| {
        let output = numerics(folder, &[]);
        assert_eq!(output.status.code(), Some(status));
        assert!(output.stdout.is_empty() && parts.iter().all(|part| said(&output).contains(part)), "{}", said(&output));
    };
    let empty = tempfile::tempdir().unwrap();
    refused(&empty.path().join("none"), 2, &["tests/golden", "--golden"]);
    refused(empty.path(), 2, &["reference.safetensors", "tests/golden"]);
    refused(with_reference("llama", "logits_bf16", |_| None).path(), 1, &["`logits_bf16` is missing"]);
    let beyond = |ids: &[u8]| Some(vec![0xff; ids.len()]);
    refused(with_reference("llama", "token_ids", beyond).path(), 1, &["`token_ids` has 4294967295"]);
    let cut = with_reference("llama", "hidden", |hidden| Some(hidden.to_vec()));
    let path = cut.path().join("llama/reference.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    refused(cut.path(), 1, &["llama/reference.safetensors is not a safetensors file"]);

    let elsewhere = Command::new(env!("CARGO_BIN_EXE_nightmonk"))
        .args(["selftest", "numerics"])
        .current_dir(empty.path())
        .output()
        .unwrap();
    assert_eq!(elsewhere.status.code(), Some(2));
}
