//! What hyper forgives in HTTP/1.1 and the gateway does not (RFC 9112 §2.2, §3.2, §6.3, §7.1).
//!
//! Where a message could be read in two ways hyper takes one of them, and has
//! taken the other away before anybody above can see it: a `Content-Length`
//! beside a `Transfer-Encoding`, a line that ends in a bare LF, a fragment in
//! the target, blanks and controls behind a chunk's size. The bytes are looked
//! at once more on their way to hyper, line by line in heads and between
//! chunks; bodies are stepped over.
//!
//! This frames nothing. It only refuses: whatever it does not see, hyper reads
//! as it always would.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::Arc;

use memchr::memchr;

use super::inspect::{Inspect, Unfit};
use crate::upstream::chunk_size;

/// What the reading side of a connection tells the side that serves its requests.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// The number of the first head that could be read in two ways, from 1; 0 if there is none.
    ambiguous: AtomicU32,
    /// Heads that became requests.
    served: AtomicU32,
    /// Whether the connection no longer speaks HTTP.
    over: AtomicBool,
}

impl Marks {
    /// Whether the request that begins now could be read in two ways.
    pub(super) fn is_next_ambiguous(&self) -> bool {
        let number = self.served.load(Relaxed).wrapping_add(1);
        self.served.store(number, Relaxed);
        self.ambiguous.load(Relaxed) == number
    }

    /// What comes from now on is another protocol's.
    pub(super) fn is_over(&self) {
        self.over.store(true, Relaxed);
    }
}

/// Looks at what a client sends in HTTP/1.1.
#[derive(Debug)]
pub(super) struct Strict {
    reader: Reader,
    marks: Arc<Marks>,
}

impl Strict {
    /// Tells `marks` what is ambiguous.
    pub(super) fn new(marks: Arc<Marks>) -> Self {
        Self { reader: Reader::default(), marks }
    }
}

/// A body that is not in the chunked coding.
#[derive(Debug, Eq, PartialEq)]
struct Invalid;

/// Where in the messages the next byte belongs.
#[derive(Debug, Default)]
struct Reader {
    at: At,
    /// A line that was cut between two reads.
    cut: Vec<u8>,
    head: Head,
    heads: u32,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum At {
    #[default]
    Head,
    Body(u64),
    Size,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    /// Nothing that follows is looked at.
    Nowhere,
}

/// What was seen of the head that is being read.
#[derive(Debug, Default)]
struct Head {
    begun: bool,
    /// Whether it could be read in two ways.
    ambiguous: bool,
    coded: bool,
    length: Length,
}

/// What a head says in `Content-Length`.
#[derive(Clone, Copy, Debug, Default)]
enum Length {
    #[default]
    Absent,
    Said(u64),
    /// hyper's to refuse.
    Nonsense,
}

impl Reader {
    fn take(&mut self, mut bytes: &[u8], marks: &Marks) -> Result<(), Invalid> {
        while !bytes.is_empty() {
            match &mut self.at {
                At::Nowhere => return Ok(()),
                At::Body(left) | At::Chunk(left) => {
                    let count = (*left).min(bytes.len() as u64);
                    *left -= count;
                    bytes = &bytes[count as usize..];
                    match self.at {
                        At::Body(0) => self.at = At::Head,
                        At::Chunk(0) => self.at = At::ChunkEnd,
                        _ => {}
                    }
                }
                At::Head | At::Size | At::ChunkEnd | At::Trailers => {
                    let Some(end) = memchr(b'\n', bytes) else { return self.keep(bytes) };
                    let (line, rest) = bytes.split_at(end + 1);
                    bytes = rest;
                    if self.cut.is_empty() {
                        self.line(&line[..end], marks)?;
                    } else {
                        let mut whole = core::mem::take(&mut self.cut);
                        whole.extend_from_slice(&line[..end]);
                        self.line(&whole, marks)?;
                        whole.clear();
                        self.cut = whole;
                    }
                }
            }
        }
        Ok(())
    }

