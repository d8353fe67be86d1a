//! Sequences that share blocks, stand back, are cancelled or find their beginnings on disk get the bytes that they get
//! alone, and every block is accounted for.

use std::fs;
use std::path::Path;
use std::time::Duration;

use engine_core::kv_cache::disk::DiskCacheError;
use engine_core::session::{Output, Pooling, Priority, SlotState};
use simd::attention::KV_BLOCK;

use super::*;

fn sharing(width: usize, ubatch_size: usize) -> EngineOptions {
    EngineOptions { prefix_cache: true, ..sizes(width, ubatch_size, 1) }
}

fn background(request: Request) -> Request {
    Request { priority: Priority::Background, ..request }
}

/// Steps until all are done; what they said, in the order in which they came.
fn finish(engine: &mut Engine) -> BTreeMap<SequenceId, Completion> {
    let (mut events, mut done) = (Vec::new(), BTreeMap::new());
    while !engine.is_idle() {
        engine.step(&mut events).unwrap();
        collect(&mut events, &mut done);
    }
    done
}

fn collect(events: &mut Vec<Event>, done: &mut BTreeMap<SequenceId, Completion>) {
    for event in events.drain(..) {
        match event {
            Event::Finished { id, completion } => assert!(done.insert(id, completion).is_none()),
            Event::Failed { error, .. } => panic!("{error}"),
            Event::Prefill { done, total, .. } => assert!(done <= total),
            Event::Token { .. } | Event::Embedded { .. } => {}
        }
    }
}

fn all_blocks(engine: &Engine) -> usize {
    engine.options().width * blocks_for(engine.options().ctx_size)
}

/// Prompts that begin alike for so many tokens, and go on differently.
fn alike(common: usize, count: u32) -> Vec<Request> {
    let prompt = |seed| [noise(common, 1), noise(9 + seed as usize, seed + 2)].concat();
    (0..count).map(|seed| request(prompt(seed), 10, seeded(seed.into()))).collect()
}

#[test]
fn sequences_that_begin_alike_share_blocks_and_get_what_they_get_alone() {
    for family in ["qwen3_moe", "llama", "mistral", "gpt_oss"] {
        let speaker = Speaker::new(family);
        let requests = alike(2 * KV_BLOCK + 5, 16);
        let want = speaker.alone(&requests);
        for (width, chunk) in [(1, 256), (3, 50), (16, 64)] {
            let what = format!("{family}, width {width}, chunks of {chunk}");
            let mut engine = speaker.engine(sharing(width, chunk));
            let streams = run(&mut engine, &requests);
            assert_eq!(streams.values().map(Stream::said).collect::<Vec<_>>(), want, "{what}");
            let cached: Vec<usize> = streams.values().map(|stream| stream.completion().cached_tokens).collect();
            assert_eq!(cached[0], 0, "{what}: there was nothing yet");
            // Those that came when the first had not drawn yet have computed some of it themselves.
            assert!(cached[width.min(15)..].iter().all(|tokens| *tokens == 2 * KV_BLOCK), "{what}: {cached:?}");
            for (request, stream) in requests.iter().zip(streams.values()) {
                let completion = stream.completion();
                let computed = request.tokens.len() - completion.cached_tokens;
                assert_eq!(completion.timings.prefill_tokens, computed, "{what}");
            }
            assert_eq!(engine.totals().cached_tokens, cached.iter().sum::<usize>());
            // Again, all of it in the cache; of what was generated too.
            let more: Vec<Request> = requests
                .iter()
                .zip(&want)
                .map(|(request, said)| Request {
                    tokens: [&request.tokens[..], &said.tokens[..3]].concat(),
                    max_tokens: 7,
                    ..request.clone()
                })
                .collect();
            let streams = run(&mut engine, &more);
            for (stream, said) in streams.values().zip(&want) {
                assert_eq!(stream.tokens, said.tokens[3..], "{what}");
                assert_eq!(stream.completion().cached_tokens, 2 * KV_BLOCK);
            }
        }
    }
}

