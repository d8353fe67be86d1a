//! `plan` against published models: configs as they are on the hub, and counts from their reference implementations.
//!
//! Numbers are those of transformers' modules without weights, and of the index files of published folders. Shapes whose
//! config.json is not among `tests/configs` are written down here.

use std::path::{Path, PathBuf};
use std::process::Command;

use engine_core::adapter::AdapterNeeds;
use engine_core::config::{ModelConfig, TensorKind};
use engine_core::model::Load;
use engine_core::plan::{Limits, Plan, PlanRequest};
use serde_json::{Value, json};
use simd::Dtype;

fn published(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/configs").join(format!("{name}_config.json"))
}

fn hub(name: &str) -> ModelConfig {
    ModelConfig::from_file(&published(name)).unwrap()
}

fn dense(architecture: &str, sizes: [u32; 5], vocab_size: u32) -> ModelConfig {
    let [hidden, layers, heads, key_value_heads, intermediate] = sizes;
    let config = json!({"architectures": [architecture], "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": key_value_heads, "intermediate_size": intermediate,
        "sliding_window": null, "vocab_size": vocab_size, "max_position_embeddings": 32_768, "torch_dtype": "bfloat16"});
    ModelConfig::from_json(Path::new("config.json"), config.to_string().as_bytes()).unwrap()
}

fn request(ctx_size: usize, load: Load) -> PlanRequest {
    PlanRequest {
        ctx_size,
        width: 1,
        ubatch_size: 256,
        logits: 1,
        threads: 2,
        kv_dtype: Dtype::F16,
        load,
        nodes: 1,
        adapters: AdapterNeeds::default(),
    }
}

struct Counted {
    name: &'static str,
    config: ModelConfig,
    parameters: u64,
    /// Bytes of the published folder, and those that a token meets: norms, biases and a row of the embedding included.
    checkpoint_bytes: u64,
    active_bytes: u64,
    /// Of keys and values in 16 bits.
    kv_bytes_per_token: u64,
    kv_gib: [f64; 3],
}

fn counted() -> Vec<Counted> {
    let row = |name, config, parameters, active_bytes, kv_bytes_per_token, kv_gib| Counted {
        name,
        config,
        parameters,
        checkpoint_bytes: 2 * parameters,
        active_bytes,
        kv_bytes_per_token,
        kv_gib,
    };
    let (llama, qwen2) = ("LlamaForCausalLM", "Qwen2ForCausalLM");
    let moe = "Qwen--Qwen3-30B-A3B";
    // Sliding layers of GPT-OSS have keys and values of all positions here: twice what only windows would take.
    let gpt_oss = |row: Counted, checkpoint_bytes| Counted { checkpoint_bytes, ..row };
    vec![
        row("30B-A3B", hub(moe), 30_532_122_624, 6_083_739_648, 98_304, [3.0, 12.0, 24.0]),
        row("235B", hub("Qwen--Qwen3-235B-A22B"), 235_093_634_560, 43_136_875_520, 192_512, [5.875, 23.5, 47.0]),
        row(
            "Coder-480B",
            hub("Qwen--Qwen3-Coder-480B-A35B-Instruct"),
            480_154_875_392,
            69_082_553_344,
            253_952,
            [7.75, 31.0, 62.0],
        ),
        gpt_oss(
            row("gpt-oss-20b", hub("openai--gpt-oss-20b"), 20_914_757_184, 3_708_089_088, 49_152, [1.5, 6.0, 12.0]),
            13_761_264_768,
        ),
        gpt_oss(
            row("gpt-oss-120b", hub("openai--gpt-oss-120b"), 116_829_156_672, 5_002_907_904, 73_728, [2.25, 9.0, 18.0]),
            65_248_815_744,
        ),
        row("Qwen3-0.6B", hub("Qwen--Qwen3-0.6B"), 596_049_920, 1_192_101_888, 114_688, [3.5, 14.0, 28.0]),
        row("Qwen3-8B", hub("Qwen--Qwen3-8B"), 8_190_735_360, 15_136_819_200, 147_456, [4.5, 18.0, 36.0]),
        row("Qwen3-32B", hub("Qwen--Qwen3-32B"), 32_762_123_264, 63_968_432_128, 262_144, [8.0, 32.0, 64.0]),
        row(
            "Qwen2.5-72B",
            dense(qwen2, [8192, 80, 64, 8, 29_568], 152_064),
            72_706_203_648,
            142_921_007_104,
            327_680,
            [10.0, 40.0, 80.0],
        ),
        row(
            "Qwen1.5-110B",
            dense(qwen2, [8192, 80, 64, 8, 49_152], 152_064),
            111_209_914_368,
            219_928_428_544,
            327_680,
            [10.0, 40.0, 80.0],
        ),
        row(
            "Llama-2-70B",
            dense(llama, [8192, 80, 64, 8, 28_672], 32_000),
            68_976_648_192,
            137_429_024_768,
            327_680,
            [10.0, 40.0, 80.0],
        ),
        row(
            "Llama-3.1-70B",
            dense(llama, [8192, 80, 64, 8, 28_672], 128_256),
            70_553_706_496,
            139_006_083_072,
            327_680,
            [10.0, 40.0, 80.0],
        ),
        row(
            "Llama-3.1-405B",
            dense(llama, [16_384, 126, 128, 8, 53_248], 128_256),
            405_853_388_800,
            807_504_117_760,
            516_096,
            [15.75, 63.0, 126.0],
        ),
        row(
            "Mistral-7B",
            dense("MistralForCausalLM", [4096, 32, 32, 8, 14_336], 32_768),
            7_248_023_552,
            14_227_619_840,
            131_072,
            [4.0, 16.0, 32.0],
        ),
        row(
            "Yi-34B",
            dense(llama, [7168, 60, 56, 8, 20_480], 64_000),
            34_388_917_248,
            67_860_344_832,
            245_760,
            [7.5, 30.0, 60.0],
        ),
        row(
            "Mixtral-8x7B",
            hub("mistralai--Mixtral-8x7B-v0.1"),
            46_702_792_704,
            25_497_714_688,
            131_072,
            [4.0, 16.0, 32.0],
        ),
        row(
            "Mixtral-8x22B",
            hub("mistralai--Mixtral-8x22B-v0.1"),
            140_620_634_112,
            77_910_859_776,
            229_376,
            [7.0, 28.0, 56.0],
        ),
    ]
}

