//! Against float64, and ISA against ISA bit by bit.

use std::iter::zip;

use super::*;
use crate::{Isa, oracle};

const LENGTHS: std::ops::RangeInclusive<usize> = 0..=70;

fn numbers(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 167.0 - 6.0).collect()
}

/// What `work` makes of a length on every ISA: the same bits, which are returned.
fn same_on_every_isa(len: usize, work: impl Fn(Isa) -> Vec<f32>) -> Vec<f32> {
    let want = work(Isa::Scalar);
    for isa in Isa::available() {
        let got = work(isa);
        for (i, (got, want)) in zip(&got, &want).enumerate() {
            let same = got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan());
            assert!(same, "{isa}, length {len}, element {i}: {got} instead of {want}");
        }
    }
    want
}

fn close(got: f32, want: f64, relative: f64) {
    let slack = relative * want.abs() + 2_f64.powi(-149);
    assert!((f64::from(got) - want).abs() <= slack, "got {got}, want {want} ± {slack}");
}

const U: f64 = 1.0 / (1 << 24) as f64;

#[test]
fn rms_norm_agrees_with_the_oracle_at_every_length() {
    for len in LENGTHS.skip(1).chain([2048]) {
        let (x, weight) = (numbers(len, 1), numbers(len, 2));
        let out = same_on_every_isa(len, |isa| {
            let mut out = vec![0.0; len];
            rms_norm(isa, &x, &weight, 1e-6, &mut out);
            out
        });
        // A square, len / 16 additions and 4 of the tree, at half their weight under the root; then six operations.
        let relative = ((len / 16 + 6) as f64 / 2.0 + 6.0) * U;
        for (out, want) in zip(out, oracle::rms_norm(&x, &weight, f64::from(1e-6_f32))) {
            close(out, want, relative);
        }
    }
}

#[test]
fn silu_mul_agrees_with_the_oracle_at_every_length() {
    for len in LENGTHS.chain([1000]) {
        let (gate, up) = (numbers(len, 3), numbers(len, 4));
        let out = same_on_every_isa(len, |isa| {
            let mut out = vec![0.0; len];
            silu_mul(isa, &gate, &up, &mut out);
            out
        });
        // exp within 2u, then an addition, a division and a multiplication.
        for ((out, gate), up) in zip(zip(out, gate), up) {
            close(out, oracle::silu_mul(gate, up), 6.0 * U);
        }
    }
}

#[test]
fn clamped_silu_mul_agrees_with_the_oracle_at_every_length_and_limit() {
    for len in LENGTHS.chain([1000]) {
        for (limit, alpha) in [(7.0, 1.702), (1.5, 1.0), (0.25, 1.702)] {
            let (gate, up) = (numbers(len, 3), numbers(len, 4));
            let out = same_on_every_isa(len, |isa| {
                let mut out = vec![0.0; len];
                clamped_silu_mul(isa, &gate, &up, limit, alpha, &mut out);
                out
            });
            for ((out, gate), up) in zip(zip(out, gate), up) {
                // The argument of exp, up to 1.702 * 6, off by u of itself; exp within 2u, two additions, a division and
                // a multiplication. Up + 1 is off by u of up.
                let want = oracle::clamped_silu_mul(gate, up, limit, alpha);
                let slack = oracle::clamped_silu_mul(gate, limit, limit, alpha).abs() * U;
                assert!((f64::from(out) - want).abs() <= 20.0 * U * want.abs() + slack, "got {out}, want {want}");
            }
        }
    }
}

#[test]
fn softmax_agrees_with_the_oracle_at_every_length() {
    for len in LENGTHS.chain([1000]) {
        let x = numbers(len, 5);
        let out = same_on_every_isa(len, |isa| {
            let mut x = x.clone();
            softmax(isa, &mut x);
            x
        });
        let x: Vec<f64> = x.iter().copied().map(f64::from).collect();
        // Scores within 12 of the maximum: a difference off by 12u, exp by 2u, above and below the line; the sum.
        let relative = (2.0 * 14.0 + (len / 16 + 6) as f64) * U;
        for (out, want) in zip(out, oracle::softmax(&x)) {
            close(out, want, relative);
        }
    }
}

#[test]
fn rope_agrees_with_the_oracle_for_partial_rotation_too() {
    for half in LENGTHS {
        for beyond in [0, 1, 18] {
            let head_dim = (2 * half + beyond).max(1);
            let heads = numbers(3 * head_dim, 6);
            let angles: Vec<f64> = (0..half).map(|i| i as f64 * 0.37 + 0.1).collect();
            let cos: Vec<f32> = angles.iter().map(|angle| angle.cos() as f32).collect();
            let sin: Vec<f32> = angles.iter().map(|angle| angle.sin() as f32).collect();
            let out = same_on_every_isa(half, |isa| {
                let mut heads = heads.clone();
                rope(isa, &mut heads, head_dim, &cos, &sin);
                heads
            });
            for (out, head) in zip(out.chunks(head_dim), heads.chunks(head_dim)) {
                for (out, want) in zip(out, oracle::rope(head, &angles)) {
                    // Two products of numbers up to 6, each with a rounded factor, and their sum.
                    assert!((f64::from(*out) - want).abs() <= 2.0 * 6.0 * 4.0 * U, "got {out}, want {want}");
                }
                assert_eq!(out[2 * half..], head[2 * half..]);
            }
        }
    }
}