#[test]
fn a_prompt_of_whole_blocks_computes_its_last_block_again_for_its_logits() {
    let speaker = Speaker::new("llama");
    let asked = request(noise(2 * KV_BLOCK, 3), 70, seeded(1));
    let want = speaker.alone(std::slice::from_ref(&asked));
    let mut engine = speaker.engine(sharing(2, 256));
    for cached in [0, KV_BLOCK, KV_BLOCK] {
        let streams = run(&mut engine, std::slice::from_ref(&asked));
        let completion = streams.values().next().unwrap().completion();
        assert_eq!((Said::from(completion), completion.cached_tokens), (want[0].clone(), cached));
    }
    // What was generated is cached as well: three blocks of prompt and answer are full.
    let longer = request([&asked.tokens[..], &want[0].tokens[..68]].concat(), 2, seeded(1));
    let streams = run(&mut engine, &[longer]);
    assert_eq!(streams.values().next().unwrap().completion().cached_tokens, 3 * KV_BLOCK);
}

#[test]
fn other_experts_are_another_beginning() {
    let speaker = Speaker::new("qwen3_moe");
    let plain = request(noise(150, 3), 5, seeded(1));
    let fewer = Request { experts_per_token: NonZeroUsize::new(1), ..plain.clone() };
    let want = speaker.alone(&[plain.clone(), fewer.clone()]);
    assert_ne!(want[0], want[1]);
    let mut engine = speaker.engine(sharing(2, 256));
    for cached in [0, 2 * KV_BLOCK] {
        for (asked, want) in [(&plain, &want[0]), (&fewer, &want[1])] {
            let streams = run(&mut engine, std::slice::from_ref(asked));
            let completion = streams.values().next().unwrap().completion();
            assert_eq!((&Said::from(completion), completion.cached_tokens), (want, cached));
        }
    }
}

#[test]
fn cached_blocks_are_given_up_for_room_and_nothing_is_lost() {
    let speaker = Speaker::new("llama");
    let requests: Vec<Request> = (0..24)
        .map(|seed| request(noise(130 + seed as usize % 3 * 20, seed / 2 % 7), 9, seeded(seed.into())))
        .collect();
    let want = speaker.alone(&requests);
    let mut engine = speaker.engine(sharing(2, 100));
    let streams = run(&mut engine, &requests);
    assert_eq!(streams.values().map(Stream::said).collect::<Vec<_>>(), want);
    assert!(engine.totals().evicted_blocks > 0 && engine.totals().cached_tokens > 0);
    assert_eq!(engine.free_blocks(), all_blocks(&engine));
    assert!(engine.cached_blocks() <= all_blocks(&engine));
}

#[test]
fn a_thousand_cancels_at_any_phase_leave_every_block_where_it_was() {
    let speaker = Speaker::new("llama");
    let requests = [alike(70, 8), nine_requests()].concat();
    let want = speaker.alone(&requests);
    let mut engine = speaker.engine(sharing(3, 20));
    let (mut cancelled, mut random) = (0, 1u64);
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    let mut phases = BTreeMap::<String, usize>::new();
    while cancelled < 1000 {
        let (mut alive, mut done, mut events) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for _ in 0..6 {
            let which = next(requests.len());
            let priority = if next(2) == 0 { Priority::Interactive } else { Priority::Background };
            let id = engine.submit(Request { priority, ..requests[which].clone() }).unwrap();
            alive.insert(id, which);
        }
        let mut later = 4;
        while !engine.is_idle() {
            // Someone asks while others run, and those who may wait stand back.
            if later > 0 && next(3) == 0 {
                let which = next(requests.len());
                alive.insert(engine.submit(requests[which].clone()).unwrap(), which);
                later -= 1;
                engine.step(&mut events).unwrap();
                collect(&mut events, &mut done);
            }
            if next(2) == 0 && !engine.is_idle() {
                let slots: Vec<_> = engine.slots().collect();
                let slot = slots[next(slots.len())];
                assert!(engine.cancel(slot.id) && !engine.cancel(slot.id));
                assert!(engine.slots().all(|other| other.id != slot.id));
                alive.remove(&slot.id);
                *phases.entry(format!("{:?}", slot.state)).or_default() += 1;
                cancelled += 1;
            }
            engine.step(&mut events).unwrap();
            for event in &events {
                let (Event::Prefill { id, .. }
                | Event::Token { id, .. }
                | Event::Embedded { id, .. }
                | Event::Finished { id, .. }
                | Event::Failed { id, .. }) = event;
                assert!(alive.contains_key(id), "{event:?} of one that was cancelled");
            }
            collect(&mut events, &mut done);
        }
        assert_eq!((engine.running(), engine.waiting()), (0, 0));
        assert_eq!(engine.free_blocks(), all_blocks(&engine));
        for (id, which) in alive {
            assert_eq!(Said::from(&done[&id]), want[which], "after {cancelled} cancels");
        }
    }
    for phase in ["Queued", "Prefilling", "Decoding", "Suspended"] {
        assert!(phases.get(phase).is_some_and(|times| *times > 10), "{phases:?}");
    }
}

