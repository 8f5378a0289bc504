//! Raw frames: sending them, and counting those that arrive by the mark at their end.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::libc;
use peerpod_netlink::{Error, Netns};

/// A packet socket on one link of a namespace.
#[derive(Debug)]
pub(crate) struct Wire(OwnedFd);

impl Wire {
    pub(crate) fn open(ns: &Netns, link: &str) -> Self {
        let index = ns.handle().unwrap().link(link).unwrap().index;
        let open = || -> Result<OwnedFd, Error> {
            let protocol = i32::from(0x0003u16.to_be());
            // SAFETY: a call without pointers; the result is looked at.
            let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, protocol) };
            assert!(fd >= 0, "a packet socket needs root");
            // SAFETY: the descriptor was just made and is nobody else's.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        };
        let fd = ns.run(open).unwrap();
        // SAFETY: all zero is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = 0x0003u16.to_be();
        address.sll_ifindex = i32::try_from(index).unwrap();
        let length = std::mem::size_of_val(&address) as u32;
        // SAFETY: pointer and length are those of a live value.
        let bound =
            unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&address).cast(), length) };
        assert_eq!(bound, 0, "bind to {link}");
        let on = 1i32;
        // What we send is not what arrives: PACKET_IGNORE_OUTGOING.
        // SAFETY: pointer and length are those of a live value.
        let set =
            unsafe { libc::setsockopt(fd.as_raw_fd(), 263, 23, std::ptr::from_ref(&on).cast(), 4) };
        assert_eq!(set, 0, "leave out what is sent on {link}");
        Self(fd)
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        nix::unistd::write(&self.0, frame).unwrap();
    }

    fn read(&self, buffer: &mut [u8]) -> Option<usize> {
        let mut poll = [nix::poll::PollFd::new(
            std::os::fd::AsFd::as_fd(&self.0),
            nix::poll::PollFlags::POLLIN,
        )];
        let ready = nix::poll::poll(&mut poll, 20u16).ok()?;
        if ready == 0 {
            return None;
        }
        nix::unistd::read(&self.0, buffer).ok()
    }
}

/// Time to live of marked IPv4 packets, whose identification is the row.
const TTL: u8 = 213;
/// Upper bits of the flow label of marked IPv6 packets; the rest is the row.
const FLOW: u8 = 0x5f;
/// Before the row at the end of frames that are not IP. (Of IP, the kernel cuts off what is behind.)
const MARK: &[u8; 6] = b"\xffspoof";

/// Where the network header begins, and its type.
fn network(frame: &[u8]) -> Option<(usize, u16)> {
    let mut at = 12;
    loop {
        let kind = u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]);
        match kind {
            0x8100 | 0x88a8 => at += 4,
            other => return Some((at + 2, other)),
        }
    }
}

/// Writes the row, below 4096, into a frame.
pub(crate) fn label(frame: Vec<u8>, row: u16) -> Vec<u8> {
    write(frame, row, TTL)
}

/// Makes an IPv4 frame part of the packet that is marked with the row, and not counted.
pub(crate) fn beside(frame: Vec<u8>, row: u16) -> Vec<u8> {
    write(frame, row, TTL - 1)
}

fn write(mut frame: Vec<u8>, row: u16, ttl: u8) -> Vec<u8> {
    let [high, low] = row.to_be_bytes();
    match network(&frame) {
        Some((at, 0x0800)) => {
            frame[at + 4..at + 6].copy_from_slice(&[high, low]);
            frame[at + 8] = ttl;
            frame[at + 10..at + 12].copy_from_slice(&[0, 0]);
            let end = at + usize::from(frame[at] & 15) * 4;
            let sum = super::frames::sum(&[&frame[at..end]]);
            frame[at + 10..at + 12].copy_from_slice(&sum);
        }
        Some((at, 0x86dd)) => {
            frame[at + 1..at + 4].copy_from_slice(&[FLOW >> 4, FLOW << 4 | high, low]);
        }
        _ => frame.extend([&MARK[..], &[high, low]].concat()),
    }
    frame
}

fn row_of(frame: &[u8]) -> Option<u16> {
    match network(frame)? {
        (at, 0x0800) if *frame.get(at + 8)? == TTL => {
            Some(u16::from_be_bytes([frame[at + 4], frame[at + 5]]))
        }
        (at, 0x86dd) => {
            let [a, b, c] = *frame.get(at + 1..at + 4)?.first_chunk()?;
            let ours = a & 15 == FLOW >> 4 && b >> 4 == FLOW & 15;
            ours.then(|| u16::from_be_bytes([b & 15, c]))
        }
        _ => {
            let at = frame.windows(MARK.len()).rposition(|w| w == MARK)?;
            let row = frame.get(at + MARK.len()..at + MARK.len() + 2)?;
            Some(u16::from_be_bytes([row[0], row[1]]))
        }
    }
}

type Counts = Arc<Mutex<BTreeMap<u16, usize>>>;

/// Counts marked frames that arrive at links.
#[derive(Debug)]
pub(crate) struct Sniffer {
    counts: Counts,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Sniffer {
    pub(crate) fn new(links: &[(&Netns, &str)]) -> Self {
        let (counts, over) = (Counts::default(), Arc::new(AtomicBool::new(false)));
        let threads = links.iter().map(|(ns, link)| {
            let wire = Wire::open(ns, link);
            let (counts, over) = (Arc::clone(&counts), Arc::clone(&over));
            std::thread::spawn(move || {
                let mut buffer = vec![0; 4000];
                while !over.load(Ordering::Relaxed) {
                    let Some(n) = wire.read(&mut buffer) else { continue };
                    if let Some(row) = row_of(&buffer[..n]) {
                        *counts.lock().unwrap().entry(row).or_default() += 1;
                    }
                }
            })
        });
        let threads = threads.collect();
        Self { counts, over, threads }
    }

    pub(crate) fn count(&self, row: u16) -> usize {
        self.counts.lock().unwrap().get(&row).copied().unwrap_or_default()
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
