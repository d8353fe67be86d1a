//! Every product bit by bit against the product with the BF16 matrix that the blocks stand for, which the tests of
//! `matmul` compare with float64.

use std::ops::RangeInclusive;

use super::super::{Activations, PanelScratch, multiply};
use super::*;
use crate::dtype::bf16_to_f32;
use crate::matmul::Matrix;
use crate::{Dtype, oracle};

const ACTIVATIONS: [Activations; 2] = [Activations::Bf16, Activations::Bf16x2];

struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
}

/// Published blocks and scales, the same in panels, and the BF16 matrix in panels.
struct Weights {
    shape: [usize; 2],
    blocks: Vec<u8>,
    scales: Vec<u8>,
    panels: Vec<u8>,
    bf16: Vec<u32>,
}

impl Weights {
    fn random([rows, cols]: [usize; 2], scales: RangeInclusive<u8>, seed: u64) -> Self {
        let mut numbers = Numbers(seed);
        let blocks: Vec<u8> = (0..rows * cols / 2).map(|_| numbers.next() as u8).collect();
        let choice = u64::from(*scales.end() - *scales.start()) + 1;
        let scales: Vec<u8> = (0..rows * cols / 32).map(|_| scales.start() + (numbers.next() % choice) as u8).collect();
        let mut bf16 = vec![0_u32; Matrix::panel_bytes(Dtype::Bf16, [rows, cols]).unwrap() / 4];
        let halves: &mut [u16] = cast_slice_mut(&mut bf16);
        for (i, value) in oracle::mxfp4(&blocks, &scales).into_iter().enumerate() {
            let (row, col) = (i / cols, i % cols);
            let place = (row / PANEL * cols / 2 + col / 2) * 2 * PANEL + row % PANEL * 2 + col % 2;
            // Adding +0 makes a -0 a +0; every value is a BF16.
            let value = value as f32 + 0.0;
            assert!(value == 0.0 || value.is_normal());
            assert_eq!(value.to_bits() & 0xffff, 0);
            halves[place] = (value.to_bits() >> 16) as u16;
        }
        let mut weights = Self { shape: [rows, cols], blocks, scales, panels: Vec::new(), bf16 };
        let mut panels = vec![0xff; Matrix::mxfp4_panel_bytes([rows, cols]).unwrap()];
        let published = weights.published();
        for (panel, out) in panels.chunks_exact_mut(published.bytes_of_panel()).enumerate() {
            published.pack_panel(panel, out);
        }
        weights.panels = panels;
        weights
    }

    fn published(&self) -> Matrix<'_> {
        Matrix::mxfp4_row_major(&self.blocks, &self.scales, self.shape).unwrap()
    }

    fn panels(&self) -> Matrix<'_> {
        Matrix::mxfp4_panels(&self.panels, self.shape).unwrap()
    }

    fn bf16(&self) -> Matrix<'_> {
        Matrix::panels(Dtype::Bf16, bytemuck::cast_slice(&self.bf16), self.shape).unwrap()
    }
}

fn activations(isa: Isa, activations: Activations, rows: usize, cols: usize) -> Rows {
    let mut numbers = Numbers(7);
    let x: Vec<f32> = (0..rows * cols).map(|_| (numbers.next() % 4001) as f32 / 1000.0 - 2.0).collect();
    let mut prepared = Rows::with_capacity(rows, cols);
    prepared.prepare(isa, Dtype::Bf16, activations, &x, cols);
    prepared
}

/// Bits of all panels' products.
fn product(isa: Isa, w: &Matrix, x: &Rows, select: &[u32]) -> Vec<u32> {
    let mut scratch = PanelScratch::with_capacity(Some(Dtype::Bf16), w.cols()).unwrap();
    let mut sums = vec![[f32::NAN; PANEL]; w.panel_count() * select.len()];
    multiply(isa, w, 0..w.panel_count(), x, select, &mut scratch, &mut sums);
    // What lanes beyond the last row hold is of no use to anybody.
    let lanes = |panel: usize| PANEL.min(w.rows() - panel * PANEL);
    let of_panel = sums.chunks_exact(select.len()).enumerate();
    of_panel
        .flat_map(|(panel, sums)| sums.iter().flat_map(move |sum| &sum[..lanes(panel)]))
        .map(|x| x.to_bits())
        .collect()
}

