//! Takes the stream of a watch apart: one event on each line.

use std::io::BufRead;

/// What has come and is not a whole line yet.
#[derive(Debug)]
pub(crate) struct Frames {
    buffer: Vec<u8>,
    /// Where the next line begins.
    start: usize,
    /// Up to where there is no end of a line.
    searched: usize,
    limit: usize,
}

/// A line is longer than the limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct LineTooLong;

impl Frames {
    /// Lines of `limit` bytes at most.
    pub(crate) fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, searched: 0, limit }
    }

    /// Takes the next bytes. Lines that were not taken out are kept.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), LineTooLong> {
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT {
            // One large object should not stay for ever.
            self.buffer.shrink_to(KEPT);
        }
        self.buffer.extend_from_slice(bytes);
        let unfinished = self.buffer.iter().rev().position(|byte| *byte == b'\n');
        match unfinished.unwrap_or(self.buffer.len()) > self.limit {
            true => Err(LineTooLong),
            false => Ok(()),
        }
    }

    /// The next whole line, without its end.
    pub(crate) fn next(&mut self) -> Option<&[u8]> {
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

/// What is kept for the next line: a node has 13 kB.
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
            let (mut frames, mut found) = (Frames::new(20), Vec::new());
            for chunk in text.as_bytes().chunks(size) {
                frames.push(chunk).unwrap();
                while let Some(line) = frames.next() {
                    found.push(String::from_utf8(line.to_vec()).unwrap());
                }
            }
            prop_assert_eq!(found, lines);
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut frames = Frames::new(10);
        assert_eq!(frames.push(b"12345\n1234567890"), Ok(()));
        assert_eq!(frames.push(b"1"), Err(LineTooLong));
    }
}