#[test]
fn who_is_waited_for_is_admitted_and_computed_first() {
    let speaker = Speaker::new("llama");
    let mut engine = speaker.engine(sizes(1, 256, 1));
    let submit = |engine: &mut Engine, priority| {
        engine.submit(Request { priority, ..request(noise(5, 1), 3, seeded(1)) }).unwrap()
    };
    use Priority::{Background, Interactive};
    let ids = [Background, Interactive, Background, Interactive].map(|priority| submit(&mut engine, priority));
    let order: Vec<SequenceId> = engine.slots().map(|slot| slot.id).collect();
    assert_eq!(order, [ids[1], ids[3], ids[0], ids[2]]);
    let (mut events, mut ended) = (Vec::new(), Vec::new());
    while !engine.is_idle() {
        engine.step(&mut events).unwrap();
        ended.extend(events.drain(..).filter_map(|event| match event {
            Event::Finished { id, .. } => Some(id),
            _ => None,
        }));
    }
    assert_eq!(ended, order);

    // Side by side: the chunk is the interactive one's, though it came later.
    let mut engine = speaker.engine(sizes(2, 16, 1));
    let slow = engine.submit(background(request(noise(100, 1), 3, seeded(1)))).unwrap();
    engine.step(&mut Vec::new()).unwrap();
    let quick = engine.submit(request(noise(32, 2), 3, seeded(1))).unwrap();
    for computed in [16, 32] {
        engine.step(&mut Vec::new()).unwrap();
        let of = |id| engine.slots().find(|slot| slot.id == id).unwrap();
        assert_eq!((of(slow).computed, of(quick).computed), (16, computed));
    }
    engine.step(&mut Vec::new()).unwrap();
    assert_eq!(engine.slots().find(|slot| slot.id == slow).unwrap().computed, 32, "both go on");
}

#[test]
fn what_may_wait_is_suspended_for_an_answer_and_goes_on_with_the_same_bytes() {
    for prefix_cache in [false, true] {
        let speaker = Speaker::new("qwen3_moe");
        let night: Vec<Request> = (0..3)
            .map(|seed| {
                background(Request {
                    stop: vec!["never said".into()],
                    ..request(noise(90 + seed as usize, seed), 60, seeded(seed.into()))
                })
            })
            .collect();
        let asked: Vec<Request> = (0..6).map(|seed| request(noise(150, 50 + seed), 4, seeded(9))).collect();
        let (want_night, want_asked) = (speaker.alone(&night), speaker.alone(&asked));
        let mut engine = speaker.engine(EngineOptions { prefix_cache, ..sizes(2, 40, 1) });
        let nights: Vec<SequenceId> = night.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
        let (mut events, mut done) = (Vec::new(), BTreeMap::new());
        let mut answers = Vec::new();
        for asked in &asked {
            // While it prefills, while it decodes, and just when it was resumed.
            for _ in 0..2 + answers.len() * 3 {
                engine.step(&mut events).unwrap();
                collect(&mut events, &mut done);
            }
            let before = engine.running();
            let id = engine.submit(asked.clone()).unwrap();
            engine.step(&mut events).unwrap();
            collect(&mut events, &mut done);
            let first = engine.slots().find(|slot| slot.id == id).unwrap();
            assert_ne!(first.state, SlotState::Queued, "it waits for nobody who may wait");
            if before == 2 {
                assert!(engine.slots().any(|slot| slot.state == SlotState::Suspended));
            }
            answers.push(id);
        }
        done.extend(finish(&mut engine));
        assert!(engine.totals().suspensions >= 3, "{}", engine.totals().suspensions);
        assert_eq!(nights.iter().map(|id| Said::from(&done[id])).collect::<Vec<_>>(), want_night);
        assert_eq!(answers.iter().map(|id| Said::from(&done[id])).collect::<Vec<_>>(), want_asked);
        assert!(nights.iter().any(|id| done[id].timings.recomputed_tokens > 0));
        assert!(nights.iter().all(|id| done[id].cached_tokens == 0), "what it computed itself is not a hit");
        assert_eq!(engine.free_blocks(), all_blocks(&engine));
    }
}

