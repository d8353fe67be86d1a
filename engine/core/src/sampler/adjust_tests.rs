//! Bias, penalties and masks against their formulas, written out.

use proptest::prelude::*;

use super::*;

const LIMIT: usize = 40;

fn logits(shift: u32) -> Vec<f32> {
    (0..LIMIT as u32).map(|id| ((id * 7 + shift * 3) % 29) as f32 * 0.25 - 3.0).collect()
}

fn greedy(params: SamplingParams, bias: &[(u32, f32)]) -> Sampler {
    let params = SamplingParams { temperature: 0.0, ..params };
    Sampler::with_bias(params, bias.to_vec(), LIMIT).expect("valid parameters")
}

/// The formulas of the OpenAI API (presence, frequency: of generated tokens) and of transformers (repetition: of all).
fn expected(
    params: &SamplingParams,
    bias: &[(u32, f32)],
    prompt: &[u32],
    generated: &[u32],
    id: u32,
    logit: f32,
) -> f32 {
    let mut logit = logit;
    for (token, value) in bias {
        if *token == id {
            logit += value;
        }
    }
    if prompt.contains(&id) || generated.contains(&id) {
        logit = if logit > 0.0 { logit / params.repetition_penalty } else { logit * params.repetition_penalty };
    }
    let count = generated.iter().filter(|token| **token == id).count() as f32;
    let present = if count > 0.0 { params.presence_penalty } else { 0.0 };
    logit - params.frequency_penalty * count - present
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn penalties_and_bias_are_what_their_formulas_say(
        repetition in prop_oneof![Just(1.0f32), 0.5f32..2.0],
        presence in prop_oneof![Just(0.0f32), -2.0f32..2.0],
        frequency in prop_oneof![Just(0.0f32), -2.0f32..2.0],
        bias in prop::collection::vec((0u32..LIMIT as u32, -100.0f32..100.0), 0..4),
        // Ids beyond the limit are padding, which a prompt may have in it.
        prompt in prop::collection::vec(0u32..LIMIT as u32 + 5, 0..20),
        generated in prop::collection::vec(0u32..LIMIT as u32, 0..20),
    ) {
        let params = SamplingParams {
            repetition_penalty: repetition, presence_penalty: presence, frequency_penalty: frequency, ..Default::default()
        };
        let mut sampler = greedy(params, &bias);
        sampler.prompt(&prompt);
        for token in &generated {
            sampler.generated(*token);
        }
        let logits = logits(generated.len() as u32);
        let adjusted: Vec<f32> = (0..).zip(&logits)
            .map(|(id, logit)| expected(&params, &bias, &prompt, &generated, id, *logit)).collect();
        if !sampler.adjust.is_off() {
            let got = sampler.adjust.apply(&logits, None);
            for (id, (got, want)) in got.iter().zip(&adjusted).enumerate() {
                prop_assert!((got - want).abs() <= 1e-4, "{id}: {got}, want {want}");
            }
        } else {
            prop_assert_eq!(&adjusted, &logits);
        }
        // What is told of the token is the model's own, whatever was added.
        let sampled = sampler.sample(&logits, 0).expect("finite logits");
        let plain = greedy(SamplingParams::default(), &[]).sample(&logits, 0).expect("finite logits");
        let difference = f64::from(logits[sampled.token as usize]) - f64::from(logits[plain.token as usize]);
        prop_assert!((f64::from(sampled.logprob) - f64::from(plain.logprob) - difference).abs() < 1e-5);
    }
}

#[test]
fn a_sequence_taken_up_in_the_middle_is_penalised_as_if_it_had_not_stopped() {
    let params = SamplingParams {
        repetition_penalty: 1.3,
        presence_penalty: 0.7,
        frequency_penalty: 0.4,
        top_k: 20,
        seed: 3,
        ..Default::default()
    };
    let prompt = [1, 2, 3, 39];
    let run = |sampler: &mut Sampler, from: u64, to: u64| -> Vec<u32> {
        (from..to)
            .map(|position| {
                let token = sampler.sample(&logits(position as u32), position).expect("finite logits").token;
                sampler.generated(token);
                token
            })
            .collect()
    };
    let mut whole = Sampler::new(params, LIMIT).expect("valid parameters");
    whole.prompt(&prompt);
    let tokens = run(&mut whole, 4, 64);
    let mut resumed = Sampler::new(params, LIMIT).expect("valid parameters");
    resumed.prompt(&prompt);
    tokens[..25].iter().for_each(|token| resumed.generated(*token));
    assert_eq!(run(&mut resumed, 29, 64), tokens[25..]);
    let mut plain = Sampler::new(SamplingParams { top_k: 20, seed: 3, ..Default::default() }, LIMIT).expect("valid");
    assert_ne!(run(&mut plain, 4, 64), tokens, "penalties change what is drawn");
}

