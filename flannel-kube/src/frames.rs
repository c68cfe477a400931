//! Takes the stream of a watch apart: one event on each line of JSON, or behind its length in protobuf.

use std::io::BufRead;

/// What has come and is not a whole frame yet.
#[derive(Debug)]
pub(crate) struct Frames {
    buffer: Vec<u8>,
    /// Where the next frame begins.
    start: usize,
    /// Up to where there is no end of a line.
    searched: usize,
    limit: usize,
    kind: FrameKind,
}

/// What frames are written in, which says how they end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FrameKind {
    /// Each is a line.
    Json,
    /// Before each is a number of four bytes, which says how many bytes it has.
    Protobuf,
}

/// A frame is longer than the limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FrameTooLong;

impl Frames {
    /// Frames of `limit` bytes at most.
    pub(crate) fn new(kind: FrameKind, limit: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, searched: 0, limit, kind }
    }

    /// Takes the next bytes. Frames that were not taken out are kept.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), FrameTooLong> {
        self.buffer.drain(..self.start);
        self.searched = self.searched.saturating_sub(self.start);
        self.start = 0;
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT {
            // One large object should not stay for ever.
            self.buffer.shrink_to(KEPT);
        }
        self.buffer.extend_from_slice(bytes);
        let longest = match self.kind {
            FrameKind::Json => {
                let unfinished = self.buffer.iter().rev().position(|byte| *byte == b'\n');
                unfinished.unwrap_or(self.buffer.len())
            }
            FrameKind::Protobuf => self.length().unwrap_or(0),
        };
        match longest > self.limit {
            true => Err(FrameTooLong),
            false => Ok(()),
        }
    }

    /// The next whole frame, without its end or its length.
    pub(crate) fn next(&mut self) -> Option<&[u8]> {
        match self.kind {
            FrameKind::Json => self.line(),
            FrameKind::Protobuf => {
                let from = self.start + LENGTH;
                let frame = from..from + self.length()?;
                if frame.end > self.buffer.len() {
                    return None;
                }
                self.start = frame.end;
                Some(&self.buffer[frame])
            }
        }
    }

    /// What is said to be the length of the next frame.
    fn length(&self) -> Option<usize> {
        let length = self.buffer.get(self.start..)?.first_chunk()?;
        usize::try_from(u32::from_be_bytes(*length)).ok()
    }

    fn line(&mut self) -> Option<&[u8]> {
        loop {
            // Which looks at many bytes at once.
            let passed = (&self.buffer[self.searched..]).skip_until(b'\n').unwrap_or_default();
            self.searched += passed;
            let is_end = |end: &usize| passed > 0 && self.buffer[*end] == b'\n';
            let end = self.searched.checked_sub(1).filter(is_end)?;
            let start = std::mem::replace(&mut self.start, end + 1);
            if self.buffer[start..end].iter().any(|byte| !byte.is_ascii_whitespace()) {
                return Some(&self.buffer[start..end]);
            }
        }
    }
}

/// The bytes of a length.
const LENGTH: usize = 4;
/// What is kept for the next frame: a node has 13 kB.
const KEPT: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lines_come_out_whole_in_any_chunks(
            lines in prop::collection::vec("[a-c]{1,20}", 0..8),
            rest in "[a-c]{0,5}",
            size in 1..30_usize,
        ) {
            let text = lines.iter().map(|line| format!("{line}\n\r\n")).collect::<String>() + &rest;
            let (mut frames, mut found) = (Frames::new(FrameKind::Json, 20), Vec::new());
            for chunk in text.as_bytes().chunks(size) {
                frames.push(chunk).unwrap();
                while let Some(line) = frames.next() {
                    found.push(String::from_utf8(line.to_vec()).unwrap());
                }
            }
            prop_assert_eq!(found, lines);
        }
    }

    proptest! {
        #[test]
        fn frames_with_a_length_come_out_whole_in_any_chunks(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..8),
            rest in prop::collection::vec(Just(0_u8), 0..5),
            size in 1..30_usize,
        ) {
            let with_length = |frame: &Vec<u8>| [&[0, 0, 0, frame.len() as u8], &frame[..]].concat();
            let bytes = frames.iter().flat_map(with_length).chain(rest.clone()).collect::<Vec<_>>();
            let (mut cut, mut found) = (Frames::new(FrameKind::Protobuf, 20), Vec::new());
            for chunk in bytes.chunks(size) {
                cut.push(chunk).unwrap();
                while let Some(frame) = cut.next() {
                    found.push(frame.to_vec());
                }
            }
            // Four zeros are an empty frame.
            let whole = if rest.len() == LENGTH { vec![Vec::new()] } else { Vec::new() };
            prop_assert_eq!(found, [frames, whole].concat());
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_the_frame_comes() {
        let mut frames = Frames::new(FrameKind::Protobuf, 10);
        assert_eq!(frames.push(&[0, 0, 0, 10, 1]), Ok(()));
        assert_eq!(Frames::new(FrameKind::Protobuf, 10).push(&[0, 0, 0, 11]), Err(FrameTooLong));
        assert_eq!(Frames::new(FrameKind::Protobuf, 10).push(&[255; 4]), Err(FrameTooLong));
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut frames = Frames::new(FrameKind::Json, 10);
        assert_eq!(frames.push(b"12345\n1234567890"), Ok(()));
        assert_eq!(frames.push(b"1"), Err(FrameTooLong));
    }
}
