//! Adapters: what PEFT computes with them in float32, the same bits whatever is beside a row, and a base that stays what
//! it was.

mod engine;
mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine_core::adapter::{Adapter, AdapterError, AdapterFolder, AdapterSet};
use engine_core::checkpoint::CheckpointError;
use engine_core::kv_cache::{KvCache, KvShape, blocks_for};
use engine_core::model::{AdapterRoom, Batch, Load, Model, ModelOptions, Row, Workspace};
use engine_core::session::Evaluator;
use numa::Pool;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use simd::{Dtype, Isa};

use crate::golden::relative_error;
use crate::models::{Reference, golden, load, load_for, options, pool, pool_on_nodes};

/// Folders under `tests/golden/lora`.
const CASES: [&str; 10] = [
    "llama_attention",
    "llama_mlp",
    "llama_together",
    "llama_saved",
    "qwen3_patterns",
    "qwen3_rslora",
    "qwen3_moe_experts",
    "qwen3_moe_one_by_one",
    "mixtral_down",
    "gpt_oss_experts",
];

fn folder(case: &str) -> PathBuf {
    golden().join("lora").join(case)
}

/// The family of a case, and its adapters with their scales.
fn facts(case: &str) -> (String, Vec<(String, f32)>) {
    let facts: Value = serde_json::from_slice(&fs::read(folder(case).join("reference.json")).unwrap()).unwrap();
    let adapters = facts["adapters"].as_array().unwrap().iter();
    let adapters = adapters.map(|own| (own["name"].as_str().unwrap().into(), own["scale"].as_f64().unwrap() as f32));
    (facts["family"].as_str().unwrap().into(), adapters.collect())
}

fn open(folder: &Path, model: &Model) -> Result<Arc<Adapter>, AdapterError> {
    let opened = AdapterFolder::open(folder, model.config())?;
    let adapter = Adapter::load("tested", &opened, model.options().isa)?;
    assert_eq!((adapter.bytes(), adapter.rank()), (opened.bytes(), opened.rank()));
    Ok(Arc::new(adapter))
}

fn set_of(case: &str, model: &Model) -> AdapterSet {
    let adapter = |(name, scale): (String, f32)| (open(&folder(&name), model).unwrap(), scale);
    AdapterSet::new(facts(case).1.into_iter().map(adapter).collect()).unwrap()
}

