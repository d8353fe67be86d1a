//! What can be turned of a model: what is honoured changes the logits as a checkpoint with these numbers would, and what
//! is not is refused before anything is loaded.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Command;

use engine_core::checkpoint::{Checkpoint, CheckpointError};
use engine_core::config::{Dials, ModelConfig, RopeScaling, ScalingMethod};
use engine_core::model::{Choice, Model, Observer};
use engine_core::sampler::SamplingParams;
use engine_core::session::{Engine, EngineOptions, Evaluator, Event, Request};
use engine_core::text::Tokenizer;
use serde_json::{Value, json};
use simd::{Dtype, Isa};
use tempfile::TempDir;

use crate::models::{Reference, golden, load, options, pool};
use crate::tiny_model::tiny_model;

fn turned(folder: &Path, dials: &Dials) -> Model {
    let mut checkpoint = Checkpoint::open(folder).unwrap();
    checkpoint.turn(dials).unwrap();
    Model::from_checkpoint(checkpoint, options(Isa::detect()), &mut |_| {}).unwrap()
}

/// A golden family's folder with another config.json.
fn with_config(family: &str, change: impl Fn(&mut Value)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden().join(family)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(&path, config.to_string()).unwrap();
    folder
}

#[derive(Default)]
struct Routed(Vec<u32>);

impl Observer for Routed {
    fn routed(&mut self, _: usize, _: &[f32], choices: &[Choice]) {
        self.0.extend(choices.iter().map(|choice| choice.expert));
    }
}

fn logits(model: &Model, tokens: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let (mut bits, mut routed) = (Vec::new(), Routed::default());
    let mut evaluator = Evaluator::new(model, pool(1), Dtype::F32, tokens.len(), tokens.len()).unwrap();
    let fed = evaluator.feed(tokens, &mut routed, |_, logits| {
        bits.extend(logits.iter().map(|logit| logit.to_bits()));
        Ok::<_, CheckpointError>(())
    });
    fed.unwrap();
    (bits, routed.0)
}

/// A family, a dial, and the config.json that says the same.
type Case<'a> = (&'a str, Dials, &'a dyn Fn(&mut Value));

#[test]
fn a_dial_gives_the_bits_of_a_checkpoint_with_its_numbers() {
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 48});
    let cases: [Case; 9] = [
        ("qwen3_moe", Dials { experts_per_token: Some(8), ..Dials::default() }, &|c| {
            c["num_experts_per_tok"] = json!(8)
        }),
        ("qwen3_moe", Dials { experts_per_token: Some(1), ..Dials::default() }, &|c| {
            c["num_experts_per_tok"] = json!(1)
        }),
        ("gpt_oss", Dials { experts_per_token: Some(3), ..Dials::default() }, &|c| {
            (c["num_experts_per_tok"], c["experts_per_token"]) = (json!(3), json!(3));
        }),
        ("llama", Dials { rope_freq_base: Some(5e5), ..Dials::default() }, &|c| c["rope_theta"] = json!(5e5)),
        ("llama", Dials { rope_scale: Some(3.0), ..Dials::default() }, &|c| {
            c["rope_scaling"] = json!({"type": "linear", "factor": 3.0});
        }),
        (
            "qwen3",
            Dials {
                rope_scaling: Some(ScalingMethod::Yarn),
                rope_scale: Some(4.0),
                yarn_orig_ctx: Some(48),
                ..Dials::default()
            },
            &|c| c["rope_scaling"] = yarn.clone(),
        ),
        ("gpt_oss", Dials { rope_scale: Some(2.0), ..Dials::default() }, &|c| c["rope_scaling"]["factor"] = json!(2.0)),
        ("llama3", Dials { rope_scaling: Some(ScalingMethod::None), ..Dials::default() }, &|c| {
            c["rope_scaling"] = Value::Null;
        }),
        ("gpt_oss", Dials { attention_window: Some(9), ..Dials::default() }, &|c| c["sliding_window"] = json!(9)),
    ];
    for (family, dials, change) in cases {
        let tokens = Reference::of(family).ids("token_ids");
        let plain = logits(&load(&golden().join(family), options(Isa::detect())), &tokens);
        let want = logits(&load(with_config(family, change).path(), options(Isa::detect())), &tokens);
        let got = logits(&turned(&golden().join(family), &dials), &tokens);
        assert!(got == want, "{family} with {dials:?}");
        assert!(got.0 != plain.0, "{family}: {dials:?} changes nothing");
    }
}

