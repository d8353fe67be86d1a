//! Runs and their merging against float64; bits against each other.

use std::ops::Range;

use super::*;
use crate::{Dtype, Isa, oracle};

const DTYPES: [Dtype; 3] = [Dtype::F16, Dtype::Bf16, Dtype::F32];
const U: f64 = 1.0 / (1 << 24) as f64;

fn numbers(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + i / 31 * 613 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
}

/// Keys and values of one sequence, stored in blocks, and what is left of them after rounding.
struct Cache {
    dtype: Dtype,
    head_dim: usize,
    blocks: Vec<Vec<u64>>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Cache {
    /// Everything that is not stored is NaN, in all formats.
    fn new(dtype: Dtype, head_dim: usize, keys: &[f32], values: &[f32]) -> Self {
        let positions = keys.len() / head_dim;
        let words = block_bytes(dtype, head_dim).unwrap() / 8;
        let mut blocks = vec![vec![u64::MAX; words]; positions.div_ceil(KV_BLOCK)];
        for j in 0..positions {
            let row = j * head_dim..(j + 1) * head_dim;
            let block = bytemuck::cast_slice_mut(&mut blocks[j / KV_BLOCK]);
            store(dtype, block, head_dim, j % KV_BLOCK, &keys[row.clone()], &values[row]);
        }
        let rounded = |x: &[f32]| {
            let (mut bytes, mut out) = (vec![0; x.len() * dtype.size()], vec![0.0; x.len()]);
            dtype.narrow(x, &mut bytes);
            dtype.widen(&bytes, &mut out);
            out
        };
        Self { dtype, head_dim, blocks, keys: rounded(keys), values: rounded(values) }
    }

    fn random(dtype: Dtype, head_dim: usize, positions: usize) -> Self {
        Self::new(dtype, head_dim, &numbers(positions * head_dim, 1), &numbers(positions * head_dim, 2))
    }

    fn blocks(&self) -> Vec<&[u8]> {
        self.blocks.iter().map(|block| bytemuck::cast_slice(block)).collect()
    }

    /// Parts of one run, `[rows][head_dim + 2]`; `visible` counts from its start.
    fn run(&self, isa: Isa, query: &[f32], scale: f32, run: usize, visible: &[Range<usize>]) -> Vec<f32> {
        let blocks = self.blocks();
        let blocks = blocks.chunks(KV_RUN / KV_BLOCK).nth(run).unwrap();
        let mut scratch = AttendScratch::with_capacity(visible.len());
        let mut parts = vec![f32::NAN; visible.len() * (self.head_dim + 2)];
        let next = self.blocks();
        let next = next.chunks(KV_RUN / KV_BLOCK).nth(run + 1).unwrap_or(&[]);
        attend_run(isa, query, self.head_dim, scale, self.dtype, blocks, next, visible, &mut scratch, &mut parts);
        parts
    }

    /// Rows over all runs, merged: `[rows][head_dim]`; `visible` counts from position 0.
    fn attend(&self, isa: Isa, query: &[f32], scale: f32, visible: &[Range<usize>]) -> Vec<f32> {
        let runs = self.blocks.len().div_ceil(KV_RUN / KV_BLOCK);
        let parts: Vec<_> = (0..runs)
            .map(|run| {
                let clip = |x: usize| x.clamp(run * KV_RUN, (run + 1) * KV_RUN) - run * KV_RUN;
                let visible: Vec<_> = visible.iter().map(|seen| clip(seen.start)..clip(seen.end)).collect();
                self.run(isa, query, scale, run, &visible)
            })
            .collect();
        let mut out = vec![f32::NAN; query.len()];
        for (row, out) in out.chunks_mut(self.head_dim).enumerate() {
            let width = self.head_dim + 2;
            merge_runs(isa, parts.iter().map(|parts| &parts[row * width..][..width]), out);
        }
        out
    }

    /// A score is off by `head_dim + 2` roundings of its sum of absolute products; a probability by twice that (its
    /// own and what it is compared with), by the rounding of the difference, and by 2u of `exp`; a merged one by as
    /// much again. Numerator and denominator are then sums over all positions, of at most one rounding a position, two a
    /// merged run. The last term is what underflows.
    fn check(&self, got: &[f32], query: &[f32], scale: f32, visible: Range<usize>, what: &str) {
        self.check_with_sink(got, query, scale, visible, f32::NEG_INFINITY, what);
    }

    fn check_with_sink(&self, got: &[f32], query: &[f32], scale: f32, visible: Range<usize>, sink: f32, what: &str) {
        let scale = f64::from(scale);
        let sink = f64::from(sink);
        let want = oracle::attention_with_sink(query, &self.keys, &self.values, scale, visible.clone(), sink);
        let magnitudes: Vec<f32> = self.values.iter().map(|v| v.abs()).collect();
        let magnitudes = oracle::attention(query, &self.keys, &magnitudes, scale, visible.clone());
        let key_max = self.keys.iter().fold(0.0, |max: f64, k| max.max(f64::from(k.abs())));
        let score_max = query.iter().map(|q| f64::from(q.abs()) * key_max * scale).sum::<f64>();
        let score = (2 * self.head_dim + 2) as f64 * U * score_max;
        let probability = 2.0 * (2.0 * score + (2.0 * score_max + 4.0) * U);
        let relative = 2.0 * (probability + (2 * visible.len() + 2 * visible.len() / KV_RUN + 8) as f64 * U);
        for (d, got) in got.iter().enumerate() {
            let slack = relative * magnitudes[d] + 1e-40;
            let difference = (f64::from(*got) - want[d]).abs();
            assert!(difference <= slack, "{what}, {visible:?}, dimension {d}: got {got}, want {} ± {slack}", want[d]);
        }
    }
}

#[test]
fn a_sink_is_one_more_score_without_a_value() {
    for isa in Isa::available() {
        let (head_dim, scale) = (24, 0.4);
        let cache = Cache::random(Dtype::F32, head_dim, 2 * KV_RUN + 50);
        // Two rows of three heads; the greatest sink is above all scores, the least far below.
        let sinks = [-30.0, 0.5, 12.0];
        let query = numbers(6 * head_dim, 3);
        let visible = [0..1, 0..1, 0..1, 200..530, 200..530, 200..530];
        let mut states = vec![f32::NAN; 6 * (head_dim + 2)];
        begin_with_sinks(&mut states, head_dim, &sinks);
        for run in 0..3 {
            let clip = |x: usize| x.clamp(run * KV_RUN, (run + 1) * KV_RUN) - run * KV_RUN;
            let visible: Vec<_> = visible.iter().map(|seen| clip(seen.start)..clip(seen.end)).collect();
            fold_run(isa, &mut states, &cache.run(isa, &query, scale, run, &visible), head_dim);
        }
        let mut out = vec![f32::NAN; query.len()];
        finish(&states, head_dim, &mut out);
        for (row, (out, query)) in out.chunks(head_dim).zip(query.chunks(head_dim)).enumerate() {
            let (sink, what) = (sinks[row % 3], format!("{isa}, row {row}"));
            cache.check_with_sink(out, query, scale, visible[row].clone(), sink, &what);
        }
    }
}

/// Folds the parts of one row, in run order.
fn merge_runs<'a>(isa: Isa, parts: impl Iterator<Item = &'a [f32]>, out: &mut [f32]) {
    let mut state = vec![f32::NAN; out.len() + 2];
    begin(&mut state, out.len());
    for part in parts {
        fold_run(isa, &mut state, part, out.len());
    }
    finish(&state, out.len(), out);
}

