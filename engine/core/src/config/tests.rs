//! Published config files, both dialects, refusals; rope frequencies against transformers' own.

use std::path::Path;

use super::*;

fn parse(json: &str) -> Result<ModelConfig, ConfigError> {
    ModelConfig::from_json(Path::new("config.json"), json.as_bytes())
}

const QWEN3_30B_A3B: &str = r#"{"architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false,
    "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144,
    "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe",
    "moe_intermediate_size": 768, "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
    "rope_scaling": null, "rope_theta": 1000000.0, "sliding_window": null, "tie_word_embeddings": false,
    "torch_dtype": "bfloat16", "use_sliding_window": false, "vocab_size": 151936}"#;

fn parameters(config: &ModelConfig) -> u64 {
    config.tensors().iter().map(TensorSpec::parameters).sum()
}

/// As published: every field that is read, and some that are not.
fn gpt_oss(layers: usize, experts: usize) -> serde_json::Value {
    let kinds: Vec<_> = (0..layers).map(|layer| ["sliding_attention", "full_attention"][layer % 2]).collect();
    serde_json::json!({
        "architectures": ["GptOssForCausalLM"], "attention_bias": true, "attention_dropout": 0.0,
        "eos_token_id": 200_002, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
        "initial_context_length": 4096, "intermediate_size": 2880, "layer_types": kinds,
        "max_position_embeddings": 131_072, "model_type": "gpt_oss", "num_attention_heads": 64,
        "num_experts_per_tok": 4, "num_hidden_layers": layers, "num_key_value_heads": 8, "num_local_experts": experts,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"
            ],
            "quant_method": "mxfp4"
        },
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
            "rope_type": "yarn", "truncate": false
        },
        "rope_theta": 150_000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
        "tie_word_embeddings": false, "transformers_version": "4.55.0.dev0", "use_cache": true, "vocab_size": 201_088
    })
}

#[test]
fn gpt_oss_has_the_parameters_and_the_bytes_that_its_index_files_name() {
    for (layers, experts, parameter_count, bytes) in
        [(24, 32, 20_914_757_184, 13_761_264_768), (36, 128, 116_829_156_672, 65_248_815_744)]
    {
        let config = parse(&gpt_oss(layers, experts).to_string()).unwrap();
        assert_eq!(parameters(&config), parameter_count);
        let published = |spec: &TensorSpec| spec.published_bytes(simd::Dtype::Bf16);
        assert_eq!(config.tensors().iter().map(published).sum::<u64>(), bytes);
        let windows: Vec<_> = config.layers.iter().map(|layer| layer.window).take(3).collect();
        assert_eq!(windows, [Some(128), None, Some(128)]);
        assert_eq!(config.attention_bias, AttentionBias::Qkvo);
        assert_eq!(config.activation, Activation::ClampedSilu { limit: 7.0, alpha: 1.702 });
        assert!(config.attention_sinks);
        // 0.1 ln 32 + 1, on cos and sin.
        assert!((config.rope.attention_factor() - 1.346_573_6).abs() < 1e-6);
    }
    // As transformers 5 writes it.
    let mut newer = gpt_oss(24, 32);
    let fields = newer.as_object_mut().unwrap();
    let (mut rope, theta) = (fields.remove("rope_scaling").unwrap(), fields.remove("rope_theta").unwrap());
    rope["rope_theta"] = theta;
    fields.insert("rope_parameters".into(), rope);
    assert_eq!(parse(&newer.to_string()).unwrap(), parse(&gpt_oss(24, 32).to_string()).unwrap());
}

#[test]
fn the_tensors_of_published_configs_add_up_to_their_published_parameter_counts() {
    assert_eq!(parameters(&parse(QWEN3_30B_A3B).unwrap()), 30_532_122_624);
    let mixtral = r#"{"architectures": ["MixtralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32,
        "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": null, "tie_word_embeddings": false,
        "vocab_size": 32000}"#;
    assert_eq!(parameters(&parse(mixtral).unwrap()), 46_702_792_704);
    let qwen3 = r#"{"architectures": ["Qwen3ForCausalLM"], "head_dim": 128, "hidden_size": 1024,
        "intermediate_size": 3072, "max_position_embeddings": 40960, "num_attention_heads": 16,
        "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_theta": 1000000,
        "tie_word_embeddings": true, "vocab_size": 151936}"#;
    assert_eq!(parameters(&parse(qwen3).unwrap()), 596_049_920);
    let qwen2 = r#"{"architectures": ["Qwen2ForCausalLM"], "hidden_size": 8192, "intermediate_size": 29568,
        "max_position_embeddings": 32768, "max_window_layers": 80, "num_attention_heads": 64,
        "num_hidden_layers": 80, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "sliding_window": 131072, "use_sliding_window": false, "tie_word_embeddings": false, "vocab_size": 152064}"#;
    let qwen2 = parse(qwen2).unwrap();
    assert_eq!(parameters(&qwen2), 72_706_203_648);
    assert!(qwen2.layers.iter().all(|layer| layer.window.is_none()), "a window that is not used is no window");
}

