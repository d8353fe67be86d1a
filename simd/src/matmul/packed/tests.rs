//! Whatever goes in comes out, and a product has the bits of plain panels.

use super::*;
use crate::matmul::{Activations, Matrix, PanelScratch, Rows, multiply};
use crate::{Dtype, Isa};

/// Bits that look like noise, the same for the same seed.
fn noise(len: usize, seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len).map(move |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    })
}

/// BF16 weights like trained ones: sums of uniform numbers, one in `rare` of them far outside.
fn weights(len: usize, rare: u64, seed: u64) -> Vec<u16> {
    let uniform = |bits: u64| (bits & 0xffff) as f32 / 65536.0 - 0.5;
    let mut bits = noise(len * 4, seed);
    let mut next = || bits.next().unwrap();
    (0..len)
        .map(|_| {
            let x = (uniform(next()) + uniform(next()) + uniform(next())) * 0.04;
            match next() {
                bits if bits % rare == 0 => {
                    [0x0000, 0x8000, 0x0001, 0x8055, 0x7f80, 0xff81, 0x7fff][bits as usize / 7 % 7]
                }
                _ => crate::dtype::bf16_from_f32(x),
            }
        })
        .collect()
}

fn words_of(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

/// A packed matrix in words, so that it is aligned.
fn pack(panels: &[u16], [rows, cols]: [usize; 2]) -> Vec<u32> {
    let panel_bytes = panel_bytes(cols).unwrap();
    let count = rows.div_ceil(PANEL);
    let (mut bytes, mut starts, mut patches) = (vec![0xa5; panel_bytes * count], vec![0], vec![]);
    for (plain, out) in cast_slice(panels).chunks_exact(cols * PANEL * 2).zip(bytes.chunks_exact_mut(panel_bytes)) {
        pack_panel(plain, cols, out, &mut patches);
        starts.push(patches.len() as u32);
    }
    let mut words: Vec<u32> = words_of(&bytes);
    words.extend(starts);
    words.extend(&patches);
    assert_eq!(matrix_bytes([rows, cols], patches.len()), Some(words.len() * 4));
    words
}

fn check_round_trip(panels: &[u16], shape @ [_, cols]: [usize; 2]) {
    let words = pack(panels, shape);
    let packed = Matrix::packed(cast_slice(&words), shape).unwrap();
    packed.check_packed(0..packed.panel_count()).unwrap();
    for isa in Isa::available() {
        let mut out = vec![0xeeee_u16; cols * PANEL];
        for (panel, want) in panels.chunks_exact(cols * PANEL).enumerate() {
            packed.pack_panel_with(isa, panel, cast_slice_mut(&mut out));
            assert_eq!(out, want, "{isa}, {shape:?}, panel {panel}");
        }
    }
}

#[test]
fn every_bf16_value_comes_back_whatever_stands_beside_it() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    check_round_trip(&all, [64, 1024]);
    let mut shuffled = all;
    let len = shuffled.len();
    for (i, bits) in noise(len, 3).enumerate() {
        shuffled.swap(i, bits as usize % len);
    }
    check_round_trip(&shuffled, [64, 1024]);
    for rare in [1, 2, 64, 1000, u64::MAX] {
        check_round_trip(&weights(48 * 776, rare, rare), [48, 776]);
    }
}

#[test]
fn every_width_that_is_a_multiple_of_8_has_a_packed_form() {
    for cols in (8..600).step_by(8) {
        check_round_trip(&weights(32 * cols, 100, cols as u64), [32, cols]);
    }
    assert_eq!([1, 7, 12, 20].map(panel_bytes), [None; 4]);
    assert_eq!(matrix_bytes([16, usize::MAX & !7], 0), None);
}

#[test]
fn trained_weights_take_little_more_than_12_bits() {
    let shape = [256, 2048];
    let words = pack(&weights(256 * 2048, 20_000, 1), shape);
    let bits = words.len() as f64 * 32.0 / (256.0 * 2048.0);
    assert!((12.125..12.2).contains(&bits), "{bits} bits a weight");
}