#[test]
fn only_tokens_of_the_mask_are_drawn_under_any_filter() {
    let allowed = [3u32, 31, 32, 37];
    let mut mask = [0u32; 2];
    allowed.iter().for_each(|id| mask[*id as usize / 32] |= 1 << (id % 32));
    let params = SamplingParams { temperature: 5.0, ..Default::default() };
    for params in [
        params,
        SamplingParams { temperature: 0.0, ..params },
        SamplingParams { top_k: 3, ..params },
        SamplingParams { top_p: 0.999, ..params },
        SamplingParams { min_p: 0.01, ..params },
        SamplingParams { presence_penalty: 2.0, ..params },
    ] {
        let mut sampler = Sampler::new(params, LIMIT).expect("valid parameters").reserving(true, 0);
        let buffer = sampler.adjust.apply(&logits(0), None).as_ptr();
        for position in 0..300 {
            let token = sampler.sample_masked(&logits(0), position, Some(&mask)).expect("some are left").token;
            assert!(allowed.contains(&token), "{token} under {params:?}");
            sampler.generated(token);
        }
        assert_eq!(sampler.adjust.apply(&logits(0), None).as_ptr(), buffer, "a step takes no memory");
        // Beyond the end of the mask nothing is allowed.
        let token = sampler.sample_masked(&logits(0), 0, Some(&mask[..1])).expect("some are left").token;
        assert!([3, 31].contains(&token));
        let error = sampler.sample_masked(&logits(0), 0, Some(&[0])).expect_err("nothing is left");
        assert_eq!(error, SampleError::AllMasked { limit: LIMIT });
    }
}

#[test]
fn a_bias_of_a_hundred_forces_and_forbids() {
    let logits = logits(0);
    let best = greedy(SamplingParams::default(), &[]).sample(&logits, 0).expect("finite logits").token;
    let other = (best + 1) % LIMIT as u32;
    assert_eq!(greedy(SamplingParams::default(), &[(other, 100.0)]).sample(&logits, 0).expect("finite").token, other);
    assert_ne!(greedy(SamplingParams::default(), &[(best, -100.0)]).sample(&logits, 0).expect("finite").token, best);
    for value in [100.5, -101.0, f32::NAN, f32::INFINITY] {
        let error = Sampler::with_bias(SamplingParams::default(), vec![(0, value)], LIMIT).err().expect("out of range");
        assert_eq!(error.field, "logit_bias");
    }
}

#[test]
fn the_most_probable_tokens_are_told_in_order_with_the_models_own_probabilities() {
    let logits = logits(1);
    let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
    let params = SamplingParams { temperature: 2.0, presence_penalty: 2.0, top_k: 5, seed: 1, ..Default::default() };
    let mut sampler = Sampler::with_bias(params, vec![(0, 50.0)], LIMIT).expect("valid").reserving(true, 20);
    for top in [0, 1, 5, 20] {
        let sampled = sampler.sample(&logits, 7).expect("finite logits");
        let told = sampler.logprobs(&logits, sampled, top);
        assert_eq!((told.token, told.logprob, told.top.len()), (sampled.token, sampled.logprob, top));
        let mut ranked: Vec<u32> = (0..LIMIT as u32).collect();
        ranked.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        for ((id, logprob), want) in told.top.iter().zip(ranked) {
            assert_eq!(*id, want);
            assert!((f64::from(*logprob) - (f64::from(logits[want as usize]) - total.ln())).abs() < 1e-6);
        }
        if let Some((_, logprob)) = told.top.iter().find(|(id, _)| *id == sampled.token) {
            assert_eq!(*logprob, sampled.logprob);
        }
    }
}

#[test]
fn penalties_out_of_range_are_named() {
    let plain = SamplingParams::default();
    for (field, params) in [
        ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..plain }),
        ("repetition_penalty", SamplingParams { repetition_penalty: -1.0, ..plain }),
        ("repetition_penalty", SamplingParams { repetition_penalty: f32::NAN, ..plain }),
        ("presence_penalty", SamplingParams { presence_penalty: 2.1, ..plain }),
        ("presence_penalty", SamplingParams { presence_penalty: f32::NAN, ..plain }),
        ("frequency_penalty", SamplingParams { frequency_penalty: -2.1, ..plain }),
    ] {
        assert_eq!(params.validate().expect_err(field).field, field);
    }
}
