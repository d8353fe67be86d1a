//! Rotary position embedding.

use super::per_isa;

per_isa! {
    /// Rotates the first `2 * cos.len()` dimensions of each head of `heads`, `[n, head_dim]`, at one position: dimension
    /// `i` with dimension `i + cos.len()` (the "NEOX" halves), by the angle whose cosine and sine are `cos[i]` and
    /// `sin[i]`. What is beyond stays.
    ///
    /// # Panics
    /// If `heads` is not whole heads, `sin` has another length than `cos`, or a head is shorter than the rotated part.
    pub fn rope(heads: &'a mut [f32], head_dim: usize, cos: &'a [f32], sin: &'a [f32]) {
        assert!(head_dim > 0 && heads.len().is_multiple_of(head_dim), "{} for heads of {head_dim}", heads.len());
        assert_eq!(cos.len(), sin.len(), "lengths of cos and sin");
        assert!(2 * cos.len() <= head_dim, "{} dimensions of {head_dim}", 2 * cos.len());
        for head in heads.chunks_exact_mut(head_dim) {
            let (low, high) = head.split_at_mut(cos.len());
            for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
            }
        }
    }
}
