//! How far logits are from others.

/// Sums of squares of differences and of what was wanted.
#[derive(Default)]
pub(super) struct Distance {
    difference: f64,
    wanted: f64,
}

impl Distance {
    pub(super) fn add(&mut self, got: &[f32], want: &[f32]) {
        for (got, want) in got.iter().zip(want) {
            let (got, want) = (f64::from(*got), f64::from(*want));
            self.difference += (got - want).powi(2);
            self.wanted += want.powi(2);
        }
    }

    /// Root mean square of the differences over that of what was wanted.
    pub(super) fn relative(&self) -> f64 {
        (self.difference / self.wanted).sqrt()
    }
}
