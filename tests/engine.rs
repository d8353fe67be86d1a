//! The step loop: what a request gets depends on the request alone, never on sizes, company or what went wrong beside it.
//!
//! Tiny models say noise, and a token is a byte: characters are cut in half and stop strings are split over tokens
//! without any effort. Every run of an engine goes through [`run`], which checks what must be true of any stream of events.

mod asked;
mod poison;
mod sharing;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use engine_core::checkpoint::CheckpointError;
use engine_core::kv_cache::blocks_for;
use engine_core::sampler::{Sampler, SamplingParams};
use engine_core::session::{
    Completion, Engine, EngineOptions, Evaluator, Event, FinishReason, Refused, Request, SequenceError, SequenceId,
    Totals,
};
use engine_core::text::Tokenizer;
use simd::{Dtype, Isa};
use tempfile::TempDir;

use crate::models::{load, options, pool};
use crate::tiny_model::{VOCAB_SIZE, tiny_model};

const FAMILIES: [&str; 2] = ["qwen3_moe", "llama"];
const CTX_SIZE: usize = 200;
const GREEDY: SamplingParams = SamplingParams {
    temperature: 0.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    seed: 0,
    repetition_penalty: 1.0,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
};
/// One sequence at a time, its prompt in one step.
const ALONE: EngineOptions = sizes(1, 256, 1);

const fn sizes(width: usize, ubatch_size: usize, threads: usize) -> EngineOptions {
    let threads = NonZeroUsize::new(threads).unwrap();
    EngineOptions { threads, kv_dtype: Dtype::F16, ctx_size: CTX_SIZE, width, ubatch_size, prefix_cache: false }
}

/// A folder with a model, and its tokenizer.
struct Speaker {
    folder: TempDir,
    tokenizer: Tokenizer,
}

impl Speaker {
    fn new(family: &str) -> Self {
        let folder = tiny_model(family);
        let tokenizer = Tokenizer::from_dir(folder.path()).unwrap();
        Self { folder, tokenizer }
    }

    /// Nothing ends a sequence early: lengths are those that were asked for.
    fn engine(&self, sizes: EngineOptions) -> Engine<'_> {
        self.engine_with_eos(sizes, &[])
    }

    fn engine_with_eos(&self, sizes: EngineOptions, eos: &[u32]) -> Engine<'_> {
        let model = load(self.folder.path(), options(Isa::detect()));
        Engine::new(model, &self.tokenizer, eos.to_vec(), sizes).unwrap()
    }

    /// What each request gets when nothing else runs.
    fn alone(&self, requests: &[Request]) -> Vec<Said> {
        let mut engine = self.engine(ALONE);
        requests.iter().map(|request| complete(&mut engine, request)).collect()
    }
}

/// What a sequence was given: all that must not depend on company.
#[derive(Clone, Debug, PartialEq)]
struct Said {
    tokens: Vec<u32>,
    text: String,
    finish_reason: FinishReason,
}

impl From<&Completion> for Said {
    fn from(completion: &Completion) -> Self {
        let Completion { tokens, text, finish_reason, .. } = completion.clone();
        Self { tokens, text, finish_reason }
    }
}

/// The events of one sequence.
#[derive(Debug, Default)]
struct Stream {
    prefilled: usize,
    tokens: Vec<u32>,
    text: String,
    embedding: Option<Vec<f32>>,
    end: Option<Result<Completion, SequenceError>>,
}

impl Stream {
    #[track_caller]
    fn completion(&self) -> &Completion {
        self.end.as_ref().unwrap().as_ref().unwrap()
    }

    #[track_caller]
    fn said(&self) -> Said {
        self.completion().into()
    }
}

type Streams = BTreeMap<SequenceId, Stream>;

