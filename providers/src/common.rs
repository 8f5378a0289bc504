//! The settings that clouds share, read in one place so that they mean the same everywhere
//! (providers.md 2.1). A cloud's own list of keys names those that it takes.

use std::fmt::Display;
use std::path::Path;

use crate::Market;
use crate::budget::{Budget, Rate};
use crate::prices::Prices;
use crate::settings::{Key, Reader};

/// Least root disk in GiB, as the users' guide has it.
pub const DISK_MIN: u32 = 6;
/// Largest root disk in GiB that any of the clouds makes (64 TiB).
const DISK_MAX: u32 = 64 << 10;

/// Ordinary VM instead of a confidential one.
pub const DISABLE_CVM: Key = Key::plain(
    "disable-cvm",
    "DISABLECVM",
    "false",
    "make ordinary VMs; without it they are confidential ones, which not every type can be",
);
/// The VM's public address instead of its private one.
pub const PUBLIC_IP: Key = Key::plain(
    "use-public-ip",
    "USE_PUBLIC_IP",
    "false",
    "give VMs a public address and speak to them over it",
);
/// Root disk.
pub const DISK: Key = Key::plain(
    "root-volume-size",
    "ROOT_VOLUME_SIZE",
    "6",
    "root disk in GiB, at least 6; 0 is the image's own size, which is never gone below",
);
/// Spot.
pub const SPOT: Key = Key::plain(
    "spot-policy",
    "SPOT_POLICY",
    "off",
    "off: never spot; prefer: spot first, then on demand; require: nothing but spot",
);
/// Prices.
pub const PRICES: Key = Key::plain(
    "instance-prices",
    "INSTANCE_PRICES",
    "",
    "file with a line `type price-per-hour [spot-price]` for each type; the cheapest that fits is taken",
);

/// What [`read`] has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Common {
    /// Make ordinary VMs.
    pub disable_cvm: bool,
    /// Give VMs a public address.
    pub public_ip: bool,
    /// Root disk in GiB; 0 is the image's own size.
    pub disk_gib: u32,
    /// Markets in the order of preference.
    pub markets: Vec<Market>,
    /// What types cost.
    pub prices: Prices,
    /// What should be known of the values.
    pub warnings: Vec<String>,
}

/// Reads those of the shared keys that a provider lists among `keys`; the others keep their default.
pub fn read(reader: &mut Reader<'_>, keys: &[Key]) -> Option<Common> {
    let has = |key: &Key| keys.iter().find(|k| k.flag == key.flag).copied();
    let mut warnings = Vec::new();
    let disable_cvm = own(reader, has(&DISABLE_CVM), false, boolean);
    let public_ip = own(reader, has(&PUBLIC_IP), false, boolean);
    let disk = own(reader, has(&DISK), 0, disk_gib);
    let markets = own(reader, has(&SPOT), vec![Market::OnDemand], markets);
    let prices = match has(&PRICES).filter(|key| reader.text(key).is_some()) {
        Some(key) => reader.parsed(&key, |path| Prices::read(Path::new(path))),
        None => Some(Prices::default()),
    };
    let disk_gib = disk.map(|disk| match disk {
        1..DISK_MIN => {
            warnings
                .push(format!("ROOT_VOLUME_SIZE {disk} GiB is too small and taken as {DISK_MIN}"));
            DISK_MIN
        }
        disk => disk,
    });
    Some(Common {
        disable_cvm: disable_cvm?,
        public_ip: public_ip?,
        disk_gib: disk_gib?,
        markets: markets?,
        prices: prices?,
        warnings,
    })
}

fn own<T>(
    reader: &mut Reader<'_>,
    key: Option<Key>,
    otherwise: T,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    match key {
        Some(key) => reader.parsed(&key, parse),
        None => Some(otherwise),
    }
}

/// `1`/`true` and `0`/`false` in any case.
///
/// # Errors
/// What is wrong with the text.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err("is neither true nor false".to_owned()),
    }
}

/// Comma list: trimmed, empty items and duplicates dropped.
pub fn list(text: &str) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        if !items.iter().any(|known| known == item) {
            items.push(item.to_owned());
        }
    }
    items
}

fn disk_gib(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(gib) if gib <= DISK_MAX => Ok(gib),
        _ => Err(format!("is not a number of GiB, 0 to {DISK_MAX}")),
    }
}

fn markets(text: &str) -> Result<Vec<Market>, String> {
    match text.to_ascii_lowercase().as_str() {
        "off" => Ok(vec![Market::OnDemand]),
        "prefer" => Ok(vec![Market::Spot, Market::OnDemand]),
        "require" => Ok(vec![Market::Spot]),
        _ => Err("is none of off, prefer, require".to_owned()),
    }
}

