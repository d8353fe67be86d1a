//! Damages by hand: one for each way in which a shard can be wrong.

use serde_json::{Map, Value, json};

use super::sample::{Folder, INDEX, SHARD, joined};
use crate::checkpoint::CheckpointError;

pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";

fn kind(error: &CheckpointError) -> &'static str {
    match error {
        CheckpointError::Config(_) => "Config",
        CheckpointError::NoWeights { .. } => "NoWeights",
        CheckpointError::Open { .. } => "Open",
        CheckpointError::Replaced { .. } => "Replaced",
        CheckpointError::Read { .. } => "Read",
        CheckpointError::Broken { .. } => "Broken",
        CheckpointError::Index { .. } => "Index",
        CheckpointError::Header { .. } => "Header",
        CheckpointError::Tensor { .. } => "Tensor",
        CheckpointError::TwoShards { .. } => "TwoShards",
        CheckpointError::NotInShard { .. } => "NotInShard",
        CheckpointError::Missing { .. } => "Missing",
        CheckpointError::WrongShape { .. } => "WrongShape",
        CheckpointError::Unexpected { .. } => "Unexpected",
        CheckpointError::NotFinite { .. } => "NotFinite",
        CheckpointError::WrongType { .. } => "WrongType",
        CheckpointError::Scale { .. } => "Scale",
        CheckpointError::Threads { .. } => "Threads",
        CheckpointError::Panels { .. } => "Panels",
        CheckpointError::TwoSources { .. } => "TwoSources",
    }
}

/// The folder is refused with this kind of error, which names all of `parts` and shows no control characters.
pub(super) fn assert_refused(what: &str, folder: &Folder, want: &str, parts: &[&str]) {
    let Err(error) = folder.open() else { panic!("{what}: the folder opened") };
    let message = error.to_string();
    assert_eq!(kind(&error), want, "{what}: {message}");
    for part in parts {
        assert!(message.contains(part), "{what}: `{part}` is not in: {message}");
    }
    assert!(!message.contains(char::is_control), "{what}: {message:?}");
}

/// What was done, how, the error's variant, and what its message must name.
pub(super) type Damage = (&'static str, fn(&Folder), &'static str, &'static [&'static str]);

pub(super) fn assert_all_refused(family: &str, damages: &[Damage]) {
    for (what, damage, want, parts) in damages {
        let folder = Folder::golden(family);
        damage(&folder);
        assert_refused(what, &folder, want, parts);
    }
}

pub(super) fn cut(folder: &Folder, name: &str, bytes: usize) {
    folder.write(name, &folder.read(name)[..bytes]);
}

fn claim(folder: &Folder, header_bytes: u64) {
    let mut file = folder.read(SHARD);
    file[..8].copy_from_slice(&header_bytes.to_le_bytes());
    folder.write(SHARD, file);
}

/// Changes the entry of the embedding: BF16 [211, 48], bytes 0 to 20256.
fn entry(folder: &Folder, field: &str, value: Value) {
    folder.shard(SHARD, |header, _| header[EMBEDDING][field] = value);
}

fn rename(folder: &Folder, to: &str) {
    folder.shard(SHARD, |header, _| {
        let entry = header.remove(NORM).unwrap();
        header.insert(to.into(), entry);
    });
}

/// Adds a tensor without values, which takes no bytes.
fn add(folder: &Folder, name: &str, shape: Value) {
    folder.shard(SHARD, |header, data| {
        let end = data.len();
        header.insert(name.into(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [end, end]}));
    });
}

fn nested(levels: usize) -> String {
    "[".repeat(levels) + &"]".repeat(levels)
}

