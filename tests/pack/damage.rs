//! Damaged packed folders: each is refused by name or gives a model, none ends the process.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use engine_core::model::{Load, Model, ModelOptions};
use serde_json::{Map, Value};
use simd::Isa;

use super::write_model;
use crate::models::options;

const SHARD: &str = "model.safetensors";
const HEAD: &str = "lm_head.weight";

struct Packed {
    folder: tempfile::TempDir,
    shard: Vec<u8>,
}

impl Packed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        let mut count = 0u32;
        write_model(&source, safetensors::Dtype::BF16, || {
            count += 1;
            if count.is_multiple_of(501) { 0x0001 } else { 0x3c00 ^ (count as u16).wrapping_mul(40_503) & 0x83ff }
        });
        let target = folder.path().join("target");
        let options = engine_core::pack::PackOptions { threads: 2, ..Default::default() };
        engine_core::pack::pack_folder(&source, &target, &options, &mut |_| {}).unwrap();
        let shard = fs::read(target.join(SHARD)).unwrap();
        Self { folder, shard }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("target")
    }

    /// Header and data.
    fn parts(&self) -> (Map<String, Value>, Vec<u8>) {
        let size = u64::from_le_bytes(*self.shard.first_chunk().unwrap()) as usize;
        (serde_json::from_slice(&self.shard[8..8 + size]).unwrap(), self.shard[8 + size..].to_vec())
    }

    fn write(&self, header: &Map<String, Value>, data: &[u8]) {
        let mut json = Value::Object(header.clone()).to_string().into_bytes();
        json.resize((8 + json.len()).next_multiple_of(64) - 8, b' ');
        let file = [&(json.len() as u64).to_le_bytes(), &json[..], data].concat();
        fs::write(self.path().join(SHARD), file).unwrap();
    }
}

/// Loads both ways; the error of the first that is refused.
fn open(folder: &Path) -> Result<(), String> {
    for load in [Load::Mapped, Load::Resident] {
        let options = ModelOptions { load, ..options(Isa::detect()) };
        Model::load(folder, options, &mut |_| {}).map_err(|error| error.to_string())?;
    }
    Ok(())
}

#[test]
fn a_false_description_is_refused_by_name() {
    let packed = Packed::new();
    let (header, data) = packed.parts();
    open(&packed.path()).unwrap();
    let entry = header["__metadata__"][format!("panels:{HEAD}")].as_str().unwrap().to_owned();
    assert!(entry.starts_with("packed BF16 97x256 "), "{entry}");
    let refused = |what: &str, change: &dyn Fn(&mut Map<String, Value>), parts: &[&str]| {
        let mut header = header.clone();
        change(&mut header);
        packed.write(&header, &data);
        let error = open(&packed.path()).expect_err(what);
        assert!(parts.iter().all(|part| error.contains(part)), "{what}: {parts:?} in {error}");
        assert!(error.contains(SHARD) && !error.contains(char::is_control), "{what}: {error}");
    };
    let key = format!("panels:{HEAD}");
    let set = |value: &str| {
        let (key, value) = (key.clone(), Value::from(value));
        move |header: &mut Map<String, Value>| header["__metadata__"][&key] = value.clone()
    };
    refused("plain", &set("panels BF16 97x256"), &[HEAD, "that is U8"]);
    refused("F32", &set("panels F32 97x256"), &[HEAD, "that is U8"]);
    refused("other rows", &set("packed BF16 98x256 0"), &[HEAD, "that is U8"]);
    refused("fewer patches", &set("packed BF16 97x256 0"), &[HEAD, "that is U8"]);
    refused("no bytes", &set("packed BF16 97x1099511627776 18446744073709551615"), &[HEAD, "no bytes can hold"]);
    refused("odd width", &set("packed BF16 97x255 0"), &[HEAD, "no bytes can hold"]);
    refused("unknown layout", &set("panels-mxfp4 97x256"), &[HEAD, "is described as"]);
    refused("a sign", &set("panels BF16 +97x256"), &[HEAD, "is described as"]);
    refused("version", &|h| h["__metadata__"]["nightmonk.panels"] = "2".into(), &["version `2`"]);
    refused("no version", &|h| drop(h["__metadata__"].as_object_mut().unwrap().remove("nightmonk.panels")), &[]);
    refused("no source", &|h| drop(h["__metadata__"].as_object_mut().unwrap().remove("nightmonk.source")), &["64 hex"]);
    refused("unknown key", &|h| h["__metadata__"]["more"] = "1".into(), &["unknown key `more`"]);
    refused("no entry", &|h| drop(h["__metadata__"].as_object_mut().unwrap().remove(&key)), &[HEAD]);
    refused("no tensor", &|h| h["__metadata__"]["panels:x\u{1b}"] = entry.clone().into(), &["is not there"]);
    let norm = "model.norm.weight";
    refused("a norm", &|h| h["__metadata__"][format!("panels:{norm}")] = "panels BF16 1x256".into(), &[norm]);
    // The embedding described as panels: of the same bytes, but read by rows.
    refused(
        "an embedding in panels",
        &|h| {
            let name = "model.embed_tokens.weight";
            h["__metadata__"][format!("panels:{name}")] = "panels BF16 97x256".into();
            h[name]["dtype"] = "U8".into();
        },
        &["model.embed_tokens.weight"],
    );
}