/// A class of calls: the key by which its rate is set, and how many come at once.
#[derive(Clone, Copy, Debug)]
pub struct Class {
    /// `api-rate-…`; its default is half of what the cloud publishes as refill.
    pub key: Key,
    /// The name in messages.
    pub name: &'static str,
    /// The cloud's own refill per second, as published.
    pub published: f64,
    /// Its own bucket.
    pub bucket: u32,
}

impl Class {
    /// The budget as the settings have it. A larger rate than the published one is permitted: limits
    /// differ by account.
    pub fn rate(&self, reader: &mut Reader<'_>) -> Option<Rate> {
        let per_second = reader.parsed(&self.key, positive)?;
        let share = (per_second / self.published).min(1.0);
        // Whole calls of a bucket, at least one.
        let burst = (f64::from(self.bucket) * share).floor().max(1.0) as u32;
        Some(Rate { per_second, burst })
    }

    /// A budget with that rate.
    pub fn budget(&self, rate: Rate) -> Budget {
        Budget::new(self.name, rate)
    }
}

fn positive(text: &str) -> Result<f64, impl Display + use<>> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && (1e-3..=1e6).contains(&rate) => Ok(rate),
        _ => Err("is not a rate of calls per second, 0.001 to 1000000"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{SettingsError, Values};

    const KEYS: [Key; 5] = [DISABLE_CVM, PUBLIC_IP, DISK, SPOT, PRICES];

    fn read_from(pairs: &[(&str, &str)]) -> Result<Common, SettingsError> {
        let values: Values = pairs.iter().copied().collect();
        let mut reader = Reader::new(&values);
        let common = read(&mut reader, &KEYS);
        reader.finish(common)
    }

    #[test]
    fn the_defaults_are_the_guides() {
        let common = read_from(&[]).expect("fine");
        assert_eq!((common.disable_cvm, common.public_ip, common.disk_gib), (false, false, 6));
        assert_eq!((common.markets, common.warnings), (vec![Market::OnDemand], vec![]));
    }

    #[test]
    fn each_bad_value_is_named_and_all_in_one_message() {
        let error = read_from(&[
            ("disable-cvm", "maybe"),
            ("use-public-ip", "2"),
            ("root-volume-size", "-1"),
            ("spot-policy", "on"),
            ("instance-prices", "/nowhere/prices"),
        ]);
        let text = error.expect_err("refused").to_string();
        for says in [
            "DISABLECVM (--disable-cvm) \"maybe\" is neither",
            "USE_PUBLIC_IP (--use-public-ip) \"2\" is neither",
            "ROOT_VOLUME_SIZE (--root-volume-size) \"-1\" is not a number of GiB",
            "SPOT_POLICY (--spot-policy) \"on\" is none of",
            "INSTANCE_PRICES (--instance-prices) \"/nowhere/prices\" cannot be read",
        ] {
            assert!(text.contains(says), "{says}: {text}");
        }
    }

    #[test]
    fn a_disk_below_the_least_is_raised_and_said() {
        let common = read_from(&[("root-volume-size", "3")]).expect("fine");
        assert_eq!(common.disk_gib, DISK_MIN);
        assert!(common.warnings[0].contains("ROOT_VOLUME_SIZE 3 GiB"), "{:?}", common.warnings);
        assert_eq!(read_from(&[("root-volume-size", "0")]).expect("fine").disk_gib, 0);
    }

    #[test]
    fn a_rate_keeps_its_share_of_the_clouds_bucket() {
        const RUN: Class = Class {
            key: Key::plain("api-rate-run-instances", "API_RATE_RUN_INSTANCES", "1", ""),
            name: "RunInstances",
            published: 2.0,
            bucket: 5,
        };
        let rate = |text: &str| {
            let values: Values = [("api-rate-run-instances", text)].into_iter().collect();
            let mut reader = Reader::new(&values);
            let rate = RUN.rate(&mut reader);
            reader.finish(rate)
        };
        assert_eq!(rate(""), Ok(Rate { per_second: 1.0, burst: 2 }));
        assert_eq!(rate("2"), Ok(Rate { per_second: 2.0, burst: 5 }));
        assert_eq!(rate("8"), Ok(Rate { per_second: 8.0, burst: 5 }));
        for bad in ["0", "-1", "x", "inf", "NaN", "1e99"] {
            assert!(rate(bad).expect_err(bad).to_string().contains("API_RATE_RUN_INSTANCES"));
        }
    }

    #[test]
    fn a_list_is_trimmed_and_has_everything_once() {
        assert_eq!(list(" a, b,,a ,c"), ["a", "b", "c"]);
    }
}
