//! Messages with descriptors over a unix stream.
//!
//! ```text
//!   ┌ length u32 ┬ descriptors u8 ┐ Envelope …      big-endian
//! ```
//! The descriptors come with the first byte of their message (SCM_RIGHTS); the kernel ends a read
//! there, so none can come late or with another message.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use prost::Message;
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::message::{Air, Envelope, Say};

const HEADER: usize = 5;
/// A hypervisor connection's queue, two half frames and what they are wrapped in.
pub(super) const LARGEST: usize = 32 << 20;
/// Descriptors of one message.
const DESCRIPTORS: usize = 4;
const READ: usize = 16 << 10;

/// Why the other relay cannot be understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("a message of {0} bytes is announced, the limit is {1}")]
    TooLong(usize, usize),
    #[error("a message without its descriptors, or with too many")]
    Descriptors,
    #[error("a message that does not parse: {0}")]
    Parse(#[from] prost::DecodeError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// One side of the connection between two relays.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(super) stream: UnixStream,
    pub(super) inbox: Inbox,
    /// Still to be written.
    pub(super) out: BytesMut,
}

/// What has come and is not read yet.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    buffer: BytesMut,
    descriptors: VecDeque<OwnedFd>,
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, inbox: Inbox::default(), out: BytesMut::new() }
    }

    /// Goes on where another process has stopped. No descriptors can be under way.
    pub(super) fn resume(stream: UnixStream, air: &Air) -> Self {
        let inbox = Inbox { buffer: BytesMut::from(&air.read[..]), descriptors: VecDeque::new() };
        Self { stream, inbox, out: BytesMut::from(&air.unwritten[..]) }
    }

    /// What [`Wire::resume`] needs.
    pub(super) fn air(&self) -> Air {
        let copy = Bytes::copy_from_slice;
        Air { read: copy(&self.inbox.buffer), unwritten: copy(&self.out) }
    }

    /// Sends one message. After an error the connection is of no more use.
    pub(super) async fn send(&mut self, say: Say, with: &[BorrowedFd<'_>]) -> io::Result<()> {
        put(&mut self.out, say, with.len());
        let raw: Vec<RawFd> = with.iter().map(AsRawFd::as_raw_fd).collect();
        if !raw.is_empty() {
            let (stream, out) = (&self.stream, &self.out);
            let send = || -> io::Result<usize> {
                let rights = [ControlMessage::ScmRights(&raw)];
                let parts = [IoSlice::new(out)];
                let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
                Ok(sendmsg::<()>(stream.as_raw_fd(), &parts, &rights, flags, None)?)
            };
            let sent = stream.async_io(Interest::WRITABLE, send).await?;
            self.out.advance(sent);
        }
        flush(&self.stream, &mut self.out).await
    }

    /// The next message; `None` when the other side has closed. Cancel-safe.
    pub(super) async fn recv(&mut self, limit: usize) -> Result<Option<Got>, WireError> {
        self.inbox.recv(&self.stream, limit).await
    }
}

/// A message and its descriptors.
pub(super) type Got = (Option<Say>, Vec<OwnedFd>);

/// Appends a message to what is to be written.
pub(super) fn put(out: &mut BytesMut, say: Say, descriptors: usize) {
    let envelope = Envelope { say: Some(say) };
    out.put_u32(u32::try_from(envelope.encoded_len()).unwrap_or(u32::MAX));
    out.put_u8(u8::try_from(descriptors).unwrap_or(u8::MAX));
    // A BytesMut grows as needed.
    let _ = envelope.encode(out);
}

/// Writes all there is. Cancel-safe: what is written leaves `out`.
pub(crate) async fn flush(stream: &UnixStream, out: &mut BytesMut) -> io::Result<()> {
    while !out.is_empty() {
        stream.writable().await?;
        match stream.try_write(out) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => out.advance(written),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    // Connections are idle most of the time.
    *out = BytesMut::new();
    Ok(())
}

impl Inbox {
    /// The next message; `None` when the other side has closed. Cancel-safe.
    pub(super) async fn recv(
        &mut self,
        stream: &UnixStream,
        limit: usize,
    ) -> Result<Option<Got>, WireError> {
        loop {
            if let Some(got) = self.take(limit)? {
                return Ok(Some(got));
            }
            let Self { buffer, descriptors } = self;
            let read = || receive(stream, buffer, descriptors);
            if stream.async_io(Interest::READABLE, read).await? == 0 {
                return Ok(None);
            }
            // Those of the message that is not whole yet, and of the next one.
            if self.descriptors.len() > 2 * DESCRIPTORS {
                return Err(WireError::Descriptors);
            }
        }
    }

    /// What is there already, without waiting.
    pub(super) fn rest(&mut self, stream: &UnixStream) -> Option<Got> {
        while matches!(receive(stream, &mut self.buffer, &mut self.descriptors), Ok(1..)) {}
        self.take(LARGEST).ok().flatten()
    }

    fn take(&mut self, limit: usize) -> Result<Option<Got>, WireError> {
        let Some(&[l0, l1, l2, l3, count]) = self.buffer.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        if length > limit {
            return Err(WireError::TooLong(length, limit));
        }
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        let count = usize::from(count);
        if self.descriptors.len() < count {
            return Err(WireError::Descriptors);
        }
        let mut whole = self.buffer.split_to(HEADER + length);
        let say = Envelope::decode(whole.split_off(HEADER).freeze())?.say;
        Ok(Some((say, self.descriptors.drain(..count).collect())))
    }
}

fn receive(
    stream: &UnixStream,
    buffer: &mut BytesMut,
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [0; READ];
    let mut parts = [IoSliceMut::new(&mut space)];
    let mut control = nix::cmsg_space!([RawFd; DESCRIPTORS]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let read = {
        let got = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
        for message in got.cmsgs()? {
            let ControlMessageOwned::ScmRights(raw) = message else { continue };
            // SAFETY: the kernel has just made these descriptors for us, and nobody else knows them.
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
        got.bytes
    };
    buffer.extend_from_slice(space.get(..read).unwrap_or_default());
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::super::message::Empty;
    use super::*;

    #[tokio::test]
    async fn descriptors_come_with_their_message_for_this_process_alone_and_only_so_many_wait() {
        let (here, there) = UnixStream::pair().expect("pair");
        let (mut from, mut to) = (Wire::new(here), Wire::new(there));
        let file = std::fs::File::open("/dev/null").expect("open");
        from.send(Say::Done(Empty {}), &[file.as_fd(); DESCRIPTORS]).await.expect("sent");
        let got = to.recv(LARGEST).await.expect("received").expect("a message").1;
        let flags = got.iter().map(|fd| fcntl(fd, FcntlArg::F_GETFD).map(FdFlag::from_bits_retain));
        assert_eq!(flags.collect::<Vec<_>>(), [Ok(FdFlag::FD_CLOEXEC); DESCRIPTORS]);

        // A message without an end, and descriptors with each piece of it.
        for piece in [&b"\0\x10\0\0\0"[..], b"x", b"x"] {
            let rights = [ControlMessage::ScmRights(&[file.as_raw_fd(); DESCRIPTORS])];
            let parts = [IoSlice::new(piece)];
            let flags = MsgFlags::MSG_NOSIGNAL;
            let sent = sendmsg::<()>(from.stream.as_raw_fd(), &parts, &rights, flags, None);
            assert_eq!(sent, Ok(piece.len()));
        }
        drop(from);
        let refused = to.recv(LARGEST).await;
        assert!(matches!(refused, Err(WireError::Descriptors)), "{refused:?}");
    }
}