#[test]
fn both_dialects_of_config_json_give_the_same_model() {
    let newer = QWEN3_30B_A3B
        .replace("\"num_experts\"", "\"num_local_experts\"")
        .replace("\"torch_dtype\"", "\"dtype\"")
        .replace(
            "\"rope_scaling\": null, \"rope_theta\": 1000000.0",
            "\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 1000000.0}",
        );
    assert_ne!(newer, QWEN3_30B_A3B);
    assert_eq!(parse(&newer).unwrap(), parse(QWEN3_30B_A3B).unwrap());
}

#[test]
fn a_wrong_field_is_named_with_what_it_may_be() {
    for (from, to, part) in [
        ("\"hidden_size\": 2048", "\"hidden_size\": -1", "`hidden_size` is -1; it must be a whole number"),
        ("\"num_key_value_heads\": 4", "\"num_key_value_heads\": 5", "does not divide num_attention_heads"),
        ("\"num_experts_per_tok\": 8", "\"num_experts_per_tok\": 129", "from 1 to 128"),
        (
            "\"rope_scaling\": null",
            "\"rope_scaling\": {\"rope_type\": \"longrope\"}",
            "supported: default, linear, dynamic",
        ),
        ("\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"", "supported: silu"),
        ("Qwen3MoeForCausalLM", "GemmaForCausalLM", "supported: LlamaForCausalLM"),
        ("\"vocab_size\": 151936", "\"vocab_size\": 99999999999", "`vocab_size`"),
        ("\"rms_norm_eps\": 1e-06", "\"rms_norm_eps\": \"x\"", "must be a positive number"),
        ("\"decoder_sparse_step\": 1", "\"quantization_config\": {}", "unquantised"),
        ("\"num_key_value_heads\": 4,", "", "`num_key_value_heads` is missing"),
    ] {
        assert!(QWEN3_30B_A3B.contains(from), "{from}");
        let error = parse(&QWEN3_30B_A3B.replace(from, to)).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert!(parse("[]").is_err());
    assert!(parse("{").is_err());
}

#[test]
fn windows_follow_the_rule_of_the_family_or_the_list_of_layers() {
    let base = r#"{"architectures": ["Qwen2ForCausalLM"], "hidden_size": 64, "intermediate_size": 64,
        "max_position_embeddings": 512, "num_attention_heads": 4, "num_hidden_layers": 3, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "sliding_window": 16, "use_sliding_window": true, "max_window_layers": 2, "vocab_size": 100}"#;
    let windows = |json: &str| parse(json).unwrap().layers.iter().map(|layer| layer.window).collect::<Vec<_>>();
    assert_eq!(windows(base), [None, None, Some(16)]);
    assert_eq!(windows(&base.replace("Qwen2", "Mistral")), [Some(16); 3]);
    assert_eq!(windows(&base.replace("Qwen2", "Llama")), [None; 3]);
    let listed = base.replace(
        "\"max_window_layers\": 2",
        "\"layer_types\": [\"sliding_attention\", \"full_attention\", \"sliding_attention\"]",
    );
    assert_eq!(windows(&listed), [Some(16), None, Some(16)]);
}

/// transformers computes frequencies in float32, we in float64 rounded once: they differ by the former's roundings.
#[test]
fn rope_frequencies_are_those_of_transformers_for_every_scaling() {
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../../../../tests/golden/rope.json")).expect("golden data is JSON");
    let cases = golden["cases"].as_array().expect("a list");
    assert!(cases.len() >= 13);
    for case in cases {
        let mut config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 512, "intermediate_size": 64,
            "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 100,
        });
        for (field, value) in case["config"].as_object().expect("an object") {
            config[field] = value.clone();
        }
        let mut config = parse(&config.to_string()).unwrap();
        // The reference is a sequence that ends at the last of its positions.
        config.for_context(golden["positions"].as_array().and_then(|all| all.last()?.as_u64()).unwrap() as usize + 1);
        let rope = config.rope;
        let name = case["name"].as_str().expect("a name");
        let want: Vec<f32> = case["inv_freq"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
        let got = rope.inv_freq();
        assert_eq!(got.len(), want.len(), "{name}");
        for (pair, (got, want)) in got.iter().zip(&want).enumerate() {
            let slack = 8.0 * f32::EPSILON * want.abs();
            assert!((got - want).abs() <= slack, "{name}, pair {pair}: got {got}, want {want}");
        }
        let factor = case["attention_factor"].as_f64().unwrap() as f32;
        assert!((rope.attention_factor() - factor).abs() <= 2.0 * f32::EPSILON, "{name}: {}", rope.attention_factor());
    }
}
