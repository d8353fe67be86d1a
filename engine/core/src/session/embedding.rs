//! Vectors of whole texts, out of final hidden states.

/// Divides a vector by its length, so that the product of two of them is the cosine between them. The vector of zeros stays
/// as it is.
pub fn normalize(values: &mut [f32]) {
    let square: f64 = values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
    if square > 0.0 {
        let scale = 1.0 / square.sqrt();
        values.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
    }
}