fn evaluate(model: &Model, tokens: &[u32], set: &AdapterSet, pool: Pool, chunk: usize, kv: Dtype) -> Vec<f32> {
    let mut got = Vec::new();
    let mut evaluator = Evaluator::new(model, pool, kv, tokens.len(), chunk).unwrap();
    evaluator.choose_adapters(set.clone());
    let fed = evaluator.feed(tokens, &mut (), |_, logits| {
        got.extend_from_slice(logits);
        Ok::<_, CheckpointError>(())
    });
    fed.unwrap();
    got
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_base_with_its_adapters_computes_what_peft_computes_in_float32() {
    println!("{:<24}{:<10}{:<10}{:>12}{:>14}", "case", "isa", "weights", "rms error", "without them");
    for case in CASES {
        let family = facts(case).0;
        let reference = Reference::of(&format!("lora/{case}"));
        let (tokens, want) = (reference.ids("token_ids"), reference.floats("logits"));
        for isa in Isa::available() {
            for load_mode in [Load::Resident, Load::Mapped] {
                let model = load(&golden().join(&family), ModelOptions { load: load_mode, ..options(isa) });
                let set = set_of(case, &model);
                let got = evaluate(&model, &tokens, &set, pool(1), tokens.len(), Dtype::F32);
                let plain = evaluate(&model, &tokens, &AdapterSet::default(), pool(1), tokens.len(), Dtype::F32);
                let (error, without) = (relative_error(&got, &want), relative_error(&plain, &want));
                println!("{case:<24}{:<10}{load_mode:<10}{error:>12.2e}{without:>14.2e}", isa.name());
                assert!(error <= 1e-4, "{case} on {isa}, {load_mode}: logits off by {error:.2e}");
                assert!(without > 0.05, "{case}: the adapter changes nothing");
            }
        }
    }
}

#[test]
fn logits_with_adapters_are_bit_equal_for_any_threads_chunks_and_nodes() {
    for case in CASES {
        let base = golden().join(facts(case).0);
        let tokens = Reference::of(&format!("lora/{case}")).ids("token_ids");
        for isa in Isa::available() {
            let model = load(&base, options(isa));
            let set = set_of(case, &model);
            let want = bits(&evaluate(&model, &tokens, &set, pool(1), tokens.len(), Dtype::F16));
            // All of them with the fastest instructions, for the others the one that has most in it.
            let runs = [(2, 3, 16), (1, 1, 1), (1, 2, 7), (1, 3, tokens.len())];
            let count = if isa.name() == Isa::detect().name() { runs.len() } else { 1 };
            for (nodes, threads, chunk) in runs.into_iter().take(count) {
                let pool = pool_on_nodes(threads, nodes);
                let model = load_for(&pool, &base, options(isa));
                let set = set_of(case, &model);
                let got = bits(&evaluate(&model, &tokens, &set, pool, chunk, Dtype::F16));
                assert!(got == want, "{case} on {isa}: {threads} threads on {nodes} nodes, chunks of {chunk}");
            }
        }
    }
}

/// Four sequences side by side: without adapters, with one, with another, with both in either order.
#[test]
fn a_row_has_the_bits_of_its_own_adapters_whatever_the_rows_beside_it_have() {
    for (family, cases) in [
        ("llama", ["llama_attention", "llama_mlp"]),
        ("llama", ["llama_saved", "llama_mlp"]),
        ("qwen3_moe", ["qwen3_moe_experts", "qwen3_moe_one_by_one"]),
    ] {
        for isa in Isa::available() {
            let model = load(&golden().join(family), options(isa));
            let tokens = Reference::of(&format!("lora/{}", cases[0])).ids("token_ids");
            let [first, second] = cases.map(|case| open(&folder(case), &model).unwrap());
            let pair = |adapters: [(&Arc<Adapter>, f32); 2]| {
                AdapterSet::new(adapters.map(|(adapter, scale)| (Arc::clone(adapter), scale)).into()).unwrap()
            };
            let one = |adapter: &Arc<Adapter>| AdapterSet::new(vec![(Arc::clone(adapter), 0.75)]).unwrap();
            let sets = [
                AdapterSet::default(),
                one(&first),
                one(&second),
                pair([(&first, 0.5), (&second, -0.25)]),
                pair([(&second, -0.25), (&first, 0.5)]),
            ];
            let alone =
                sets.each_ref().map(|set| bits(&evaluate(&model, &tokens, set, pool(1), tokens.len(), Dtype::F16)));
            assert!(alone[3] == alone[4], "{cases:?} on {isa}: the order of the names changes bits");
            assert!(alone[0] != alone[1] && alone[1] != alone[2] && alone[2] != alone[3], "{cases:?}: no effect");

            let blocks = blocks_for(tokens.len());
            let mut pool = pool(2);
            let mut kv = KvCache::new(KvShape::new(model.config(), Dtype::F16, 5 * blocks), &mut pool).unwrap();
            let tables: Vec<_> = sets.iter().map(|_| kv.take(blocks).unwrap()).collect();
            let mut space = Workspace::new(&model, pool, 64, 64);
            space.make_room(AdapterRoom { adapters: 2, rank: first.rank().max(second.rank()) });
            let mut together = vec![Vec::new(); sets.len()];
            let mut done = [0; 5];
            while done.iter().any(|done| *done < tokens.len()) {
                let mut rows = Vec::new();
                for (sequence, done) in done.iter_mut().enumerate() {
                    let take = (tokens.len() - *done).min([7, 1, 11, 3, 20][sequence]);
                    let row = |position| Row { token: tokens[position], position, sequence, experts_per_token: None };
                    rows.extend((*done..*done + take).map(row));
                    *done += take;
                }
                let wanted: Vec<usize> = (0..rows.len()).collect();
                let batch = Batch { rows: &rows, tables: &tables, logits: &wanted, adapters: &sets };
                model.forward(&batch, &mut kv, &mut space, &mut ());
                for (row, logits) in rows.iter().zip(space.logits().chunks_exact(model.config().vocab_size)) {
                    together[row.sequence].extend(bits(logits));
                }
            }
            for (sequence, (alone, together)) in alone.iter().zip(&together).enumerate() {
                assert!(alone == together, "{cases:?} on {isa}: company changes the bits of sequence {sequence}");
            }
        }
    }
}

#[test]
fn adapters_that_do_not_go_together_are_refused() {
    let model = load(&golden().join("llama"), options(Isa::detect()));
    let saved = open(&folder("llama_saved"), &model).unwrap();
    let other = tempfile::tempdir().unwrap();
    copy_adapter("llama_saved", other.path(), |config| config["lora_alpha"] = json!(5), |_| {});
    let other = open(other.path(), &model).unwrap();
    let refused = |adapters: Vec<(Arc<Adapter>, f32)>| AdapterSet::new(adapters).err().unwrap().to_string();
    assert!(refused(vec![(saved.clone(), 1.0), (other, 1.0)]).contains("both replace"));
    assert!(refused(vec![(saved.clone(), 1.0), (saved.clone(), 0.5)]).contains("twice"));
    assert!(refused(vec![(saved, f32::NAN)]).contains("finite"));
}

type Tensors = Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)>;

