//! Every dtype, ISA and remainder against float64; bits against each other.

use std::iter::zip;
use std::ops::Range;

use super::matrix::cols_per_step;
use super::rows::terms;
use super::*;
use crate::dtype::bf16_to_f32;
use crate::oracle;

const DTYPES: [Dtype; 3] = [Dtype::Bf16, Dtype::F16, Dtype::F32];
const ACTIVATIONS: [Activations; 2] = [Activations::Bf16, Activations::Bf16x2];

/// Numbers in ±2, the same for the same seed.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 22) as f32 - 2.0
    };
    (0..len).map(|_| next()).collect()
}

/// A matrix in both layouts, and what its elements are.
struct Weights {
    dtype: Dtype,
    shape: [usize; 2],
    values: Vec<f32>,
    // Vectors of words, so that bytes are aligned.
    row_major: Vec<u32>,
    panels: Vec<u32>,
}

impl Weights {
    fn new(dtype: Dtype, [rows, cols]: [usize; 2], values: &[f32]) -> Self {
        let len = rows * cols * dtype.size();
        let mut row_major = vec![0_u32; len.div_ceil(4)];
        let bytes = &mut bytemuck::cast_slice_mut(&mut row_major)[..len];
        dtype.narrow(values, bytes);
        let mut exact = vec![0.0; values.len()];
        dtype.widen(bytes, &mut exact);
        let matrix = Matrix::row_major(dtype, bytes, [rows, cols]).unwrap();
        let len = Matrix::panel_bytes(dtype, [rows, cols]).unwrap();
        let mut panels = vec![u32::MAX; len / 4];
        for (panel, out) in
            bytemuck::cast_slice_mut(&mut panels).chunks_exact_mut(matrix.bytes_of_panel().max(1)).enumerate()
        {
            matrix.pack_panel(panel, out);
        }
        Self { dtype, shape: [rows, cols], values: exact, row_major, panels }
    }

    fn random(dtype: Dtype, shape: [usize; 2]) -> Self {
        Self::new(dtype, shape, &numbers(shape[0] * shape[1], 1))
    }

    fn row_major(&self) -> Matrix<'_> {
        let len = self.shape[0] * self.shape[1] * self.dtype.size();
        Matrix::row_major(self.dtype, &bytemuck::cast_slice(&self.row_major)[..len], self.shape).unwrap()
    }

    fn panels(&self) -> Matrix<'_> {
        Matrix::panels(self.dtype, bytemuck::cast_slice(&self.panels), self.shape).unwrap()
    }
}

/// `[panel][i][lane]` of a product, with everything allocated to measure.
fn product(isa: Isa, w: &Matrix, panels: Range<usize>, x: &Rows, select: &[u32]) -> Vec<[f32; PANEL]> {
    let mut scratch = PanelScratch::with_capacity(Some(w.dtype()), w.cols()).unwrap();
    let mut sums = vec![[f32::NAN; PANEL]; panels.len() * select.len()];
    multiply(isa, w, panels, x, select, &mut scratch, &mut sums);
    sums
}

fn prepared(isa: Isa, dtype: Dtype, activations: Activations, x: &[f32], cols: usize) -> Rows {
    let mut rows = Rows::with_capacity(x.len() / cols, cols);
    rows.prepare(isa, dtype, activations, x, cols);
    rows
}

/// Sum and tolerance of every element of a product, `[n, rows]`.
///
/// Each of the `cols` steps rounds at most twice by 2^-24 relative, hi and lo meet with one more rounding; where
/// subnormals are flushed, a step loses up to 2^-126 of its sum and 2^-126 times the other factor of its product.
fn reference(w: &Weights, activations: Activations, x: &[f32]) -> Vec<(f64, f64)> {
    let [rows, cols] = w.shape;
    let (hi, lo): (Vec<f32>, Vec<f32>) = match w.dtype {
        Dtype::Bf16 => {
            x.iter().map(|x| terms(*x, activations)).map(|(hi, lo)| (bf16_to_f32(hi), bf16_to_f32(lo))).unzip()
        }
        Dtype::F16 | Dtype::F32 => x.iter().map(|x| (*x, 0.0)).unzip(),
    };
    let (hi_sums, hi_magnitudes) = oracle::multiply(&w.values, &hi, [rows, cols]);
    let (lo_sums, lo_magnitudes) = oracle::multiply(&w.values, &lo, [rows, cols]);
    let sums = zip(hi_sums, lo_sums).map(|(hi, lo)| hi + lo);
    let magnitudes = zip(hi_magnitudes, lo_magnitudes).map(|(hi, lo)| hi + lo);
    let largest = |x: &[f32]| x.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
    let flushed = 2.0 * cols as f64 * 2_f64.powi(-126) * f64::from(2.0 + largest(&w.values) + largest(x));
    let rounded = (2 * cols + 2) as f64 * 2_f64.powi(-24);
    zip(sums, magnitudes).map(|(sum, magnitude)| (sum, rounded * magnitude + flushed)).collect()
}

