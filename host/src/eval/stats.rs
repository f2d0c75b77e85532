//! Mean, 99th percentile and maximum of a set of errors.

use serde::Serialize;

/// Summary of one error over queries and query heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Arithmetic mean.
    pub mean: f64,
    /// 99th percentile ([`quantile`]).
    pub p99: f64,
    /// Maximum.
    pub max: f64,
}

impl Stats {
    /// Of `values`; all zero where there is none.
    pub fn of(values: &[f64]) -> Stats {
        if values.is_empty() {
            return Stats::default();
        }
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Stats { mean, p99: quantile(values, 0.99), max: quantile(values, 1.0) }
    }
}

/// The `fraction` quantile with linear interpolation between order statistics, as `numpy.quantile`:
/// position `fraction * (n - 1)` in the sorted values. NaN where there is no value or one is NaN.
pub fn quantile(values: &[f64], fraction: f64) -> f64 {
    if values.is_empty() || values.iter().any(|x| x.is_nan()) {
        return f64::NAN;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let position = fraction.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_numpys() {
        // numpy.quantile([15, 20, 35, 40, 50], [0, .4, .5, .99, 1])
        let values = [50.0, 15.0, 40.0, 20.0, 35.0];
        for (fraction, want) in [(0.0, 15.0), (0.4, 29.0), (0.5, 35.0), (0.99, 49.6), (1.0, 50.0)] {
            let got = quantile(&values, fraction);
            assert!((got - want).abs() < 1e-12, "{fraction}: {got}");
        }
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
        assert!(quantile(&[], 0.5).is_nan());
        assert!(quantile(&[1.0, f64::NAN], 0.5).is_nan());
    }

    #[test]
    fn stats_of_nothing_are_zero_and_of_nan_are_nan() {
        assert_eq!(Stats::of(&[]), Stats::default());
        assert!(Stats::of(&[0.0, f64::NAN]).max.is_nan());
        assert_eq!(Stats::of(&[1.0, 3.0]), Stats { mean: 2.0, p99: 2.98, max: 3.0 });
    }
}