/// Runs to the end; between steps `requests` go in one by one.
fn run_submitting(engine: &mut Engine, requests: &[Request]) -> Streams {
    let options = *engine.options();
    let before = *engine.totals();
    let mut streams = Streams::new();
    let mut began = Vec::new();
    let mut requests = requests.iter();
    let mut events = Vec::new();
    loop {
        let next = requests.next();
        if let Some(request) = next {
            engine.submit(request.clone()).unwrap();
        } else if engine.is_idle() {
            break;
        }
        engine.step(&mut events).unwrap();
        assert!(!events.is_empty() || engine.is_idle(), "a step brings something");
        for event in events.drain(..) {
            let (Event::Prefill { id, .. }
            | Event::Token { id, .. }
            | Event::Embedded { id, .. }
            | Event::Finished { id, .. }
            | Event::Failed { id, .. }) = &event;
            let stream = streams.entry(*id).or_default();
            assert!(stream.end.is_none() && stream.embedding.is_none(), "{event:?} after the end");
            match event {
                Event::Prefill { id, done, total } => {
                    if stream.prefilled == 0 {
                        began.push(id);
                    }
                    assert!(stream.prefilled < done && done <= total, "{done} of {total} after {}", stream.prefilled);
                    stream.prefilled = done;
                }
                Event::Token { token, text, .. } => {
                    stream.tokens.push(token);
                    stream.text += &text;
                }
                Event::Embedded { values, .. } => stream.embedding = Some(values),
                Event::Finished { completion, .. } => {
                    assert_eq!(stream.tokens, completion.tokens);
                    assert_eq!(stream.text, completion.text);
                    let computed = if completion.tokens.is_empty() { 0 } else { completion.prompt_tokens };
                    assert_eq!(stream.prefilled, computed);
                    stream.end = Some(Ok(completion));
                }
                Event::Failed { error, .. } => stream.end = Some(Err(error)),
            }
        }
        let goes_on = |stream: &&Stream| stream.prefilled > 0 && stream.end.is_none() && stream.embedding.is_none();
        let running = streams.values().filter(goes_on).count();
        assert!(running <= options.width, "{running} sequences side by side");
    }
    assert!(streams.values().all(|stream| stream.end.is_some() != stream.embedding.is_some()), "none is forgotten");
    assert!(began.is_sorted(), "first come, first served: {began:?}");
    assert_eq!(engine.free_blocks(), options.width * blocks_for(options.ctx_size), "all blocks are back");

    let (after, all) = (engine.totals(), streams.values());
    let done = |totals: &Totals| totals.prefill_tokens + totals.cached_tokens;
    assert_eq!(done(after) - done(&before), all.clone().map(|s| s.prefilled).sum::<usize>());
    assert_eq!(after.generated_tokens - before.generated_tokens, all.map(|s| s.tokens.len()).sum::<usize>());
    streams
}

/// Runs all requests, given at once.
fn run(engine: &mut Engine, requests: &[Request]) -> Streams {
    for request in requests {
        engine.submit(request.clone()).unwrap();
    }
    run_submitting(engine, &[])
}

#[track_caller]
fn complete(engine: &mut Engine, request: &Request) -> Said {
    let streams = run(engine, std::slice::from_ref(request));
    assert_eq!(streams.len(), 1);
    streams.into_values().next().unwrap().said()
}

/// Noise of `len` tokens; a different one for each `seed`.
fn noise(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32).map(|at| (at * 37 + seed * 101 + at * at * 11) % 256).collect()
}

fn request(tokens: Vec<u32>, max_tokens: usize, sampling: SamplingParams) -> Request {
    Request::new(tokens, max_tokens, sampling)
}

fn seeded(seed: u64) -> SamplingParams {
    SamplingParams { seed, ..SamplingParams::default() }
}

/// Nine requests of different lengths and ways to draw; prompts end inside of blocks and beyond one.
fn nine_requests() -> Vec<Request> {
    let drawn = |len, max_tokens, sampling| request(noise(len, max_tokens as u32), max_tokens, sampling);
    vec![
        drawn(5, 12, GREEDY),
        drawn(70, 7, seeded(1)),
        drawn(1, 20, SamplingParams { temperature: 0.7, top_k: 20, ..seeded(2) }),
        drawn(33, 1, GREEDY),
        drawn(2, 16, SamplingParams { top_p: 0.9, ..seeded(u64::MAX) }),
        Request { stop: vec!["e".into(), "\u{fffd}".into()], ..drawn(17, 19, seeded(4)) },
        drawn(130, 3, SamplingParams { temperature: 2.0, min_p: 0.02, ..seeded(5) }),
        request("Кот сидит на окне".bytes().map(u32::from).collect(), 11, GREEDY),
        drawn(3, 9, seeded(7)),
    ]
}