    /// Keeps the beginning of a line whose end has not come.
    fn keep(&mut self, bytes: &[u8]) -> Result<(), Invalid> {
        let length = self.cut.len() + bytes.len();
        match self.at {
            At::Size | At::ChunkEnd if length > LONGEST_SIZE => return Err(Invalid),
            // hyper bounds heads and trailers; what is longer than it takes needs no opinion.
            _ if length > LONGEST_LINE => self.at = At::Nowhere,
            _ => self.cut.extend_from_slice(bytes),
        }
        Ok(())
    }

    /// Looks at one line without its LF.
    fn line(&mut self, line: &[u8], marks: &Marks) -> Result<(), Invalid> {
        let (text, exact) = match line.split_last() {
            Some((b'\r', text)) => (text, true),
            _ => (line, false),
        };
        self.at = match self.at {
            At::Head => {
                self.head_line(text, exact, marks);
                return Ok(());
            }
            _ if !exact => return Err(Invalid),
            At::Size if text.len() > LONGEST_SIZE => return Err(Invalid),
            At::Size => match chunk_size(text) {
                None => return Err(Invalid),
                Some(0) => At::Trailers,
                Some(size) => At::Chunk(size),
            },
            At::ChunkEnd if text.is_empty() => At::Size,
            At::ChunkEnd => return Err(Invalid),
            At::Trailers if text.is_empty() => At::Head,
            same => same,
        };
        Ok(())
    }

    fn head_line(&mut self, text: &[u8], exact: bool, marks: &Marks) {
        let head = &mut self.head;
        if !head.begun {
            // Empty lines before a request mean nothing (RFC 9112 §2.2).
            if !text.is_empty() {
                head.begun = true;
                head.ambiguous = !exact || memchr(b'#', text).is_some();
            }
            return;
        }
        head.ambiguous |= !exact;
        match text.first().map(u8::to_ascii_lowercase) {
            None => self.head_ends(marks),
            Some(b'c') => {
                if let Some(value) = value(text, b"content-length") {
                    head.length = digits(value).map_or(Length::Nonsense, Length::Said);
                }
            }
            Some(b't') => head.coded |= value(text, b"transfer-encoding").is_some(),
            Some(_) => {}
        }
    }

    fn head_ends(&mut self, marks: &Marks) {
        let head = core::mem::take(&mut self.head);
        self.heads = self.heads.wrapping_add(1);
        let two_framings = head.coded && !matches!(head.length, Length::Absent);
        self.at = match head.length {
            _ if head.ambiguous || two_framings => {
                marks.ambiguous.store(self.heads, Relaxed);
                At::Nowhere
            }
            _ if head.coded => At::Size,
            Length::Absent | Length::Said(0) => At::Head,
            Length::Said(length) => At::Body(length),
            Length::Nonsense => At::Nowhere,
        };
    }
}

/// The value of a field line, if the field is called `name`.
fn value<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let (own, rest) = line.split_at_checked(name.len())?;
    own.eq_ignore_ascii_case(name).then(|| rest.strip_prefix(b":"))?
}

