//! The plan's numbers against counts made elsewhere: by hand from published models, and by what is really allocated.

use std::num::NonZeroUsize;
use std::path::Path;

use numa::{Pinning, Pool};
use proptest::prelude::*;
use serde_json::{Value, json};
use simd::Isa;
use simd::matmul::Activations;

use super::*;
use crate::model::{Model, ModelOptions, Workspace};

fn config(json: &Value) -> ModelConfig {
    ModelConfig::from_json(Path::new("config.json"), json.to_string().as_bytes()).unwrap()
}

fn request(ctx_size: usize, load: Load) -> PlanRequest {
    PlanRequest {
        ctx_size,
        width: 1,
        ubatch_size: 256,
        logits: 1,
        threads: 2,
        kv_dtype: Dtype::Bf16,
        load,
        nodes: 1,
        adapters: AdapterNeeds::default(),
    }
}

fn qwen3_moe(hidden: u32, layers: u32, heads: u32, experts: u32, moe_size: u32) -> Value {
    json!({"architectures": ["Qwen3MoeForCausalLM"], "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": if layers == 62 { 8 } else { 4 }, "head_dim": 128,
        "intermediate_size": 6144, "moe_intermediate_size": moe_size, "num_experts": experts, "num_experts_per_tok": 8,
        "norm_topk_prob": true, "vocab_size": 151_936, "max_position_embeddings": 262_144, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16"})
}

fn dense(architecture: &str, sizes: [u32; 5], vocab_size: u32) -> Value {
    let [hidden, layers, heads, key_value_heads, intermediate] = sizes;
    json!({"architectures": [architecture], "hidden_size": hidden, "num_hidden_layers": layers, "head_dim": 128,
        "num_attention_heads": heads, "num_key_value_heads": key_value_heads, "intermediate_size": intermediate,
        "vocab_size": vocab_size, "max_position_embeddings": 131_072, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16"})
}

#[test]
fn published_models_take_the_bytes_that_were_counted_from_their_reference_implementations() {
    // Counted from transformers' modules without weights. Active bytes there hold norms and one row of the embedding,
    // which are too small to be read for speed's sake; here `bytes_per_token` counts matrices.
    let mut mixtral = dense("MixtralForCausalLM", [4096, 32, 32, 8, 14_336], 32_000);
    mixtral["num_local_experts"] = json!(8);
    mixtral["num_experts_per_tok"] = json!(2);
    mixtral["rms_norm_eps"] = json!(1e-5);
    mixtral["rope_theta"] = json!(1e6);
    let table: [(&str, Value, u64, u64, u64); 6] = [
        ("Qwen3-30B-A3B", qwen3_moe(2048, 48, 32, 128, 768), 61_064_245_248, 6_083_739_648, 98_304),
        ("Qwen3-235B-A22B", qwen3_moe(4096, 94, 64, 128, 1536), 470_187_269_120, 43_136_875_520, 192_512),
        ("Qwen3-Coder-480B", qwen3_moe(6144, 62, 96, 160, 2560), 960_309_750_784, 69_082_553_344, 253_952),
        ("Mixtral-8x7B", mixtral, 93_405_585_408, 25_497_714_688, 131_072),
        (
            "Qwen3-8B",
            dense("Qwen3ForCausalLM", [4096, 36, 32, 8, 12_288], 151_936),
            16_381_470_720,
            15_136_819_200,
            147_456,
        ),
        (
            "Llama-3.1-70B",
            dense("LlamaForCausalLM", [8192, 80, 64, 8, 28_672], 128_256),
            141_107_412_992,
            139_006_083_072,
            327_680,
        ),
    ];
    for (name, json, checkpoint_bytes, active_bytes, kv_bytes_per_token) in table {
        let config = config(&json);
        for ctx_size in [32_768, 131_072] {
            let mapped = Plan::new(&config, |_| Dtype::Bf16, &request(ctx_size, Load::Mapped));
            assert_eq!(mapped.checkpoint_bytes, checkpoint_bytes, "{name}");
            assert_eq!(mapped.parameters * 2, checkpoint_bytes, "{name}");
            assert_eq!(mapped.kv_bytes_per_token, kv_bytes_per_token, "{name}");
            assert_eq!(mapped.kv_bytes, kv_bytes_per_token * ctx_size as u64, "{name} at {ctx_size}");
            assert_eq!(mapped.mapped_bytes, checkpoint_bytes, "{name}");

            let vectors: u64 = config.tensors().iter().filter(|t| t.shape.len() == 1).map(|t| t.shape[0] as u64).sum();
            let embedding_row = 2 * config.hidden_size as u64;
            assert_eq!(mapped.bytes_per_token + 2 * vectors + embedding_row, active_bytes, "{name}");

            // Panels have 16 rows; of these models only Mixtral has matrices that end within one: routers of 8 rows.
            let resident = Plan::new(&config, |_| Dtype::Bf16, &request(ctx_size, Load::Resident));
            let embedding = 2 * (config.vocab_size * config.hidden_size) as u64;
            let padding = if name.starts_with("Mixtral") { 32 * 8 * 4096 * 2 } else { 0 };
            assert_eq!(resident.weight_bytes, checkpoint_bytes - embedding + 2 * vectors + padding, "{name}");
            assert_eq!(resident.mapped_bytes, embedding, "{name}");
        }
    }
}

#[test]
fn gpt_oss_keeps_the_size_that_it_is_published_with() {
    let mut gpt_oss = json!({"architectures": ["GptOssForCausalLM"], "hidden_size": 2880, "num_hidden_layers": 24,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 2880,
        "num_local_experts": 32, "num_experts_per_tok": 4, "vocab_size": 201_088, "max_position_embeddings": 131_072,
        "attention_bias": true, "rms_norm_eps": 1e-5, "rope_theta": 15e4, "rope_scaling": {"rope_type": "default"},
        "quantization_config": {"quant_method": "mxfp4"}, "tie_word_embeddings": false});
    gpt_oss["layer_types"] = json!(vec!["full_attention"; 24]);
    let config = config(&gpt_oss);
    let mapped = Plan::new(&config, |_| Dtype::Bf16, &request(4096, Load::Mapped));
    assert_eq!(mapped.checkpoint_bytes, 13_761_264_768);
    assert_eq!(mapped.mapped_bytes, mapped.checkpoint_bytes);
    // What a token reads of matrices: all active bytes, counted elsewhere, without vectors and the row of the embedding.
    let expert = 3 * 2880 * 2880 / 32 * 17;
    let attention = 2 * 2880 * (2 * 64 * 64 + 2 * 8 * 64);
    assert_eq!(mapped.bytes_per_token, 24 * (4 * expert + attention + 2 * 32 * 2880) + 2 * 201_088 * 2880);

    // Panels of 2880 columns are 90 blocks in 23 groups: half a block more than there is.
    let resident = Plan::new(&config, |_| Dtype::Bf16, &request(4096, Load::Resident));
    let embedding = 2 * 201_088 * 2880;
    let vectors: u64 = config.tensors().iter().filter(|t| t.kind == TensorKind::Vector).map(|t| t.parameters()).sum();
    let padding = 24 * 32 * (3 * 2880 / 16) * (23 * 64 - 90 * 16);
    assert_eq!(resident.weight_bytes, resident.checkpoint_bytes - embedding + 2 * vectors + padding);
    assert_eq!(resident.mapped_bytes, embedding);
}

fn golden(family: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(family)
}

const FAMILIES: [&str; 12] = [
    "llama",
    "llama3",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "qwen3_moe_unnormed",
    "qwen3_moe_fused",
    "mixtral",
    "mixtral_fused",
    "gpt_oss",
    "gpt_oss_bf16",
];

#[test]
fn a_loaded_model_takes_the_bytes_of_its_plan() {
    for family in FAMILIES {
        for load in [Load::Resident, Load::Mapped] {
            let options = ModelOptions { isa: Isa::detect(), activations: Activations::Bf16x2, load, threads: 1 };
            let model = Model::load(&golden(family), options, &mut |_| {}).unwrap();
            let checkpoint = model.checkpoint();
            let plan = Plan::new(model.config(), |name| checkpoint.form(name), &request(64, load));

            let vectors = model.config().tensors().into_iter().filter(|tensor| tensor.kind == TensorKind::Vector);
            let vector_bytes: usize = vectors.map(|tensor| tensor.parameters() as usize * size_of::<f32>()).sum();
            // The plan rounds every matrix up to a cache line; after the last one there is no next.
            let rounding = plan.weight_bytes as usize - vector_bytes - model.resident_bytes();
            assert!(rounding < 64, "{family}, {load}: the plan has {rounding} bytes too many");
            assert_eq!(plan.bytes_per_token as usize, model.bytes_per_token(), "{family}, {load}");
            assert_eq!(plan.weights_per_token as usize, model.weights_per_token(), "{family}, {load}");

            let tensors = model.config().tensors().into_iter().map(|tensor| checkpoint.location(&tensor.name).size());
            assert_eq!(plan.checkpoint_bytes as usize, tensors.sum::<usize>(), "{family}");
        }
    }
}

#[test]
fn regions_of_several_nodes_are_counted_with_their_padding() {
    let config = config(&qwen3_moe(2048, 48, 32, 128, 768));
    let plan = |load, nodes| Plan::new(&config, |_| Dtype::Bf16, &PlanRequest { nodes, ..request(4096, load) });
    let (one, two) = (plan(Load::Resident, 1), plan(Load::Resident, 2));
    assert_eq!(two.weight_bytes - one.weight_bytes, 2 * (2 << 20));
    assert_eq!(two.kv_bytes - one.kv_bytes, 2 * (2 << 20));
    assert_eq!(two.total_bytes - one.total_bytes, 4 * (2 << 20));
    assert_eq!(plan(Load::Mapped, 1).weight_bytes, plan(Load::Mapped, 2).weight_bytes);
}

#[test]
fn a_workspace_allocates_the_bytes_of_its_plan() {
    for family in FAMILIES {
        for load in [Load::Resident, Load::Mapped] {
            let options = ModelOptions { isa: Isa::detect(), activations: Activations::Bf16x2, load, threads: 1 };
            let model = Model::load(&golden(family), options, &mut |_| {}).unwrap();
            for (rows, logits, threads) in [(1, 1, 1), (7, 3, 2), (300, 300, 3), (2500, 1, 1)] {
                let pool = Pool::new(NonZeroUsize::new(threads).unwrap(), Pinning::Free).unwrap();
                let mut space = Workspace::new(&model, pool, rows, logits);
                let shape = WorkspaceShape::new(model.config(), load, false, rows, logits, threads);
                let (got, want) = (space.allocated_bytes(&shape), shape.bytes());
                assert_eq!(got, want, "{family}, {load}, {rows} rows, {logits} with logits");

                let room = AdapterRoom { adapters: 3, rank: 24 };
                space.make_room(room);
                let (got, want) = (space.allocated_bytes(&shape), want + room.bytes(&shape));
                assert_eq!(got, want, "{family}, {load}, {rows} rows, {logits} with logits, and adapters");
            }
        }
    }
}

#[test]
fn the_context_that_is_offered_fits_and_one_position_more_does_not() {
    let model = config(&qwen3_moe(2048, 48, 32, 128, 768));
    for load in [Load::Resident, Load::Mapped] {
        for width in [1, 8] {
            for ubatch_size in [256, 2048] {
                let request = PlanRequest { width, logits: width, ubatch_size, ..request(262_144, load) };
                let total =
                    |ctx_size| Plan::new(&model, |_| Dtype::Bf16, &PlanRequest { ctx_size, ..request }).total_bytes;
                for available in [total(16), total(17), total(1000), total(100_000), total(262_144) - 1] {
                    let refusal = Plan::fit(&model, |_| Dtype::Bf16, &request, available).unwrap_err();
                    let fitting = refusal.ctx_size_that_fits.unwrap();
                    assert!(refusal.to_string().contains(&format!("`--ctx-size {fitting}` fits")), "{refusal}");
                    let smaller = PlanRequest { ctx_size: fitting, ..request };
                    Plan::fit(&model, |_| Dtype::Bf16, &smaller, available).unwrap();
                    let larger = PlanRequest { ctx_size: fitting + 1, ..request };
                    Plan::fit(&model, |_| Dtype::Bf16, &larger, available).unwrap_err();
                }
                let refusal = Plan::fit(&model, |_| Dtype::Bf16, &request, total(1) - 1).unwrap_err();
                assert_eq!(refusal.ctx_size_that_fits, None);
                assert!(refusal.to_string().contains("no context fits"), "{refusal}");
                assert_eq!(refusal.to_string().contains("--width 1"), width > 1, "{refusal}");
                Plan::fit(&model, |_| Dtype::Bf16, &request, total(262_144)).unwrap();
            }
        }
    }
}

#[test]
fn the_largest_run_that_can_be_asked_for_is_counted_and_refused() {
    let mut json = qwen3_moe(1 << 17, 512, 1024, 256, 1 << 20);
    json["num_key_value_heads"] = json!(1024);
    json["head_dim"] = json!(1024);
    json["num_experts_per_tok"] = json!(256);
    json["vocab_size"] = json!(1 << 21);
    json["max_position_embeddings"] = json!(1 << 24);
    let (kv_dtype, load) = (Dtype::F32, Load::Mapped);
    let most = PlanRequest {
        ctx_size: 1 << 24,
        width: 65_536,
        ubatch_size: 1 << 24,
        logits: 1 << 24,
        threads: 4096,
        kv_dtype,
        load,
        nodes: 1,
        adapters: AdapterNeeds::default(),
    };
    let refusal = Plan::fit(&config(&json), |_| Dtype::F32, &most, 1 << 50).unwrap_err();
    assert_eq!(refusal.plan.total_bytes, u64::MAX);
    assert_eq!(refusal.ctx_size_that_fits, None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever numbers a config.json holds, it is refused or its bytes add up.
    #[test]
    fn any_config_json_is_refused_or_planned(
        numbers in prop::collection::vec(prop_oneof![0u64..300, (0u32..25).prop_map(|k| 1 << k), any::<u64>()], 12),
        family in 0usize..7,
    ) {
        const FIELDS: [&str; 12] = ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "head_dim", "intermediate_size", "moe_intermediate_size", "num_experts", "num_experts_per_tok", "vocab_size",
            "max_position_embeddings", "sliding_window"];
        let family = &crate::config::family::FAMILIES[family];
        let mut json = qwen3_moe(2048, 2, 32, 8, 768);
        json["architectures"] = json!([family.architecture]);
        if family.model_type == "gpt_oss" {
            json["quantization_config"] = json!({"quant_method": "mxfp4"});
            json["rope_scaling"] = json!({"rope_type": "default"});
            json["layer_types"] = json!(["sliding_attention", "full_attention"]);
            (json["sliding_window"], json["attention_bias"]) = (json!(128), json!(true));
            (json["rms_norm_eps"], json["rope_theta"]) = (json!(1e-5), json!(15e4));
        }
        // One or two fields at a time: with all of them wrong nothing behind the first is reached.
        for at in [numbers[0] as usize % 12, numbers[1] as usize % 12] {
            json[FIELDS[at]] = json!(numbers[at]);
        }
        if let Ok(config) = ModelConfig::from_json(Path::new("config.json"), json.to_string().as_bytes()) {
            let ctx_size = config.max_position_embeddings;
            let plan = Plan::new(&config, |_| Dtype::Bf16, &request(ctx_size, Load::Resident));
            prop_assert!(plan.total_bytes >= plan.weight_bytes + plan.kv_bytes);
            let quantised = config.tensors().iter().any(|tensor| !tensor.kind.is_numbers());
            let as_bf16 = 2 * plan.parameters;
            let adds_up = if quantised { plan.checkpoint_bytes < as_bf16 } else { plan.checkpoint_bytes == as_bf16 };
            prop_assert!(adds_up, "{} bytes for {} parameters", plan.checkpoint_bytes, plan.parameters);
        }
    }
}
