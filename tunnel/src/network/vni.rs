//! VXLAN network ids: random, never one that is in use.

use std::collections::BTreeSet;

use peerpod_netlink::{Handle, InfoKind};

use super::guard;

/// Largest id of 24 bits.
pub const MAX_VNI: u32 = (1 << 24) - 1;

/// No id could be had.
#[derive(Debug, thiserror::Error)]
pub enum VniError {
    /// The range is used up.
    #[error("no free VXLAN id from {0} to {MAX_VNI}")]
    Exhausted(u32),
    /// The kernel did not tell which are in use.
    #[error("looking for VXLAN ids in use: {0}")]
    Kernel(#[from] peerpod_netlink::Error),
}

/// Ids that the kernel has in the calling thread's namespace: of VXLAN devices there, and of
/// tunnels of ours whose devices stand in their pods' namespaces.
///
/// # Errors
/// When the kernel refuses the dump.
pub fn kernel_vnis() -> Result<BTreeSet<u32>, VniError> {
    let links = Handle::here()?.links_of(InfoKind::Vxlan)?;
    let mut found: BTreeSet<u32> =
        links.iter().filter_map(|l| l.vxlan.as_ref()).map(|v| v.vni).collect();
    found.extend(guard::marked()?.into_iter().map(|(key, _)| key.vni));
    Ok(found)
}

/// An id in `min..=MAX_VNI` that is not in `taken`, by a random number: every free one is as likely as
/// any other.
///
/// # Errors
/// When all are taken.
pub fn pick_vni(min: u32, taken: &BTreeSet<u32>, random: u32) -> Result<u32, VniError> {
    let min = min.clamp(1, MAX_VNI);
    let used: Vec<u32> = taken.range(min..=MAX_VNI).copied().collect();
    let free = (MAX_VNI - min + 1) - u32::try_from(used.len()).unwrap_or(u32::MAX).min(MAX_VNI);
    if free == 0 {
        return Err(VniError::Exhausted(min));
    }
    // The n-th free one: one further for each used one that is not above it.
    let mut vni = min + random % free;
    for taken in used {
        vni += u32::from(taken <= vni);
    }
    Ok(vni)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_what_is_taken_and_says_when_nothing_is_free() {
        let taken = BTreeSet::from([MAX_VNI, MAX_VNI - 2]);
        assert_eq!(pick_vni(MAX_VNI - 2, &taken, 2).expect("free"), MAX_VNI - 1);
        let all = BTreeSet::from([MAX_VNI, MAX_VNI - 1]);
        assert!(matches!(pick_vni(MAX_VNI - 1, &all, 7), Err(VniError::Exhausted(_))));
    }

    #[test]
    fn never_below_the_least_nor_above_24_bits() {
        for start in [0, 1, 77, u32::MAX] {
            let vni = pick_vni(555_000, &BTreeSet::new(), start).expect("free");
            assert!((555_000..=MAX_VNI).contains(&vni));
        }
    }

    #[test]
    fn every_free_one_is_as_likely_as_any_other() {
        let min = MAX_VNI - 9;
        let taken = BTreeSet::from([3, min, min + 1, min + 5]);
        let mut drawn = std::collections::BTreeMap::new();
        for random in 0..70 {
            *drawn.entry(pick_vni(min, &taken, random).expect("free")).or_insert(0) += 1;
        }
        assert_eq!(drawn.len(), 7, "{drawn:?}");
        assert!(drawn.iter().all(|(vni, n)| *n == 10 && !taken.contains(vni)), "{drawn:?}");
    }
}
