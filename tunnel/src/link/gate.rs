//! Lets frames go by and stops those of certain methods. Nothing is copied or allocated: the caller
//! keeps the bytes and is told how many of them may pass.
//!
//! ```text
//!   bytes ─▶ step ┬ Pass(n)   n bytes of one or more frames, or of a part of one
//!                 ├ Hold(h)   a frame of a wanted method stands whole at the front
//!                 └ More      nothing can be said without more bytes
//! ```
//!
//! A long frame passes in parts as soon as its method is known. Protobuf lets a later field override
//! an earlier one, so what stands behind a long payload is looked at before it passes.

use std::ops::Range;

use super::frame::{FrameError, HEADER, Header, Kind};
use super::wire::{LENGTH_DELIMITED, number, varint, walk};

/// Longest part behind a payload that is waited for (deadline and metadata); a request with a longer
/// one is looked at as a whole.
const TAIL: usize = 64 << 10;

const SERVICE: u32 = 1;
const METHOD: u32 = 2;
const PAYLOAD: u32 = 3;

/// What may be done with the bytes at the front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes pass as they are.
    Pass(usize),
    /// A whole frame to be looked at: [`HEADER`] and `length` bytes. Its request may be broken.
    Hold(Header),
    /// More bytes are needed.
    More,
}

/// One direction of one connection. `W` says whether a service's method is wanted.
#[derive(Debug)]
pub struct Gate<W> {
    wanted: W,
    /// Bytes of the current frame that pass unseen.
    rest: usize,
    /// Bytes after these that are looked at once they are all there.
    tail: usize,
    seen: Seen,
}

/// What is known of the request at the front, of which not enough has come: no field is looked at
/// twice, in however many pieces they come.
#[derive(Debug, Default)]
struct Seen {
    /// Where the first field begins that is not read.
    at: usize,
    service: Option<Range<usize>>,
    method: Option<Range<usize>>,
}

impl<W: Fn(&[u8], &[u8]) -> bool> Gate<W> {
    /// Stops the frames for which `wanted(service, method)` holds, and requests that do not parse.
    pub fn new(wanted: W) -> Self {
        Self { wanted, rest: 0, tail: 0, seen: Seen::default() }
    }

    /// Whether the peer has begun a frame that is not whole, with `front` still in the buffer.
    pub fn mid_frame(&self, front: &[u8]) -> bool {
        self.rest + self.tail > 0 || !front.is_empty()
    }

    /// Looks at the bytes at the front. Those that pass must be taken away before the next step, and
    /// so must a held frame.
    ///
    /// # Errors
    /// When the peer breaks the protocol; nothing after that can be read.
    pub fn step(&mut self, front: &[u8]) -> Result<Step, FrameError> {
        let mut at = 0;
        loop {
            let here = front.get(at..).unwrap_or_default();
            let seen = match self.frame(here) {
                // What came before a break still passes; the next step meets the break again.
                Err(_) if at > 0 => return Ok(Step::Pass(at)),
                other => other?,
            };
            match seen {
                Step::Pass(more) => at += more,
                Step::Hold(header) if at == 0 => return Ok(Step::Hold(header)),
                Step::More if at == 0 => return Ok(Step::More),
                Step::Hold(_) | Step::More => return Ok(Step::Pass(at)),
            }
        }
    }

    /// The current frame's next part, or the beginning of a new frame.
    fn frame(&mut self, here: &[u8]) -> Result<Step, FrameError> {
        if here.is_empty() {
            return Ok(Step::More);
        }
        if self.rest > 0 {
            let passing = self.rest.min(here.len());
            self.rest -= passing;
            return Ok(Step::Pass(passing));
        }
        if self.tail > 0 {
            let Some(tail) = here.get(..self.tail) else { return Ok(Step::More) };
            check_tail(tail)?;
            return Ok(Step::Pass(std::mem::take(&mut self.tail)));
        }
        let Some((head, payload)) = here.split_first_chunk::<HEADER>() else {
            return Ok(Step::More);
        };
        let header = Header::parse(head)?;
        let whole = payload.len() >= header.length;
        let payload = payload.get(..header.length).unwrap_or(payload);
        match self.look(&header, payload) {
            Look::Passes { now } => {
                self.seen = Seen::default();
                self.rest = HEADER + now;
                self.tail = header.length - now;
                self.frame(here)
            }
            Look::Held if whole => {
                self.seen = Seen::default();
                Ok(Step::Hold(header))
            }
            Look::Held | Look::Unclear => Ok(Step::More),
        }
    }

