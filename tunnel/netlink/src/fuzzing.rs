//! The readers of the kernel's answers, for bytes that no kernel has sent. Only tests/fuzz uses it.

use crate::nft::expression::{Base, Compare, Meta, Rule, Verdict};
use crate::nft::{Chain, Hook, attribute, dump, whole};
use crate::{address, link, neighbour, route, socket};

/// Reads a datagram as the answer to a request of rtnetlink, with all that is read out of one.
/// Gives how many objects were found in it.
pub fn route_answer(bytes: &[u8]) -> usize {
    let mut found = Vec::new();
    // A refusal is as good as an answer here.
    let _ = socket::take("fuzz", 1, bytes, &mut found);
    let known = |index: u32| (index % 2 == 1).then(|| format!("eth{index}"));
    let links = found.iter().cloned().filter_map(link::read).count();
    let routes = found.iter().cloned().filter_map(|m| route::read(m, &known)).count();
    let addresses = found.iter().cloned().filter_map(address::read).count();
    links + routes + addresses + found.into_iter().filter_map(neighbour::read).count()
}

/// Reads a datagram as the answer to a dump of nftables: tables, chains, rules with counters,
/// elements; and holds what it tells against a rule and a chain.
pub fn nft_answer(bytes: &[u8]) -> usize {
    let mut found = Vec::new();
    // As above.
    let _ = dump::take("fuzz", bytes, &mut found);
    let lists = found.iter().filter_map(|m| attribute::find(m, 3));
    let elements = lists.flat_map(attribute::walk).filter_map(|(_, e)| dump::element_of(e)).count();
    let names = found.iter().filter_map(|m| attribute::find(m, 1)).map(attribute::text).count();
    let counted = found.iter().map(|m| dump::counter_of(m)).filter(|c| c.packets > 0).count();
    let (rule, place) = (rule(), chain().place());
    let rules = found.iter().filter(|m| whole::same(&rule, m)).count();
    let chains = found.iter().filter(|m| whole::covers(&place.0, m)).count();
    elements + names + counted + rules + chains
}

fn rule() -> Rule {
    Rule::new()
        .meta(0, Meta::L4Protocol)
        .compare(0, Compare::Equal, &[17])
        .payload(1, Base::Network, 12, 4)
        .mask(1, &[255, 255, 0, 0])
        .lookup(0, "known", true)
        .counter()
        .verdict(Verdict::Drop)
}

fn chain() -> Chain<'static> {
    Chain { name: "in", hook: Some((Hook::Ingress("eth0"), -5)), drop_by_default: true }
}
