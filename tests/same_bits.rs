//! Same bytes: a row's logits do not depend on threads, on how its prompt was cut, on the company in its batch, nor on
//! where the weights lie and on how many nodes.

use engine_core::checkpoint::CheckpointError;
use engine_core::kv_cache::{KvCache, KvShape, blocks_for};
use engine_core::model::{Batch, Load, Model, ModelOptions, Row, Workspace};
use engine_core::session::Evaluator;
use numa::Pool;
use simd::matmul::Activations;
use simd::{Dtype, Isa};

use crate::models::{FAMILIES, Reference, golden, load, load_for, options, pool, pool_on_nodes};
use crate::tiny_model::tiny_model;

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

pub(crate) fn evaluate(model: &Model, tokens: &[u32], threads: usize, chunk: usize, kv: Dtype) -> Vec<u32> {
    evaluate_with(model, tokens, pool(threads), chunk, kv)
}

fn evaluate_with(model: &Model, tokens: &[u32], pool: Pool, chunk: usize, kv: Dtype) -> Vec<u32> {
    let mut got = Vec::new();
    let mut evaluator = Evaluator::new(model, pool, kv, tokens.len(), chunk).unwrap();
    let fed = evaluator.feed(tokens, &mut (), |_, logits| {
        got.extend(bits(logits));
        Ok::<_, CheckpointError>(())
    });
    fed.unwrap();
    got
}

#[test]
fn logits_are_bit_equal_for_any_threads_and_any_chunk() {
    for family in FAMILIES {
        let tokens = Reference::of(family).ids("token_ids");
        for isa in Isa::available() {
            let model = load(&golden().join(family), options(isa));
            let want = evaluate(&model, &tokens, 1, tokens.len(), Dtype::F16);
            for (threads, chunk) in [(1, 1), (1, 7), (1, 64), (2, 7), (2, tokens.len()), (3, 1), (3, 64)] {
                let got = evaluate(&model, &tokens, threads, chunk, Dtype::F16);
                assert!(got == want, "{family} on {isa}: {threads} threads and chunks of {chunk} change bits");
            }
        }
    }
}

#[test]
fn logits_are_bit_equal_on_any_number_of_nodes() {
    for family in FAMILIES {
        let tokens = Reference::of(family).ids("token_ids");
        let folder = golden().join(family);
        for isa in Isa::available() {
            let want = evaluate(&load(&folder, options(isa)), &tokens, 1, tokens.len(), Dtype::F16);
            // Uneven nodes among them, and more of them than some families have KV heads.
            for (nodes, threads, chunk) in [(1, 3, 16), (2, 2, 3), (2, 3, 16), (3, 3, 16), (3, 4, tokens.len())] {
                let pool = pool_on_nodes(threads, nodes);
                let model = load_for(&pool, &folder, options(isa));
                assert_eq!(model.homes().count(), nodes);
                let got = evaluate_with(&model, &tokens, pool, chunk, Dtype::F16);
                assert!(got == want, "{family} on {isa}: {nodes} nodes with {threads} threads change bits");
            }
        }
    }
}

#[test]
fn logits_are_bit_equal_for_mapped_and_resident_weights() {
    for family in ["llama", "qwen3_moe", "mixtral", "gpt_oss"] {
        let tokens = Reference::of(family).ids("token_ids");
        for isa in Isa::available() {
            for activations in [Activations::Bf16, Activations::Bf16x2] {
                let resident = ModelOptions { activations, ..options(isa) };
                let mapped = ModelOptions { load: Load::Mapped, ..resident };
                let [resident, mapped] = [resident, mapped]
                    .map(|options| evaluate(&load(&golden().join(family), options), &tokens, 2, 16, Dtype::Bf16));
                assert!(resident == mapped, "{family} on {isa}, {activations}: mapping changes bits");
            }
        }
    }
}

/// Feeds one sequence alone, then the same one beside three others that are at other positions and end earlier.
#[test]
fn logits_are_bit_equal_alone_and_beside_three_other_sequences() {
    for family in FAMILIES {
        let tokens = Reference::of(family).ids("token_ids");
        for isa in Isa::available() {
            let model = load(&golden().join(family), options(isa));
            let want = evaluate(&model, &tokens, 1, tokens.len(), Dtype::F16);
            let vocab_size = model.config().vocab_size;

            let others: [Vec<u32>; 3] = [3, 5, 7].map(|step| tokens.iter().rev().step_by(step).copied().collect());
            let sequences = [&others[0], &tokens, &others[1], &others[2]];
            let shape = KvShape::new(model.config(), Dtype::F16, 4 * blocks_for(tokens.len()));
            let mut pool = pool(2);
            let mut kv = KvCache::new(shape, &mut pool).unwrap();
            let tables: Vec<_> = sequences.iter().map(|s| kv.take(blocks_for(s.len())).unwrap()).collect();
            let mut space = Workspace::new(&model, pool, 64, 64);
            let mut done = [0; 4];
            let mut got = Vec::new();
            while done[1] < tokens.len() {
                let mut rows = Vec::new();
                let mut ours = Vec::new();
                // A sequence gives as many rows as its number says: prefill and decode meet in each step.
                for (sequence, all) in sequences.iter().enumerate() {
                    let take = (all.len() - done[sequence]).min([1, 11, 4, 9][sequence]);
                    for position in done[sequence]..done[sequence] + take {
                        if sequence == 1 {
                            ours.push(rows.len());
                        }
                        rows.push(Row { token: all[position], position, sequence, experts_per_token: None });
                    }
                    done[sequence] += take;
                }
                let batch = Batch { rows: &rows, tables: &tables, logits: &ours, adapters: &[] };
                model.forward(&batch, &mut kv, &mut space, &mut ());
                got.extend(bits(&space.logits()[..ours.len() * vocab_size]));
            }
            assert!(got == want, "{family} on {isa}: company changes bits");
        }
    }
}

/// Beyond one run of the cache, with more workers than heads, the runs of a row are spread over workers.
#[test]
fn logits_are_bit_equal_where_the_runs_of_a_row_are_spread() {
    for family in ["llama", "gpt_oss"] {
        let folder = tiny_model(family);
        // Enough runs for the parts not to fit at once on the fewest workers.
        let tokens: Vec<u32> = (0..4200).map(|i| i * i % 251).collect();
        let last = |nodes: usize, threads: usize| {
            let mut logits = Vec::new();
            let pool = pool_on_nodes(threads, nodes);
            let model = load_for(&pool, folder.path(), options(Isa::detect()));
            let mut evaluator = Evaluator::new(&model, pool, Dtype::F16, tokens.len(), 128).unwrap();
            for tokens in [&tokens[..4198], &tokens[4198..4199], &tokens[4199..]] {
                let fed = evaluator.feed(tokens, &mut (), |_, row| {
                    logits = bits(row);
                    Ok::<_, CheckpointError>(())
                });
                fed.unwrap();
            }
            logits
        };
        let want = last(1, 1);
        for (nodes, threads) in [(1, 2), (1, 3), (2, 3)] {
            assert!(last(nodes, threads) == want, "{family}: {threads} threads on {nodes} nodes change bits");
        }
    }
}