#[test]
fn an_embedding_that_stands_back_is_the_same_vector() {
    let speaker = Speaker::new("qwen3_moe");
    let vector = |events: &mut Vec<Event>, wanted: SequenceId| {
        let mut found = None;
        for event in events.drain(..) {
            match event {
                Event::Embedded { id, values, .. } if id == wanted => found = Some(values),
                Event::Embedded { .. } | Event::Failed { .. } => panic!("{event:?}"),
                Event::Prefill { .. } | Event::Token { .. } | Event::Finished { .. } => {}
            }
        }
        found
    };
    for (pooling, prefix_cache) in [(Pooling::Last, true), (Pooling::Mean, false), (Pooling::Mean, true)] {
        let embedding = background(Request { output: Output::Embedding(pooling), ..request(noise(150, 7), 0, GREEDY) });
        let asked = |seed| request(noise(170, seed), 9, seeded(3));
        let mut alone = speaker.engine(ALONE);
        let undisturbed = run(&mut alone, std::slice::from_ref(&embedding)).into_values().next().unwrap();
        let want = undisturbed.embedding.unwrap();
        // After so many chunks of 20 rows: once in its first block, in others, and twice.
        for pauses in [&[1][..], &[4], &[7], &[2, 5]] {
            let mut engine = speaker.engine(EngineOptions { prefix_cache, ..sizes(1, 20, 1) });
            let id = engine.submit(embedding.clone()).unwrap();
            let (mut events, mut got) = (Vec::new(), None);
            for (seed, steps) in pauses.iter().enumerate() {
                for _ in 0..*steps {
                    engine.step(&mut events).unwrap();
                }
                assert!(vector(&mut events, id).is_none(), "it is not done yet");
                let other = engine.submit(asked(seed as u32)).unwrap();
                engine.step(&mut events).unwrap();
                let state = |wanted| engine.slots().find(|slot| slot.id == wanted).unwrap().state;
                assert_eq!((state(id), state(other)), (SlotState::Suspended, SlotState::Prefilling));
                while engine.slots().any(|slot| slot.id == other) {
                    engine.step(&mut events).unwrap();
                }
            }
            while !engine.is_idle() {
                engine.step(&mut events).unwrap();
                got = got.or(vector(&mut events, id));
            }
            assert_eq!(engine.totals().suspensions, pauses.len());
            assert_eq!(got.unwrap(), want, "{pooling:?}, suspended after {pauses:?}");
        }
        // Side by side with others, in chunks that others take from.
        let mut engine = speaker.engine(EngineOptions { prefix_cache, ..sizes(3, 20, 1) });
        let (mut events, mut got) = (Vec::new(), None);
        let id = engine.submit(embedding).unwrap();
        for seed in 0..2 {
            engine.step(&mut events).unwrap();
            engine.submit(asked(seed)).unwrap();
        }
        while !engine.is_idle() {
            engine.step(&mut events).unwrap();
            got = got.or(vector(&mut events, id));
        }
        assert_eq!(got.unwrap(), want, "{pooling:?}, interleaved");
    }
}

