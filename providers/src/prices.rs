//! What VMs cost: a table that the user gives (`INSTANCE_PRICES`, providers.md 2.1), since no cloud
//! tells it in a call that a daemon should make.
//!
//! ```text
//!   # type      per hour  spot
//!   m6a.large   0.0864    0.031
//!   t3.medium   0.0416
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{InstanceType, Market};

/// Millionths of the table's unit (a dollar, say) per hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Price(pub u64);

/// Digits after the point that a price may have.
const DIGITS: usize = 6;

impl FromStr for Price {
    type Err = String;

    /// A decimal number without sign or exponent.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a price such as 0.0864");
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(part) || part.len() > DIGITS {
            return Err(bad());
        }
        let all: u64 = format!("{whole}{part:0<DIGITS$}").parse().map_err(|_| bad())?;
        Ok(Self(all))
    }
}

impl std::fmt::Display for Price {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whole, part) = (self.0 / 1_000_000, self.0 % 1_000_000);
        let part = format!("{part:06}");
        let part = part.trim_end_matches('0');
        write!(f, "{whole}.{part:0<2}")
    }
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prices(BTreeMap<String, (Price, Option<Price>)>);

impl Prices {
    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong, with the line's number.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("cannot be read: {e}"))?;
        text.parse()
    }

    /// Per hour, where the table has it.
    pub fn of(&self, instance_type: &str, market: Market) -> Option<Price> {
        let (on_demand, spot) = self.0.get(instance_type)?;
        match market {
            Market::OnDemand => Some(*on_demand),
            Market::Spot => *spot,
        }
    }

    /// Writes the prices into a catalogue, by which the cheapest type is chosen.
    pub fn fill(&self, catalogue: &mut [InstanceType]) {
        for t in catalogue {
            t.price = self.of(&t.name, Market::OnDemand);
        }
    }
}

impl FromStr for Prices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut table = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            let (name, price, spot) = match words[..] {
                [] => continue,
                [name, price] => (name, price, None),
                [name, price, spot] => (name, price, Some(spot)),
                _ => return Err(format!("line {number}: not `type price [spot price]`")),
            };
            let read = |text: &str| text.parse().map_err(|e| format!("line {number}: {e}"));
            let prices = (read(price)?, spot.map(read).transpose()?);
            if table.insert(name.to_owned(), prices).is_some() {
                return Err(format!("line {number}: {name} stands twice"));
            }
        }
        Ok(Self(table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_with_comments_and_spot_prices() {
        let table = "# mine\nm6a.large 0.0864 0.031\n\n t3.medium  1 # dear\n";
        let prices: Prices = table.parse().expect("fine");
        let of = |name, market| prices.of(name, market).map(|p| p.to_string());
        assert_eq!(of("m6a.large", Market::OnDemand).as_deref(), Some("0.0864"));
        assert_eq!(of("m6a.large", Market::Spot).as_deref(), Some("0.031"));
        assert_eq!(of("t3.medium", Market::OnDemand).as_deref(), Some("1.00"));
        assert_eq!(of("t3.medium", Market::Spot), None);
        assert_eq!(of("unknown", Market::OnDemand), None);
    }

    #[test]
    fn a_bad_line_is_named_by_its_number() {
        for bad in ["a -1", "a x", "a 1e3", "a .5", "a 1 2 3", "a", "a 0.1234567", "a ١"] {
            let text = format!("fine 1\n{bad}\n");
            let error = text.parse::<Prices>().expect_err(bad);
            assert!(error.starts_with("line 2: "), "{error}");
        }
        let error = "a 1\na 2\n".parse::<Prices>().expect_err("twice");
        assert_eq!(error, "line 2: a stands twice");
        assert!("a 99999999999999999999".parse::<Prices>().is_err(), "too large");
    }
}