fn digits(value: &[u8]) -> Option<u64> {
    let text = core::str::from_utf8(value.trim_ascii()).ok()?;
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

impl Inspect for Strict {
    fn inspect(&mut self, bytes: &[u8]) -> Result<(), Unfit> {
        if self.marks.over.load(Relaxed) {
            return Ok(());
        }
        self.reader.take(bytes, &self.marks).map_err(|Invalid| Unfit)
    }
}

/// A chunk's size with its extensions, in bytes.
const LONGEST_SIZE: usize = 1024;
/// Far above any head that hyper is told to take.
const LONGEST_LINE: usize = 1024 * 1024;

/// Where a reader ends up after `bytes` in pieces, and which head it marked.
#[cfg(any(test, fuzzing))]
pub(super) fn looked_at(bytes: &[u8], piece: usize) -> (Option<At>, u32) {
    let (mut reader, marks) = (Reader::default(), Marks::default());
    for piece in bytes.chunks(piece.min(bytes.len().max(1))) {
        if reader.take(piece, &marks).is_err() {
            return (None, marks.ambiguous.load(Relaxed));
        }
    }
    (Some(reader.at), marks.ambiguous.load(Relaxed))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    #[test]
    fn what_has_one_reading_passes() {
        for text in [
            PLAIN.to_owned(),
            format!("\r\n{PLAIN}{PLAIN}"),
            format!("POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\n\n#\na {PLAIN}"),
            format!("POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n{PLAIN}"),
            format!(
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
                 2;a=\"b\"\r\n\n\n\r\n0\r\nContent-Length: 5\r\n\r\n{PLAIN}"
            ),
        ] {
            let (outcome, ambiguous) = read(&text, usize::MAX);
            assert_eq!((outcome, ambiguous), (Ok(At::Head), 0), "{text:?}");
        }
    }

    #[test]
    fn a_head_with_two_readings_is_marked() {
        for head in [
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTRANSFER-ENCODING: chunked\r\ncontent-LENGTH: x\r\n\r\n",
            "GET /a#b HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\n\r\n",
            "GET / HTTP/1.1\r\nA: b\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n\n",
        ] {
            assert_eq!(read(head, usize::MAX), (Ok(At::Nowhere), 1), "{head:?}");
            let body = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
            let before = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            assert_eq!(read(&format!("{before}{PLAIN}{head}"), 3), (Ok(At::Nowhere), 3));
        }
    }

    #[test]
    fn a_chunk_with_two_readings_ends_the_connection() {
        let long = format!("1;{}", "x".repeat(LONGEST_SIZE));
        for body in [
            "3 \r\n",
            "3\t\r\n",
            "3\n",
            "3;\0\r\n",
            "3;a\x01\r\n",
            "\r\n",
            "3\r\nabcd\r\n",
            "3\r\nabc\n",
            "0\r\n\n",
            "0\r\nA: b\n",
            "11111111111111111\r\n",
            &long,
            &format!("{long}\r\n"),
        ] {
            let text = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
            assert_eq!(read(&text, usize::MAX).0, Err(Invalid), "{body:?}");
        }
    }

    #[test]
    fn another_protocol_is_not_looked_at() {
        let marks = Marks::default();
        let mut reader = Reader::default();
        let endless = "x".repeat(LONGEST_LINE + 1);
        assert_eq!(reader.take(endless.as_bytes(), &marks), Ok(()));
        assert_eq!((reader.at, reader.cut.len()), (At::Nowhere, 0));
    }

    #[test]
    fn only_the_marked_request_is_refused() {
        let marks = Marks::default();
        marks.ambiguous.store(2, Relaxed);
        assert_eq!([(); 3].map(|()| marks.is_next_ambiguous()), [false, true, false]);
    }

    proptest! {
        #[test]
        fn however_it_is_cut_it_is_read_alike(text in "((GET|POST) /[#a]{0,2} HTTP/1.1\r?\n((Content-Length: [0-9]|Transfer-Encoding: chunked|A: b)\r?\n){0,3}\r?\n([0-3]\r?\n[ab]{0,3}\r\n){0,3}){1,3}", piece in 1usize..9) {
            prop_assert_eq!(read(&text, piece), read(&text, usize::MAX));
        }

        #[test]
        fn nothing_makes_it_panic(bytes: Vec<u8>, chunked: bool) {
            let mut reader = Reader { at: if chunked { At::Size } else { At::Head }, ..Reader::default() };
            let _ = reader.take(&bytes, &Marks::default());
        }
    }

    fn read(text: &str, piece: usize) -> (Result<At, Invalid>, u32) {
        let (at, marked) = looked_at(text.as_bytes(), piece);
        (at.ok_or(Invalid), marked)
    }
}