/// Selected rows in an order that skips and repeats.
fn some_rows(count: usize, of: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 7 + i / 3 + 2) % of) as u32).collect()
}

fn check(isa: Isa, w: &Weights, x: &Rows, select: &[u32], reference: &[(f64, f64)], rows: usize) {
    let panels = w.panels().panel_count();
    let sums = product(isa, &w.panels(), 0..panels, x, select);
    for (i, row) in select.iter().enumerate() {
        for out in 0..w.shape[0] {
            let got = f64::from(sums[out / PANEL * select.len() + i][out % PANEL]);
            let (want, slack) = reference[*row as usize * rows + out];
            assert!(
                (got - want).abs() <= slack,
                "{isa} {} {:?}: row {row} (of {}), output {out}: got {got}, want {want} ± {slack}",
                w.dtype,
                w.shape,
                select.len()
            );
        }
    }
}

fn each_kind(mut each: impl FnMut(Isa, Dtype, Activations)) {
    for isa in Isa::available() {
        for dtype in DTYPES {
            for activations in ACTIVATIONS {
                if dtype == Dtype::Bf16 || activations == Activations::Bf16x2 {
                    each(isa, dtype, activations);
                }
            }
        }
    }
}

#[test]
fn a_product_agrees_with_the_oracle_for_every_number_of_columns() {
    each_kind(|isa, dtype, activations| {
        for cols in (1..=70).chain([255, 1024, 4097]) {
            let w = Weights::random(dtype, [33, cols]);
            let x = numbers(9 * cols, 2);
            let reference = reference(&w, activations, &x);
            let x = prepared(isa, dtype, activations, &x, cols);
            check(isa, &w, &x, &some_rows(11, 9), &reference, 33);
        }
    });
}

#[test]
fn a_product_agrees_with_the_oracle_for_every_number_of_rows_and_outputs() {
    each_kind(|isa, dtype, activations| {
        let cols = 37;
        let values = numbers(65 * cols, 1);
        let x = numbers(20 * cols, 2);
        let reference = reference(&Weights::new(dtype, [65, cols], &values), activations, &x);
        let x = prepared(isa, dtype, activations, &x, cols);
        for outputs in (1..=33).chain([48, 49, 64, 65]) {
            let w = Weights::new(dtype, [outputs, cols], &values[..outputs * cols]);
            for n in 1..=20 {
                check(isa, &w, &x, &some_rows(n, 20), &reference, 65);
            }
        }
    });
}

#[test]
fn a_product_agrees_with_the_oracle_where_numbers_are_subnormal() {
    each_kind(|isa, dtype, activations| {
        let cols = 40;
        let tiny = |scale: i32| move |x: f32| (f64::from(x) * 2_f64.powi(scale)) as f32;
        // The least F16 is 2^-24; products of 2^-70 and 2^-70 vanish in float32.
        for (w_scale, x_scale) in [(-127, 0), (0, -127), (-70, -70), (-20, -128), (-60, -60)] {
            let values: Vec<f32> = numbers(17 * cols, 1).into_iter().map(tiny(w_scale)).collect();
            let x: Vec<f32> = numbers(5 * cols, 2).into_iter().map(tiny(x_scale)).collect();
            let w = Weights::new(dtype, [17, cols], &values);
            let reference = reference(&w, activations, &x);
            let x = prepared(isa, dtype, activations, &x, cols);
            check(isa, &w, &x, &some_rows(5, 5), &reference, 17);
        }
    });
}