#[test]
fn a_request_gets_the_same_alone_and_in_any_company_for_any_width_chunk_and_threads() {
    for family in FAMILIES {
        let speaker = Speaker::new(family);
        let requests = nine_requests();
        let want = speaker.alone(&requests);
        let mut all: Vec<_> = (1..=4).flat_map(|width| [1, 3, 256].map(|chunk| (width, chunk, 1))).collect();
        // More threads than cores wait for each other, so not everything is done with them.
        all.extend([(2, 16, 3), (3, 4, 2), (4, 256, 3)]);
        for (width, chunk, threads) in all {
            let mut engine = speaker.engine(sizes(width, chunk, threads));
            let what = format!("{family}, width {width}, chunks of {chunk}, {threads} threads");
            let got: Vec<Said> = run(&mut engine, &requests).values().map(Stream::said).collect();
            assert_eq!(got, want, "{what}");
            // Again in blocks that are no longer empty, in other company: four of them, one more a step.
            let streams = run_submitting(&mut engine, &requests[3..7]);
            let got: Vec<Said> = streams.values().map(Stream::said).collect();
            assert_eq!(got, want[3..7], "{what}, one by one");
        }
    }
}

#[test]
fn tokens_are_drawn_from_the_logits_that_evaluating_the_whole_text_gives() {
    for family in FAMILIES {
        let speaker = Speaker::new(family);
        let model = load(speaker.folder.path(), options(Isa::detect()));
        let requests = nine_requests();
        let streams = run(&mut speaker.engine(sizes(3, 7, 1)), &requests);
        for (request, stream) in requests.iter().zip(streams.values()) {
            let tokens = [&request.tokens[..], &stream.tokens].concat();
            let mut sampler = Sampler::new(request.sampling, speaker.tokenizer.vocab_size()).unwrap();
            let mut drawn = Vec::new();
            let mut evaluator = Evaluator::new(&model, pool(1), Dtype::F16, CTX_SIZE, 16).unwrap();
            let fed = evaluator.feed(&tokens[..tokens.len() - 1], &mut (), |position, logits| {
                if position + 1 >= request.tokens.len() {
                    drawn.push(sampler.sample(logits, position as u64 + 1).unwrap().token);
                }
                Ok::<_, CheckpointError>(())
            });
            fed.unwrap();
            assert_eq!(stream.tokens, drawn, "{family}");
        }
    }
}

#[test]
fn shown_text_is_the_detokenised_tokens() {
    let speaker = Speaker::new("qwen3_moe");
    let mut requests = nine_requests();
    requests.iter_mut().for_each(|request| request.stop.clear());
    for said in speaker.alone(&requests) {
        assert_eq!(said.text, speaker.tokenizer.decode(&said.tokens, true).unwrap());
    }
}

#[test]
fn a_step_brings_a_token_for_as_many_sequences_as_the_width_allows() {
    let speaker = Speaker::new("llama");
    for width in 1..=4 {
        let mut engine = speaker.engine(sizes(width, 4, 1));
        for seed in 0..9 {
            engine.submit(request(noise(1, seed), 5, seeded(seed.into()))).unwrap();
        }
        for _ in 0..5 {
            let mut events = Vec::new();
            engine.step(&mut events).unwrap();
            let tokens = events.iter().filter(|event| matches!(event, Event::Token { .. })).count();
            assert_eq!((tokens, engine.waiting()), (width, 9 - width));
        }
    }
}

#[test]
fn more_requests_than_blocks_all_end_with_the_length_they_asked_for_in_the_order_they_came() {
    let speaker = Speaker::new("qwen3_moe");
    let mut engine = speaker.engine(sizes(2, 8, 1));
    let blocks = engine.free_blocks();
    // Every third is as large as can be, the others could overtake it.
    let requests: Vec<Request> = (0..=3 * blocks as u32)
        .map(|seed| match seed % 3 {
            0 => request(noise(CTX_SIZE - 5, seed), 5, seeded(seed.into())),
            _ => request(noise(1, seed), seed as usize % 4 + 1, seeded(seed.into())),
        })
        .collect();
    assert!(requests.len() > blocks);
    let streams = run(&mut engine, &requests);
    assert_eq!(streams.len(), requests.len());
    for (request, stream) in requests.iter().zip(streams.values()) {
        assert_eq!(stream.said().finish_reason, FinishReason::Length);
        assert_eq!(stream.tokens.len(), request.max_tokens);
    }
}

