//! How a block of the KV cache lies in memory.
//!
//! Keys are panels, `[KV_BLOCK / 16][head_dim][16 positions]`, because scores are summed over the head dimension with
//! positions in the lanes; values follow row-major, `[KV_BLOCK][head_dim]`.

use bytemuck::cast_slice_mut;

use crate::Dtype;
use crate::dtype::bf16_from_f32;
use crate::matmul::PANEL;

/// Positions of a block.
pub const KV_BLOCK: usize = 64;

/// Positions of a run: sums over positions start anew with each.
pub const KV_RUN: usize = 256;

/// Bytes of a block of one layer and one KV head; `None` if there are more than an address can say.
pub const fn block_bytes(dtype: Dtype, head_dim: usize) -> Option<usize> {
    head_dim.checked_mul(2 * KV_BLOCK * dtype.size())
}

/// Stores `key` and `value`, each `[head_dim]`, as position `slot` of `block`, rounded to nearest even.
///
/// What does not fit F16 becomes infinite and makes the result of every query that sees it non-finite: the sequence
/// then ends with an error instead of going on with a clamped number.
///
/// # Panics
/// If `slot` is not below [`KV_BLOCK`], a length is not `head_dim`, or `block` is not [`block_bytes`] long or not
/// aligned to the dtype.
pub fn store(dtype: Dtype, block: &mut [u8], head_dim: usize, slot: usize, key: &[f32], value: &[f32]) {
    assert!(slot < KV_BLOCK, "slot {slot} of {KV_BLOCK}");
    assert_eq!((key.len(), value.len()), (head_dim, head_dim), "lengths of key and value");
    assert_eq!(Some(block.len()), block_bytes(dtype, head_dim), "bytes of a block");
    match dtype {
        Dtype::Bf16 => scatter::<u16>(cast_slice_mut(block), slot, key, value, bf16_from_f32),
        Dtype::F16 => scatter::<u16>(cast_slice_mut(block), slot, key, value, |x| half::f16::from_f32(x).to_bits()),
        Dtype::F32 => scatter::<f32>(cast_slice_mut(block), slot, key, value, |x| x),
    }
}

fn scatter<E>(block: &mut [E], slot: usize, key: &[f32], value: &[f32], narrow: impl Fn(f32) -> E) {
    let head_dim = key.len();
    let (keys, values) = block.split_at_mut(KV_BLOCK * head_dim);
    let lane = &mut keys[slot / PANEL * PANEL * head_dim..][..PANEL * head_dim];
    for (out, x) in lane.iter_mut().skip(slot % PANEL).step_by(PANEL).zip(key) {
        *out = narrow(*x);
    }
    for (out, x) in values[slot * head_dim..][..head_dim].iter_mut().zip(value) {
        *out = narrow(*x);
    }
}