#[test]
fn attention_agrees_with_the_oracle_for_every_head_dim() {
    for isa in Isa::available() {
        for dtype in DTYPES {
            for head_dim in (1..=50).chain([64, 80, 128, 256]) {
                let cache = Cache::random(dtype, head_dim, 70);
                let query = numbers(3 * head_dim, 3);
                let scale = 2.0 / (head_dim as f32).sqrt();
                let visible = [0..70, 0..69, 3..66];
                let out = cache.attend(isa, &query, scale, &visible);
                for (row, visible) in visible.into_iter().enumerate() {
                    let part = row * head_dim..(row + 1) * head_dim;
                    let what = format!("{isa} {dtype} {head_dim}");
                    cache.check(&out[part.clone()], &query[part], scale, visible, &what);
                }
            }
        }
    }
}

#[test]
fn attention_agrees_with_the_oracle_for_every_number_of_positions() {
    for isa in Isa::available() {
        for dtype in DTYPES {
            let head_dim = 24;
            for positions in (1..=70).chain([127, 128, 200, 255, 256, 257, 320, 512, 700]) {
                let cache = Cache::random(dtype, head_dim, positions);
                let query = numbers(2 * head_dim, positions);
                let out = cache.attend(isa, &query, 0.7, &[0..positions, positions / 2..positions]);
                let what = format!("{isa} {dtype}");
                cache.check(&out[..head_dim], &query[..head_dim], 0.7, 0..positions, &what);
                cache.check(&out[head_dim..], &query[head_dim..], 0.7, positions / 2..positions, &what);
            }
        }
    }
}