#[test]
fn a_window_is_put_where_some_slide_or_everywhere_and_taken_away_by_zero() {
    let windows = |family: &str, window| {
        let mut config = ModelConfig::from_file(&golden().join(family).join("config.json")).unwrap();
        Dials { attention_window: Some(window), ..Dials::default() }.turn(&mut config).unwrap();
        config.layers.iter().map(|layer| layer.window).collect::<Vec<_>>()
    };
    assert_eq!(windows("gpt_oss", 7), [Some(7), None, Some(7), None]);
    assert_eq!(windows("gpt_oss", 0), [None; 4]);
    assert_eq!(windows("qwen3", 7), [Some(7); 4]);
    assert_eq!(windows("mistral", 0), [None; 3]);
}

#[test]
fn a_stretch_makes_room_for_the_context_that_it_is_for() {
    let longest = |family: &str, dials: Dials| {
        let mut config = ModelConfig::from_file(&golden().join(family).join("config.json")).unwrap();
        dials.turn(&mut config).unwrap();
        config.longest_context()
    };
    let yarn = Dials { rope_scaling: Some(ScalingMethod::Yarn), rope_scale: Some(4.0), ..Dials::default() };
    assert_eq!(longest("qwen3_moe", Dials::default()), 512);
    assert_eq!(longest("qwen3_moe", yarn.clone()), 2048);
    assert_eq!(longest("qwen3_moe", Dials { yarn_orig_ctx: Some(256), ..yarn }), 1024);
    assert_eq!(longest("llama", Dials { rope_scale: Some(8.0), ..Dials::default() }), 4096);
    assert_eq!(longest("rope_yarn", Dials::default()), 128);
    assert_eq!(longest("rope_yarn", Dials { rope_scale: Some(2.0), ..Dials::default() }), 64);
    assert_eq!(longest("rope_dynamic", Dials::default()), 128);
    assert_eq!(longest("llama3", Dials { rope_scaling: Some(ScalingMethod::None), ..Dials::default() }), 64);
}

#[test]
fn values_that_a_checkpoint_cannot_honour_are_refused_with_the_reason() {
    let none = Dials::default;
    let cases = [
        (
            "qwen3_moe",
            Dials { experts_per_token: Some(9), ..none() },
            "`--experts-per-token 9`: this model has 8 experts",
        ),
        ("qwen3_moe", Dials { experts_per_token: Some(0), ..none() }, "ask for 1 to 8"),
        ("qwen3_moe", Dials { most_experts_per_token: Some(9), ..none() }, "this model has 8 experts"),
        ("llama", Dials { experts_per_token: Some(1), ..none() }, "no experts"),
        ("llama", Dials { rope_scale: Some(0.5), ..none() }, "1 or more"),
        ("llama", Dials { rope_scale: Some(f64::NAN), ..none() }, "1 or more"),
        ("llama", Dials { rope_freq_base: Some(0.0), ..none() }, "more than 1"),
        ("llama", Dials { rope_freq_base: Some(f64::INFINITY), ..none() }, "more than 1"),
        ("llama", Dials { rope_scaling: Some(ScalingMethod::Yarn), ..none() }, "Add `--rope-scale F`"),
        ("llama", Dials { yarn_orig_ctx: Some(64), ..none() }, "add `--rope-scaling yarn`"),
        ("llama", Dials { yarn_orig_ctx: Some(64), rope_scale: Some(2.0), ..none() }, "add `--rope-scaling yarn`"),
        ("llama3", Dials { rope_scale: Some(2.0), ..none() }, "`llama3`; say which way"),
        ("rope_dynamic", Dials { rope_scale: Some(2.0), ..none() }, "`dynamic`; say which way"),
        (
            "gpt_oss",
            Dials { rope_scaling: Some(ScalingMethod::None), rope_scale: Some(2.0), ..none() },
            "stretches nothing",
        ),
        ("llama", Dials { attention_window: Some(1 << 25), ..none() }, "at most 16777216"),
    ];
    for (family, dials, part) in cases {
        let mut config = ModelConfig::from_file(&golden().join(family).join("config.json")).unwrap();
        let before = config.clone();
        let refused = dials.turn(&mut config).unwrap_err().to_string();
        assert!(refused.contains(part), "{refused}");
        assert_eq!(config, before);
    }
}

