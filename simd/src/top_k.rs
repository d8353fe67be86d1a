//! The greatest of many: router choices and sampler candidates.

/// Writes the indices of the `indices.len()` greatest values, greatest first; of equal values the lower index comes
/// first. A NaN is below everything, -∞ included, and equal to every other NaN, so that it is chosen only when nothing
/// else is left.
///
/// # Panics
/// If there are fewer values than indices, or more than a `u32` can count.
pub fn top_k(values: &[f32], indices: &mut [u32]) {
    let k = indices.len();
    assert!(k <= values.len(), "{k} greatest of {} values", values.len());
    let len = u32::try_from(values.len()).expect("an index fits u32");
    if k == 0 {
        return;
    }
    let mut chosen = 0;
    for index in 0..len {
        let value = values[index as usize];
        if chosen == k && !greater(value, values[indices[k - 1] as usize]) {
            continue;
        }
        // Indices come in ascending order: what is equal goes behind.
        let place = indices[..chosen].partition_point(|other| !greater(value, values[*other as usize]));
        chosen = k.min(chosen + 1);
        indices[place..chosen].rotate_right(1);
        indices[place] = index;
    }
}

fn greater(a: f32, b: f32) -> bool {
    a > b || (b.is_nan() && !a.is_nan())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oracle;

    fn value() -> impl Strategy<Value = f32> {
        // Few distinct values, so that ties are common.
        prop_oneof![
            (-3_i8..3).prop_map(f32::from),
            prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, -f32::NAN]),
            any::<f32>(),
        ]
    }

    proptest! {
        #[test]
        fn the_greatest_come_first_and_ties_by_index(values in prop::collection::vec(value(), 0..40), k in 0_usize..40) {
            let k = k.min(values.len());
            let mut indices = vec![u32::MAX; k];
            top_k(&values, &mut indices);
            prop_assert_eq!(indices, oracle::top_k(&values, k));
        }
    }
}