#[test]
fn damaged_panels_are_refused_by_name() {
    let packed = Packed::new();
    let (header, data) = packed.parts();
    let offset = |index: usize| header[HEAD]["data_offsets"][index].as_u64().unwrap() as usize;
    let (start, end) = (offset(0), offset(1));
    let panel_bytes = simd::matmul::packed::panel_bytes(256).unwrap();
    let index = start + 7 * panel_bytes;
    let refused = |what: &str, at: usize, bytes: &[u8], parts: &[&str]| {
        let mut data = data.clone();
        data[at..at + bytes.len()].copy_from_slice(bytes);
        packed.write(&header, &data);
        let error = open(&packed.path()).expect_err(what);
        assert!(error.contains(HEAD) && parts.iter().all(|part| error.contains(part)), "{what}: {parts:?} in {error}");
    };
    refused("a descending index", index + 4, &u32::MAX.to_le_bytes(), &["index of patches descends"]);
    refused("patches of others", index + 4, &[0, 0, 0, 0], &["panel 0", "nightmonk pack"]);
    refused("a block that asks", start, &[data[start] | 0x80; 4], &["panel 0"]);
    refused("an infinite patch", index + 32, &[0x80, 0x7f], &["inf", "at index"]);
    refused("a window of NaN", start, &[0x78 | data[start] & 0x80], &["at index"]);
    if !data[end - 1..].iter().any(|byte| *byte != 0) {
        refused("filled up", end - 1, &[1], &["other bytes than zeros"]);
    }
}

#[test]
fn no_damage_ends_the_process() {
    let packed = Packed::new();
    let (header, data) = packed.parts();
    let text = Value::Object(header.clone()).to_string();
    let mut seed = 7u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let (mut refused, mut opened) = (0, 0);
    for round in 0..400 {
        let mut bytes = text.clone().into_bytes();
        let mut data = data.clone();
        if round % 2 == 0 {
            // A digit or a letter of the header becomes another.
            let at = random(bytes.len());
            bytes[at] = b"0123456789x :,\"{}BFU"[random(20)];
        } else {
            let at = random(data.len());
            data[at] ^= 1 << random(8);
        }
        bytes.resize((8 + bytes.len()).next_multiple_of(64) - 8, b' ');
        let file = [&(bytes.len() as u64).to_le_bytes(), &bytes[..], &data].concat();
        fs::write(packed.path().join(SHARD), file).unwrap();
        match catch_unwind(AssertUnwindSafe(|| open(&packed.path()))) {
            Ok(Ok(())) => opened += 1,
            Ok(Err(error)) => {
                refused += 1;
                assert!(!error.contains(char::is_control), "{error:?}");
            }
            Err(_) => panic!("round {round} ended the process"),
        }
    }
    assert!(refused > 50 && opened > 50, "{refused} refused, {opened} opened");
}