#[test]
fn products_are_summed_in_the_order_of_columns() {
    each_kind(|isa, dtype, activations| {
        let cols = 75;
        let w = Weights::random(dtype, [16, cols]);
        let x = numbers(cols, 2);
        let got = product(isa, &w.panels(), 0..1, &prepared(isa, dtype, activations, &x, cols), &[0])[0];
        let term = |hi: bool, x: f32| {
            if dtype != Dtype::Bf16 {
                return if hi { x } else { 0.0 };
            }
            let terms = terms(x, activations);
            bf16_to_f32(if hi { terms.0 } else { terms.1 })
        };
        let (hi, lo): (Vec<_>, Vec<_>) = x.iter().map(|x| (term(true, *x), term(false, *x))).unzip();
        for (row, got) in got.into_iter().enumerate() {
            let w = &w.values[row * cols..][..cols];
            let fused = |x: &[f32]| zip(w, x).fold(0.0, |sum, (w, x)| w.mul_add(*x, sum));
            let together = || zip(&hi, &lo).map(|(hi, lo)| hi + lo).collect::<Vec<_>>();
            let want = match isa.name() {
                "scalar" => zip(w, together()).fold(0.0, |sum, (w, x)| w * x + sum),
                // VDPBF16PS adds the odd product of a pair first; a column that is not there adds zero.
                "avx512" if dtype == Dtype::Bf16 => {
                    let pairs = |x: &[f32]| {
                        zip(w.chunks(2), x.chunks(2)).fold(0.0, |sum, (w, x)| {
                            let odd = if x.len() == 2 { w[1].mul_add(x[1], sum) } else { sum };
                            w[0].mul_add(x[0], odd)
                        })
                    };
                    pairs(&hi) + pairs(&lo)
                }
                // TDPBF16PS adds up the even and the odd products of 32 columns, then both, then that to the sum.
                "amx" if dtype == Dtype::Bf16 => {
                    let blocks = |x: &[f32]| {
                        zip(w.chunks(32), x.chunks(32)).fold(0.0, |sum: f32, (w, x)| {
                            let half = |from: usize| {
                                let both = zip(w, x).skip(from).step_by(2);
                                both.fold(0.0, |sum, (w, x)| w.mul_add(*x, sum))
                            };
                            sum + (half(0) + half(1))
                        })
                    };
                    blocks(&hi) + blocks(&lo)
                }
                _ => fused(&together()),
            };
            assert_eq!(
                got.to_bits(),
                want.to_bits(),
                "{isa} {dtype} {activations}, row {row}: {got} instead of {want}"
            );
        }
    });
}

#[test]
fn bits_are_the_same_alone_and_among_hundreds() {
    each_kind(|isa, dtype, activations| {
        let cols = 96;
        let w = Weights::random(dtype, [16 * 3, cols]);
        let x = prepared(isa, dtype, activations, &numbers(300 * cols, 2), cols);
        let in_order: Vec<u32> = (0..300).collect();
        let shuffled: Vec<u32> = (0..300).map(|i| i * 7 % 300).collect();
        for select in [in_order, shuffled] {
            let together = [w.panels(), w.row_major()].map(|w| product(isa, &w, 0..3, &x, &select));
            for (i, row) in select.iter().enumerate() {
                let alone = product(isa, &w.panels(), 0..3, &x, &[*row]);
                for (panel, alone) in alone.iter().enumerate() {
                    for together in &together {
                        let got = together[panel * 300 + i];
                        assert_eq!(
                            got.map(f32::to_bits),
                            alone.map(f32::to_bits),
                            "{isa} {dtype} {activations}, row {row}"
                        );
                    }
                }
            }
        }
    });
}