    fn look(&mut self, header: &Header, payload: &[u8]) -> Look {
        if header.kind != Kind::Request {
            return Look::Passes { now: header.length };
        }
        let Self { wanted, seen, .. } = self;
        let text = |range: &Option<Range<usize>>| range.clone().and_then(|r| payload.get(r));
        while seen.at < header.length {
            let Some((number, is_text, begin, end)) = field(payload, seen.at) else {
                // Broken, or cut where the bytes end.
                return if payload.len() == header.length { Look::Held } else { Look::Unclear };
            };
            if end > header.length {
                return Look::Held;
            }
            if end > payload.len() {
                let named = text(&seen.service).zip(text(&seen.method));
                return match named.filter(|_| number == PAYLOAD) {
                    Some((s, m)) if wanted(s, m) => Look::Held,
                    Some(_) if header.length - end <= TAIL => Look::Passes { now: end },
                    _ => Look::Unclear,
                };
            }
            match number {
                // Other readers skip a name that is no text, and keep the one before it.
                SERVICE if is_text => seen.service = Some(begin..end),
                METHOD if is_text => seen.method = Some(begin..end),
                _ => {}
            }
            seen.at = end;
        }
        let named = |range| text(range).unwrap_or_default();
        match wanted(named(&seen.service), named(&seen.method)) {
            true => Look::Held,
            false => Look::Passes { now: header.length },
        }
    }
}

enum Look {
    /// So many bytes of the payload pass; the others are a tail to be checked.
    Passes { now: usize },
    /// Wanted, or broken.
    Held,
    /// Not enough bytes to know.
    Unclear,
}

/// Number of the field at `at`, whether it is text, and where its content begins and ends (perhaps
/// behind the bytes).
fn field(payload: &[u8], mut at: usize) -> Option<(u32, bool, usize, usize)> {
    let tag = varint(payload, &mut at)?;
    let number = number(tag)?;
    let begin = at;
    let end = match tag & 7 {
        0 => {
            varint(payload, &mut at)?;
            at
        }
        1 => at + 8,
        LENGTH_DELIMITED => {
            let length = usize::try_from(varint(payload, &mut at)?).ok()?;
            return Some((number, true, at, at.checked_add(length)?));
        }
        5 => at + 4,
        _ => return None,
    };
    Some((number, false, begin, end))
}