#[test]
fn a_sequence_may_fill_the_context_and_one_token_more_is_refused_with_the_numbers() {
    let speaker = Speaker::new("llama");
    let mut engine = speaker.engine(sizes(2, 64, 1));
    for prompt in [1, 100, CTX_SIZE - 1] {
        let said = complete(&mut engine, &request(noise(prompt, 0), CTX_SIZE - prompt, seeded(3)));
        assert_eq!((said.tokens.len(), said.finish_reason), (CTX_SIZE - prompt, FinishReason::Length));

        let too_many = [CTX_SIZE - prompt + 1, usize::MAX];
        for asked in too_many {
            let refused = engine.submit(request(noise(prompt, 0), asked, seeded(3))).unwrap_err();
            let numbers =
                format!("{prompt} tokens and up to {asked} were asked for, but a sequence has room for {CTX_SIZE};");
            assert!(refused.to_string().contains(&numbers), "{refused}");
        }
    }
    let refused = engine.submit(request(noise(CTX_SIZE + 1, 0), 0, GREEDY)).unwrap_err();
    assert!(matches!(refused, Refused::Context { prompt: 201, max_tokens: 0, ctx_size: CTX_SIZE }), "{refused}");
}

#[test]
fn no_token_and_one_token_can_be_asked_for() {
    let speaker = Speaker::new("llama");
    let mut requests = nine_requests();
    requests.insert(2, request(noise(9, 1), 0, GREEDY));
    requests.push(request(noise(CTX_SIZE, 1), 0, GREEDY));
    requests.push(request(noise(9, 1), 1, GREEDY));
    let streams: Vec<Stream> = run(&mut speaker.engine(sizes(2, 16, 1)), &requests).into_values().collect();
    for (stream, prompt) in [(&streams[2], 9), (&streams[10], CTX_SIZE)] {
        let nothing = Said { tokens: Vec::new(), text: String::new(), finish_reason: FinishReason::Length };
        assert_eq!(stream.said(), nothing);
        assert_eq!((stream.completion().prompt_tokens, stream.prefilled), (prompt, 0), "nothing is computed for it");
    }
    assert_eq!((streams[11].tokens.len(), streams[11].said().finish_reason), (1, FinishReason::Length));
    assert_eq!(streams[11].completion().timings.decode_tokens, 0);
}

#[test]
fn an_end_of_text_token_ends_the_text_and_leaves_none() {
    let speaker = Speaker::new("qwen3_moe");
    let asked = request(noise(12, 3), 10, seeded(8));
    let [want] = &speaker.alone(std::slice::from_ref(&asked))[..] else { unreachable!() };
    // The first token and the last that was not said before.
    let late = (0..10).rev().find(|&at| !want.tokens[..at].contains(&want.tokens[at])).unwrap();
    assert!(late > 0);
    for at in [0, late] {
        let mut engine = speaker.engine_with_eos(ALONE, &[256, want.tokens[at]]);
        let text = speaker.tokenizer.decode(&want.tokens[..at], true).unwrap();
        // The last character is held back, it could be the beginning of this stop string.
        let held = text.chars().last().map(|last| format!("{last}, and so on"));
        for stop in [None, held] {
            let said = complete(&mut engine, &Request { stop: Vec::from_iter(stop), ..asked.clone() });
            assert_eq!(said.tokens, want.tokens[..=at], "the ending token counts");
            assert_eq!(said.text, text);
            assert_eq!(said.finish_reason, FinishReason::Stop);
        }
    }
}

/// The first of many seeds whose text of 12 tokens is `suitable`, and what it says.
#[track_caller]
fn find_text(engine: &mut Engine, suitable: impl Fn(&[char]) -> bool) -> (Request, Said) {
    let candidates = (0..300).map(|seed| request(noise(10, 6), 12, seeded(seed)));
    let mut said = candidates.map(|request| (complete(engine, &request), request));
    let found = said.find(|(said, _)| suitable(&said.text.chars().collect::<Vec<_>>()));
    found.map(|(said, request)| (request, said)).expect("noise says anything some time")
}

