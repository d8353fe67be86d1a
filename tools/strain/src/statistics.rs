//! What a list of numbers says.

use std::time::Duration;

/// The value that the fraction `part` of the values does not exceed (nearest rank); none of an empty list.
pub(crate) fn percentile(values: &[f64], part: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (part * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied()
}

/// Milliseconds.
pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A straight line through points.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Slope {
    /// Rise of y for each 1 of x, by least squares.
    pub(crate) slope: f64,
    /// Upper end of its interval of 95 %.
    pub(crate) upper: f64,
}

/// The line through `points`; none for fewer than three, or where all have one x.
pub(crate) fn slope(points: &[(f64, f64)]) -> Option<Slope> {
    let count = points.len() as f64;
    if points.len() < 3 {
        return None;
    }
    let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / count;
    let spread = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum::<f64>();
    if spread == 0.0 {
        return None;
    }
    let slope = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>() / spread;
    let left: f64 = points.iter().map(|(x, y)| (y - mean_y - slope * (x - mean_x)).powi(2)).sum();
    let error = (left / (count - 2.0) / spread).sqrt();
    Some(Slope { slope, upper: slope + student_t(points.len() - 2) * error })
}

/// 97.5 % of Student's distribution lies below this, within 1 % from three degrees of freedom on (Cornish-Fisher, four terms).
fn student_t(freedom: usize) -> f64 {
    let (z, n) = (1.959_964_f64, freedom as f64);
    match freedom {
        1 => 12.706,
        2 => 4.303,
        _ => {
            let first = (z.powi(3) + z) / (4.0 * n);
            let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * n * n);
            let third = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / (384.0 * n.powi(3));
            z + first + second + third
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_of_the_list() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), Some(50.0));
        assert_eq!(percentile(&values, 0.99), Some(99.0));
        assert_eq!(percentile(&[7.0], 0.99), Some(7.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn a_straight_line_has_no_doubt_and_a_scattered_one_has() {
        let line: Vec<(f64, f64)> = (0..10).map(|x| (f64::from(x), 3.0 * f64::from(x) + 1.0)).collect();
        let found = slope(&line).unwrap();
        assert!((found.slope - 3.0).abs() < 1e-12 && (found.upper - 3.0).abs() < 1e-9);
        // By hand: y = 0, 1, 0, 1 over x = 0, 1, 2, 3: slope 0.2, residual squares 0.8, error sqrt(0.4 / 5).
        let scattered = slope(&[(0.0, 0.0), (1.0, 1.0), (2.0, 0.0), (3.0, 1.0)]).unwrap();
        assert!((scattered.slope - 0.2).abs() < 1e-12);
        assert!((scattered.upper - (0.2 + 4.303 * 0.08_f64.sqrt())).abs() < 1e-9);
        assert_eq!(slope(&[(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)]), None);
    }

    #[test]
    fn student_s_t_is_that_of_the_tables() {
        for (freedom, want) in [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (120, 1.980)]
        {
            let got = student_t(freedom);
            assert!((got - want).abs() < 0.01 * want, "{freedom}: {got}");
        }
    }
}