fn check_tail(tail: &[u8]) -> Result<(), FrameError> {
    for field in walk(tail) {
        match field {
            Ok(field) if field.number != SERVICE && field.number != METHOD => {}
            _ => return Err(FrameError::NamedTwice),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::{Buf, Bytes, BytesMut};
    use proptest::prelude::*;

    use super::super::frame::{Frame, Request};
    use super::*;

    fn wanted(service: &[u8], method: &[u8]) -> bool {
        service == b"svc" && method == b"Stop"
    }

    fn request(method: &str, payload: Vec<u8>, timeout_nano: i64) -> Frame {
        let request = Request {
            service: "svc".into(),
            method: method.into(),
            payload: payload.into(),
            timeout_nano,
            ..Request::default()
        };
        request.frame(1, 0)
    }

    fn wire(frames: &[Frame]) -> Vec<u8> {
        let mut out = BytesMut::new();
        frames.iter().for_each(|f| f.put(&mut out));
        out.to_vec()
    }

    /// Feeds `bytes` in chunks; gives what passed and the payloads that were held.
    fn run(bytes: &[u8], chunk: usize) -> Result<(Vec<u8>, Vec<Bytes>), FrameError> {
        let (mut gate, mut buffer) = (Gate::new(wanted), BytesMut::new());
        let (mut passed, mut held) = (Vec::new(), Vec::new());
        for part in bytes.chunks(chunk.max(1)) {
            buffer.extend_from_slice(part);
            loop {
                match gate.step(&buffer)? {
                    Step::Pass(n) => passed.extend_from_slice(&buffer.split_to(n)),
                    Step::Hold(header) => {
                        buffer.advance(HEADER);
                        held.push(buffer.split_to(header.length).freeze());
                    }
                    Step::More => break,
                }
            }
        }
        assert!(!gate.mid_frame(&buffer), "the input ends with a frame");
        Ok((passed, held))
    }

    #[test]
    fn frames_pass_byte_for_byte_and_wanted_ones_are_held_however_they_are_cut() {
        let go = request("Go", vec![7; 300], 5);
        let stop = request("Stop", vec![8; 300], 5);
        let data = Frame { kind: Kind::Data, ..go.clone() };
        let bytes = wire(&[go.clone(), stop.clone(), data.clone(), go.clone()]);
        for chunk in [1, 2, 9, 10, 11, 64, 320, 1000, 5000] {
            let (passed, held) = run(&bytes, chunk).expect("run");
            assert_eq!(passed, wire(&[go.clone(), data.clone(), go.clone()]), "chunks of {chunk}");
            assert_eq!(held, std::slice::from_ref(&stop.payload), "chunks of {chunk}");
        }
    }

    #[test]
    fn a_long_frame_passes_before_it_is_whole() {
        let bytes = wire(&[request("Go", vec![7; 1 << 20], 5)]);
        let mut gate = Gate::new(wanted);
        assert_eq!(gate.step(&bytes[..1000]).expect("step"), Step::Pass(1000));
        assert!(gate.mid_frame(&[]));
    }

    #[test]
    fn a_method_named_behind_the_payload_is_found_out() {
        let mut frame = request("Go", vec![7; 5000], 0);
        let mut payload = frame.payload.to_vec();
        super::super::wire::put(&mut payload, 2, b"Stop");
        frame.payload = payload.into();
        let bytes = wire(&[frame.clone()]);
        assert!(matches!(run(&bytes, 100), Err(FrameError::NamedTwice)));
        assert_eq!(run(&bytes, bytes.len()).expect("whole").1, [frame.payload]);
    }

    #[test]
    fn a_name_of_another_type_does_not_hide_the_method() {
        let mut frame = request("Stop", vec![], 0);
        // Field 2 once more, as a number: whoever reads text there skips it.
        frame.payload = [&frame.payload[..], b"\x10\x05"].concat().into();
        let bytes = wire(&[frame.clone()]);
        for chunk in [1, 7, 100] {
            assert_eq!(run(&bytes, chunk).expect("run").1, std::slice::from_ref(&frame.payload));
        }
    }

    #[test]
    fn no_field_is_looked_at_again_for_every_byte_that_comes() {
        let mut frame = request("Go", vec![], 0);
        // Looked at again and again these take minutes.
        let numbers = b"\x20\x01".repeat(1 << 18);
        frame.payload = [&numbers[..], &frame.payload].concat().into();
        let bytes = wire(&[frame]);
        assert_eq!(run(&bytes, 1).expect("run"), (bytes, vec![]));
    }

    #[test]
    fn what_passes_before_a_break_still_passes() {
        let mut bytes = wire(&[request("Go", vec![], 0)]);
        let good = bytes.len();
        bytes.extend_from_slice(&[0xff; 20]);
        let mut gate = Gate::new(wanted);
        assert_eq!(gate.step(&bytes).expect("step"), Step::Pass(good));
        assert!(matches!(gate.step(&bytes[good..]), Err(FrameError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(mut bytes: Vec<u8>, as_request: bool, chunk in 1usize..50) {
            if as_request {
                let length = u32::try_from(bytes.len()).unwrap_or(0).to_be_bytes();
                bytes.splice(0..0, [&length[..], &[0, 0, 0, 1, 1, 0]].concat());
            }
            let mut gate = Gate::new(wanted);
            let mut at = 0;
            for end in (0..=bytes.len()).step_by(chunk) {
                while let Ok(Step::Pass(n)) = gate.step(&bytes[at.min(end)..end]) {
                    at += n;
                    prop_assert!(at <= end);
                }
            }
        }
    }
}