#[test]
fn bits_are_the_same_alone_and_in_company_in_either_layout_and_for_any_panels() {
    each_kind(|isa, dtype, activations| {
        // Whole panels of whole lines go another way.
        for [rows, cols] in
            [[16 * 7 + 5, 1], [16 * 7 + 5, 2], [16 * 7 + 5, 31], [16 * 7 + 5, 96], [16 * 7, 96], [16 * 7, 800]]
        {
            let w = Weights::random(dtype, [rows, cols]);
            let x = prepared(isa, dtype, activations, &numbers(19 * cols, 2), cols);
            let all: Vec<u32> = (0..19).collect();
            let panels = w.panels().panel_count();
            let together = product(isa, &w.panels(), 0..panels, &x, &all);
            let bits = |sums: &[[f32; PANEL]]| sums.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&together), bits(&product(isa, &w.row_major(), 0..panels, &x, &all)), "{isa} {dtype}");
            for start in 0..=panels {
                for end in start..=panels {
                    for w in [w.panels(), w.row_major()] {
                        let part = product(isa, &w, start..end, &x, &all);
                        assert_eq!(bits(&together[start * 19..end * 19]), bits(&part), "{isa} {w:?} {start}..{end}");
                    }
                }
            }
            for n in 1..=19 {
                let select = some_rows(n, 19);
                let some = product(isa, &w.panels(), 0..panels, &x, &select);
                for panel in 0..panels {
                    for (i, row) in select.iter().enumerate() {
                        let (got, want) = (some[panel * n + i], together[panel * 19 + *row as usize]);
                        assert_eq!(bits(&[got]), bits(&[want]), "{isa} {dtype} row {row} among {n}, panel {panel}");
                    }
                }
            }
        }
    });
}

#[test]
#[cfg(target_arch = "x86_64")]
fn bits_are_the_same_with_eight_lanes_and_with_sixteen() {
    let isas = ["avx2", "avx512f"].map(Isa::by_name);
    let [Ok(avx2), Ok(avx512f)] = isas else { return };
    for dtype in DTYPES {
        for activations in ACTIVATIONS {
            for cols in [1, 7, 64, 333] {
                let w = Weights::random(dtype, [50, cols]);
                let [one, other] = [avx2, avx512f].map(|isa| {
                    let x = prepared(isa, dtype, activations, &numbers(9 * cols, 2), cols);
                    product(isa, &w.panels(), 0..4, &x, &some_rows(9, 9))
                });
                let same = zip(one.as_flattened(), other.as_flattened()).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{dtype} {activations} {cols}");
            }
        }
    }
}

#[test]
fn every_second_row_is_a_matrix_of_its_own() {
    each_kind(|isa, dtype, activations| {
        for (rows, cols) in [(64, 32), (64, 96), (33, 7), (1, 5)] {
            let all = Weights::random(dtype, [rows, cols]);
            let x = prepared(isa, dtype, activations, &numbers(9 * cols, 2), cols);
            for first in 0..2 {
                let some = (first..rows).step_by(2);
                let values: Vec<f32> =
                    some.clone().flat_map(|row| &all.values[row * cols..][..cols]).copied().collect();
                let alone = Weights::new(dtype, [some.len(), cols], &values);
                let w = all.row_major().every(first, 2);
                assert_eq!((w.rows(), w.cols()), (some.len(), cols));
                for select in [&[3][..], &some_rows(9, 9)] {
                    let [got, want] = [w, alone.row_major()].map(|w| product(isa, &w, 0..w.panel_count(), &x, select));
                    let same = zip(got.as_flattened(), want.as_flattened()).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{isa} {dtype}: rows from {first} of [{rows}, {cols}]");
                }
            }
        }
    });
}

#[test]
fn what_is_not_finite_reaches_its_row_and_no_other() {
    // The last rounds beyond the greatest BF16.
    for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::from_bits(0x7f80_0001), f32::MAX] {
        each_kind(|isa, dtype, activations| {
            if bad == f32::MAX && dtype != Dtype::Bf16 {
                return;
            }
            for cols in [1, 8, 33] {
                let mut x = numbers(3 * cols, 2);
                x[2 * cols - 1] = bad;
                let w = Weights::random(dtype, [20, cols]);
                let x = prepared(isa, dtype, activations, &x, cols);
                let sums = product(isa, &w.panels(), 0..2, &x, &[0, 1, 2]);
                for out in 0..20 {
                    let of = |row: usize| sums[out / PANEL * 3 + row][out % PANEL];
                    let finite = [of(0), of(1), of(2)].map(f32::is_finite);
                    assert_eq!(finite, [true, false, true], "{isa} {dtype} {activations}, {bad} in {cols}");
                }
                let mut values = numbers(20 * cols, 1);
                values[18 * cols] = bad;
                let w = Weights::new(dtype, [20, cols], &values);
                let x = prepared(isa, dtype, activations, &numbers(3 * cols, 2), cols);
                let sums = product(isa, &w.panels(), 0..2, &x, &[0, 1, 2]);
                for out in 0..20 {
                    for row in 0..3 {
                        let finite = sums[out / PANEL * 3 + row][out % PANEL].is_finite();
                        assert_eq!(finite, out != 18, "{isa} {dtype} {activations}, {bad} in output 18");
                    }
                }
            }
        });
    }
}