#[test]
fn a_plan_counts_published_models_to_the_byte_at_every_length() {
    for Counted { name, config, parameters, checkpoint_bytes, active_bytes, kv_bytes_per_token, kv_gib } in counted() {
        for (ctx_size, gib) in [32_768, 131_072, 262_144].into_iter().zip(kv_gib) {
            let plan = Plan::new(&config, |_| Dtype::Bf16, &request(ctx_size, Load::Mapped));
            assert_eq!(plan.parameters, parameters, "{name}");
            assert_eq!(plan.checkpoint_bytes, checkpoint_bytes, "{name}");
            assert_eq!(plan.bytes_by_type.values().sum::<u64>(), checkpoint_bytes, "{name}");
            assert_eq!(plan.kv_bytes_per_token, kv_bytes_per_token, "{name}");
            assert_eq!(plan.kv_bytes as f64 / f64::from(1 << 30), gib, "{name} at {ctx_size}");
            let total = plan.checkpoint_bytes + plan.kv_bytes + plan.scratch_bytes;
            let vectors = |of_expert: bool| -> u64 {
                let tensors = config.tensors().into_iter();
                let vectors =
                    tensors.filter(|tensor| tensor.kind == TensorKind::Vector && tensor.is_of_expert() == of_expert);
                vectors.map(|tensor| 2 * tensor.parameters()).sum()
            };
            assert_eq!(plan.total_bytes, total + 2 * (vectors(true) + vectors(false)), "{name}: vectors are float32");

            // `bytes_per_token` counts matrices: norms, biases and a row of the embedding are too small to matter.
            let shares = config.sparse_layers().map(|(_, sparse)| (sparse.num_experts_per_tok, sparse.num_experts));
            let (active, all) = shares.last().unwrap_or((1, 1));
            let of_experts = vectors(true) * active as u64 / all as u64;
            let row = 2 * config.hidden_size as u64;
            // Tied models read the embedding as their output matrix.
            assert_eq!(plan.bytes_per_token + vectors(false) + of_experts + row, active_bytes, "{name}");
        }
    }
}