fn check(weights: &Weights, rows: impl Iterator<Item = usize> + Clone) {
    let [_, cols] = weights.shape;
    for isa in Isa::available() {
        for kind in ACTIVATIONS {
            let x = activations(isa, kind, 20, cols);
            for n in rows.clone() {
                let select: Vec<u32> = (0..n).map(|i| ((i * 7 + i / 3 + 2) % 20) as u32).collect();
                let want = product(isa, &weights.bf16(), &x, &select);
                for w in [weights.panels(), weights.published()] {
                    let got = product(isa, &w, &x, &select);
                    assert!(got == want, "{isa} {kind}: {w:?} times {n} rows is not what BF16 gives");
                }
            }
        }
    }
}

#[test]
fn every_nibble_at_every_scale_is_the_number_that_it_stands_for() {
    for scale in MXFP4_SCALES {
        for nibble in 0..16 {
            let got = at_greatest_scale(nibble).saturating_sub(u16::from(GREATEST_SCALE - scale) << 7);
            let want = oracle::mxfp4(&[nibble as u8; 16], &[scale])[0];
            assert_eq!(f64::from(bf16_to_f32(got)), want, "nibble {nibble} at scale {scale}");
            assert!(want == 0.0 && got == 0 || bf16_to_f32(got).is_normal(), "nibble {nibble} at scale {scale}");
        }
    }
}

#[test]
fn products_have_the_bits_of_bf16_for_every_number_of_blocks() {
    for blocks in (1..=17).chain([90]) {
        check(&Weights::random([37, 32 * blocks], 100..=140, blocks as u64), [1, 2, 5].into_iter());
    }
}

#[test]
fn products_have_the_bits_of_bf16_for_every_number_of_rows_and_outputs() {
    for outputs in (1..=33).chain([48, 49, 64, 65]) {
        check(
            &Weights::random([outputs, 160], 120..=127, outputs as u64),
            (1..=20).step_by(if outputs < 32 { 3 } else { 1 }),
        );
    }
}

#[test]
fn products_have_the_bits_of_bf16_at_every_scale() {
    // Sums become infinite, and infinities of both signs meet.
    check(&Weights::random([128, 1024], MXFP4_SCALES, 3), [1, 4, 9].into_iter());
    check(&Weights::random([16, 1024], 2..=4, 4), [1, 4, 9].into_iter());
    check(&Weights::random([16, 1024], 250..=252, 5), [1, 4, 9].into_iter());
}

#[test]
fn every_second_row_is_a_matrix_of_its_own() {
    for rows in [1, 2, 31, 32, 33, 66] {
        let weights = Weights::random([rows, 96], 110..=130, 9);
        for first in 0..2 {
            let alone: Vec<usize> = (first..rows).step_by(2).collect();
            let of = |bytes: &[u8], width: usize| -> Vec<u8> {
                alone.iter().flat_map(|row| &bytes[row * width..][..width]).copied().collect()
            };
            let (blocks, scales) = (of(&weights.blocks, 48), of(&weights.scales, 3));
            let want = Matrix::mxfp4_row_major(&blocks, &scales, [alone.len(), 96]).unwrap();
            let got = weights.published().every(first, 2);
            assert_eq!((got.rows(), got.cols()), (alone.len(), 96));
            for isa in Isa::available() {
                for panel in 0..want.panel_count() {
                    let [a, b] = [want, got].map(|w| {
                        let mut out = vec![1; w.bytes_of_panel()];
                        w.pack_panel_with(isa, panel, &mut out);
                        out
                    });
                    assert_eq!(a, b, "{isa}: rows {first}, {}… of {rows}", first + 2);
                }
                if got.rows() > 0 {
                    let x = activations(isa, Activations::Bf16x2, 20, 96);
                    assert_eq!(product(isa, &got, &x, &[3, 1]), product(isa, &want, &x, &[3, 1]));
                }
            }
        }
    }
}

