//! Known cases, fixed seeds, and properties against a sampler too simple to be wrong.

use proptest::prelude::*;

use super::*;

fn params() -> SamplingParams {
    SamplingParams { seed: 42, ..Default::default() }
}

fn sampler(params: SamplingParams, limit: usize) -> Sampler {
    Sampler::new(params, limit).expect("valid parameters")
}

/// Which ids come up in many draws: what the filters left.
fn support(params: SamplingParams, logits: &[f32]) -> Vec<u32> {
    let mut sampler = sampler(params, logits.len());
    let mut seen: Vec<u32> =
        (0..4000).map(|position| sampler.sample(logits, position).expect("finite logits").token).collect();
    seen.sort_unstable();
    seen.dedup();
    seen
}

/// Logits whose softmax is these probabilities.
fn logits_of(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln()).collect()
}

#[test]
fn greedy_takes_the_lowest_of_equal_maxima() {
    let mut sampler = sampler(SamplingParams { temperature: 0.0, ..params() }, 5);
    let got = sampler.sample(&[1.0, 3.0, 2.0, 3.0, -1.0], 0).expect("finite logits");
    assert_eq!(got.token, 1);
    let sum: f64 = [1.0f64, 3.0, 2.0, 3.0, -1.0].iter().map(|x| x.exp()).sum();
    assert!((f64::from(got.logprob) - (3.0 - sum.ln())).abs() < 1e-7);
}

#[test]
fn ids_at_or_above_the_limit_are_never_drawn_and_not_even_read() {
    let logits = [0.0, 0.0, 50.0, f32::NAN];
    for temperature in [0.0, 1.0] {
        let mut sampler = sampler(SamplingParams { temperature, ..params() }, 2);
        for position in 0..200 {
            let got = sampler.sample(&logits, position).expect("finite below the limit");
            assert!(got.token < 2);
            assert!((got.logprob - 0.5f32.ln()).abs() < 1e-6);
        }
    }
}

#[test]
fn broken_logits_are_refused_with_their_place() {
    let mut sampler = sampler(params(), 3);
    assert!(
        matches!(sampler.sample(&[0.0, f32::NAN, 0.0], 0), Err(SampleError::NonFinite { index: 1, value }) if value.is_nan())
    );
    assert_eq!(
        sampler.sample(&[0.0, 0.0, f32::INFINITY], 0),
        Err(SampleError::NonFinite { index: 2, value: f32::INFINITY })
    );
    assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 3], 0), Err(SampleError::AllMasked { limit: 3 }));
    assert_eq!(sampler.sample(&[], 0), Err(SampleError::AllMasked { limit: 0 }));
}

#[test]
fn masked_tokens_are_never_drawn_under_any_filter() {
    let logits = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, -1.0];
    for filters in [params(), SamplingParams { top_k: 4, ..params() }, SamplingParams { top_p: 0.999_999, ..params() }]
    {
        assert_eq!(support(filters, &logits), [1, 3]);
    }
}

#[test]
fn each_filter_keeps_what_its_definition_says() {
    let logits = logits_of(&[0.05, 0.4, 0.1, 0.3, 0.15]);
    assert_eq!(support(params(), &logits), [0, 1, 2, 3, 4]);
    assert_eq!(support(SamplingParams { top_k: 1, ..params() }, &logits), [1]);
    assert_eq!(support(SamplingParams { top_k: 3, ..params() }, &logits), [1, 3, 4]);
    assert_eq!(support(SamplingParams { top_k: 99, ..params() }, &logits), [0, 1, 2, 3, 4]);
    // 0.4 is not yet 0.5; with 0.3 it is.
    assert_eq!(support(SamplingParams { top_p: 0.5, ..params() }, &logits), [1, 3]);
    assert_eq!(support(SamplingParams { top_p: 0.39, ..params() }, &logits), [1]);
    assert_eq!(support(SamplingParams { min_p: 0.3, ..params() }, &logits), [1, 3, 4]);
    assert_eq!(support(SamplingParams { min_p: 1.0, ..params() }, &logits), [1]);
    // top_p is a share of what top_k left: 0.4 of 0.7 is 0.57.
    assert_eq!(support(SamplingParams { top_k: 2, top_p: 0.55, ..params() }, &logits), [1]);
    assert_eq!(support(SamplingParams { top_k: 2, top_p: 0.6, ..params() }, &logits), [1, 3]);
    // Filters come before temperature, so a high one does not let in what top_p had put out.
    assert_eq!(support(SamplingParams { top_p: 0.5, temperature: 50.0, ..params() }, &logits), [1, 3]);
}

#[test]
fn ties_at_the_edge_of_top_k_and_top_p_go_to_the_lower_ids() {
    let logits = [1.0f32; 1000];
    assert_eq!(support(SamplingParams { top_k: 3, ..params() }, &logits), [0, 1, 2]);
    assert_eq!(support(SamplingParams { top_p: 0.0045, ..params() }, &logits), [0, 1, 2, 3, 4]);
}