#[test]
fn attention_agrees_with_the_oracle_where_one_position_takes_it_all() {
    for isa in Isa::available() {
        let cache = Cache::random(Dtype::F16, 32, 600);
        let query: Vec<f32> = numbers(32, 4).iter().map(|x| x * 40.0).collect();
        let out = cache.attend(isa, &query, 1.0, std::slice::from_ref(&(0..600)));
        cache.check(&out, &query, 1.0, 0..600, isa.name());
    }
}

/// Rows of a prefill tile with windows, holes between them, and some that see nothing.
fn ranges(rows: usize, positions: usize) -> Vec<Range<usize>> {
    (0..rows)
        .map(|row| match row % 7 {
            5 => 0..0,
            6 => row..row,
            3 => (row * 37 % positions)..positions,
            _ => (row * 5 % 40).min(positions)..positions - (rows - row) * 3 % positions.min(30),
        })
        .map(|seen| seen.start.min(seen.end)..seen.end)
        .collect()
}

#[test]
fn bits_of_a_row_are_the_same_alone_and_in_company() {
    for isa in Isa::available() {
        for dtype in DTYPES {
            for (head_dim, positions) in [(16, 250), (40, 64), (128, 100), (7, 33)] {
                let cache = Cache::random(dtype, head_dim, positions);
                for rows in 1..=20 {
                    let query = numbers(rows * head_dim, 5);
                    let visible = ranges(rows, positions);
                    let together = cache.run(isa, &query, 0.3, 0, &visible);
                    for row in 0..rows {
                        let query = &query[row * head_dim..][..head_dim];
                        let alone = cache.run(isa, query, 0.3, 0, &visible[row..=row]);
                        let part = &together[row * (head_dim + 2)..][..head_dim + 2];
                        let same = part.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{isa} {dtype} {head_dim}: row {row} of {rows}, {:?}", visible[row]);
                        if visible[row].is_empty() {
                            assert_eq!((part[0], part[1]), (f32::NEG_INFINITY, 0.0));
                            assert!(part[2..].iter().all(|x| x.to_bits() == 0));
                        } else {
                            assert!(
                                part.iter().all(|x| x.is_finite()),
                                "{isa} {dtype}: row {row} saw what it must not"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_what_is_stored_beyond() {
    for isa in Isa::available() {
        for dtype in DTYPES {
            let (head_dim, keys, values) = (20, numbers(256 * 20, 1), numbers(256 * 20, 2));
            let query = numbers(5 * head_dim, 6);
            for seen in [1, 15, 16, 17, 63, 64, 65, 130] {
                let visible = vec![0..seen; 5];
                let cut = seen * head_dim;
                let short = Cache::new(dtype, head_dim, &keys[..cut], &values[..cut]);
                let long = Cache::new(dtype, head_dim, &keys, &values);
                let [short, long] = [short, long].map(|cache| cache.run(isa, &query, 0.3, 0, &visible));
                assert!(short.iter().all(|x| x.is_finite()), "{isa} {dtype} {seen}");
                assert!(short.iter().zip(&long).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa} {dtype} {seen}");
            }
        }
    }
}

#[test]
fn a_part_is_summed_in_the_order_of_dimensions_and_positions() {
    for isa in Isa::available() {
        let multiply_add = |a: f32, b: f32, c: f32| if isa == Isa::Scalar { a * b + c } else { a.mul_add(b, c) };
        for dtype in DTYPES {
            let (head_dim, visible) = (35, 3..190);
            let cache = Cache::random(dtype, head_dim, 200);
            let query = numbers(head_dim, 8);
            let key = |j: usize| &cache.keys[j * head_dim..][..head_dim];
            let score = |j| query.iter().zip(key(j)).fold(0.0, |sum, (q, k)| multiply_add(*k, *q, sum)) * 0.3;
            let max = visible.clone().map(score).fold(f32::NEG_INFINITY, f32::max);
            let (mut lanes, mut acc) = ([0.0; 16], vec![0.0; head_dim]);
            for j in visible.clone() {
                let p = crate::elementwise::exp(score(j) - max);
                lanes[j % 16] += p;
                for (acc, v) in acc.iter_mut().zip(&cache.values[j * head_dim..]) {
                    *acc = multiply_add(*v, p, *acc);
                }
            }
            let half: [f32; 8] = std::array::from_fn(|i| lanes[i] + lanes[i + 8]);
            let quarter: [f32; 4] = std::array::from_fn(|i| half[i] + half[i + 4]);
            let sum = (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
            let want = [[max, sum].as_slice(), &acc].concat();
            let got = cache.run(isa, &query, 0.3, 0, std::slice::from_ref(&visible));
            assert!(got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa} {dtype}: {got:?}, {want:?}");
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn bits_are_the_same_with_eight_lanes_and_with_sixteen() {
    let isas = ["avx2", "avx512f", "avx512"].map(|name| Isa::by_name(name).ok());
    for dtype in DTYPES {
        let cache = Cache::random(dtype, 72, 256);
        let query = numbers(9 * 72, 7);
        let parts = isas.iter().flatten().map(|isa| cache.run(*isa, &query, 0.2, 0, &ranges(9, 256)));
        let parts: Vec<_> = parts.map(|parts| parts.iter().map(|x| x.to_bits()).collect::<Vec<_>>()).collect();
        assert!(parts.windows(2).all(|pair| pair[0] == pair[1]), "{dtype}");
    }
}

#[test]
fn what_is_visible_and_not_finite_makes_the_output_so() {
    let (head_dim, positions) = (18, 300);
    for isa in Isa::available() {
        for dtype in DTYPES {
            // 70,000 does not fit F16.
            let bad_numbers = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 70_000.0];
            for bad in if dtype == Dtype::F16 { &bad_numbers[..] } else { &bad_numbers[..3] } {
                for (at, in_key) in [(0, true), (290, true), (77, false), (290, false)] {
                    let mut keys = numbers(positions * head_dim, 1);
                    let mut values = numbers(positions * head_dim, 2);
                    let d = at * head_dim + 17;
                    (if in_key { &mut keys } else { &mut values })[d] = *bad;
                    let cache = Cache::new(dtype, head_dim, &keys, &values);
                    let query = vec![0.5; 2 * head_dim];
                    let unseen = if at == 0 { 1..positions } else { 0..at };
                    let out = cache.attend(isa, &query, 0.2, &[0..positions, unseen]);
                    let (sees, blind) = out.split_at(head_dim);
                    let what = format!("{isa} {dtype}: {bad} at {at}");
                    assert!(!sees[17].is_finite(), "{what}");
                    assert!(!in_key || sees.iter().all(|x| !x.is_finite()), "{what}");
                    assert!(blind.iter().all(|x| x.is_finite()), "{what}");
                }
            }
        }
    }
}

#[test]
fn merging_never_turns_what_is_not_finite_into_a_number() {
    let good: &[f32] = &[1.0, 2.0, 3.0, 4.0];
    let empty: &[f32] = &[f32::NEG_INFINITY, 0.0, 0.0, 0.0];
    let merge = |parts: &[&[f32]]| {
        let mut out = [0.0; 2];
        merge_runs(Isa::detect(), parts.iter().copied(), &mut out);
        out
    };
    assert_eq!(merge(&[good]), [1.5, 2.0]);
    assert_eq!(merge(&[empty, good, empty]), [1.5, 2.0]);
    assert!(merge(&[empty, empty]).iter().all(|x| x.is_nan()));
    assert!(merge(&[]).iter().all(|x| x.is_nan()));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        // A maximum of -∞ says that nothing was visible.
        for i in (0..4).filter(|i| *i > 0 || bad != f32::NEG_INFINITY) {
            let mut part = [-5.0, 1.0, 1.0, 1.0];
            part[i] = bad;
            for parts in [&[good, &part][..], &[&part, good], &[&part]] {
                let out = merge(parts);
                assert!(
                    (i > 2 || !out[0].is_finite()) && (i == 2 || !out[1].is_finite()),
                    "{bad} in {parts:?}: {out:?}"
                );
            }
        }
    }
}

#[test]
fn a_sink_is_a_part_of_its_own() {
    let part = [1.0, 2.0, 3.0, 4.0];
    let mut out = [0.0; 2];
    merge_runs(Isa::detect(), [&part[..], &[0.5, 1.0, 0.0, 0.0]].into_iter(), &mut out);
    let sum = 2.0 + (-0.5_f64).exp();
    for (out, want) in out.iter().zip([3.0 / sum, 4.0 / sum]) {
        assert!((f64::from(*out) - want).abs() <= 4.0 * U * want, "got {out}, want {want}");
    }
}

#[test]
fn a_block_lies_as_it_is_described() {
    let head_dim = 5;
    let cache = Cache::random(Dtype::F32, head_dim, 64);
    let block: &[f32] = bytemuck::cast_slice(&cache.blocks[0]);
    for j in 0..KV_BLOCK {
        for d in 0..head_dim {
            assert_eq!(block[(j / 16 * head_dim + d) * 16 + j % 16], cache.keys[j * head_dim + d]);
            assert_eq!(block[(KV_BLOCK + j) * head_dim + d], cache.values[j * head_dim + d]);
        }
    }
}