#[test]
fn words_name_what_was_turned_and_nothing_else() {
    let words = |family: &str, dials: Dials| {
        let mut config = ModelConfig::from_file(&golden().join(family).join("config.json")).unwrap();
        dials.turn(&mut config).unwrap();
        config.for_context(96);
        dials.words(&config)
    };
    assert_eq!(words("gpt_oss", Dials::default()), "");
    let all = Dials {
        experts_per_token: Some(4),
        rope_freq_base: Some(1e6),
        rope_scale: Some(2.5),
        attention_window: Some(9),
        ..Dials::default()
    };
    assert_eq!(
        words("gpt_oss", all),
        "4 experts per token, rope base 1000000, rope yarn x2.5 of 64, window 9 in 2 of 4 layers"
    );
    // The length decides bytes, and is not in config.json.
    assert_eq!(words("rope_dynamic", Dials::default()), "rope dynamic x2 of 64 for 96 positions");
}

#[test]
fn a_request_has_its_own_number_of_experts_whatever_runs_beside_it() {
    let folder = tiny_model("qwen3_moe");
    let tokenizer = Tokenizer::from_dir(folder.path()).unwrap();
    let prompt: Vec<u32> = (0..23).map(|position| position * 11 % 256).collect();
    let sampling = SamplingParams { temperature: 1.0, seed: 5, ..SamplingParams::default() };
    let run = |dials: &Dials, asked: &[Option<usize>]| {
        let options = EngineOptions {
            threads: NonZeroUsize::MIN,
            kv_dtype: Dtype::F16,
            ctx_size: 64,
            width: asked.len(),
            ubatch_size: 7,
            prefix_cache: true,
        };
        let mut engine = Engine::new(turned(folder.path(), dials), &tokenizer, Vec::new(), options).unwrap();
        let submit = |engine: &mut Engine, asked: &Option<usize>| {
            let experts_per_token = asked.and_then(NonZeroUsize::new);
            engine.submit(Request { experts_per_token, ..Request::new(prompt.clone(), 12, sampling) })
        };
        let ids: Vec<_> = asked.iter().map(|asked| submit(&mut engine, asked).unwrap()).collect();
        let (mut events, mut said) = (Vec::new(), vec![Vec::new(); asked.len()]);
        while !engine.is_idle() {
            engine.step(&mut events).unwrap();
            for event in events.drain(..) {
                if let Event::Finished { id, completion } = event {
                    said[ids.iter().position(|known| *known == id).unwrap()] = completion.tokens;
                }
            }
        }
        let refused = submit(&mut engine, &Some(9)).unwrap_err().to_string();
        assert!(refused.contains("9 experts per token were asked for"), "{refused}");
        said
    };
    let alone = |count| run(&Dials { experts_per_token: Some(count), ..Dials::default() }, &[None]).remove(0);
    let room = Dials { most_experts_per_token: Some(8), ..Dials::default() };
    let together = run(&room, &[Some(1), None, Some(8), Some(3)]);
    assert_eq!(together, [alone(1), alone(3), alone(8), alone(3)]);
    assert!(together[0] != together[1] && together[1] != together[2]);
}

#[test]
fn frequencies_that_follow_the_length_give_the_same_bits_for_any_chunks() {
    let family = "rope_dynamic";
    let tokens = Reference::of(family).ids("token_ids");
    let run = |ctx_size: usize, chunk| {
        let mut checkpoint = Checkpoint::open(&golden().join(family)).unwrap();
        checkpoint.for_context(ctx_size);
        assert!(matches!(checkpoint.config().rope.scaling, RopeScaling::Dynamic { .. }));
        let model = Model::from_checkpoint(checkpoint, options(Isa::detect()), &mut |_| {}).unwrap();
        let mut bits = Vec::new();
        let mut evaluator = Evaluator::new(&model, pool(2), Dtype::F32, tokens.len(), chunk).unwrap();
        let fed = evaluator.feed(&tokens, &mut (), |_, logits| {
            bits.extend(logits.iter().map(|logit| logit.to_bits()));
            Ok::<_, CheckpointError>(())
        });
        fed.unwrap();
        bits
    };
    let want = run(tokens.len(), tokens.len());
    for chunk in [1, 5, 64, 65] {
        assert!(run(tokens.len(), chunk) == want, "chunks of {chunk}");
    }
    assert!(run(64, 96) != want);
}

