//! Numbers that break in one sequence: its neighbours and those that come after it get what they would have got.
//!
//! No file can bring in a number that is not finite, loading refuses it. But a cache of F16 ends at 65504 and weights
//! may be fine while their products are beyond it.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use engine_core::sampler::SampleError;
use engine_core::session::{EngineOptions, SequenceError};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use simd::Dtype;

use super::{ALONE, Speaker, Stream, complete, nine_requests, noise, request, run, seeded, sizes};
use crate::tiny_model::VOCAB_SIZE;

/// In the prompt only: beyond the tokenizer's vocabulary, so no one ever draws it.
pub(super) const POISON: usize = VOCAB_SIZE - 1;
const POISON_DIM: usize = 5;

/// Gives [`POISON`] a dimension of the embedding that no other token has, and in the first layer's projection weights
/// that make of it more than an F16 can hold. All weights stay finite.
pub(super) fn poison(folder: &Path, projection: &str) {
    let mut changed = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let file = fs::read(&path).unwrap();
        let shard = SafeTensors::deserialize(&file).unwrap();
        let mut tensors: HashMap<String, (Vec<usize>, Vec<u8>)> = HashMap::new();
        for (name, tensor) in shard.iter() {
            let mut bytes = tensor.data().to_vec();
            let hidden_size = tensor.shape().last().unwrap();
            let column = |row: &mut [u8], value: f32| {
                row[POISON_DIM * 2..][..2].copy_from_slice(&((value.to_bits() >> 16) as u16).to_le_bytes());
            };
            let rows = bytes.chunks_exact_mut(hidden_size * 2);
            if name == "model.embed_tokens.weight" {
                for (token, row) in rows.enumerate() {
                    if token == POISON {
                        row.fill(0);
                    }
                    column(row, if token == POISON { 1.0 } else { 0.0 });
                }
                changed += 1;
            } else if name == format!("model.layers.0.self_attn.{projection}.weight") {
                rows.for_each(|row| column(row, 1e6));
                changed += 1;
            }
            tensors.insert(name.into(), (tensor.shape().to_vec(), bytes));
        }
        let views = tensors.iter().map(|(name, (shape, bytes))| {
            (name, TensorView::new(safetensors::Dtype::BF16, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &path).unwrap();
    }
    assert_eq!(changed, 2);
}

#[test]
fn numbers_that_break_end_their_sequence_and_leave_its_neighbours_alone() {
    for (family, projection) in [("llama", "k_proj"), ("llama", "v_proj"), ("qwen3_moe", "v_proj")] {
        let speaker = Speaker::new(family);
        poison(speaker.folder.path(), projection);
        let requests = nine_requests();
        let want = speaker.alone(&requests);
        let mut poisoned = request(noise(40, 2), 6, seeded(1));
        poisoned.tokens[20] = POISON as u32;
        let mut mixed = requests.clone();
        for at in [1, 4, 5] {
            mixed.insert(at, poisoned.clone());
        }
        for sizes in [sizes(4, 256, 1), sizes(3, 7, 1)] {
            let mut engine = speaker.engine(sizes);
            // The second time in blocks that the broken numbers were in.
            for _ in 0..2 {
                let what = format!("{family}, {projection}, {sizes:?}");
                let mut streams: Vec<Stream> = run(&mut engine, &mixed).into_values().collect();
                for at in [5, 4, 1] {
                    let stream = streams.remove(at);
                    let broken = SequenceError::Sample(SampleError::NonFinite { index: 0, value: f32::NAN });
                    let got = stream.end.unwrap().unwrap_err();
                    assert_eq!(got.to_string(), broken.to_string(), "{what}");
                    assert_eq!((stream.prefilled, stream.tokens.len()), (40, 0), "{what}");
                }
                assert_eq!(streams.iter().map(Stream::said).collect::<Vec<_>>(), want, "{what}");
            }
        }
        // float32 holds them: it was the cache that broke them.
        let mut engine = speaker.engine(EngineOptions { kv_dtype: Dtype::F32, ..ALONE });
        assert_eq!(complete(&mut engine, &poisoned).tokens.len(), 6, "{family}, {projection}");
    }
}
