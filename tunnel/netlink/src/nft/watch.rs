//! Hears of changes to tables as they happen, and tells those of this process from those of others.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::attribute::{find, text};
use crate::Error;
use crate::socket::{self, messages, sender_of, type_of};

/// The kernel's group for changes to tables.
const GROUP: u32 = 7;
const SUBSYSTEM: u16 = 10;
/// Tells the number of the generation, after each batch.
const NEW_GENERATION: u16 = 0x0a0f;
/// So many datagrams are read at once; who changes more than that has changed something of ours, too.
const MOST: usize = 4096;

/// Socket numbers of this process's batches: below those that the kernel draws, and above process ids,
/// which it gives first.
fn own_numbers() -> u32 {
    static BASE: OnceLock<u32> = OnceLock::new();
    *BASE.get_or_init(|| {
        let random = RandomState::new().hash_one(std::process::id());
        0x4000_0000 | (u32::try_from(random >> 42).unwrap_or_default() << 8)
    })
}

/// A socket for a batch, with a number by which [`Watch`] knows it as ours.
pub(super) fn socket_of_ours() -> Result<Socket, Error> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..=0xff_u32 {
        let number = own_numbers() | (NEXT.fetch_add(1, Ordering::Relaxed) & 0xff);
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(Error::Socket)?;
        match socket.bind(&SocketAddr::new(number, 0)) {
            Ok(()) => return socket::joined(socket),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
            Err(e) => return Err(Error::Socket(e)),
        }
    }
    // Taken for a stranger's, which costs a look.
    socket::open(NETLINK_NETFILTER)
}

/// Hears of the changes in one namespace.
#[derive(Debug)]
pub struct Watch(Socket);

impl Watch {
    /// In the calling thread's namespace, which lives as long as this.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn here() -> Result<Self, Error> {
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(Error::Socket)?;
        socket.bind_auto().map_err(Error::Socket)?;
        socket.add_membership(GROUP).map_err(Error::Socket)?;
        socket.set_non_blocking(true).map_err(Error::Socket)?;
        Ok(Self(socket))
    }

    /// Takes all that waits: whether another process has changed something in a table of that name.
    /// What was lost because it was too much counts as such.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn changed(&self, table: &str) -> Result<bool, Error> {
        let mut changed = false;
        for _ in 0..MOST {
            match self.0.recv_from_full() {
                Ok((bytes, _)) => changed |= messages(&bytes).any(|m| is_foreign(m, table)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(changed),
                Err(e) if e.raw_os_error() == Some(nix::libc::ENOBUFS) => changed = true,
                Err(e) => return Err(Error::Socket(e)),
            }
        }
        Ok(true)
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn is_foreign(message: &[u8], table: &str) -> bool {
    let kind = type_of(message);
    let body = message.get(20..).unwrap_or_default();
    kind >> 8 == SUBSYSTEM
        && kind != NEW_GENERATION
        && sender_of(message) & !0xff != own_numbers()
        // Whatever a message is about, its table is the first attribute.
        && find(body, 1).map(text).as_deref() == Some(table)
}

#[cfg(test)]
mod tests {
    use super::super::{Batch, Family, Table};
    use super::*;
    use crate::Netns;

    fn strangers_batch(batch: &[u8]) {
        let stranger = socket::open(NETLINK_NETFILTER).unwrap();
        stranger.send(batch, 0).unwrap();
        // Its acknowledgement.
        stranger.recv_from_full().unwrap();
    }

    #[test]
    fn changes_of_others_are_told_and_own_ones_are_not() {
        if !nix::unistd::geteuid().is_root() {
            println!(
                "SKIP changes_of_others_are_told_and_own_ones_are_not: needs root to make network \
                 namespaces"
            );
            return;
        }
        let table = |name| Table { family: Family::Inet, name };
        let (ours, others) = (table("ours"), table("others"));
        let look = || -> Result<(), Error> {
            let watch = Watch::here()?;
            Batch::new().table(ours).send("make ours")?;
            Batch::new().delete_table(ours).table(ours).send("make it again")?;
            assert!(!watch.changed("ours")?, "our own change");
            strangers_batch(&Batch::new().table(others).finished());
            assert!(!watch.changed("ours")?, "another table");
            strangers_batch(&Batch::new().delete_table(ours).finished());
            assert!(watch.changed("ours")?, "somebody has deleted it");
            assert!(!watch.changed("ours")?, "told once");
            Ok(())
        };
        Netns::create().unwrap().run(look).unwrap();
    }
}
