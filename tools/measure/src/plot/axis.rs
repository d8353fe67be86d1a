//! Where a value stands on an axis, and which values get a tick.

/// How values become distances.
#[derive(Clone, Copy)]
pub(super) enum Scale {
    Linear,
    /// Doublings: 1, 2, 4 are equally far apart.
    Log2,
    /// Doublings of what is added to 1,024: 0 has a place, and long contexts are told apart.
    Depth,
}

/// One axis of a panel.
pub(super) struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    /// Values with their labels, ascending.
    pub(super) ticks: Vec<(f64, String)>,
}

impl Scale {
    fn apply(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Log2 => value.log2(),
            Self::Depth => (1.0 + value / 1024.0).log2(),
        }
    }
}

impl Axis {
    /// An axis of measured places, each with a tick, with some air at both ends.
    pub(super) fn of_places(scale: Scale, places: &[usize]) -> Self {
        let (first, last) = (places.first().copied().unwrap_or(1), places.last().copied().unwrap_or(1));
        let (low, high) = (scale.apply(first as f64), scale.apply(last as f64));
        let air = if high > low { (high - low) * 0.06 } else { 1.0 };
        let ticks = places.iter().map(|place| (*place as f64, thousands(*place))).collect();
        Self { scale, low: low - air, high: high + air, ticks }
    }

    /// An axis from 0 to at least `high`, with about five round ticks.
    pub(super) fn from_zero(high: f64) -> Self {
        let rough = (high / 5.0).max(1e-9);
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(10.0 * power);
        let count = (high / step).ceil().max(1.0);
        let decimals = if step >= 1.0 && step.fract() == 0.0 { 0 } else { (1.0 - step.log10().floor()) as usize };
        let label = |value: f64| {
            let text = format!("{value:.decimals$}");
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
        };
        let ticks = (0..=count as usize).map(|index| index as f64 * step).map(|value| (value, label(value))).collect();
        Self { scale: Scale::Linear, low: 0.0, high: count * step, ticks }
    }

    /// Place of `value` between the ends, 0 to 1.
    pub(super) fn place(&self, value: f64) -> f64 {
        (self.scale.apply(value) - self.low) / (self.high - self.low)
    }
}

/// 32768 as `32,768`.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_the_highest_value() {
        let labels = |high| Axis::from_zero(high).ticks.into_iter().map(|(_, label)| label).collect::<Vec<_>>();
        assert_eq!(labels(20.3), ["0", "5", "10", "15", "20", "25"]);
        assert_eq!(labels(1.2), ["0", "0.25", "0.5", "0.75", "1", "1.25"]);
        assert_eq!(labels(76.0), ["0", "20", "40", "60", "80"]);
        assert_eq!(labels(0.0).len(), 2);
    }

    #[test]
    fn places_ascend_and_zero_depth_has_one() {
        let axis = Axis::of_places(Scale::Depth, &[0, 4096, 32_768]);
        let places = [0.0, 4096.0, 32_768.0].map(|depth| axis.place(depth));
        assert!(0.0 < places[0] && places[0] < places[1] && places[1] < places[2] && places[2] < 1.0);
        assert_eq!(axis.ticks[2].1, "32,768");
        let alone = Axis::of_places(Scale::Log2, &[4]);
        assert!((alone.place(4.0) - 0.5).abs() < 1e-12);
    }
}