#[test]
fn experts_and_the_rest_are_counted_apart_for_a_gpu() {
    // Experts; attention, routers and norms; output matrix; one expert.
    for (name, experts, rest, lm_head, expert) in [
        ("Qwen--Qwen3-30B-A3B", 57_982_058_496, 1_837_527_040, 622_329_856, 9_437_184),
        ("Qwen--Qwen3-235B-A22B", 454_192_791_552, 13_505_158_144, 1_244_659_712, 37_748_736),
        ("Qwen--Qwen3-Coder-480B-A35B-Instruct", 936_168_652_800, 20_407_118_848, 1_866_989_568, 94_371_840),
        ("openai--gpt-oss-120b", 60_993_699_840, 1_938_582_144, 1_158_266_880, 13_236_480),
    ] {
        let config = hub(name);
        let plan = Plan::new(&config, |_| Dtype::Bf16, &request(131_072, Load::Mapped));
        assert_eq!(plan.expert_bytes, experts, "{name}");
        let gpu = plan.on_gpu(96 << 30, config.tie_word_embeddings);
        assert_eq!(gpu.always_bytes, rest + lm_head, "{name}");
        assert_eq!(gpu.expert_bytes, expert, "{name}");
        assert!(gpu.fits);
        let left = (96 << 30) - gpu.always_bytes - gpu.kv_bytes;
        assert_eq!(gpu.experts_that_fit, (left / expert).min(gpu.experts), "{name}");
        assert!(!plan.on_gpu(1 << 30, false).fits);
    }
}

#[test]
fn speeds_follow_from_bytes_operations_and_the_limits_of_the_machine() {
    // At 460 GB/s and 128k: what the bytes of weights, keys and values allow.
    let limits = Limits { read_bandwidth: 460e9, peak_flops: 4e12 };
    for (name, empty, full) in [
        ("Qwen--Qwen3-30B-A3B", 75.6, 24.3),
        ("Qwen--Qwen3-235B-A22B", 10.66, 6.7),
        ("Qwen--Qwen3-Coder-480B-A35B-Instruct", 6.66, 4.5),
        ("openai--gpt-oss-120b", 91.9, 46.8),
        ("openai--gpt-oss-20b", 124.1, 66.4),
    ] {
        let (config, request) = (hub(name), request(131_072, Load::Resident));
        let plan = Plan::new(&config, |_| Dtype::Bf16, &request);
        let expected = plan.expected(&config, &request, 2, limits);
        let near = |got: f64, want: f64| (got / want - 1.0).abs() < 0.01;
        assert!(near(expected.decode, empty), "{name}: {}", expected.decode);
        assert!(near(expected.decode_at_full_context, full), "{name}: {}", expected.decode_at_full_context);
        // Bound by operations or by reading every expert once for 256 rows; never faster than either.
        let operations = 4e12 / (4.0 * plan.weights_per_token as f64);
        let reading = 256.0 * 460e9 / (plan.checkpoint_bytes - plan.embedding_bytes) as f64;
        assert!(near(expected.prefill, operations.min(reading)), "{name}: {}", expected.prefill);
    }
}

fn plan(arguments: &[&str]) -> (Option<i32>, String, String) {
    let run = Command::new(env!("CARGO_BIN_EXE_nightmonk")).arg("plan").args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (run.status.code(), text(&run.stdout), text(&run.stderr))
}

