//! Folders whose index leads elsewhere, and weights that are no file of weights.

use std::fs;

use serde_json::{Value, json};

use super::handmade::{EMBEDDING, assert_all_refused, assert_refused, cut};
use super::sample::{Folder, INDEX, SECOND, SHARD};
use crate::checkpoint::header::printable;

#[test]
fn an_index_that_leads_elsewhere_or_lies_is_refused() {
    fn place(folder: &Folder, tensor: &str, file: Value) {
        folder.json(INDEX, |index| index["weight_map"][tensor] = file);
    }
    for file in [
        "../model-00001-of-00002.safetensors",
        "/etc/passwd",
        "/tmp/model.safetensors",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "model\0.safetensors",
        "..safetensors",
        "model.bin",
        ".safetensors",
        "",
        "модель.safetensors",
    ] {
        let folder = Folder::golden("qwen3_moe");
        place(&folder, EMBEDDING, file.into());
        let shown = printable(file);
        assert_refused(file, &folder, "Index", &[INDEX, &shown, "not a shard's name"]);
    }
    let long = format!("{}.safetensors", "x".repeat(255));
    let folder = Folder::golden("qwen3_moe");
    place(&folder, EMBEDDING, long.into());
    assert_refused("a name too long", &folder, "Index", &[INDEX]);
    assert_all_refused(
        "qwen3_moe",
        &[
            (
                "missing shard",
                |f| place(f, EMBEDDING, json!("model-00003.safetensors")),
                "Open",
                &["model-00003.safetensors"],
            ),
            ("a shard deleted", |f| f.remove(SECOND), "Open", &[SECOND]),
            (
                "a shard that is a folder",
                |f| {
                    f.remove(SECOND);
                    fs::create_dir(f.path(SECOND)).unwrap()
                },
                "Open",
                &[SECOND, "not a regular file"],
            ),
            ("the other shard", |f| place(f, EMBEDDING, json!(SECOND)), "NotInShard", &[EMBEDDING, SECOND]),
            (
                "a tensor that is nowhere",
                |f| place(f, "model.nowhere", json!(SECOND)),
                "NotInShard",
                &["model.nowhere", SECOND],
            ),
            (
                "a tensor with a name of control characters",
                |f| place(f, "a\u{1b}[2J", json!(SECOND)),
                "NotInShard",
                &["a\\u{1b}"],
            ),
            ("not a string", |f| place(f, EMBEDDING, json!(1)), "Index", &[INDEX, "string"]),
            ("an empty map", |f| f.write(INDEX, r#"{"weight_map": {}}"#), "Index", &[INDEX, "empty"]),
            ("no map", |f| f.write(INDEX, "{}"), "Index", &[INDEX, "weight_map"]),
            ("a list for a map", |f| f.write(INDEX, r#"{"weight_map": []}"#), "Index", &[INDEX]),
            ("not JSON", |f| f.write(INDEX, "version https://git-lfs.github.com/spec/v1\n"), "Index", &[INDEX]),
            ("empty", |f| f.write(INDEX, ""), "Index", &[INDEX]),
            (
                "a folder",
                |f| {
                    f.remove(INDEX);
                    fs::create_dir(f.path(INDEX)).unwrap()
                },
                "Open",
                &[INDEX, "not a regular file"],
            ),
            (
                "one shard only",
                |f| {
                    f.json(INDEX, |index| {
                        index["weight_map"].as_object_mut().unwrap().retain(|_, file| file != SECOND);
                    })
                },
                "Missing",
                &["config.json", "model.layers."],
            ),
            (
                "a tensor in two shards",
                |f| {
                    f.shard(SECOND, |header, data| {
                        let end = data.len();
                        header.insert(
                            EMBEDDING.into(),
                            json!({"dtype": "BF16", "shape": [1], "data_offsets": [end, end + 2]}),
                        );
                        data.extend([0, 0]);
                    })
                },
                "TwoShards",
                &[EMBEDDING, "model-00001-of-00002", SECOND],
            ),
            ("the second shard cut", |f| cut(f, SECOND, 100_000), "Tensor", &[SECOND, "cut short"]),
            (
                "the second shard the first",
                |f| f.write(SECOND, f.read("model-00001-of-00002.safetensors")),
                "TwoShards",
                &[SECOND],
            ),
        ],
    );
}

#[test]
fn weights_that_are_no_file_of_weights_are_refused() {
    assert_all_refused(
        "llama",
        &[
            ("no weights", |f| f.remove(SHARD), "NoWeights", &["model.safetensors", "nightmonk import"]),
            (
                "a folder",
                |f| {
                    f.remove(SHARD);
                    fs::create_dir(f.path(SHARD)).unwrap()
                },
                "Open",
                &[SHARD, "not a regular file"],
            ),
            (
                "a device",
                |f| {
                    f.remove(SHARD);
                    std::os::unix::fs::symlink("/dev/zero", f.path(SHARD)).unwrap()
                },
                "Open",
                &[SHARD, "not a regular file"],
            ),
            (
                "a pipe that nobody writes to",
                |f| {
                    f.remove(SHARD);
                    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
                    rustix::fs::mknodat(rustix::fs::CWD, f.path(SHARD), rustix::fs::FileType::Fifo, mode, 0).unwrap();
                },
                "Open",
                &[SHARD, "not a regular file"],
            ),
            (
                "a link to nowhere",
                |f| {
                    f.remove(SHARD);
                    std::os::unix::fs::symlink("nowhere", f.path(SHARD)).unwrap()
                },
                "NoWeights",
                &["model.safetensors"],
            ),
            (
                "a pointer of git-lfs",
                |f| f.write(SHARD, "version https://git-lfs.github.com/spec/v1\n"),
                "Header",
                &[SHARD],
            ),
            ("a pickle", |f| f.write(SHARD, b"PK\x03\x04archive/data.pkl"), "Header", &[SHARD]),
        ],
    );
}
