//! A netlink socket: requests that are acknowledged and dumps that are read to their end.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};

use crate::Error;

/// rtnetlink of one namespace.
#[derive(Debug)]
pub struct Handle {
    socket: Socket,
    sequence: std::cell::Cell<u32>,
}

impl Handle {
    /// On the namespace of the calling thread.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn here() -> Result<Self, Error> {
        Ok(Self { socket: open(NETLINK_ROUTE)?, sequence: std::cell::Cell::new(0) })
    }

    /// Sends one request and waits until the kernel has said yes or no.
    pub(crate) fn request(
        &self,
        operation: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), Error> {
        let sequence = self.send(operation, message, flags | NLM_F_ACK)?;
        self.receive(operation, sequence).map(drop)
    }

    /// Asks for one object; the answer may be followed by an acknowledgement.
    pub(crate) fn get(
        &self,
        operation: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let sequence = self.send(operation, message, NLM_F_ACK)?;
        self.receive(operation, sequence)
    }

    /// Asks for all objects of a kind.
    pub(crate) fn dump(
        &self,
        operation: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let sequence = self.send(operation, message, NLM_F_DUMP)?;
        self.receive(operation, sequence)
    }

    fn send(
        &self,
        operation: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<u32, Error> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.header.length as usize];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(|source| kernel(operation, source, None))?;
        Ok(sequence)
    }

    fn receive(&self, operation: &str, sequence: u32) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let mut found = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full().map_err(Error::Socket)?;
            if take(operation, sequence, &bytes, &mut found)? {
                return Ok(found);
            }
        }
    }
}

/// Takes what one datagram says of a request; true when that was all.
pub(crate) fn take(
    operation: &str,
    sequence: u32,
    bytes: &[u8],
    found: &mut Vec<RouteNetlinkMessage>,
) -> Result<bool, Error> {
    for raw in messages(bytes).filter(|raw| sequence_of(raw) == sequence) {
        if let Some(code) = error_code(raw) {
            return match code {
                0 => Ok(true),
                code => {
                    let source = io::Error::from_raw_os_error(code.saturating_neg());
                    Err(kernel(operation, source, extended_ack(raw)))
                }
            };
        }
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(raw);
        let message = message.map_err(|e| Error::Answer {
            operation: operation.to_owned(),
            reason: e.to_string(),
        })?;
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => found.push(inner),
            NetlinkPayload::Done(_) => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}

pub(crate) fn open(protocol: isize) -> Result<Socket, Error> {
    let mut socket = Socket::new(protocol).map_err(Error::Socket)?;
    socket.bind_auto().map_err(Error::Socket)?;
    joined(socket)
}

/// Lets so many bytes be sent in one piece, beyond what the system lets an unprivileged program have.
pub(crate) fn room_to_send(socket: &Socket, bytes: usize) -> io::Result<()> {
    // As the kernel counts, which adds the administration of each piece of memory.
    let wanted = bytes.saturating_mul(2).saturating_add(4096);
    // SAFETY: the descriptor is the socket's, which lives until the call is over.
    let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    if getsockopt(&fd, sockopt::SndBuf)? < wanted {
        setsockopt(&fd, sockopt::SndBufForce, &wanted)?;
    }
    Ok(())
}

/// Speaks with the kernel alone from now on.
pub(crate) fn joined(socket: Socket) -> Result<Socket, Error> {
    socket.connect(&SocketAddr::new(0, 0)).map_err(Error::Socket)?;
    // Both only make answers shorter and clearer; an old kernel that lacks them still answers.
    let _ = socket.set_ext_ack(true);
    let _ = socket.set_cap_ack(true);
    Ok(socket)
}

pub(crate) fn kernel(operation: &str, source: io::Error, message: Option<String>) -> Error {
    Error::Kernel { operation: operation.to_owned(), source, message }
}

const HEADER: usize = 16;
const TYPE_ERROR: u16 = 2;

/// Splits a datagram into its messages.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        if length < HEADER || length > bytes.len() {
            return None;
        }
        let (message, _) = bytes.split_at(length);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

pub(crate) fn type_of(message: &[u8]) -> u16 {
    message.get(4..6).and_then(|b| b.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

pub(crate) fn sequence_of(message: &[u8]) -> u32 {
    message.get(8..12).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// Number of the socket that asked for what is told.
pub(crate) fn sender_of(message: &[u8]) -> u32 {
    message.get(12..16).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// The code of an error or acknowledgement message: 0 or a negative error number.
pub(crate) fn error_code(message: &[u8]) -> Option<i32> {
    if type_of(message) != TYPE_ERROR {
        return None;
    }
    message.get(HEADER..HEADER + 4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes)
}

/// The text (attribute 1) behind an error message whose request was not echoed (cap_ack).
pub(crate) fn extended_ack(message: &[u8]) -> Option<String> {
    let mut rest = message.get(HEADER + 4 + HEADER..)?;
    while let Some((length, kind)) =
        rest.first_chunk::<4>().map(|[a, b, c, d]| (u16::from_ne_bytes([*a, *b]), [*c, *d]))
    {
        let length = usize::from(length);
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes(kind) & 0x3fff == 1 {
            let text = String::from_utf8_lossy(value);
            return Some(text.trim_end_matches('\0').chars().take(200).collect());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}