#[test]
fn draws_follow_the_tempered_distribution() {
    let logits: Vec<f32> = (0..24).map(|i| ((i * 7) % 24) as f32 * 0.15).collect();
    for (temperature, seed) in [(0.5f32, 1u64), (1.0, 2), (2.0, 3)] {
        let weights: Vec<f64> = logits.iter().map(|&l| f64::from(l / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut sampler = sampler(SamplingParams { temperature, seed, ..params() }, logits.len());
        let mut counts = vec![0u32; logits.len()];
        let draws = 40_000u64;
        for position in 0..draws {
            counts[sampler.sample(&logits, position).expect("finite logits").token as usize] += 1;
        }
        let chi_square: f64 = counts
            .iter()
            .zip(&weights)
            .map(|(&n, w)| {
                let expected = draws as f64 * w / total;
                (f64::from(n) - expected).powi(2) / expected
            })
            .sum();
        // 23 degrees of freedom: 99.99 % of true samplers stay below 57.
        assert!(chi_square < 57.0, "temperature {temperature}: chi-square {chi_square}");
    }
}

#[test]
fn any_position_can_be_drawn_again_in_any_order() {
    let logits: Vec<f32> = (0..300).map(|i| ((i * 31) % 97) as f32 * 0.1).collect();
    let settings = SamplingParams { top_k: 40, top_p: 0.9, min_p: 0.01, temperature: 0.8, seed: 9, ..params() };
    let mut first = sampler(settings, logits.len());
    let forward: Vec<_> = (0..100).map(|p| first.sample(&logits, p).expect("finite logits")).collect();
    let mut second = sampler(settings, logits.len());
    for position in (0..100).rev() {
        assert_eq!(second.sample(&logits, position).expect("finite logits"), forward[position as usize]);
    }
    let other_seed: Vec<_> = {
        let mut sampler = sampler(SamplingParams { seed: 10, ..settings }, logits.len());
        (0..100).map(|p| sampler.sample(&logits, p).expect("finite logits")).collect()
    };
    assert_ne!(forward, other_seed);
}

#[test]
fn a_parameter_out_of_range_is_named() {
    let bad = [
        ("temperature", SamplingParams { temperature: -0.1, ..params() }),
        ("temperature", SamplingParams { temperature: f32::NAN, ..params() }),
        ("temperature", SamplingParams { temperature: f32::INFINITY, ..params() }),
        ("top_p", SamplingParams { top_p: 0.0, ..params() }),
        ("top_p", SamplingParams { top_p: 1.01, ..params() }),
        ("min_p", SamplingParams { min_p: -0.5, ..params() }),
        ("min_p", SamplingParams { min_p: f32::NAN, ..params() }),
    ];
    for (field, params) in bad {
        let error = params.validate().expect_err(field);
        assert_eq!(error.field, field);
        assert!(Sampler::new(params, 8).is_err());
        assert!(error.to_string().contains(field) && error.to_string().contains(error.allowed));
    }
}

#[test]
fn a_step_keeps_the_buffers_that_the_first_one_had() {
    let logits: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 5000) as f32 * 1e-3).collect();
    for settings in [
        SamplingParams { top_k: 40, ..params() },
        SamplingParams { top_p: 0.99, ..params() },
        SamplingParams { min_p: 0.001, ..params() },
    ] {
        let mut sampler = sampler(settings, logits.len());
        let buffer = (sampler.candidates.as_ptr(), sampler.candidates.capacity());
        for position in 0..20 {
            sampler.sample(&logits, position).expect("finite logits");
        }
        assert_eq!(buffer, (sampler.candidates.as_ptr(), sampler.candidates.capacity()));
    }
}

/// The definition, written out: sort everything, filter, walk.
fn oracle_support(logits: &[f32], params: &SamplingParams) -> Vec<u32> {
    let mut ranked: Vec<u32> = (0..logits.len() as u32).filter(|&i| logits[i as usize].is_finite()).collect();
    ranked.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    if params.top_k > 0 {
        ranked.truncate(params.top_k);
    }
    let max = f64::from(logits[ranked[0] as usize]);
    let weight = |id: u32| (f64::from(logits[id as usize]) - max).exp();
    let total: f64 = ranked.iter().map(|&id| weight(id)).sum();
    let mut passed = 0.0;
    let mut kept = vec![];
    for &id in &ranked {
        if passed >= f64::from(params.top_p) * total && params.top_p < 1.0 {
            break;
        }
        passed += weight(id);
        kept.push(id);
    }
    kept.retain(|&id| weight(id) >= f64::from(params.min_p));
    kept.sort_unstable();
    kept
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_draw_is_among_those_that_the_definition_keeps(
        // Steps of 1/8 make ties common and keep every comparison far from rounding.
        steps in prop::collection::vec(prop_oneof![8 => (-60i32..60).prop_map(Some), 1 => Just(None)], 1..400),
        top_k in prop_oneof![Just(0usize), 1usize..500],
        top_p in prop_oneof![Just(1.0f32), 0.01f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 0.0f32..1.0],
        temperature in 0.1f32..3.0,
        seed: u64,
        position: u64,
    ) {
        let logits: Vec<f32> = steps.iter().map(|s| s.map_or(f32::NEG_INFINITY, |s| s as f32 / 8.0)).collect();
        prop_assume!(logits.iter().any(|l| l.is_finite()));
        let params = SamplingParams { temperature, top_k, top_p, min_p, seed, ..params() };
        let mut sampler = sampler(params, logits.len());
        let support = oracle_support(&logits, &params);
        for step in 0..8u64 {
            let got = sampler.sample(&logits, position.wrapping_add(step)).expect("finite logits");
            prop_assert!(support.contains(&got.token), "{} not in {support:?}", got.token);
            prop_assert!(got.logprob <= 0.0 && got.logprob.is_finite());
        }
    }
}
