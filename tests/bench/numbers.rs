//! What many samples come to. Pure: an error here would be a wrong figure that looks like a right one.

/// The middle one; the mean of the middle two.
pub(crate) fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    let middle = all.len() / 2;
    match all.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => all[middle],
        _ => f64::midpoint(all[middle - 1], all[middle]),
    }
}

/// The smallest sample that so many per cent of all don't exceed (the nearest rank).
pub(crate) fn percentile(mut all: Vec<f64>, percent: usize) -> f64 {
    all.sort_by(f64::total_cmp);
    let rank = (all.len() * percent).div_ceil(100).max(1);
    all.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// Throughput in MiB/s of pieces of so many bytes that take so many nanoseconds each.
pub(crate) fn mib_per_second(bytes: usize, nanoseconds: f64) -> f64 {
    bytes as f64 / nanoseconds * 1e9 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_of_what_is_sorted() {
        assert_eq!(median(vec![9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(vec![9.0, 1.0, 5.0, 6.0]), 5.5);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn a_percentile_is_a_sample_that_as_many_do_not_exceed() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(hundred.clone(), 99), 99.0);
        assert_eq!(percentile(hundred.clone(), 50), 50.0);
        assert_eq!(percentile(hundred, 100), 100.0);
        // Of fewer than a hundred, one per cent is less than one: the greatest counts.
        assert_eq!(percentile(vec![3.0, 1.0, 2.0], 99), 3.0);
        assert_eq!(percentile(vec![7.0], 1), 7.0);
        // One outlier in a thousand isn't in the p99, eleven are.
        let with = |outliers: usize| (0..1000).map(|n| if n < outliers { 9.0 } else { 1.0 }).collect();
        assert_eq!(percentile(with(10), 99), 1.0);
        assert_eq!(percentile(with(11), 99), 9.0);
        assert!(percentile(Vec::new(), 99).is_nan());
    }

    #[test]
    fn throughput_is_the_inverse_of_time() {
        assert_eq!(mib_per_second(1 << 20, 1e9), 1.0);
        assert_eq!(mib_per_second(1 << 19, 1e6), 500.0);
    }
}
