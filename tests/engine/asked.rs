//! What a request may ask for beside its text: penalties, bias, probabilities, a form, or a vector in its place.

use engine_core::constraint::{ConstraintCompiler, Limits};
use engine_core::model::Observer;
use engine_core::sampler::TokenLogprobs;
use engine_core::session::{Output, Pooling, normalize};
use serde_json::{Value, json};

use super::*;

/// `<|im_end|>`
const END: u32 = 258;

fn penalised() -> SamplingParams {
    SamplingParams { repetition_penalty: 1.4, presence_penalty: 0.8, frequency_penalty: 0.3, top_k: 50, ..seeded(11) }
}

#[test]
fn penalties_follow_the_tokens_of_a_sequence_whatever_runs_beside_it() {
    let speaker = Speaker::new("llama");
    let mut requests = nine_requests();
    requests.iter_mut().for_each(|request| request.sampling = penalised());
    let want = speaker.alone(&requests);
    let got: Vec<Said> = run(&mut speaker.engine(sizes(4, 3, 2)), &requests).values().map(Stream::said).collect();
    assert_eq!(got, want);
    let plain = SamplingParams { top_k: 50, ..seeded(11) };
    requests.iter_mut().for_each(|request| request.sampling = plain);
    assert_ne!(speaker.alone(&requests), want, "they change what is said");

    // With what was drawn as part of the prompt, a sequence without penalties of its own goes on as it would have.
    let repeats = |tokens: Vec<u32>, n| request(tokens, n, SamplingParams { repetition_penalty: 1.4, ..seeded(3) });
    let whole = &speaker.alone(&[repeats(noise(9, 1), 20)])[0];
    let rest = &speaker.alone(&[repeats([noise(9, 1), whole.tokens[..8].to_vec()].concat(), 12)])[0];
    assert_eq!(rest.tokens, whole.tokens[8..], "repetition counts prompts as it counts what was generated");
}

#[test]
fn a_bias_forces_a_token() {
    let speaker = Speaker::new("llama");
    let asked = request(noise(9, 1), 5, seeded(1));
    let forced = Request { logit_bias: vec![(65, 100.0)], ..asked.clone() };
    assert_eq!(speaker.alone(&[forced])[0].text, "AAAAA");
    let said = &speaker.alone(std::slice::from_ref(&asked))[0];
    let logit_bias = said.tokens.iter().map(|token| (*token, -100.0)).collect();
    let other = &speaker.alone(&[Request { logit_bias, ..asked }])[0];
    assert!(other.tokens.iter().all(|token| !said.tokens.contains(token)), "{other:?}");
}

#[test]
fn probabilities_are_the_models_own_and_the_same_in_company() {
    let speaker = Speaker::new("qwen3_moe");
    let told = |engine: &mut Engine, requests: &[Request]| -> Vec<Vec<TokenLogprobs>> {
        run(engine, requests).values().map(|stream| stream.completion().logprobs.clone()).collect()
    };
    let asked = |top, sampling| Request { logprobs: Some(top), ..request(noise(20, top as u32), 6, sampling) };
    let requests =
        [asked(0, GREEDY), asked(1, GREEDY), asked(5, penalised()), asked(20, seeded(1)), nine_requests()[1].clone()];
    let together = told(&mut speaker.engine(sizes(3, 7, 1)), &requests);
    let mut engine = speaker.engine(ALONE);
    for (request, told_together) in requests.iter().zip(&together) {
        let alone = told(&mut engine, std::slice::from_ref(request));
        assert_eq!(alone, std::slice::from_ref(told_together));
        let Some(top) = request.logprobs else {
            assert!(told_together.is_empty());
            continue;
        };
        assert_eq!(told_together.len(), 6);
        for token in told_together {
            assert_eq!(token.top.len(), top);
            assert!(token.top.is_sorted_by(|a, b| a.1 >= b.1) && token.logprob <= 0.0);
            let share: f64 = token.top.iter().map(|(_, logprob)| f64::from(*logprob).exp()).sum();
            assert!(share <= 1.0 + 1e-5);
            if request.sampling == GREEDY && top > 0 {
                assert_eq!(token.top[0], (token.token, token.logprob));
            }
        }
    }
}