#[test]
fn a_matrix_exists_only_if_its_shape_is_true() {
    let words = [0_u64; 64];
    let bytes: &[u8] = bytemuck::cast_slice(&words);
    assert!(Matrix::row_major(Dtype::Bf16, &bytes[..12], [2, 3]).is_some());
    assert!(Matrix::row_major(Dtype::Bf16, &bytes[..11], [2, 3]).is_none());
    assert!(Matrix::row_major(Dtype::Bf16, &bytes[1..13], [2, 3]).is_none(), "not aligned");
    assert!(Matrix::row_major(Dtype::F32, &bytes[2..26], [2, 3]).is_none(), "not aligned");
    assert!(Matrix::row_major(Dtype::F32, bytes, [usize::MAX, 2]).is_none());
    assert!(Matrix::row_major(Dtype::F32, &bytes[..0], [0, 5]).is_some_and(|w| w.panel_count() == 0));
    assert_eq!(Matrix::panel_bytes(Dtype::Bf16, [17, 3]), Some(2 * 2 * 64));
    assert_eq!(Matrix::panel_bytes(Dtype::F16, [17, 3]), Some(2 * 3 * 32));
    assert_eq!(Matrix::panel_bytes(Dtype::F32, [usize::MAX, 3]), None);
    assert!(Matrix::panels(Dtype::Bf16, &bytes[..256], [17, 3]).is_some());
    assert!(Matrix::panels(Dtype::Bf16, &bytes[..192], [17, 3]).is_none());
}

#[test]
fn a_matrix_of_no_columns_gives_zeros() {
    for isa in Isa::available() {
        let w = Matrix::panels(Dtype::Bf16, bytemuck::cast_slice::<u64, u8>(&[]), [20, 0]).unwrap();
        let mut x = Rows::with_capacity(2, 0);
        let (form, chunks) = x.start(isa, Dtype::Bf16, Activations::Bf16x2, 2, 0);
        assert_eq!((form.words(), chunks.len()), (0, 0));
        assert_eq!(product(isa, &w, 0..2, &x, &[1, 0]), [[0.0; PANEL]; 4]);
    }
}

