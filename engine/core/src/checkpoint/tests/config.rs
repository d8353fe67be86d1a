//! Each field of config.json, wrong.

use std::fs;

use serde_json::{Value, json};

use super::sample::{Folder, SHARD};
use crate::checkpoint::CheckpointError;

#[test]
fn each_wrong_field_of_config_json_is_named() {
    let dense: Vec<(&str, Vec<Value>)> = vec![
        ("architectures", vec![json!(5), json!(["GemmaForCausalLM"]), json!(["\u{1b}[2J"])]),
        (
            "hidden_size",
            vec![json!(0), json!(-1), json!("48"), json!(48.5), json!(131_073), json!(u64::MAX), json!([48])],
        ),
        ("num_hidden_layers", vec![json!(0), json!(513), json!(1e9)]),
        ("num_attention_heads", vec![json!(0), json!(1025), json!(true)]),
        ("num_key_value_heads", vec![json!(0), json!(4), json!(1025)]),
        ("head_dim", vec![json!(0), json!(1), json!(3), json!(1026)]),
        ("intermediate_size", vec![json!(0), json!(1_048_577), Value::Null]),
        ("vocab_size", vec![json!(0), json!(2_097_153), Value::Null]),
        ("max_position_embeddings", vec![json!(0), json!(16_777_217), Value::Null]),
        ("rms_norm_eps", vec![json!(0), json!(-1e-6), json!("small"), json!(1e-60), json!(1e60)]),
        ("rope_theta", vec![json!(0), json!(-1), json!("x"), json!(1e-320)]),
        ("partial_rotary_factor", vec![json!(0), json!(1e-9), json!(1.5), json!(1e300)]),
        ("rope_scaling", vec![json!(5), json!([]), json!("linear")]),
        ("rope_type", vec![json!({"rope_scaling": "longrope"})]),
        ("hidden_act", vec![json!("gelu"), json!(5)]),
        ("mlp_bias", vec![json!(true), json!(1)]),
        ("attention_bias", vec![json!(1), json!("no")]),
        ("tie_word_embeddings", vec![json!("yes"), json!(1)]),
        ("quantization_config", vec![json!({})]),
        ("sliding_window", vec![json!("x"), json!(-1), json!(0)]),
        (
            "layer_types",
            vec![json!(5), json!([]), json!(["full_attention", 1, 2, 3]), json!(vec!["linear_attention"; 4])],
        ),
        ("torch_dtype", vec![json!(5)]),
    ];
    let sparse: Vec<(&str, Vec<Value>)> = vec![
        ("num_experts", vec![json!(0), json!(4097), json!("8")]),
        ("num_experts_per_tok", vec![json!(0), json!(9), json!(-1), Value::Null]),
        ("moe_intermediate_size", vec![json!(0), json!(1_048_577), Value::Null]),
        ("decoder_sparse_step", vec![json!(0), json!(513), json!("x")]),
        ("mlp_only_layers", vec![json!(5), json!([-1]), json!(["1"]), json!([0, 0, 0, 0, 0]), json!([512])]),
        ("norm_topk_prob", vec![json!(1), json!("yes")]),
        ("use_sliding_window", vec![json!(1)]),
    ];
    let mut cases = 0;
    for (family, fields) in [("llama", dense), ("qwen3_moe", sparse)] {
        for (field, values) in fields {
            for value in values {
                let folder = Folder::golden(family);
                folder.json("config.json", |config| match field {
                    "rope_type" => config["rope_scaling"] = json!({"rope_type": "longrope"}),
                    _ => config[field] = value.clone(),
                });
                let Err(CheckpointError::Config(error)) = folder.open() else { panic!("{field}: {value} is allowed") };
                let message = error.to_string();
                let named = if field == "architectures" { "architecture" } else { field };
                assert!(message.contains("config.json") && message.contains(named), "{field} = {value}: {message}");
                cases += 1;
            }
        }
    }
    assert!(cases >= 80, "{cases}");
}

#[test]
fn a_scaling_of_frequencies_that_lacks_a_number_is_named() {
    for (scaling, field) in [
        (json!({"rope_type": "linear"}), "rope_scaling.factor"),
        (json!({"type": "yarn"}), "rope_scaling.factor"),
        (json!({"rope_type": "yarn", "factor": 0}), "rope_scaling.factor"),
        (json!({"rope_type": "yarn", "factor": 4, "truncate": 1}), "rope_scaling.truncate"),
        (json!({"rope_type": "llama3", "factor": 8}), "rope_scaling.low_freq_factor"),
        (json!({"rope_type": "linear", "factor": 1e-320}), "rope_theta"),
        (json!({"rope_type": "yarn", "factor": 4, "attention_factor": 1e300}), "rope_theta"),
    ] {
        let folder = Folder::golden("llama");
        folder.json("config.json", |config| config["rope_scaling"] = scaling.clone());
        let Err(CheckpointError::Config(error)) = folder.open() else { panic!("{scaling} is allowed") };
        assert!(error.to_string().contains(field), "{scaling}: {error}");
    }
}

#[test]
fn a_config_json_that_is_none_is_refused() {
    type Damage = (&'static str, fn(&Folder));
    let damages: [Damage; 8] = [
        ("missing", |f| f.remove("config.json")),
        ("empty", |f| f.write("config.json", "")),
        ("a list", |f| f.write("config.json", "[]")),
        ("cut", |f| f.write("config.json", &f.read("config.json")[..100])),
        ("not UTF-8", |f| f.write("config.json", [b'{', b'"', 0xff, b'"', b':', b'1', b'}'])),
        ("too large", |f| f.write("config.json", vec![b' '; (4 << 20) + 1])),
        ("a folder", |f| {
            f.remove("config.json");
            fs::create_dir(f.path("config.json")).unwrap();
        }),
        ("a device without end", |f| {
            f.remove("config.json");
            std::os::unix::fs::symlink("/dev/zero", f.path("config.json")).unwrap();
        }),
    ];
    for (what, damage) in damages {
        let folder = Folder::golden("llama");
        damage(&folder);
        let Err(CheckpointError::Config(error)) = folder.open() else { panic!("{what}: the folder opened") };
        assert!(error.to_string().contains("config.json"), "{what}: {error}");
    }
    // The weights alone are no model: their names do not tell what to do with them.
    assert!(Folder::golden("llama").path(SHARD).exists());
}

#[test]
fn a_small_config_cannot_ask_for_gigabytes_of_tensor_names() {
    let folder = Folder::golden("qwen3_moe");
    folder.json("config.json", |config| {
        config["num_experts"] = json!(4096);
        config["num_hidden_layers"] = json!(512);
    });
    let Err(CheckpointError::Config(error)) = folder.open() else { panic!("the folder opened") };
    assert!(error.to_string().contains("num_experts"), "{error}");
}