#[test]
fn a_shard_of_the_wrong_length_is_refused() {
    assert_all_refused(
        "llama",
        &[
            ("empty", |f| f.write(SHARD, ""), "Header", &[SHARD, "0 bytes"]),
            ("7 bytes", |f| cut(f, SHARD, 7), "Header", &[SHARD, "7 bytes"]),
            ("size alone", |f| cut(f, SHARD, 8), "Header", &[SHARD, "3904", "the file has 8"]),
            ("cut in the header", |f| cut(f, SHARD, 100), "Header", &[SHARD, "the file has 100"]),
            ("cut after the header", |f| cut(f, SHARD, 3912), "Tensor", &[SHARD, EMBEDDING, "cut short"]),
            ("cut in the first tensor", |f| cut(f, SHARD, 3912 + 20255), "Tensor", &[SHARD, EMBEDDING, "20255"]),
            ("cut by one byte", |f| cut(f, SHARD, 175_559), "Tensor", &[SHARD, NORM, "cut short"]),
            (
                "a byte more",
                |f| f.write(SHARD, [f.read(SHARD), vec![0]].concat()),
                "Header",
                &[SHARD, "175561", "more"],
            ),
            ("header of 0 bytes", |f| claim(f, 0), "Header", &[SHARD, "begin with `{`"]),
            ("header of 1 byte", |f| claim(f, 1), "Header", &[SHARD, "not valid"]),
            ("header a byte too short", |f| claim(f, 3800), "Header", &[SHARD, "not valid"]),
            ("header a byte too long", |f| claim(f, 3905), "Tensor", &[SHARD, NORM, "cut short"]),
            ("header as long as the file", |f| claim(f, 175_560), "Header", &[SHARD, "the file has 175560"]),
            ("header above the limit", |f| claim(f, 100_000_001), "Header", &[SHARD, "at most 100000000"]),
            ("header of 2^63 bytes", |f| claim(f, 1 << 63), "Header", &[SHARD, "at most"]),
            ("header of 2^64-1 bytes", |f| claim(f, u64::MAX), "Header", &[SHARD, "at most"]),
        ],
    );
}