#[test]
fn a_constrained_text_is_of_its_form_and_ends_by_itself() {
    let speaker = Speaker::new("llama");
    let compiler = ConstraintCompiler::new(&speaker.tokenizer, &[END]).unwrap();
    let schema = json!({"type": "object", "properties": {"bee": {"type": "boolean"}, "kind": {"enum": ["a", "пчела"]}},
                        "required": ["bee", "kind"], "additionalProperties": false});
    let constraint = compiler.json_schema(&schema, &Limits::default()).unwrap();
    let requests: Vec<Request> = (0..8)
        .map(|seed| Request {
            constraint: (seed != 3).then(|| constraint.clone()),
            ..request(noise(5 + 9 * seed, 2), 90, if seed == 5 { GREEDY } else { seeded(seed as u64) })
        })
        .collect();
    let mut together = speaker.engine_with_eos(sizes(3, 7, 1), &[END]);
    let mut alone = speaker.engine_with_eos(ALONE, &[END]);
    for (request, stream) in requests.iter().zip(run(&mut together, &requests).values()) {
        let said = stream.said();
        assert_eq!(complete(&mut alone, request), said);
        if request.constraint.is_some() {
            assert_eq!((said.finish_reason, *said.tokens.last().unwrap()), (FinishReason::Stop, END), "{}", said.text);
            let value: Value = serde_json::from_str(&said.text).unwrap();
            assert!(value["bee"].is_boolean() && ["a", "пчела"].map(Value::from).contains(&value["kind"]), "{value}");
        }
    }
    // What was cut is a beginning of it.
    let cut = complete(&mut alone, &Request { max_tokens: 4, ..requests[0].clone() });
    assert_eq!(cut.finish_reason, FinishReason::Length);
    assert!(cut.text.starts_with('{'), "{}", cut.text);
}

/// The final norm of every position's last residual stream, by its definition.
fn hidden_states(speaker: &Speaker, tokens: &[u32]) -> Vec<Vec<f64>> {
    struct Last(usize, Vec<f32>);
    impl Observer for Last {
        fn residual(&mut self, layer: usize, rows: &[f32]) {
            if layer == self.0 {
                self.1.extend_from_slice(rows);
            }
        }
    }
    let model = load(speaker.folder.path(), options(Isa::detect()));
    let (config, mut last) = (model.config(), Last(model.config().layers.len(), Vec::new()));
    let mut evaluator = Evaluator::new(&model, pool(1), Dtype::F16, CTX_SIZE, 16).unwrap();
    evaluator.observe(tokens, &mut last).unwrap();
    let norm = model.checkpoint().tensor("model.norm.weight");
    let mut weight = vec![0.0; config.hidden_size];
    norm.dtype.widen(norm.bytes, &mut weight);
    let row = |row: &[f32]| -> Vec<f64> {
        let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (mean + f64::from(config.rms_norm_eps)).sqrt();
        row.iter().zip(&weight).map(|(x, w)| f64::from(*x) * scale * f64::from(*w)).collect()
    };
    last.1.chunks_exact(config.hidden_size).map(row).collect()
}

