//! What the kernels should compute, in float64 and too simple to be wrong; for tests and benches.

use std::ops::Range;

/// `w`, `[rows, cols]`, times each row of `x`, `[n, cols]`: `[n, rows]`, and for tolerances the sums of absolute products.
pub fn multiply(w: &[f32], x: &[f32], [rows, cols]: [usize; 2]) -> (Vec<f64>, Vec<f64>) {
    let mut sums = Vec::new();
    let mut magnitudes = Vec::new();
    for i in 0..x.len() / cols {
        for row in 0..rows {
            let products = (0..cols).map(|k| f64::from(w[row * cols + k]) * f64::from(x[i * cols + k]));
            sums.push(products.clone().sum());
            magnitudes.push(products.map(f64::abs).sum());
        }
    }
    (sums, magnitudes)
}

/// Values of MXFP4 `blocks`, two a byte, the first in the lower half, with a byte of `scales` for each 16 bytes.
pub fn mxfp4(blocks: &[u8], scales: &[u8]) -> Vec<f64> {
    let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let value = |i: usize| {
        let nibble = usize::from(blocks[i / 2] >> (i % 2 * 4) & 15);
        let sign = if nibble < 8 { 1.0 } else { -1.0 };
        sign * magnitude[nibble % 8] * 2_f64.powi(i32::from(scales[i / 32]) - 127)
    };
    (0..2 * blocks.len()).map(value).collect()
}

/// Attention of one query over the `visible` of `keys` and `values`, both `[positions, head_dim]`.
pub fn attention(query: &[f32], keys: &[f32], values: &[f32], scale: f64, visible: Range<usize>) -> Vec<f64> {
    attention_with_sink(query, keys, values, scale, visible, f64::NEG_INFINITY)
}

/// As [`attention`], with one more score, `sink`, whose value is zero.
pub fn attention_with_sink(
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    scale: f64,
    visible: Range<usize>,
    sink: f64,
) -> Vec<f64> {
    let head_dim = query.len();
    let mut scores: Vec<f64> = Vec::new();
    for j in visible.clone() {
        let products = (0..head_dim).map(|d| f64::from(query[d]) * f64::from(keys[j * head_dim + d]));
        scores.push(products.sum::<f64>() * scale);
    }
    scores.push(sink);
    let p = softmax(&scores);
    let output = |d: usize| visible.clone().zip(&p).map(|(j, p)| p * f64::from(values[j * head_dim + d])).sum();
    (0..head_dim).map(output).collect()
}

/// `x / sqrt(mean(x²) + eps) * weight`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, weight)| f64::from(*x) / (mean + eps).sqrt() * f64::from(*weight)).collect()
}

/// `g / (1 + exp(-g)) * u`.
pub fn silu_mul(gate: f32, up: f32) -> f64 {
    let gate = f64::from(gate);
    gate / (1.0 + (-gate).exp()) * f64::from(up)
}

/// `g / (1 + exp(-alpha * g)) * (u + 1)` of `g = min(gate, limit)` and `u = clamp(up, -limit, limit)`.
pub fn clamped_silu_mul(gate: f32, up: f32, limit: f32, alpha: f32) -> f64 {
    let gate = f64::from(gate.min(limit));
    gate / (1.0 + (-f64::from(alpha) * gate).exp()) * (f64::from(up.clamp(-limit, limit)) + 1.0)
}

/// `exp(x) / Σ exp(x)`.
pub fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = x.iter().map(|x| (x - max).exp()).sum();
    x.iter().map(|x| (x - max).exp() / sum).collect()
}

/// One head rotated: dimension `i` with dimension `i + angles.len()`.
pub fn rope(head: &[f32], angles: &[f64]) -> Vec<f64> {
    let mut out: Vec<f64> = head.iter().copied().map(f64::from).collect();
    for (i, angle) in angles.iter().enumerate() {
        let (x, y) = (f64::from(head[i]), f64::from(head[i + angles.len()]));
        out[i] = x * angle.cos() - y * angle.sin();
        out[i + angles.len()] = y * angle.cos() + x * angle.sin();
    }
    out
}

/// Indices of the `k` greatest, greatest first, equal ones in order, NaN last.
pub fn top_k(values: &[f32], k: usize) -> Vec<u32> {
    let mut indices: Vec<u32> = (0..values.len() as u32).collect();
    let key = |index: &u32| Some(values[*index as usize]).filter(|value| !value.is_nan());
    indices.sort_by(|a, b| key(b).partial_cmp(&key(a)).expect("no NaN is left")); // a stable sort; None is the least
    indices.truncate(k);
    indices
}