/// Copies an adapter with changes of its settings and of its tensors.
fn copy_adapter(case: &str, to: &Path, settings: impl Fn(&mut Value), tensors: impl Fn(&mut Tensors)) {
    let mut config: Value =
        serde_json::from_slice(&fs::read(folder(case).join("adapter_config.json")).unwrap()).unwrap();
    settings(&mut config);
    fs::write(to.join("adapter_config.json"), config.to_string()).unwrap();
    let file = fs::read(folder(case).join("adapter_model.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&file).unwrap();
    let mut list: Tensors = all
        .iter()
        .map(|(name, view)| (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    list.sort();
    tensors(&mut list);
    let views = list
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &to.join("adapter_model.safetensors")).unwrap();
}

#[test]
fn a_wrong_adapter_is_refused_with_what_is_wrong_and_where() {
    const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let model = load(&golden().join("llama"), options(Isa::detect()));
    let rename = |to: &'static str| {
        move |tensors: &mut Tensors| tensors.iter_mut().filter(|own| own.0 == Q).for_each(|own| own.0 = to.into())
    };
    let keep = |_: &mut Value| {};
    let same = |_: &mut Tensors| {};
    type Change = (Box<dyn Fn(&mut Value)>, Box<dyn Fn(&mut Tensors)>, &'static [&'static str]);
    let changes: Vec<Change> = vec![
        (Box::new(|config| config["use_dora"] = json!(true)), Box::new(same), &["use_dora", "DoRA"]),
        (Box::new(|config| config["bias"] = json!("all")), Box::new(same), &["bias", "all"]),
        (Box::new(|config| config["r"] = json!(4)), Box::new(same), &["layers.0.self_attn.k_proj", "rank 8", "says 4"]),
        (
            Box::new(|config| config["target_modules"] = json!(["q_proj"])),
            Box::new(same),
            &["k_proj", "not among the targets"],
        ),
        (
            Box::new(keep),
            Box::new(|tensors| tensors.retain(|own| own.0 != Q)),
            &["layers.0.self_attn.q_proj", "`lora_B` but no `lora_A`"],
        ),
        (
            Box::new(keep),
            Box::new(|tensors| tensors.retain(|own| !own.0.contains("layers.2.self_attn.o_proj"))),
            &["names `model.layers.2.self_attn.o_proj`", "no tensors"],
        ),
        (
            Box::new(|config| config["modules_to_save"] = json!(["lm_head"])),
            Box::new(same),
            &["`lm_head`", "no tensors"],
        ),
        (Box::new(keep), Box::new(|tensors| tensors.clear()), &["no tensors"]),
        (
            Box::new(keep),
            Box::new(rename("base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight")),
            &["layers.0.self_attn.q_proj", "no `lora_A`"],
        ),
        (
            Box::new(keep),
            Box::new(rename("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector")),
            &["DoRA"],
        ),
        (
            Box::new(keep),
            Box::new(rename("base_model.model.model.layers.0.self_attn.q_proj.weight")),
            &["no part of this model"],
        ),
        (
            Box::new(keep),
            Box::new(|tensors| {
                let q = tensors.iter_mut().find(|own| own.0 == Q).unwrap();
                q.2 = vec![q.2[1], q.2[0]];
            }),
            &[Q, "[48, 8]", "[rank, 48]"],
        ),
        (
            Box::new(keep),
            Box::new(|tensors| {
                let q = tensors.iter_mut().find(|own| own.0 == Q).unwrap();
                q.3[6..8].copy_from_slice(&[0xc0, 0x7f]);
            }),
            &[Q, "NaN", "index 3"],
        ),
    ];
    for (settings, tensors, words) in changes {
        let changed = tempfile::tempdir().unwrap();
        copy_adapter("llama_attention", changed.path(), settings, tensors);
        let error = open(changed.path(), &model).err().unwrap().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}\nshould say {words:?}");
    }
    // Another model's.
    let error = open(&folder("qwen3_patterns"), &model).err().unwrap().to_string();
    assert!(error.contains("trained for another model"), "{error}");
    let error = open(&golden().join("llama"), &model).err().unwrap().to_string();
    assert!(error.contains("adapter_config.json"), "{error}");
}

#[test]
fn a_damaged_file_of_an_adapter_is_refused_and_never_read_beyond_its_end() {
    let model = load(&golden().join("llama"), options(Isa::detect()));
    let damaged = tempfile::tempdir().unwrap();
    copy_adapter("llama_attention", damaged.path(), |_| {}, |_| {});
    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        let path = damaged.path().join(file);
        let whole = fs::read(&path).unwrap();
        for length in [0, 1, 7, 8, 9, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(open(damaged.path(), &model).is_err(), "{file} of {length} bytes");
        }
        fs::write(&path, whole).unwrap();
    }
    open(damaged.path(), &model).unwrap();
}