#[test]
fn an_embedding_is_what_the_final_hidden_states_pool_to_alone_and_in_company() {
    for family in FAMILIES {
        let speaker = Speaker::new(family);
        let asked = |len, pooling| Request {
            output: Output::Embedding(pooling),
            ..request(noise(len, len as u32), 7, SamplingParams::default())
        };
        let mut requests = Vec::new();
        for len in [1, 40, 133] {
            requests.extend([Pooling::Last, Pooling::Mean, Pooling::First].map(|pooling| asked(len, pooling)));
        }
        requests.insert(4, nine_requests()[1].clone());
        let values = |engine: &mut Engine| -> Vec<Option<Vec<f32>>> {
            run(engine, &requests).into_values().map(|stream| stream.embedding).collect()
        };
        let want = values(&mut speaker.engine(ALONE));
        for (width, chunk) in [(1, 3), (4, 16), (4, 256)] {
            assert_eq!(values(&mut speaker.engine(sizes(width, chunk, 2))), want, "{family}, {width}, {chunk}");
        }
        for (request, values) in requests.iter().zip(want) {
            let Output::Embedding(pooling) = request.output else {
                assert!(values.is_none());
                continue;
            };
            let states = hidden_states(&speaker, &request.tokens);
            let pooled: Vec<f64> = match pooling {
                Pooling::Last => states.last().unwrap().clone(),
                Pooling::First => states[0].clone(),
                Pooling::Mean => (0..states[0].len())
                    .map(|at| states.iter().map(|state| state[at]).sum::<f64>() / states.len() as f64)
                    .collect(),
            };
            let mut values = values.unwrap();
            assert_eq!(values.len(), pooled.len());
            for (got, want) in values.iter().zip(&pooled) {
                assert!((f64::from(*got) - want).abs() <= 1e-4 * want.abs().max(1.0), "{family}: {got}, want {want}");
            }
            normalize(&mut values);
            let length: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
            assert!((length - 1.0).abs() < 1e-5);
        }
    }
}

#[test]
fn an_embedding_does_not_read_the_output_matrix() {
    let speaker = Speaker::new("qwen3_moe");
    let bytes = |request: Request| {
        let mut engine = speaker.engine(ALONE);
        run(&mut engine, &[request]);
        (engine.totals().bytes, engine.totals().generated_tokens)
    };
    let text = request(noise(30, 1), 1, GREEDY);
    let (of_text, drawn) = bytes(text.clone());
    let (of_embedding, none) = bytes(Request { output: Output::Embedding(Pooling::Last), ..text });
    assert_eq!((drawn, none), (1, 0));
    let model = load(speaker.folder.path(), options(Isa::detect()));
    let lm_head = VOCAB_SIZE * model.config().hidden_size * 2;
    assert!(of_text - of_embedding >= lm_head, "{of_text} and {of_embedding} bytes, {lm_head} of the matrix");
}

#[test]
fn what_is_asked_for_amiss_is_refused_by_name() {
    let speaker = Speaker::new("llama");
    let compiler = ConstraintCompiler::new(&speaker.tokenizer, &[END]).unwrap();
    let object = || Some(compiler.json_object().unwrap());
    let mut engine = speaker.engine_with_eos(ALONE, &[END, 256]);
    let good = || request(noise(9, 1), 5, seeded(1));
    let embedding = || Request { output: Output::Embedding(Pooling::Mean), ..good() };
    for (request, says) in [
        (Request { logit_bias: vec![(259, 1.0)], ..good() }, "`logit_bias` has token 259"),
        (Request { logit_bias: vec![(u32::MAX, 1.0)], ..good() }, "`logit_bias`"),
        (Request { logit_bias: vec![(7, 100.1)], ..good() }, "`logit_bias` is 100.1"),
        (Request { logit_bias: vec![(7, f32::NAN)], ..good() }, "`logit_bias` is NaN"),
        (Request { logprobs: Some(21), ..good() }, "`logprobs` asks for the 21"),
        (Request { constraint: object(), ..good() }, "not compiled for"),
        (Request { logprobs: Some(1), ..embedding() }, "`logprobs` is for generated text"),
        (Request { logit_bias: vec![(7, 1.0)], ..embedding() }, "`logit_bias` is for generated text"),
        (Request { constraint: object(), ..embedding() }, "`constraint` is for generated text"),
        (Request { stop: vec!["x".into()], ..embedding() }, "`stop` is for generated text"),
        (
            Request { sampling: SamplingParams { presence_penalty: 3.0, ..seeded(1) }, ..good() },
            "`presence_penalty` is 3",
        ),
    ] {
        let refused = engine.submit(request).unwrap_err().to_string();
        assert!(refused.contains(says), "{refused}");
    }
    assert!(engine.is_idle());
}