#[test]
fn a_block_takes_the_window_with_the_fewest_patches() {
    // One weight far above 63 that lie close together.
    let mut block = [[0x12, 0x3c]; BLOCK];
    block[17] = [0x34, 0xff];
    assert_eq!(best_window(&block).1, 63);
    let (mut out, mut patches) = (vec![0; panel_bytes(8).unwrap()], vec![]);
    let panel: Vec<u8> = [block, [[0, 0x3c]; BLOCK]].as_flattened().as_flattened().to_vec();
    pack_panel(&panel, 8, &mut out, &mut patches);
    assert_eq!(patches, [0xff34 | 17 << 16 | LAST_PATCH]);
}

#[test]
fn products_have_the_bits_of_plain_panels_for_any_rows_and_panels() {
    let shape @ [rows, cols] = [16 * 5, 776];
    for rare in [10, 500, u64::MAX] {
        // What is not finite has bits of its own in each sum; here only finite weights.
        let mut panels = weights(rows * cols, rare, 5);
        panels.iter_mut().filter(|bits| **bits & 0x7f80 == 0x7f80).for_each(|bits| *bits = 0x7f00);
        let words = pack(&panels, shape);
        let plain = Matrix::panels(Dtype::Bf16, cast_slice(&panels), shape).unwrap();
        let packed = Matrix::packed(cast_slice(&words), shape).unwrap();
        let x: Vec<f32> = noise(19 * cols, 7).map(|bits| bits as f32 / (1_u64 << 30) as f32 - 1.0).collect();
        for isa in Isa::available() {
            for activations in [Activations::Bf16, Activations::Bf16x2] {
                let mut x_rows = Rows::with_capacity(19, cols);
                x_rows.prepare(isa, Dtype::Bf16, activations, &x, cols);
                let mut scratch = PanelScratch::with_capacity(Some(Dtype::Bf16), cols).unwrap();
                for n in 0..=19 {
                    let select: Vec<u32> = (0..n).map(|i| (i * 7 + 3) % 19).collect();
                    for range in [0..5, 1..4, 2..3, 4..5, 3..3] {
                        let mut product = |w: &Matrix| {
                            let mut sums = vec![[f32::NAN; PANEL]; range.len() * select.len()];
                            multiply(isa, w, range.clone(), &x_rows, &select, &mut scratch, &mut sums);
                            sums.into_iter().flatten().map(f32::to_bits).collect::<Vec<_>>()
                        };
                        assert_eq!(product(&packed), product(&plain), "{isa} {activations} {n} rows, panels {range:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn some_panels_with_their_part_of_the_index_are_a_matrix() {
    let shape @ [rows, cols] = [16 * 4, 264];
    let panels = weights(rows * cols, 40, 9);
    let words = pack(&panels, shape);
    let all = Packed::new(cast_slice(&words), shape).unwrap();
    let bytes = panel_bytes(cols).unwrap();
    let (from, to) = (1, 3);
    let mut slice: Vec<u32> = words_of(&all.panels[from * bytes..to * bytes]);
    slice.extend(&all.index.starts[from..=to]);
    slice.extend(&all.index.patches[all.index.starts[from] as usize..all.index.starts[to] as usize]);
    let part = Matrix::packed(cast_slice(&slice), [32, cols]).unwrap();
    part.check_packed(0..2).unwrap();
    let mut out = vec![0_u16; cols * PANEL];
    for panel in 0..2 {
        part.pack_panel(panel, cast_slice_mut(&mut out));
        assert_eq!(out, panels[(from + panel) * cols * PANEL..][..cols * PANEL]);
    }
}

#[test]
fn damage_is_found_and_named() {
    let shape @ [rows, cols] = [32, 64];
    let panels = weights(rows * cols, 100, 2);
    let words = pack(&panels, shape);
    let matrix = |words: &[u32]| Matrix::packed(cast_slice(words), shape).map(|_| ());
    let index = panel_bytes(cols).unwrap() * 2 / 4;
    let listed = words[index + 2];
    assert!(listed > words[index + 1] && words[index + 1] > 0, "both panels have patches");
    assert_eq!(matrix(&words), Ok(()));
    assert_eq!(Matrix::packed(cast_slice(&words), [32, 60]).map(|_| ()), Err(PackedError::Columns(60)));
    for len in 0..words.len() {
        assert!(matches!(matrix(&words[..len]), Err(PackedError::Length { .. })), "{len} words");
    }
    let bytes = &cast_slice::<u32, u8>(&words)[..words.len() * 4 - 1];
    assert!(matches!(Matrix::packed(bytes, shape), Err(PackedError::Length { .. })));
    let mut damaged = words.clone();
    damaged[index + 1] = listed + 1;
    assert_eq!(matrix(&damaged), Err(PackedError::Index { panel: 1 }));
    damaged[index + 1] = words[index + 1] - 1;
    let moved = Matrix::packed(cast_slice(&damaged), shape).unwrap();
    assert_eq!(moved.check_packed(0..2), Err(PackedError::Patches { panel: 0 }));
    let mut damaged = words.clone();
    let last = damaged.len() - 1;
    damaged[last] &= !LAST_PATCH;
    let endless = Matrix::packed(cast_slice(&damaged), shape).unwrap();
    assert_eq!(endless.check_packed(0..1), Ok(()));
    assert_eq!(endless.check_packed(0..2), Err(PackedError::Patches { panel: 1 }));
    // A kernel over damaged bytes gives other numbers and nothing worse.
    let (mut out, panel) = (vec![0_u16; cols * PANEL], 1);
    for isa in Isa::available() {
        endless.pack_panel_with(isa, panel, cast_slice_mut(&mut out));
    }
}

#[test]
fn every_number_that_is_none_is_found_at_its_place_in_packed_panels() {
    let [rows, cols] = [48, 520];
    let panel_bytes = panel_bytes(cols).unwrap();
    let mut panels: Vec<u16> = weights(rows * cols, u64::MAX, 4);
    let find = |panels: &[u16]| {
        let words = pack(panels, [rows, cols]);
        let (bytes, tail) = cast_slice::<u32, u8>(&words).split_at(3 * panel_bytes);
        let index = Index::new(tail, 3).unwrap();
        // Some panels at a time find what all of them would.
        let found = (0..3).find_map(|p| index.first_non_finite(p, cols, &bytes[p * panel_bytes..][..panel_bytes]));
        assert_eq!(found.map(|(at, _)| at), index.first_non_finite(0, cols, bytes).map(|(at, _)| at));
        found
    };
    assert!(find(&panels).is_none());
    // The largest finite numbers share their upper bits with the infinite ones.
    panels[..64].fill(0x7f7f);
    assert!(find(&panels).is_none());
    for (row, col) in [(0, 0), (5, 1), (15, 257), (16, 519), (47, 518)] {
        for bits in [0x7f80, 0xff80, 0x7fc1, 0xffff] {
            let mut damaged = panels.clone();
            damaged[row / 16 * 16 * cols + col / 2 * 32 + row % 16 * 2 + col % 2] = bits;
            let (at, value) = find(&damaged).unwrap();
            assert_eq!(at, [row, col]);
            assert_eq!(value.to_bits(), u32::from(bits) << 16);
        }
        // A whole block of them needs no patches.
        let mut damaged = panels.clone();
        let block = (row / 16 * 16 * cols + col / 2 * 32) / 64 * 64;
        damaged[block..block + 64].fill(0x7f80);
        assert_eq!(find(&damaged).unwrap().0, [row / 16 * 16, block % (16 * cols) / 32 * 2]);
    }
}