#[test]
fn a_stop_string_over_several_tokens_or_at_the_very_end_stops_before_itself() {
    let speaker = Speaker::new("qwen3_moe");
    let mut engine = speaker.engine(ALONE);
    let (asked, want) = find_text(&mut engine, |text| text.iter().filter(|c| c.is_ascii()).count() >= 6);
    for start in 0..want.text.len() {
        for end in start + 1..=want.text.len() {
            let Some(stop) = want.text.get(start..end).filter(|stop| want.text.find(stop) == Some(start)) else {
                continue;
            };
            let stop = vec!["never said".to_owned(), stop.to_owned()];
            let said = complete(&mut engine, &Request { stop: stop.clone(), ..asked.clone() });
            assert_eq!(said.text, want.text[..start], "{stop:?}");
            assert_eq!(said.finish_reason, FinishReason::Stop, "{stop:?}");
            assert!(want.tokens.starts_with(&said.tokens), "{stop:?}");
            let all = speaker.tokenizer.decode(&said.tokens, true).unwrap();
            assert!(all.contains(&stop[1]), "{stop:?} in {all:?}");
        }
    }
}

#[test]
fn a_character_cut_in_half_by_the_last_token_can_be_the_stop_string() {
    let speaker = Speaker::new("qwen3_moe");
    let mut engine = speaker.engine(ALONE);
    let replacement = |c: &char| *c == '\u{fffd}';
    let (asked, want) = find_text(&mut engine, |text| text.iter().position(replacement) == Some(text.len() - 1));
    assert_eq!(want.finish_reason, FinishReason::Length);
    let said = complete(&mut engine, &Request { stop: vec!["\u{fffd}".into()], ..asked });
    assert_eq!(said.text, want.text.trim_end_matches('\u{fffd}'));
    assert_eq!((said.tokens, said.finish_reason), (want.tokens, FinishReason::Stop));
}

#[test]
fn a_stop_string_that_never_comes_changes_nothing() {
    let speaker = Speaker::new("llama");
    let mut engine = speaker.engine(ALONE);
    let (asked, want) = find_text(&mut engine, |text| text.last().is_some_and(char::is_ascii));
    // The second begins where the text ends, so its beginning is held back until then.
    let begun = format!("{}, and so on", want.text.chars().last().unwrap());
    for stop in ["never said".to_owned(), begun] {
        assert_eq!(complete(&mut engine, &Request { stop: vec![stop], ..asked.clone() }), want);
    }
}

#[test]
fn what_cannot_be_done_is_refused_without_a_trace() {
    let speaker = Speaker::new("llama");
    let neighbours = nine_requests();
    let want = speaker.alone(&neighbours[..3]);
    let mut engine = speaker.engine(sizes(2, 4, 1));
    for request in &neighbours[..3] {
        engine.submit(request.clone()).unwrap();
    }
    let good = || neighbours[0].clone();
    let sampled = |sampling| Request { sampling, ..good() };
    let stopped = |stop: &[&str]| Request { stop: stop.iter().map(ToString::to_string).collect(), ..good() };
    let bad = [
        (Request { tokens: Vec::new(), ..good() }, "no tokens"),
        (Request { tokens: vec![1, 2, VOCAB_SIZE as u32], ..good() }, "token 320 at position 2"),
        (Request { tokens: vec![u32::MAX], ..good() }, "token 4294967295 at position 0"),
        (sampled(SamplingParams { temperature: -1.0, ..GREEDY }), "`temperature` is -1"),
        (sampled(SamplingParams { temperature: f32::NAN, ..GREEDY }), "`temperature` is NaN"),
        (sampled(SamplingParams { top_p: 0.0, ..GREEDY }), "`top_p` is 0"),
        (sampled(SamplingParams { min_p: 1.5, ..GREEDY }), "`min_p` is 1.5"),
        (stopped(&["fine", ""]), "number 1 is empty"),
        (stopped(&["fine"; 17]), "17 were given"),
    ];
    let state = |engine: &Engine| (engine.free_blocks(), engine.waiting());
    let before = state(&engine);
    for (request, reason) in bad {
        let refused = engine.submit(request).unwrap_err();
        assert!(refused.to_string().contains(reason), "{refused}");
        assert_eq!(state(&engine), before, "{refused}");
    }
    assert_eq!(run_submitting(&mut engine, &[]).values().map(Stream::said).collect::<Vec<_>>(), want);
}

