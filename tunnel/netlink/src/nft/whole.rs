//! A table as it is to be: made in one batch, and compared with what the kernel has, rule by rule.
//!
//! The kernel tells a rule in the words in which it was given and may add some of its own; so all that
//! was given must be there again, with as many expressions, in the same order. Counters may differ.

use std::collections::BTreeMap;

use super::attribute::{find, text};
use super::batch::{Batch, Chain, Set, Table};
use super::dump::{Counter, GET_CHAIN, GET_RULE, GET_SET, GET_TABLE, Nft, counter_of, dump};
use super::expression::Rule;
use crate::Error;

/// A table with all that is in it, in the order in which it is made.
#[derive(Clone, Debug)]
pub struct Whole<'a> {
    /// Its name.
    pub table: Table<'a>,
    /// Its sets; those with keys hold exactly these, of the others nothing is said.
    pub sets: Vec<(Set<'a>, Option<Vec<Vec<u8>>>)>,
    /// Its chains.
    pub chains: Vec<Chain<'a>>,
    /// Its rules, each with its chain.
    pub rules: Vec<(&'a str, Rule)>,
}

/// What a comparison has found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// What is not as it is to be, in words; nothing is well.
    pub wrong: Vec<String>,
    /// What the rules of each chain have counted, in order.
    pub counters: BTreeMap<String, Vec<Counter>>,
}

impl Found {
    /// What all rules of a chain have counted together.
    pub fn sum(&self, chain: &str) -> Counter {
        let all = self.counters.get(chain).into_iter().flatten();
        all.fold(Counter::default(), |sum, one| sum.plus(*one))
    }
}

impl Whole<'_> {
    /// Puts the making of all of it into a batch.
    #[must_use]
    pub fn make(&self, batch: Batch) -> Batch {
        let mut batch = batch.new_table(self.table);
        for (set, keys) in &self.sets {
            batch = batch.set(self.table, *set);
            if let Some(keys) = keys {
                batch = batch.keys(self.table, set.name, keys);
            }
        }
        for chain in &self.chains {
            batch = batch.chain(self.table, *chain);
        }
        for (chain, rule) in &self.rules {
            batch = batch.rule(self.table, chain, rule);
        }
        batch
    }

    /// Compares with the table in the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn compare(&self) -> Result<Found, Error> {
        let mut found = Found::default();
        let name = self.table.name;
        let Some(table) = self.tell("list tables", GET_TABLE)?.into_iter().next() else {
            found.wrong.push(format!("table {name} is missing"));
            return Ok(found);
        };
        // 1 is "dormant": hooked nowhere.
        if find(&table, 2).is_some_and(|f| f.iter().any(|b| *b != 0)) {
            found.wrong.push(format!("table {name} has got flags"));
        }
        self.compare_sets(&mut found)?;
        self.compare_chains(&mut found)?;
        self.compare_rules(&mut found)?;
        Ok(found)
    }

    /// What the kernel has of this table.
    fn tell(&self, what: &str, kind: u16) -> Result<Vec<Vec<u8>>, Error> {
        let body = super::attribute::Attributes::default().text(1, self.table.name);
        let body = if kind == GET_RULE { body.0 } else { Vec::new() };
        let all = dump(what, kind, self.table.family, &body)?;
        let ours = |m: &Vec<u8>| find(m, 1).map(text).as_deref() == Some(self.table.name);
        Ok(all.into_iter().filter(ours).collect())
    }

    fn compare_sets(&self, found: &mut Found) -> Result<(), Error> {
        let there = self.tell("list sets", GET_SET)?;
        for (set, keys) in &self.sets {
            let one = there.iter().find(|m| find(m, 2).map(text).as_deref() == Some(set.name));
            let length = one.and_then(|m| find(m, 5));
            let flags = one.and_then(|m| find(m, 3)).unwrap_or(&[0; 4]);
            if length != Some(&set.key_length.to_be_bytes()) || flags != set.flags().to_be_bytes() {
                found.wrong.push(format!("set {} is missing or another one", set.name));
                continue;
            }
            let Some(keys) = keys else { continue };
            let mut have: Vec<_> =
                Nft::elements(self.table, set.name)?.into_iter().map(|(k, _)| k).collect();
            let mut wanted = keys.clone();
            have.sort();
            wanted.sort();
            if have != wanted {
                let (has, should) = (have.len(), wanted.len());
                let what = format!("set {} has other keys ({has}, should be {should})", set.name);
                found.wrong.push(what);
            }
        }
        Ok(())
    }

    fn compare_chains(&self, found: &mut Found) -> Result<(), Error> {
        let there = self.tell("list chains", GET_CHAIN)?;
        if there.len() != self.chains.len() {
            let (has, should) = (there.len(), self.chains.len());
            found.wrong.push(format!("there are {has} chains, should be {should}"));
        }
        for chain in &self.chains {
            let one = there.iter().find(|m| find(m, 3).map(text).as_deref() == Some(chain.name));
            if !one.is_some_and(|m| covers(&chain.place().0, m)) {
                found.wrong.push(format!("chain {} is missing or elsewhere", chain.name));
            }
        }
        Ok(())
    }

    fn compare_rules(&self, found: &mut Found) -> Result<(), Error> {
        let mut there: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        for rule in self.tell("list rules", GET_RULE)? {
            let chain = find(&rule, 2).map(text).unwrap_or_default();
            found.counters.entry(chain.clone()).or_default().push(counter_of(&rule));
            there.entry(chain).or_default().push(rule);
        }
        let mut wanted: BTreeMap<&str, Vec<&Rule>> = BTreeMap::new();
        for (chain, rule) in &self.rules {
            wanted.entry(chain).or_default().push(rule);
        }
        for (chain, rules) in wanted {
            let have = there.remove(chain).unwrap_or_default();
            if have.len() != rules.len() {
                let (has, should) = (have.len(), rules.len());
                found.wrong.push(format!("chain {chain} has {has} rules, should have {should}"));
                continue;
            }
            for (n, (rule, have)) in rules.iter().zip(&have).enumerate() {
                if !same(rule, have) {
                    found.wrong.push(format!("rule {} of chain {chain} is another one", n + 1));
                }
            }
        }
        found.wrong.extend(there.keys().map(|chain| format!("chain {chain} has rules of others")));
        Ok(())
    }
}

/// Whether a rule that the kernel tells is that one.
pub(crate) fn same(rule: &Rule, told: &[u8]) -> bool {
    let told: Vec<_> = raw(find(told, 4).unwrap_or_default()).collect();
    let wanted: Vec<_> = raw(&rule.expressions.0).collect();
    wanted.len() == told.len()
        && wanted.iter().zip(&told).all(|((_, wanted), (_, told))| {
            let name = find(wanted, 1);
            let counts = name.map(text).as_deref() == Some("counter");
            name == find(told, 1)
                && (counts
                    || covers(
                        find(wanted, 2).unwrap_or_default(),
                        find(told, 2).unwrap_or_default(),
                    ))
        })
}

/// Whether everything of `wanted` is in `told`, with the same value.
pub(crate) fn covers(wanted: &[u8], told: &[u8]) -> bool {
    const NESTED: u16 = 0x8000;
    raw(wanted).all(|(kind, value)| {
        let other = find(told, kind & 0x3fff);
        other.is_some_and(|o| if kind & NESTED == 0 { o == value } else { covers(value, o) })
    })
}

/// As [`super::attribute::walk`], with the flags in the kind.
fn raw(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d] = *rest.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]), value))
    })
}
