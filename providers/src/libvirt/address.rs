//! The address that a VM has got.

use std::ffi::CStr;
use std::net::IpAddr;

use virt::domain::Domain;
use virt_sys as sys;

use super::Source;
use super::client::Host;
use super::error::maybe;
use super::list::broken;
use crate::Error;

/// An interface of a domain, as lease, neighbour or agent tell it; from an agent all of it is hostile.
#[derive(Debug, PartialEq, Eq)]
struct Interface {
    hardware: Option<String>,
    addresses: Vec<String>,
}

/// Looks once. An error when the VM has gone or stopped.
pub(super) fn look(
    host: &Host<'_>,
    uuid: &str,
    name: &str,
    mac: &str,
    source: Source,
) -> Result<Option<IpAddr>, Error> {
    let refuse = |e| host.refuse(&format!("VM {name}"), &e);
    let gone = |how| broken("create", format!("VM {name} {how} before it had an address"));
    let domain = maybe(Domain::lookup_by_uuid_string(host.connection, uuid)).map_err(refuse)?;
    let domain = domain.ok_or_else(|| gone("was deleted"))?;
    if !domain.is_active().map_err(refuse)? {
        return Err(gone("stopped"));
    }
    let flag = match source {
        Source::Lease => sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
        Source::Arp => sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP,
        Source::Agent => sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT,
    };
    match interfaces(&domain, flag) {
        Ok(interfaces) => Ok(usable(&interfaces, mac)),
        // An agent that has not started yet.
        Err(_) if source == Source::Agent => Ok(None),
        Err(e) => Err(refuse(e)),
    }
}

/// The address of the interface with that hardware address.
fn usable(interfaces: &[Interface], mac: &str) -> Option<IpAddr> {
    let own = |i: &&Interface| i.hardware.as_ref().is_some_and(|h| h.eq_ignore_ascii_case(mac));
    let texts = interfaces.iter().filter(own).flat_map(|i| &i.addresses);
    let usable = |a: &IpAddr| match a {
        IpAddr::V4(v4) => {
            !v4.is_link_local() && !v4.is_loopback() && !v4.is_unspecified() && !v4.is_multicast()
        }
        IpAddr::V6(v6) => {
            !v6.is_unicast_link_local()
                && !v6.is_loopback()
                && !v6.is_unspecified()
                && !v6.is_multicast()
        }
    };
    // The lower version first, as VMs have it on every other cloud.
    texts.filter_map(|text| text.parse().ok()).filter(usable).min()
}

/// `virDomainInterfaceAddresses`, made here because the binding's own (virt 0.4.3) reads an interface
/// without a hardware address, which a guest's agent may report, through a null pointer.
fn interfaces(domain: &Domain, source: u32) -> Result<Vec<Interface>, virt::error::Error> {
    let mut array: *mut sys::virDomainInterfacePtr = std::ptr::null_mut();
    // SAFETY: the domain's pointer is good as long as the domain is borrowed; libvirt sets `array` to an
    // array of its own, or leaves it and gives -1.
    let count = unsafe { sys::virDomainInterfaceAddresses(domain.as_ptr(), &mut array, source, 0) };
    let Ok(count) = usize::try_from(count) else {
        return Err(virt::error::Error::last_error());
    };
    let mut found = Vec::new();
    for n in 0..count {
        // SAFETY: libvirt has given an array of `count` pointers, ours until freed below.
        let interface = unsafe { *array.add(n) };
        // SAFETY: it points to a whole interface, or is null.
        if let Some(interface) = unsafe { interface.as_ref() } {
            found.push(Interface {
                hardware: text(interface.hwaddr),
                addresses: addresses(interface),
            });
        }
        // SAFETY: given by libvirt, freed once and not looked at again; null is nothing to it.
        unsafe { sys::virDomainInterfaceFree(interface) };
    }
    // SAFETY: made by libvirt's malloc, freed once; null is nothing to it.
    unsafe { nix::libc::free(array.cast()) };
    Ok(found)
}

fn addresses(interface: &sys::virDomainInterface) -> Vec<String> {
    if interface.addrs.is_null() {
        return Vec::new();
    }
    let count = usize::try_from(interface.naddrs).unwrap_or(0);
    // SAFETY: libvirt has put `naddrs` addresses there, which live as long as the interface.
    let all = unsafe { std::slice::from_raw_parts(interface.addrs, count) };
    all.iter().filter_map(|address| text(address.addr)).collect()
}

/// A text of libvirt's, if there is one.
fn text(pointer: *const std::ffi::c_char) -> Option<String> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: not null, so it is a text with its end, alive as long as what it belongs to, which is
    // longer than this call.
    Some(unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(hardware: Option<&str>, addresses: &[&str]) -> Interface {
        let addresses = addresses.iter().map(|a| (*a).to_owned()).collect();
        Interface { hardware: hardware.map(str::to_owned), addresses }
    }

    #[test]
    fn of_all_an_agent_says_only_a_usable_address_of_the_vms_own_interface_is_taken() {
        let mac = "52:54:0a:0b:0c:0d";
        let told = |addresses: &[&str]| {
            usable(
                &[
                    interface(None, &["10.0.0.1"]),
                    interface(Some("52:54:00:00:00:00"), &["10.0.0.2"]),
                    interface(Some("52:54:0A:0B:0C:0D"), addresses),
                ],
                mac,
            )
        };
        let hostile =
            ["", "x", "127.0.0.1", "0.0.0.0", "169.254.1.1", "224.0.0.1", "fe80::1", "::1"];
        assert_eq!(told(&hostile), None);
        assert_eq!(told(&["fd00::7", "10.0.0.7", "fe80::1"]), "10.0.0.7".parse().ok());
        assert_eq!(told(&["fd00::7"]), "fd00::7".parse().ok());
    }
}
