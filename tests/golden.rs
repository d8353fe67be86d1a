//! The forward pass against transformers in float32, family by family, layer by layer.

use engine_core::checkpoint::CheckpointError;
use engine_core::model::{Choice, Model, Observer};
use engine_core::session::Evaluator;
use simd::{Dtype, Isa};

use crate::models::{FAMILIES, Reference, VARIANTS, load_golden, options, pool};

/// Root mean square of `got - want`, over that of `want`.
pub(crate) fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let sum = |terms: &mut dyn Iterator<Item = f64>| terms.map(|x| x * x).sum::<f64>();
    let error = sum(&mut got.iter().zip(want).map(|(got, want)| f64::from(*got) - f64::from(*want)));
    (error / sum(&mut want.iter().map(|want| f64::from(*want)))).sqrt()
}

/// Logits of all tokens with a cache of `dtype`.
fn logits(model: &Model, tokens: &[u32], dtype: Dtype) -> Vec<f32> {
    let mut all = Vec::new();
    let mut evaluator = Evaluator::new(model, pool(1), dtype, tokens.len(), tokens.len()).unwrap();
    let fed = evaluator.feed(tokens, &mut (), |_, logits| {
        all.extend_from_slice(logits);
        Ok::<_, CheckpointError>(())
    });
    fed.unwrap();
    all
}

#[derive(Default)]
struct Seen {
    residual: Vec<Vec<f32>>,
    router_logits: Vec<Vec<f32>>,
    experts: Vec<Vec<u32>>,
}

impl Observer for Seen {
    fn residual(&mut self, _: usize, rows: &[f32]) {
        self.residual.push(rows.to_vec());
    }
    fn routed(&mut self, _: usize, logits: &[f32], choices: &[Choice]) {
        self.router_logits.push(logits.to_vec());
        self.experts.push(choices.iter().map(|choice| choice.expert).collect());
    }
}

#[test]
fn every_family_agrees_with_transformers_in_float32() {
    println!(
        "{:<20}{:<10}{:>12}{:>14}{:>14}{:>14}",
        "family", "isa", "rms error", "bf16's error", "layers' worst", "f16 cache"
    );
    for family in FAMILIES.into_iter().chain(VARIANTS) {
        let reference = Reference::of(family);
        let tokens = reference.ids("token_ids");
        let want = reference.floats("logits");
        let bf16_error = relative_error(&reference.floats("logits_bf16"), &want);
        let hidden = reference.floats("hidden");
        for isa in Isa::available() {
            let model = load_golden(family, tokens.len(), options(isa));
            let mut seen = Seen::default();
            let mut got = Vec::new();
            let mut evaluator = Evaluator::new(&model, pool(1), Dtype::F32, tokens.len(), tokens.len()).unwrap();
            let fed = evaluator.feed(&tokens, &mut seen, |_, logits| {
                got.extend_from_slice(logits);
                Ok::<_, CheckpointError>(())
            });
            fed.unwrap();

            let error = relative_error(&got, &want);
            let of_layers = seen.residual.iter().zip(hidden.chunks_exact(seen.residual[0].len()));
            let worst = of_layers.map(|(got, want)| relative_error(got, want)).fold(0.0, f64::max);
            let with_f16 = relative_error(&logits(&model, &tokens, Dtype::F16), &want);
            println!("{family:<20}{:<10}{error:>12.2e}{bf16_error:>14.2e}{worst:>14.2e}{with_f16:>14.2e}", isa.name());
            assert_eq!(seen.residual.len(), reference.shape("hidden")[0], "{family}: a layer is missing");
            assert!(worst <= 1e-4, "{family} on {isa}: residual stream off by {worst:.2e}");
            assert!(error <= 1e-4, "{family} on {isa}: logits off by {error:.2e}");
            assert!(error <= bf16_error / 20.0, "{family} on {isa}: {error:.2e} against BF16's {bf16_error:.2e}");

            assert!(with_f16 <= 1e-3, "{family} on {isa}: with a cache of F16 logits are off by {with_f16:.2e}");

            // The inputs were drawn so that no router decision is near a tie: every choice must be the reference's.
            assert_eq!(reference.has("experts"), !seen.experts.is_empty());
            if reference.has("experts") {
                assert_eq!(seen.experts.concat(), reference.ids("experts"), "{family} on {isa}: chosen experts");
                let router = relative_error(&seen.router_logits.concat(), &reference.floats("router_logits"));
                assert!(router <= 1e-4, "{family} on {isa}: router logits off by {router:.2e}");
            }
        }
    }
}

#[test]
fn greedy_continuations_are_those_of_transformers_with_every_type_of_cache() {
    for family in FAMILIES.into_iter().chain(VARIANTS) {
        let reference = Reference::of(family);
        let (prompt, want) = (reference.ids("greedy_prompt"), reference.ids("greedy"));
        for dtype in [Dtype::F32, Dtype::F16] {
            let ctx_size = prompt.len() + want.len();
            let model = load_golden(family, ctx_size, options(Isa::detect()));
            let mut evaluator = Evaluator::new(&model, pool(2), dtype, ctx_size, 8).unwrap();
            let mut got = Vec::new();
            let mut next = prompt.clone();
            while got.len() < want.len() {
                let mut last = 0;
                let fed = evaluator.feed(&next, &mut (), |_, logits| {
                    last = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
                    Ok::<_, CheckpointError>(())
                });
                fed.unwrap();
                got.push(last as u32);
                next = vec![last as u32];
            }
            assert_eq!(got, want, "{family} with a cache of {}", dtype.name());
        }
    }
}
