//! Bytes of one direction of a stream, by their numbers.
//!
//! ```text
//!   base ────────────────────────────────────── end
//!    │  chunk │ chunk │ … │ tail (small pieces)  │
//!    └ advance: forgotten                        └ push
//! ```
//!
//! Long pieces are kept as they are; short ones are copied together, so that what a piece holds on to
//! is never much more than what it says.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// From here on a piece is kept instead of copied. It may be a part of a buffer of
/// [`super::READ`] bytes, which then lives as long.
const KEEP: usize = 16 << 10;
/// How large the buffer of copies grows before another one is begun.
const TAIL: usize = 64 << 10;

/// See the head of this file.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    base: u64,
    length: usize,
    chunks: VecDeque<Bytes>,
    tail: BytesMut,
}

impl Queue {
    /// Empty, with `base` bytes gone by already.
    pub(super) fn at(base: u64) -> Self {
        Self { base, ..Self::default() }
    }

    pub(super) fn base(&self) -> u64 {
        self.base
    }

    pub(super) fn end(&self) -> u64 {
        self.base + self.length as u64
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(super) fn push(&mut self, piece: Bytes) {
        self.length += piece.len();
        if piece.len() >= KEEP {
            self.close_tail();
            self.chunks.push_back(piece);
        } else {
            self.copy(&piece);
        }
    }

    pub(super) fn push_slice(&mut self, piece: &[u8]) {
        self.length += piece.len();
        self.copy(piece);
    }

    fn copy(&mut self, piece: &[u8]) {
        if self.tail.len() + piece.len() > TAIL {
            self.close_tail();
        }
        self.tail.extend_from_slice(piece);
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    /// At most `most` bytes that stand together, from offset `from` on; empty at the end.
    pub(super) fn piece(&mut self, from: u64, most: usize) -> Bytes {
        self.close_tail();
        let Some(mut behind) = self.end().checked_sub(from).and_then(|n| usize::try_from(n).ok())
        else {
            return Bytes::new();
        };
        // From the back, for what is asked for was mostly pushed last.
        for chunk in self.chunks.iter().rev() {
            if behind <= chunk.len() {
                let at = chunk.len() - behind;
                return chunk.slice(at..chunk.len().min(at.saturating_add(most)));
            }
            behind -= chunk.len();
        }
        Bytes::new()
    }

    /// The bytes at the front that stand together.
    pub(super) fn front(&self) -> &[u8] {
        self.chunks.front().map_or(&self.tail[..], |chunk| &chunk[..])
    }

    /// Forgets `count` bytes at the front.
    pub(super) fn advance(&mut self, count: usize) {
        let mut count = count.min(self.length);
        self.base += count as u64;
        self.length -= count;
        while count > 0 {
            match self.chunks.front_mut() {
                Some(chunk) if chunk.len() > count => {
                    bytes::Buf::advance(chunk, count);
                    count = 0;
                }
                Some(chunk) => {
                    count -= chunk.len();
                    self.chunks.pop_front();
                }
                None => {
                    bytes::Buf::advance(&mut self.tail, count);
                    count = 0;
                }
            }
        }
        if self.length == 0 {
            // An idle stream costs no buffer.
            self.chunks = VecDeque::new();
            self.tail = BytesMut::new();
        }
    }

    #[cfg(test)]
    pub(super) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// All bytes, in pieces.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let tail = Some(&self.tail[..]).filter(|tail| !tail.is_empty());
        self.chunks.iter().map(|chunk| &chunk[..]).chain(tail)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(
            steps in proptest::collection::vec((0usize..40_000, 0usize..50_000, any::<bool>()), 1..40),
        ) {
            let (mut queue, mut model, mut next) = (Queue::at(7), VecDeque::new(), 0u8);
            for (put, take, as_slice) in steps {
                let piece: Vec<u8> =
                    std::iter::repeat_with(|| { next = next.wrapping_add(1); next }).take(put).collect();
                model.extend(&piece);
                if as_slice { queue.push_slice(&piece) } else { queue.push(piece.into()) }
                prop_assert_eq!(queue.len(), model.len());
                let middle = queue.base() + (queue.len() / 2) as u64;
                let seen = queue.piece(middle, 5000);
                prop_assert!(seen.iter().eq(model.iter().skip(queue.len() / 2).take(seen.len())));
                prop_assert!(!seen.is_empty() || model.is_empty());
                let take = take.min(queue.len());
                model.drain(..take);
                queue.advance(take);
                prop_assert!(queue.pieces().flatten().eq(model.iter()));
                prop_assert!(queue.front().iter().eq(model.iter().take(queue.front().len())));
            }
        }
    }
}