#[test]
fn after_cancelling_all_blocks_are_free_and_new_requests_get_what_they_would_have_got() {
    let speaker = Speaker::new("qwen3_moe");
    let requests = nine_requests();
    let want = speaker.alone(&requests);
    let mut engine = speaker.engine(sizes(3, 16, 2));
    let all = engine.free_blocks();
    for steps in [0, 1, 4, 9] {
        let cancelled: Vec<SequenceId> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
        for _ in 0..steps {
            engine.step(&mut Vec::new()).unwrap();
        }
        assert!(engine.waiting() > 0);
        assert_eq!(engine.free_blocks() < all, steps > 0);
        engine.cancel_all();
        assert!(engine.is_idle());
        assert_eq!((engine.free_blocks(), engine.waiting()), (all, 0));
        let mut events = Vec::new();
        engine.step(&mut events).unwrap();
        assert!(events.is_empty());

        let streams = run(&mut engine, &requests);
        assert!(streams.keys().all(|id| !cancelled.contains(id)), "an id is never used again");
        assert_eq!(streams.values().map(Stream::said).collect::<Vec<_>>(), want, "cancelled after {steps} steps");
    }
}

#[test]
fn a_seed_says_the_same_again_and_another_seed_something_else() {
    let speaker = Speaker::new("qwen3_moe");
    let asked = |seed| request(noise(8, 1), 24, seeded(seed));
    let mut engine = speaker.engine(sizes(4, 256, 1));
    let seeds = [0, 1, 2, u64::MAX, 1, 0];
    let streams = run(&mut engine, &seeds.map(asked));
    let said: Vec<Said> = streams.values().map(Stream::said).collect();
    for (a, one) in seeds.iter().zip(&said) {
        for (b, other) in seeds.iter().zip(&said) {
            assert_eq!(a == b, one == other, "seeds {a} and {b}");
        }
    }
}

#[test]
fn a_sequence_taken_up_anywhere_goes_on_as_it_would_have_gone_on() {
    for family in FAMILIES {
        let speaker = Speaker::new(family);
        for whole in [request(noise(60, 1), 12, seeded(9)), request(noise(7, 2), 12, GREEDY)] {
            let want = &speaker.alone(std::slice::from_ref(&whole))[0].tokens;
            let mut engine = speaker.engine(sizes(4, 16, 1));
            let rest = |done: usize| Request {
                tokens: [&whole.tokens[..], &want[..done]].concat(),
                max_tokens: 12 - done,
                ..whole.clone()
            };
            let streams = run(&mut engine, &(0..12).map(rest).collect::<Vec<_>>());
            for (done, stream) in streams.into_values().enumerate() {
                assert_eq!(stream.tokens, want[done..], "{family}: taken up after {done} tokens");
            }
        }
    }
}

#[test]
fn timings_and_totals_add_up() {
    let speaker = Speaker::new("qwen3_moe");
    let requests = nine_requests();
    let mut engine = speaker.engine(sizes(1, 16, 1));
    for request in &requests {
        let before = *engine.totals();
        let streams = run(&mut engine, std::slice::from_ref(request));
        let after = *engine.totals();
        let (completion, timings) = streams.values().map(|s| (s.completion(), s.completion().timings)).next().unwrap();
        assert_eq!(timings.prefill_tokens, request.tokens.len());
        assert_eq!(timings.decode_tokens, completion.tokens.len() - 1);
        // Alone, every step is one of its own.
        assert_eq!(timings.prefill + timings.decode, after.time - before.time);
        assert!(!timings.prefill.is_zero() && timings.decode.is_zero() == (timings.decode_tokens == 0));
        assert!(timings.decode_bytes < after.bytes - before.bytes);
        assert!(timings.decode_bytes >= timings.decode_tokens * engine.model().config().hidden_size);
    }
    // Side by side, steps are shared: each sequence counts all of them that it was in.
    let mut engine = speaker.engine(sizes(4, 16, 1));
    let streams = run(&mut engine, &requests);
    let totals = *engine.totals();
    for timings in streams.values().map(|stream| stream.completion().timings) {
        assert!(timings.prefill + timings.decode <= totals.time);
        assert!(timings.decode_bytes < totals.bytes);
    }
    let sum = streams.values().map(|s| s.completion().timings.prefill_tokens + s.tokens.len()).sum::<usize>();
    assert_eq!(totals.prefill_tokens + totals.generated_tokens, sum);
    assert_eq!(totals.rate(), sum as f64 / totals.time.as_secs_f64());
    assert_eq!(totals.bandwidth(), totals.bytes as f64 / totals.time.as_secs_f64());
}