#[test]
fn numbers_that_break_are_nobodys_beginning() {
    let speaker = Speaker::new("llama");
    poison::poison(speaker.folder.path(), "k_proj");
    let mut poisoned = request(noise(150, 2), 6, seeded(1));
    poisoned.tokens[20] = poison::POISON as u32;
    let mut engine = speaker.engine(sharing(2, 256));
    let streams = run(&mut engine, std::slice::from_ref(&poisoned));
    assert!(streams.values().all(|stream| matches!(stream.end, Some(Err(_)))));
    assert_eq!(engine.cached_blocks(), 0);
    // Nor if it is given up before its logits would have shown it.
    let mut engine = speaker.engine(sharing(2, 100));
    let id = engine.submit(poisoned).unwrap();
    engine.step(&mut Vec::new()).unwrap();
    assert!(engine.cancel(id));
    assert_eq!(engine.cached_blocks(), 0);
    // What was good of one that is given up is kept for when it is asked again.
    let good = request(noise(150, 3), 6, seeded(1));
    let id = engine.submit(good.clone()).unwrap();
    engine.step(&mut Vec::new()).unwrap();
    assert!(engine.cancel(id));
    assert_eq!(engine.cached_blocks(), 1);
    let streams = run(&mut engine, &[good]);
    assert_eq!(streams.values().next().unwrap().completion().cached_tokens, KV_BLOCK);
}

const DIGEST: &str = "of a tiny model";

fn on_disk<'t>(speaker: &'t Speaker, folder: &Path, digest: &str) -> Engine<'t> {
    let mut engine = speaker.engine(sharing(2, 100));
    engine.keep_on_disk(folder, 1 << 30, digest, |line| panic!("{line}")).unwrap();
    engine
}

#[test]
fn after_a_restart_beginnings_come_from_disk_with_the_same_bytes() {
    for family in ["qwen3_moe", "gpt_oss"] {
        let speaker = Speaker::new(family);
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("kv");
        let requests = alike(2 * KV_BLOCK + 5, 4);
        let want = speaker.alone(&requests);
        let mut engine = on_disk(&speaker, &folder, DIGEST);
        let streams = run(&mut engine, &requests);
        assert_eq!(streams.values().map(Stream::said).collect::<Vec<_>>(), want);
        engine.finish_saving();
        assert_eq!(engine.disk_use().unwrap().written, 2, "shared blocks are written once");
        drop(engine);

        let mut engine = on_disk(&speaker, &folder, DIGEST);
        let streams = run(&mut engine, &requests);
        assert_eq!(streams.values().map(Stream::said).collect::<Vec<_>>(), want);
        assert!(streams.values().all(|stream| stream.completion().cached_tokens == 2 * KV_BLOCK));
        assert_eq!((engine.totals().blocks_from_disk, engine.disk_use().unwrap().written), (2, 0));
        drop(engine);

        // Of another model nothing is taken.
        let mut engine = on_disk(&speaker, &folder, "of another");
        let streams = run(&mut engine, &requests[..1]);
        assert_eq!(streams.values().next().unwrap().completion().cached_tokens, 0);
        drop(engine);

        // What was damaged meanwhile is computed again.
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "kv") {
                let mut bytes = fs::read(&path).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 4;
                fs::write(&path, bytes).unwrap();
            }
        }
        let mut engine = on_disk(&speaker, &folder, DIGEST);
        let streams = run(&mut engine, &requests);
        assert_eq!(streams.values().map(Stream::said).collect::<Vec<_>>(), want);
        assert_eq!((engine.totals().blocks_from_disk, engine.disk_use().unwrap().damaged), (0, 1));
    }
}

#[test]
fn a_disk_that_fails_ends_no_request_and_is_told_of() {
    let speaker = Speaker::new("llama");
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("kv");
    let requests = alike(2 * KV_BLOCK + 5, 3);
    let want = speaker.alone(&requests);
    let mut engine = speaker.engine(sharing(2, 100));
    let (told, lines) = std::sync::mpsc::channel();
    engine.keep_on_disk(&folder, 1 << 30, DIGEST, move |line| told.send(line.to_owned()).unwrap()).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    let streams = run(&mut engine, &requests);
    assert_eq!(streams.values().map(Stream::said).collect::<Vec<_>>(), want);
    engine.finish_saving();
    assert!(engine.disk_use().unwrap().off);
    assert!(lines.recv_timeout(Duration::from_secs(10)).unwrap().contains("no longer kept on disk"));
    assert!(lines.try_recv().is_err(), "told once");
    let refused = engine.keep_on_disk(&folder, 100, DIGEST, |_| {}).unwrap_err();
    assert!(matches!(refused, DiskCacheError::Budget { budget: 100, .. }), "{refused}");
}