/// The program on a tiny model; status, standard output, standard error.
fn nightmonk(arguments: &[&str], model: &Path) -> (Option<i32>, String, String) {
    let run = Command::new(env!("CARGO_BIN_EXE_nightmonk")).args(arguments).arg("-m").arg(model).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (run.status.code(), text(&run.stdout), text(&run.stderr))
}

#[test]
fn the_first_line_of_a_run_tells_the_dials_and_a_wrong_one_ends_it_before_loading() {
    let folder = tiny_model("qwen3_moe");
    let generate =
        ["generate", "-p", "night", "-n", "2", "--experts-per-token", "5", "--rope-scale", "2", "-c", "16384"];
    let (status, _, said) = nightmonk(&generate, folder.path());
    assert_eq!(status, Some(0), "{said}");
    let first = said.lines().next().unwrap();
    assert!(first.contains(", 5 experts per token, rope linear x2, "), "{first}");
    assert!(first.contains("1 x 16384 tokens"), "{first}");

    let (status, _, said) = nightmonk(&["generate", "-p", "night", "--experts-per-token", "9"], folder.path());
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("8 experts") && !said.contains("loaded"), "{said}");
    let (status, _, said) = nightmonk(&["generate", "-p", "night", "-c", "16384"], folder.path());
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("beyond the 8192 positions") && said.contains("--rope-scale"), "{said}");
}

#[test]
fn room_for_requests_that_ask_for_more_experts_is_planned_and_changes_no_answer() {
    let folder = tiny_model("qwen3_moe");
    let scratch = |flags: &[&str]| {
        let (status, out, said) = nightmonk(&[&["plan", "-o", "json"], flags].concat(), folder.path());
        assert_eq!(status, Some(0), "{said}");
        let plan: Value = serde_json::from_str(&out).unwrap();
        (plan["scratch_bytes"].as_u64().unwrap(), plan["bytes_per_token"].as_u64().unwrap(), plan["dials"].clone())
    };
    let (own, most) = (scratch(&[]), scratch(&["--experts-per-token-max", "8"]));
    assert!(most.0 > own.0, "{most:?} {own:?}");
    assert_eq!((most.1, most.2), (own.1, own.2));
    // No fewer than tokens go through anyway.
    assert_eq!(scratch(&["--experts-per-token-max", "1"]).0, own.0);

    let generate = ["generate", "-p", "night", "-n", "8", "--temp", "0"];
    let (_, want, _) = nightmonk(&generate, folder.path());
    let (status, got, said) = nightmonk(&[&generate[..], &["--experts-per-token-max", "8"]].concat(), folder.path());
    assert_eq!((status, got), (Some(0), want), "{said}");
    let (status, _, said) = nightmonk(&[&generate[..], &["--experts-per-token-max", "9"]].concat(), folder.path());
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("`--experts-per-token-max 9`") && said.contains("8 experts"), "{said}");
}

#[test]
fn contexts_of_a_quarter_of_a_million_positions_are_planned_allocated_and_run() {
    for (factor, ctx_size) in [("16", "131072"), ("32", "262144")] {
        let folder = tiny_model("qwen3_moe");
        let dials = ["--rope-scaling", "yarn", "--rope-scale", factor, "-c", ctx_size, "-ub", "64"];
        let mut plan = vec!["plan", "-o", "json"];
        plan.extend(dials);
        let (status, out, said) = nightmonk(&plan, folder.path());
        assert_eq!(status, Some(0), "{said}");
        let plan: Value = serde_json::from_str(&out).unwrap();
        // 4 layers, 2 heads of 16, keys and values in F16.
        assert_eq!(plan["kv_bytes"], 4 * 2 * 16 * 2 * 2 * ctx_size.parse::<u64>().unwrap());
        let mut generate = vec!["generate", "-p", "night and day", "-n", "3"];
        generate.extend(dials);
        let (status, _, said) = nightmonk(&generate, folder.path());
        assert_eq!(status, Some(0), "{said}");
        assert!(said.contains(&format!("1 x {ctx_size} tokens")), "{said}");
    }
}