#[test]
fn a_header_that_two_readers_could_read_differently_is_refused() {
    let twice = |folder: &Folder, key: &str, value: &str| {
        folder.header(|text| text.replacen('{', &format!("{{\"{key}\":{value},"), 1));
    };
    let folder = Folder::golden("llama");
    twice(&folder, EMBEDDING, r#"{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}"#);
    assert_refused("a tensor twice", &folder, "Header", &[SHARD, EMBEDDING, "twice"]);
    let folder = Folder::golden("llama");
    twice(&folder, "__metadata__", "{}");
    assert_refused("metadata twice", &folder, "Header", &[SHARD, "__metadata__", "twice"]);
    assert_all_refused(
        "llama",
        &[
            ("leading space", |f| f.header(|text| format!(" {text}")), "Header", &[SHARD, "begin with `{`"]),
            ("byte order mark", |f| f.header(|text| format!("\u{feff}{text}")), "Header", &[SHARD, "begin with `{`"]),
            ("a list", |f| f.header(|_| "[]".into()), "Header", &[SHARD, "begin with `{`"]),
            ("half an object", |f| f.header(|text| text[..500].into()), "Header", &[SHARD, "not valid"]),
            ("two objects", |f| f.header(|text| format!("{text}{{}}")), "Header", &[SHARD, "not valid"]),
            (
                "not UTF-8",
                |f| {
                    let mut file = f.read(SHARD);
                    file[30] = 0xff;
                    f.write(SHARD, file)
                },
                "Header",
                &[SHARD],
            ),
            ("no tensors", |f| f.write(SHARD, joined("{}", &[])), "Missing", &[EMBEDDING]),
        ],
    );
}

#[test]
fn a_tensor_whose_place_cannot_be_true_is_refused() {
    let offsets = |f: &Folder, start: Value, end: Value| entry(f, "data_offsets", json!([start, end]));
    for (what, start, end, kind, parts) in [
        ("backwards", json!(20256), json!(0), "Tensor", [EMBEDDING, "20256 to 0"]),
        ("beyond the file", json!(0), json!(1u64 << 40), "Tensor", [EMBEDDING, "cut short"]),
        ("2^64-1", json!(0), json!(u64::MAX), "Tensor", [EMBEDDING, "cut short"]),
        ("both 2^64-1", json!(u64::MAX), json!(u64::MAX), "Tensor", [EMBEDDING, "cut short"]),
        ("overlap", json!(2), json!(20258), "Header", [EMBEDDING, "invalid offset"]),
        ("too small", json!(0), json!(20254), "Tensor", [EMBEDDING, "[211, 48]"]),
        ("negative", json!(-1), json!(20256), "Header", ["not valid", "-1"]),
        ("fraction", json!(0.5), json!(20256), "Header", ["not valid", "0.5"]),
        ("words", json!("0"), json!("20256"), "Header", ["not valid", "string"]),
    ] {
        let folder = Folder::golden("llama");
        offsets(&folder, start, end);
        assert_refused(what, &folder, kind, &[SHARD, parts[0], parts[1]]);
    }
    assert_all_refused(
        "llama",
        &[
            ("three offsets", |f| entry(f, "data_offsets", json!([0, 0, 20256])), "Header", &[SHARD, "not valid"]),
            ("no offsets", |f| entry(f, "data_offsets", Value::Null), "Header", &[SHARD, "not valid"]),
            (
                "a hole before the last tensor",
                |f| {
                    f.shard(SHARD, |header, data| {
                        let end = data.len() as u64;
                        header[NORM]["data_offsets"] = json!([end - 96 + 2, end + 2]);
                        data.extend([0, 0]);
                    });
                },
                "Header",
                &[SHARD, NORM],
            ),
            (
                // Each tensor's own size fits 64 bits; the place of the last one does not.
                "sizes that add up beyond 2^64",
                |f| {
                    let size = (1u64 << 61) - 1;
                    let mut header = Map::new();
                    for i in 0..8 {
                        let place = json!([i * size, (i + 1) * size]);
                        header.insert(format!("t{i}"), json!({"dtype": "U8", "shape": [size], "data_offsets": place}));
                    }
                    let place = json!([8 * size, u64::MAX]);
                    header.insert("last".into(), json!({"dtype": "U8", "shape": [7], "data_offsets": place}));
                    f.write(SHARD, joined(&Value::Object(header).to_string(), &[]));
                },
                "Tensor",
                &[SHARD, "t0", "cut short"],
            ),
            (
                "an odd place",
                |f| {
                    let file = f.read(SHARD);
                    let mut odd = 3905u64.to_le_bytes().to_vec();
                    odd.extend(&file[8..3912]);
                    odd.push(b' ');
                    odd.extend(&file[3912..]);
                    f.write(SHARD, odd);
                },
                "Tensor",
                &[SHARD, EMBEDDING, "3913", "not aligned"],
            ),
        ],
    );
}

#[test]
fn a_tensor_of_a_shape_or_type_that_no_model_has_is_refused() {
    assert_all_refused(
        "llama",
        &[
            (
                "rank 9",
                |f| entry(f, "shape", json!([211, 48, 1, 1, 1, 1, 1, 1, 1])),
                "Tensor",
                &[EMBEDDING, "9 dimensions"],
            ),
            ("rank 100,000", |f| entry(f, "shape", json!(vec![1; 100_000])), "Tensor", &[SHARD, EMBEDDING]),
            ("rank 1", |f| entry(f, "shape", json!([211 * 48])), "WrongShape", &[SHARD, EMBEDDING, "[10128]"]),
            (
                "swapped",
                |f| entry(f, "shape", json!([48, 211])),
                "WrongShape",
                &[SHARD, EMBEDDING, "[48, 211]", "[211, 48]"],
            ),
            ("dimension 0", |f| add(f, "empty", json!([0, 48])), "Tensor", &[SHARD, "`empty`", "dimension of 0"]),
            ("dimension 2^41", |f| add(f, "big", json!([1u64 << 41, 0])), "Tensor", &[SHARD, "`big`", "2199023255552"]),
            ("dimension 2^63-1", |f| add(f, "big", json!([0, i64::MAX])), "Tensor", &[SHARD, "`big`"]),
            (
                "product beyond 2^64",
                |f| entry(f, "shape", json!([1u64 << 40, 1u64 << 40])),
                "Tensor",
                &[SHARD, EMBEDDING],
            ),
            ("negative", |f| entry(f, "shape", json!([-211, -48])), "Header", &[SHARD, "-211"]),
            ("fraction", |f| entry(f, "shape", json!([211.5, 48])), "Header", &[SHARD, "211.5"]),
            ("not a list", |f| entry(f, "shape", json!("211x48")), "Header", &[SHARD, "211x48"]),
            ("no shape", |f| entry(f, "shape", Value::Null), "Header", &[SHARD, "not valid"]),
            (
                "F8",
                |f| {
                    entry(f, "dtype", json!("F8_E4M3"));
                    entry(f, "shape", json!([422, 48]))
                },
                "Tensor",
                &[SHARD, EMBEDDING, "F8_E4M3", "BF16, F16, F32"],
            ),
            (
                "I64",
                |f| {
                    entry(f, "dtype", json!("I64"));
                    entry(f, "shape", json!([211, 12]))
                },
                "Tensor",
                &[SHARD, EMBEDDING, "I64", "BF16, F16, F32"],
            ),
            (
                "U8 where numbers belong",
                |f| {
                    f.shard(SHARD, |header, data| {
                        let end = data.len();
                        header[NORM] = json!({"dtype": "U8", "shape": [48], "data_offsets": [end - 96, end - 48]});
                        data.truncate(end - 48);
                    });
                },
                "WrongType",
                &[SHARD, NORM, "U8", "BF16, F16 or F32"],
            ),
            ("F32 of half the size", |f| entry(f, "dtype", json!("F32")), "Tensor", &[SHARD, EMBEDDING, "F32"]),
            ("unknown type", |f| entry(f, "dtype", json!("F99")), "Header", &[SHARD, "F99"]),
            ("no type", |f| entry(f, "dtype", Value::Null), "Header", &[SHARD, "not valid"]),
            (
                "not an object",
                |f| f.shard(SHARD, |header, _| header[EMBEDDING] = json!(1)),
                "Header",
                &[SHARD, "not valid"],
            ),
        ],
    );
}

#[test]
fn a_tensor_of_a_name_that_no_model_has_is_refused() {
    let long = "x".repeat(300);
    for (what, name, kind, part) in [
        ("NUL", "model\0norm.weight", "Tensor", r"model\u{0}norm.weight"),
        ("escape sequence", "\u{1b}[2J", "Tensor", r"\u{1b}[2J"),
        ("empty", "", "Tensor", "printable ASCII"),
        ("300 characters", &long, "Tensor", "printable ASCII"),
        ("not ASCII", "вес", "Tensor", r"\u{432}\u{435}\u{441}"),
        ("right to left", "\u{202e}thgiew", "Tensor", r"\u{202e}"),
        ("a path", "../../../etc/passwd", "Missing", NORM),
    ] {
        let folder = Folder::golden("llama");
        rename(&folder, name);
        assert_refused(what, &folder, kind, &[part]);
    }
    assert_all_refused(
        "llama",
        &[
            (
                "missing",
                |f| rename(f, "model.layers.0.self_attn.rotary_emb.inv_freq"),
                "Missing",
                &["config.json", NORM],
            ),
            (
                "one more",
                |f| {
                    f.shard(SHARD, |header, data| {
                        let end = data.len();
                        header.insert(
                            "model.extra".into(),
                            json!({"dtype": "BF16", "shape": [1], "data_offsets": [end, end + 2]}),
                        );
                        data.extend([0, 0]);
                    })
                },
                "Unexpected",
                &["model.extra", "0 more"],
            ),
            (
                "an output matrix beside a tied embedding",
                |f| {
                    f.shard(SHARD, |header, data| {
                        let end = data.len();
                        header.insert(
                            "lm_head.weight".into(),
                            json!({"dtype": "BF16", "shape": [211, 48], "data_offsets": [end, end + 20256]}),
                        );
                        data.extend(vec![0; 20256]);
                    })
                },
                "Unexpected",
                &["lm_head.weight"],
            ),
            (
                "config.json of another size",
                |f| f.json("config.json", |c| c["vocab_size"] = json!(212)),
                "WrongShape",
                &[SHARD, EMBEDDING, "[211, 48]", "[212, 48]"],
            ),
            (
                "config.json of more layers",
                |f| f.json("config.json", |c| c["num_hidden_layers"] = json!(5)),
                "Missing",
                &["model.layers.4."],
            ),
            (
                "config.json of fewer layers",
                |f| f.json("config.json", |c| c["num_hidden_layers"] = json!(3)),
                "Unexpected",
                &["model.layers.3.", "8 more"],
            ),
            (
                "config.json of another family",
                |f| f.json("config.json", |c| c["architectures"] = json!(["Qwen2ForCausalLM"])),
                "Missing",
                &["q_proj.bias"],
            ),
        ],
    );
}

#[test]
fn tables_of_rotary_frequencies_are_allowed_beside_the_model() {
    let folder = Folder::golden("llama");
    folder.shard(SHARD, |header, data| {
        for layer in 0..2 {
            let end = data.len();
            let name = format!("model.layers.{layer}.self_attn.rotary_emb.inv_freq");
            header.insert(name, json!({"dtype": "F32", "shape": [2], "data_offsets": [end, end + 8]}));
            data.extend([0; 8]);
        }
    });
    folder.open().unwrap();
}

#[test]
fn json_of_a_hundred_thousand_levels_is_refused_or_skipped_without_recursion() {
    let deep = nested(100_000);
    for place in ["\"__metadata__\":", "\"t\":", "\"t\":{\"dtype\":\"BF16\",\"shape\":"] {
        let folder = Folder::golden("llama");
        folder.write(SHARD, joined(&format!("{{{place}{deep}}}"), &[]));
        assert_refused(place, &folder, "Header", &[SHARD]);
    }
    let folder = Folder::golden("llama");
    folder.header(|text| text.replacen("\"dtype\"", &format!("\"more\":{deep},\"dtype\""), 1));
    // An unknown field is no harm; if it is refused, then by name.
    if let Err(error) = folder.open() {
        assert!(error.to_string().contains(SHARD), "{error}");
    }
    for text in [deep.clone(), format!("{{\"weight_map\":{deep}}}"), format!("{{\"more\":{deep}}}")] {
        let folder = Folder::golden("qwen3_moe");
        folder.write(INDEX, text);
        assert_refused("index", &folder, "Index", &[INDEX]);
    }
    for text in [deep.clone(), format!("{{\"architectures\":{deep}}}")] {
        let folder = Folder::golden("llama");
        folder.write("config.json", text);
        assert_refused("config", &folder, "Config", &["config.json"]);
    }
}

#[test]
fn a_weight_that_is_no_number_is_named_with_its_place_in_every_type() {
    let down = "model.layers.0.mlp.down_proj.weight"; // [4, 3]
    for (dtype, bytes, value) in [
        ("BF16", &[0xc0, 0x7f][..], "NaN"),
        ("BF16", &[0x80, 0x7f], "inf"),
        ("BF16", &[0x80, 0xff], "-inf"),
        ("F16", &[0x00, 0x7e], "NaN"),
        ("F16", &[0x00, 0x7c], "inf"),
        ("F16", &[0x01, 0xfc], "NaN"),
        ("F32", &[0x00, 0x00, 0xc0, 0x7f], "NaN"),
        ("F32", &[0x00, 0x00, 0x80, 0xff], "-inf"),
        ("F32", &[0x01, 0x00, 0x80, 0x7f], "NaN"),
    ] {
        for index in 0..12 {
            let folder = Folder::tiny("LlamaForCausalLM", dtype);
            folder.open().unwrap();
            folder.shard(SHARD, |header, data| {
                let start = header[down]["data_offsets"][0].as_u64().unwrap() as usize + index * bytes.len();
                data[start..start + bytes.len()].copy_from_slice(bytes);
            });
            let place = format!("holds {value} at index {index};");
            assert_refused(dtype, &folder, "NotFinite", &[SHARD, down, &place]);
        }
    }
}

#[test]
fn the_last_weight_of_a_long_tensor_is_looked_at_too() {
    // [211, 48]: 20256 bytes, no multiple of the 4096 that are tested at a time.
    let folder = Folder::golden("llama");
    folder.shard(SHARD, |_, data| data[20254..20256].copy_from_slice(&[0xc0, 0x7f]));
    assert_refused("the last weight", &folder, "NotFinite", &[EMBEDDING, "index 10127;"]);
}

/// Sizes of the golden GPT-OSS: 6 experts, gate and up of 128 rows and 96 columns.
const SCALES: &str = "model.layers.2.mlp.experts.gate_up_proj_scales"; // [6, 128, 3]
const BLOCKS: &str = "model.layers.2.mlp.experts.gate_up_proj_blocks"; // [6, 128, 3, 16]

#[test]
fn a_scale_whose_weights_bf16_does_not_hold_is_named_with_its_place() {
    for (value, index) in [(0, 0), (1, 2303), (253, 777), (254, 1), (255, 2302)] {
        let folder = Folder::golden("gpt_oss");
        folder.shard(SHARD, |header, data| {
            let start = header[SCALES]["data_offsets"][0].as_u64().unwrap() as usize;
            data[start + index] = value;
        });
        let place = format!("the scale {value} at index {index};");
        assert_refused("a scale", &folder, "Scale", &[SHARD, SCALES, &place, "2 to 252"]);
    }
    for value in [2, 252] {
        let folder = Folder::golden("gpt_oss");
        folder.shard(SHARD, |header, data| {
            let start = header[SCALES]["data_offsets"][0].as_u64().unwrap() as usize;
            data[start] = value;
        });
        folder.open().unwrap();
    }
}

#[test]
fn blocks_and_scales_of_another_type_or_shape_are_refused() {
    assert_all_refused(
        "gpt_oss",
        &[
            (
                "blocks of half as many BF16",
                |f| {
                    f.shard(SHARD, |header, _| {
                        header[BLOCKS]["dtype"] = json!("BF16");
                        header[BLOCKS]["shape"] = json!([6, 128, 3, 8]);
                    });
                },
                "WrongShape",
                &[SHARD, BLOCKS, "[6, 128, 3, 16]"],
            ),
            (
                "scales of another shape",
                |f| f.shard(SHARD, |header, _| header[SCALES]["shape"] = json!([6, 3, 128])),
                "WrongShape",
                &[SHARD, SCALES, "[6, 128, 3]"],
            ),
            (
                "fewer experts in config.json",
                |f| f.json("config.json", |c| c["num_local_experts"] = json!(5)),
                "WrongShape",
                &[SHARD, "[5, 96]", "[6, 96]"],
            ),
            (
                "another method",
                |f| f.json("config.json", |c| c["quantization_config"]["quant_method"] = json!("fp8")),
                "Config",
                &["quantization_config.quant_method", "`fp8`", "mxfp4"],
            ),
            (
                "no method",
                |f| f.json("config.json", |c| c["quantization_config"] = json!({})),
                "Config",
                &["quantization_config.quant_method", "missing"],
            ),
            (
                "not quantised",
                |f| f.json("config.json", |c| c["quantization_config"] = Value::Null),
                "Missing",
                &["mlp.experts.gate_up_proj`"],
            ),
            (
                "a width that is no whole number of blocks",
                |f| f.json("config.json", |c| c["intermediate_size"] = json!(65)),
                "Config",
                &["hidden_size", "65", "blocks of 32"],
            ),
            (
                "a limit that is no number",
                |f| f.json("config.json", |c| c["swiglu_limit"] = json!(-7)),
                "Config",
                &["swiglu_limit", "positive"],
            ),
            (
                "no word on rope",
                |f| {
                    f.json("config.json", |c| {
                        c.as_object_mut().unwrap().remove("rope_scaling");
                    });
                },
                "Config",
                &["rope_type", "missing"],
            ),
        ],
    );
}