#[test]
fn panels_lie_as_they_are_described_for_every_number_of_rows_and_columns() {
    for dtype in DTYPES {
        for (rows, cols) in (1..=33).flat_map(|rows| (1..=70).map(move |cols| (rows, cols))) {
            // Whole numbers that BF16 has.
            let values: Vec<f32> = (0..rows * cols).map(|i| (i % 255 + 1) as f32).collect();
            let w = Weights::new(dtype, [rows, cols], &values);
            let mut panels = vec![0.0; w.panels().bytes().len() / dtype.size()];
            dtype.widen(w.panels().bytes(), &mut panels);
            let step = cols_per_step(dtype);
            let padded = cols.next_multiple_of(step);
            for (i, got) in panels.iter().enumerate() {
                let (panel, rest) = (i / (PANEL * padded), i % (PANEL * padded));
                let row = panel * PANEL + rest / step % PANEL;
                let col = rest / (PANEL * step) * step + rest % step;
                let want = if row < rows && col < cols { values[row * cols + col] } else { 0.0 };
                assert_eq!(*got, want, "{dtype} [{rows}, {cols}]: row {row}, column {col}");
            }
            for isa in Isa::available() {
                let mut packed = vec![0xff; w.panels().bytes_of_panel()];
                for (panel, want) in w.panels().bytes().chunks_exact(packed.len()).enumerate() {
                    w.row_major().pack_panel_with(isa, panel, &mut packed);
                    assert_eq!(packed, want, "{isa} {dtype} [{rows}, {cols}], panel {panel}");
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "does not suit")]
fn rows_prepared_for_other_weights_are_refused() {
    let w = Weights::random(Dtype::Bf16, [16, 4]);
    let x = prepared(Isa::Scalar, Dtype::F32, Activations::Bf16, &[0.0; 4], 4);
    product(Isa::Scalar, &w.panels(), 0..1, &x, &[0]);
}

#[test]
fn what_has_no_finite_first_term_has_no_second() {
    // Halfway between the greatest BF16 and what would come next, and beyond.
    let too_large = [0x7f7f_8000, 0x7f7f_ffff, 0x7f80_0000, 0x7f80_0001, 0x7fff_ffff].map(f32::from_bits);
    for x in too_large.into_iter().flat_map(|x| [x, -x]) {
        let (hi, lo) = terms(x, Activations::Bf16x2);
        assert_eq!((bf16_to_f32(hi).is_finite(), bf16_to_f32(hi).is_nan(), lo), (false, x.is_nan(), 0), "{x}");
    }
    let just_fits = f32::from_bits(0x7f7f_7fff);
    assert_eq!(terms(just_fits, Activations::Bf16x2).0, 0x7f7f);
}

proptest::proptest! {
    #[test]
    fn two_terms_are_x_to_sixteen_bits_and_their_sum_is_exact(bits: u32) {
        let x = f32::from_bits(bits);
        let (hi, lo) = terms(x, Activations::Bf16x2);
        proptest::prop_assert_eq!(terms(x, Activations::Bf16), (hi, 0));
        let (hi, lo) = (bf16_to_f32(hi), bf16_to_f32(lo));
        if !x.is_finite() {
            proptest::prop_assert!(hi.is_nan() == x.is_nan() && !hi.is_finite() && lo == 0.0);
        } else if !hi.is_finite() {
            proptest::prop_assert!(x.abs() > bf16_to_f32(0x7f7f) && lo == 0.0);
        } else {
            let x = f64::from(x);
            let sum = f64::from(hi) + f64::from(lo);
            proptest::prop_assert_eq!(f64::from(hi + lo), sum);
            // Half a unit of 8 bits twice; the least BF16 is 2^-133.
            proptest::prop_assert!((x - sum).abs() <= x.abs() * 2_f64.powi(-16) + 2_f64.powi(-134));
        }
    }

    #[test]
    fn a_number_that_is_two_terms_is_split_into_them(mantissa in 0_u16..128, exponent in 40_u16..220, shift in 16_i32..=23, small in 0_i8..=127) {
        let hi = bf16_to_f32(exponent << 7 | mantissa);
        // At most 7 bits, below half a unit of hi, and within the 24 bits of a float32.
        let lo = bf16_to_f32(exponent << 7) * 2_f32.powi(-shift) * f32::from(small);
        let (got_hi, got_lo) = terms(hi + lo, Activations::Bf16x2);
        proptest::prop_assert_eq!((bf16_to_f32(got_hi), bf16_to_f32(got_lo)), (hi, lo));
    }
}

#[test]
fn every_isa_sees_the_same_activations() {
    let x = numbers(101, 3);
    for activations in ACTIVATIONS {
        let float = RowForm::new(Isa::Scalar, Dtype::Bf16, activations, 101);
        let mut want = vec![0; float.words()];
        float.prepare(&x, &mut want);
        for isa in Isa::available() {
            let form = RowForm::new(isa, Dtype::Bf16, activations, 101);
            let mut got = vec![0; form.words()];
            form.prepare(&x, &mut got);
            if isa.multiplies_bf16() {
                let (pairs, stream) = (101_usize.div_ceil(2), form.words() / form.terms());
                let half = |k: usize| (got[k / 2 % pairs + k / (2 * pairs) * stream] >> (k % 2 * 16)) as u16;
                got = (0..2 * pairs)
                    .map(|k| {
                        let lo = if form.terms() == 2 { bf16_to_f32(half(k + 2 * pairs)) } else { 0.0 };
                        (bf16_to_f32(half(k)) + lo).to_bits()
                    })
                    .collect();
            }
            assert_eq!(got, want, "{isa} {activations}");
        }
    }
}