#[test]
fn panels_lie_as_they_are_described_for_every_number_of_rows_and_blocks() {
    for (rows, blocks) in (1..=33).flat_map(|rows| (1..=9).map(move |blocks| (rows, blocks))) {
        let weights = Weights::random([rows, 32 * blocks], MXFP4_SCALES, (rows * blocks) as u64);
        let matrix = weights.published();
        let mut want = Vec::new();
        for panel in 0..rows.div_ceil(PANEL) {
            let nibble = |row: usize, col: usize| {
                let row = panel * PANEL + row;
                let byte = weights.blocks.get(row * blocks * 16 + col / 2).filter(|_| row < rows);
                byte.map_or(0, |byte| byte >> (col % 2 * 4) & 15)
            };
            for first in (0..blocks).step_by(4) {
                for (row, block) in (0..PANEL).flat_map(|row| (first..first + 4).map(move |block| (row, block))) {
                    let there = panel * PANEL + row < rows && block < blocks;
                    let scale = there.then(|| weights.scales[(panel * PANEL + row) * blocks + block]);
                    want.push(scale.map_or(0, |scale| 252 - scale));
                }
                for col in (first * 32..blocks.min(first + 4) * 32).step_by(8) {
                    for (row, odd, pair) in (0..PANEL).flat_map(|r| [(r, 0, 0), (r, 0, 1), (r, 1, 0), (r, 1, 1)]) {
                        let col = col + odd + 4 * pair;
                        want.push(nibble(row, col) | nibble(row, col + 2) << 4);
                    }
                }
            }
        }
        for isa in Isa::available() {
            let mut got = vec![0xff; Matrix::mxfp4_panel_bytes([rows, 32 * blocks]).unwrap()];
            for (panel, out) in got.chunks_exact_mut(matrix.bytes_of_panel()).enumerate() {
                matrix.pack_panel_with(isa, panel, out);
            }
            assert_eq!(got, want, "{isa} [{rows}, {blocks} * 32]");
        }
    }
}

#[test]
fn a_matrix_of_blocks_exists_only_if_its_shape_is_true() {
    let bytes = [0; 4096];
    assert!(Matrix::mxfp4_row_major(&bytes[..96], &bytes[..6], [2, 96]).is_some());
    assert!(Matrix::mxfp4_row_major(&bytes[..95], &bytes[..6], [2, 96]).is_none());
    assert!(Matrix::mxfp4_row_major(&bytes[..96], &bytes[..5], [2, 96]).is_none());
    assert!(Matrix::mxfp4_row_major(&bytes[..96], &bytes[..6], [2, 97]).is_none());
    assert!(Matrix::mxfp4_row_major(&bytes[..96], &bytes[..6], [usize::MAX, 96]).is_none());
    assert_eq!(Matrix::mxfp4_panel_bytes([17, 160]), Some(2 * 64 * (2 + 20)));
    assert_eq!(Matrix::mxfp4_panel_bytes([17, 161]), None);
    assert_eq!(Matrix::mxfp4_panel_bytes([usize::MAX, 160]), None);
    assert!(Matrix::mxfp4_panels(&bytes[..2816], [17, 160]).is_some_and(|w| w.dtype() == Dtype::Bf16));
    assert!(Matrix::mxfp4_panels(&bytes[..2815], [17, 160]).is_none());
}

#[test]
fn what_scales_beyond_the_normal_numbers_do_is_no_crash() {
    for scale in [0, 1, 253, 254, 255] {
        let (blocks, scales) = ([0x5a; 16 * 4], [scale; 4]);
        let w = Matrix::mxfp4_row_major(&blocks, &scales, [4, 32]).unwrap();
        for isa in Isa::available() {
            assert_eq!(product(isa, &w, &activations(isa, Activations::Bf16, 20, 32), &[0]).len(), 4);
        }
    }
}