#[test]
fn plan_needs_a_config_alone_and_describes_other_machines() {
    let file = published("Qwen--Qwen3-Coder-480B-A35B-Instruct");
    let file = file.to_str().unwrap();
    let of_machine = ["-m", file, "--ram", "1100GiB", "--nodes", "2", "-c", "262144", "--vram", "96GiB"];
    let speeds = ["--bandwidth", "460", "--peak", "4000"];
    let (status, out, said) = plan(&[&of_machine[..], &speeds[..], &["-o", "json"]].concat());
    assert_eq!(status, Some(0), "{said}");
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document["parameters"], 480_154_875_392_u64);
    assert_eq!(document["bytes_by_type"]["BF16"], 960_309_750_784_u64);
    assert_eq!(document["kv_bytes"], (62_u64 << 30) + 2 * (2 << 20));
    // 62 GiB of keys and values and 20.7 of weights, and a hundred experts of 90 MiB.
    assert_eq!(document["gpu"]["fits"], true);
    assert_eq!(document["gpu"]["experts_that_fit"], 150);
    let node = document["node_bytes"].as_u64().unwrap();
    let both = document["weight_bytes"].as_u64().unwrap() + document["kv_bytes"].as_u64().unwrap();
    assert_eq!(node, both / 2);
    assert!(document["packed_weight_bytes"].as_u64().unwrap() < document["weight_bytes"].as_u64().unwrap() * 77 / 100);
    assert!((document["expected"]["decode"].as_f64().unwrap() - 6.66).abs() < 0.01);

    let (status, out, said) = plan(&[&of_machine[..], &speeds[..]].concat());
    assert_eq!(status, Some(0), "{said}");
    for part in ["BF16 894.36 GiB", "weights, packed", "on the fullest of 2 nodes", "6.7 tok/s", "GPU"] {
        assert!(out.contains(part), "{part} in\n{out}");
    }
    // Nothing is said about the speed of a machine that is only described.
    let (status, out, said) = plan(&of_machine);
    assert_eq!(status, Some(0), "{said}");
    assert!(!out.contains("tok/s"), "{out}");
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let file = published("Qwen--Qwen3-30B-A3B");
    let file = file.to_str().unwrap();
    let asked = ["-m", file, "--ram", "60GiB", "--load", "resident", "-c", "40960", "-ctk", "f32"];
    let (status, out, said) = plan(&[&asked[..], &["-o", "json"]].concat());
    assert_eq!(status, Some(3), "{said}");
    for part in ["--ctx-size", "`nightmonk pack`"] {
        assert!(said.contains(part), "{said}");
    }
    let document: Value = serde_json::from_str(&out).unwrap();
    let ways: Vec<&str> =
        document["instead"].as_array().unwrap().iter().map(|way| way["way"].as_str().unwrap()).collect();
    assert!(
        ways.contains(&"a folder of `nightmonk pack`")
            && ways.iter().any(|way| way.starts_with("`--cache-type-k f16` and")),
        "{ways:?}"
    );
    assert!(document["instead"].as_array().unwrap().iter().all(|way| way["total_bytes"].as_u64().unwrap() <= 60 << 30));
    // F16 halves the keys and values: 3.75 GiB in place of 7.5.
    let (status, _, said) = plan(&["-m", file, "--ram", "62GiB", "--load", "resident", "-c", "40960", "-ctk", "f32"]);
    assert_eq!(status, Some(3), "{said}");
    assert!(said.contains("it fits with `--cache-type-k f16`"), "{said}");
}

#[test]
fn a_node_without_room_for_its_share_is_named_though_the_machine_has_room() {
    let model = published("Qwen--Qwen3-30B-A3B");
    let file = tempfile::NamedTempFile::new().unwrap();
    let nodes = |sizes: [u64; 2]| {
        let node = |(id, gib): (usize, u64)| {
            let distances = if id == 0 { [10, 21] } else { [21, 10] };
            serde_json::json!({"id": id, "cores": 16, "memory_bytes": gib << 30, "distances": distances})
        };
        let all: Vec<Value> = sizes.into_iter().enumerate().map(node).collect();
        std::fs::write(file.path(), serde_json::json!({ "nodes": all }).to_string()).unwrap();
    };
    let asked =
        ["-m", model.to_str().unwrap(), "--topology", file.path().to_str().unwrap(), "-c", "4096", "-o", "json"];
    let resident = [&asked[..], &["--load", "resident"]].concat();

    nodes([48, 48]);
    let (status, out, said) = plan(&resident);
    assert_eq!(status, Some(0), "{said}");
    let fits: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(fits["nodes"], 2);
    assert!(fits["expected"].is_null(), "nothing is known of the speed of another machine");

    nodes([72, 24]);
    let (status, out, said) = plan(&resident);
    assert_eq!(status, Some(3), "{said}");
    assert!(said.contains("node 1 would hold") && said.contains("`--load mapped`"), "{said}");
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&document["fits"], &document["node"]["id"]), (&Value::Bool(false), &Value::from(1)));
    assert_eq!(document["node"]["needs_bytes"], fits["node_bytes"]);
    assert!(document["total_bytes"].as_u64().unwrap() < document["available_bytes"].as_u64().unwrap());
    // Weights that are mapped are not cut, and a machine that is taken as one has room.
    let (status, out, said) = plan(&asked);
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["load"], "mapped");
    assert_eq!(plan(&[&resident[..], &["--numa", "off"]].concat()).0, Some(0));

    let (status, _, said) = plan(&[&resident[..], &["--nodes", "2"]].concat());
    assert_eq!(status, Some(2), "{said}");
    let (status, _, said) = plan(&["-m", model.to_str().unwrap(), "--topology", "2xmany"]);
    assert_eq!(status, Some(2), "{said}");
}

#[test]
fn architectures_that_are_not_there_are_refused_with_what_they_need() {
    for name in ["deepseek-ai--DeepSeek-V3", "moonshotai--Kimi-K2-Instruct"] {
        let (status, _, said) = plan(&["-m", published(name).to_str().unwrap(), "--ram", "4TiB"]);
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains("latent attention") && said.contains("Qwen3MoeForCausalLM"), "{said}");
    }
}