#[test]
fn sums_of_slices_agree_with_plain_loops_at_every_length() {
    for len in LENGTHS {
        let (a, b) = (numbers(len, 7), numbers(len, 8));
        let sum = same_on_every_isa(len, |isa| {
            let mut a = a.clone();
            add_assign(isa, &mut a, &b);
            a
        });
        assert!(zip(&sum, zip(&a, &b)).all(|(sum, (a, b))| *sum == a + b));
        let scaled = same_on_every_isa(len, |isa| {
            let mut a = a.clone();
            add_scaled(isa, &mut a, &b, 0.3);
            a
        });
        assert!(zip(&scaled, zip(&a, &b)).all(|(sum, (a, b))| *sum == a + b * 0.3));
    }
}

#[test]
fn one_number_that_is_not_finite_is_found_anywhere() {
    for isa in Isa::available() {
        for len in LENGTHS {
            let mut x = numbers(len, 9);
            assert!(all_finite(isa, &x));
            for i in 0..len {
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let good = std::mem::replace(&mut x[i], bad);
                    assert!(!all_finite(isa, &x), "{isa}: {bad} at {i} of {len}");
                    x[i] = good;
                }
            }
        }
    }
}

#[test]
fn exp_is_within_a_unit_in_the_last_place() {
    // A unit of a subnormal is 2^-149. Every 97th number of those whose exponential is neither 0, 1 nor infinite.
    for bits in (0x3200_0000..0x42d4_0000_u32).step_by(97) {
        for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
            let (got, want) = (exp(x), f64::from(x).exp());
            if want > f64::from(f32::MAX) * (1.0 + U) {
                assert_eq!(got, f32::INFINITY, "exp({x})");
                continue;
            }
            let unit = want.log2().floor().max(-126.0) - 23.0;
            assert!((f64::from(got) - want).abs() <= unit.exp2(), "exp({x}) = {got}, want {want}");
        }
    }
}

#[test]
fn exp_keeps_what_is_special() {
    let special = [f32::NEG_INFINITY, f32::INFINITY, 0.0, -0.0, 1e-40, f32::MIN, f32::MAX, -104.5];
    assert_eq!(special.map(exp), [0.0, f32::INFINITY, 1.0, 1.0, 1.0, 0.0, f32::INFINITY, 0.0]);
    assert!(exp(f32::NAN).is_nan());
}

#[test]
fn functions_keep_what_is_not_finite() {
    for isa in Isa::available() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for len in [1, 16, 33] {
                for i in [0, len / 2, len - 1] {
                    let mut x = numbers(len, 10);
                    x[i] = bad;
                    let (ones, mut out) = (vec![1.0; len], vec![0.0; len]);
                    rms_norm(isa, &x, &ones, 1e-6, &mut out);
                    assert!(!out[i].is_finite(), "{isa}: rms_norm of {bad}");
                    silu_mul(isa, &x, &ones, &mut out);
                    assert!(!out[i].is_finite(), "{isa}: silu of {bad}");
                    silu_mul(isa, &ones, &x, &mut out);
                    assert!(!out[i].is_finite(), "{isa}: silu times {bad}");
                    clamped_silu_mul(isa, &x, &ones, 7.0, 1.702, &mut out);
                    assert!(!out[i].is_finite(), "{isa}: clamped silu of {bad}");
                    clamped_silu_mul(isa, &ones, &x, 7.0, 1.702, &mut out);
                    assert!(!out[i].is_finite(), "{isa}: clamped silu times {bad}");
                    let masked = bad == f32::NEG_INFINITY && len > 1;
                    softmax(isa, &mut x);
                    assert!(if masked { x[i] == 0.0 } else { x.iter().all(|x| x.is_nan()) }, "{isa}: softmax of {bad}");
                }
            }
        }
    }
}

#[test]
fn reading_gives_the_same_checksum_on_every_isa() {
    let bytes: Vec<u8> = (0..1100_u32).map(|i| (i * i % 251) as u8).collect();
    for isa in Isa::available() {
        for len in 0..=bytes.len() {
            let (lines, rest) = bytes[..len].split_at(len / 256 * 256);
            let words = lines.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
            let want = words.chain(rest.iter().map(|byte| u64::from(*byte))).fold(0, u64::wrapping_add);
            assert_eq!(read_all(isa, &bytes[..len]), want, "{isa}, {len} bytes");
        }
    }
}
