//! Numbers of repeated measurements, and what is said about them.

use serde::Serialize;

/// Values of one thing, measured several times.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(pub(crate) Vec<f64>);

/// Median and quartiles.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) q1: f64,
    pub(crate) q3: f64,
    pub(crate) n: usize,
}

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len().max(1) as f64
    }

    /// The value below which a part `q` (0 to 1) of all lies; 0 of nothing.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else {
            return 0.0;
        };
        let at = q * last as f64;
        let (low, high) = (at.floor() as usize, at.ceil() as usize);
        let (Some(a), Some(b)) = (sorted.get(low), sorted.get(high)) else {
            return 0.0;
        };
        a + (b - a) * (at - at.floor())
    }

    /// That value alone, to stand in a line of its own; nothing of nothing.
    pub(crate) fn only(&self, q: f64) -> Self {
        self.0.first().map(|_| self.quantile(q)).into_iter().collect()
    }

    /// `None` if nothing was measured.
    pub(crate) fn summary(&self) -> Option<Summary> {
        (!self.0.is_empty()).then(|| Summary {
            median: self.quantile(0.5),
            q1: self.quantile(0.25),
            q3: self.quantile(0.75),
            n: self.0.len(),
        })
    }

    /// This by the other, pair by pair.
    pub(crate) fn by(&self, other: &Self) -> Self {
        self.0.iter().zip(&other.0).filter(|(_, b)| **b > 0.0).map(|(a, b)| a / b).collect()
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_the_neighbours() {
        let s: Samples = [4.0, 1.0, 3.0, 2.0].into_iter().collect();
        let s = s.summary().expect("four values");
        assert_eq!((s.median, s.q1, s.q3, s.n), (2.5, 1.75, 3.25, 4));
    }

    #[test]
    fn a_ratio_is_made_pair_by_pair() {
        let (a, b) = (Samples(vec![1.0, 9.0]), Samples(vec![2.0, 3.0]));
        assert_eq!(a.by(&b).0, [0.5, 3.0]);
    }
}
