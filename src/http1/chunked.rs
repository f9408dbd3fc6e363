//! Decodes the chunked transfer coding (RFC 9112 §7.1).
//!
//! Strict, because lenient decoders were vulnerable to request smuggling: sizes are hexadecimal digits and nothing
//! else, at most sixteen of them (an upstream may pad them with blanks, as some servers do: nothing after its response
//! can be smuggled); lines end in CR LF; extensions are dropped and bounded, individually and in total; trailers are
//! bounded and filtered.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use memchr::{memchr, memchr_iter};

use crate::base::trailers::{MAX_TRAILER_BYTES, MAX_TRAILER_FIELDS, is_allowed_trailer};

/// The state of decoding one body.
#[derive(Debug, Default)]
pub struct Chunked {
    at: State,
    /// Bytes of extensions beyond those that are proportionate to the content.
    extensions: u64,
    /// Whether blanks may follow a size.
    padded: bool,
}

/// The expected next element of the coding.
#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// A line with a chunk size.
    #[default]
    Size,
    /// This many more bytes of a chunk.
    Data(u64),
    /// The line end after a chunk.
    DataEnd,
    /// The trailer section.
    Trailers,
    /// The end.
    End,
    /// Invalid or ambiguous input.
    Invalid,
}

/// A decoded part of a body.
#[derive(Debug, Eq, PartialEq)]
pub enum ChunkEvent {
    /// A piece of the content.
    Data(Bytes),
    /// The end, with the trailers that may be passed on.
    End(HeaderMap),
    /// More bytes are needed.
    Partial,
}

/// The body is not in this coding, or its framing is too long.
#[derive(Debug, Eq, PartialEq)]
pub struct InvalidChunk;

impl Chunked {
    /// Creates a decoder for a response: its sizes may be padded with blanks (`5  \r\n`).
    pub fn of_response() -> Self {
        Self { padded: true, ..Self::default() }
    }

    /// Decodes the next part at the front of `read`. Small chunks that arrived together are one part.
    ///
    /// # Errors
    ///
    /// [`InvalidChunk`] for input that another recipient might decode differently.
    pub fn decode(&mut self, read: &mut BytesMut) -> Result<ChunkEvent, InvalidChunk> {
        if !self.poll_data(read)? {
            return match self.at {
                State::Trailers => match trailers(read)? {
                    None => Ok(ChunkEvent::Partial),
                    Some(trailers) => {
                        self.at = State::End;
                        Ok(ChunkEvent::End(trailers))
                    }
                },
                State::End => Ok(ChunkEvent::End(HeaderMap::new())),
                _ => Ok(ChunkEvent::Partial),
            };
        }
        let first = self.data(read);
        if first >= SMALL_CHUNK_BYTES || read.len() < first + MIN_FOLLOWING_CHUNK_BYTES {
            self.taken(first);
            return Ok(ChunkEvent::Data(read.split_to(first).freeze()));
        }
        let mut gathered = BytesMut::with_capacity(read.len().min(MAX_COALESCED_BYTES));
        let mut next = first;
        loop {
            self.taken(next);
            gathered.extend_from_slice(&read[..next]);
            read.advance(next);
            // Invalid input is an error after the content before it was returned.
            let more = self.poll_data(read).unwrap_or_else(|InvalidChunk| {
                self.at = State::Invalid;
                false
            });
            next = self.data(read);
            if !more || next >= SMALL_CHUNK_BYTES || gathered.len() >= MAX_COALESCED_BYTES {
                return Ok(ChunkEvent::Data(gathered.freeze()));
            }
        }
    }

    /// Advances to the next piece of a chunk; `false` if none has arrived.
    fn poll_data(&mut self, read: &mut BytesMut) -> Result<bool, InvalidChunk> {
        loop {
            self.at = match self.at {
                State::Size => match line(read, MAX_SIZE_LINE_BYTES)? {
                    None => return Ok(false),
                    Some(end) => {
                        let size = self.size(&read[..end])?;
                        read.advance(end + LINE_END.len());
                        if size == 0 { State::Trailers } else { State::Data(size) }
                    }
                },
                State::Data(_) => return Ok(!read.is_empty()),
                State::DataEnd => match read.get(..LINE_END.len()) {
                    None if read.first().is_some_and(|&byte| byte != b'\r') => {
                        return Err(InvalidChunk);
                    }
                    None => return Ok(false),
                    Some(LINE_END) => {
                        read.advance(LINE_END.len());
                        State::Size
                    }
                    Some(_) => return Err(InvalidChunk),
                },
                State::Trailers | State::End => return Ok(false),
                State::Invalid => return Err(InvalidChunk),
            };
        }
    }

    /// Returns how many bytes of a chunk are at the front of `read`.
    fn data(&self, read: &[u8]) -> usize {
        let State::Data(left) = self.at else { return 0 };
        left.min(read.len() as u64) as usize
    }

    /// Records that this many bytes of a chunk were taken.
    fn taken(&mut self, count: usize) {
        let State::Data(left) = self.at else { return };
        let left = left.saturating_sub(count as u64);
        self.at = if left == 0 { State::DataEnd } else { State::Data(left) };
        self.extensions = self.extensions.saturating_sub(count as u64);
    }

    /// Whether the body has ended.
    pub const fn is_over(&self) -> bool {
        matches!(self.at, State::End)
    }

    /// Parses a chunk size. Text after a semicolon is an extension, which is ignored, but bounded, since a body of tiny
    /// chunks could consist of them.
    fn size(&mut self, line: &[u8]) -> Result<u64, InvalidChunk> {
        let (size, extension) = size(line, self.padded).ok_or(InvalidChunk)?;
        self.extensions += extension;
        if self.extensions > MAX_EXTENSION_BYTES { Err(InvalidChunk) } else { Ok(size) }
    }
}

/// Returns the length of the first line without its end, once it is complete.
fn line(read: &[u8], longest: usize) -> Result<Option<usize>, InvalidChunk> {
    let Some(end) = memchr(b'\n', read) else {
        return if read.len() > longest { Err(InvalidChunk) } else { Ok(None) };
    };
    if end == 0 || end > longest || read[end - 1] != b'\r' {
        return Err(InvalidChunk);
    }
    Ok(Some(end - 1))
}

/// Returns the size of a chunk and the length of its extension; `None` if the line is ambiguous. Blanks may precede an
/// extension, and if `padded` also the end of the line.
fn size(line: &[u8], padded: bool) -> Option<(u64, u64)> {
    let (digits, extension) = match line.iter().position(|&b| b == b';') {
        Some(at) => line.split_at(at),
        None => (line, &line[..0]),
    };
    let digits = if extension.is_empty() && !padded { digits } else { without_blanks(digits) };
    let valid = (1..=16).contains(&digits.len())
        && digits.iter().all(u8::is_ascii_hexdigit)
        && extension.iter().all(|&b| b == b'\t' || (b >= b' ' && b != 0x7f));
    let text = core::str::from_utf8(digits).ok()?;
    let size = valid.then(|| u64::from_str_radix(text, 16).ok())??;
    Some((size, extension.len() as u64))
}

/// Strips the blanks after a size.
fn without_blanks(mut digits: &[u8]) -> &[u8] {
    while let [before @ .., b' ' | b'\t'] = digits {
        digits = before;
    }
    digits
}

/// Parses the trailer section, including its empty line.
fn trailers(read: &mut BytesMut) -> Result<Option<HeaderMap>, InvalidChunk> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
    match httparse::parse_headers(read, &mut fields) {
        // The parser accepts a line that ends in LF alone; another recipient may not.
        Ok(httparse::Status::Complete((length, _))) if has_no_extensions(&read[..length]) => {
            Err(InvalidChunk)
        }
        Ok(httparse::Status::Complete((length, fields))) => {
            let mut trailers = HeaderMap::new();
            for field in fields {
                let name =
                    HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| InvalidChunk)?;
                let value = HeaderValue::from_bytes(field.value).map_err(|_| InvalidChunk)?;
                if is_allowed_trailer(&name) {
                    trailers.append(name, value);
                }
            }
            read.advance(length);
            Ok(Some(trailers))
        }
        Ok(httparse::Status::Partial) if read.len() <= MAX_TRAILER_BYTES => Ok(None),
        Ok(httparse::Status::Partial) | Err(_) => Err(InvalidChunk),
    }
}

/// Whether one of these `lines` ends in LF alone.
pub fn has_no_extensions(lines: &[u8]) -> bool {
    memchr_iter(b'\n', lines).any(|end| end == 0 || lines[end - 1] != b'\r')
}

const LINE_END: &[u8] = b"\r\n";
/// The minimum that follows a small chunk if another one does: two line ends, a size and a byte.
const MIN_FOLLOWING_CHUNK_BYTES: usize = 6;
/// The size from which leaving a chunk in place is cheaper than copying.
const SMALL_CHUNK_BYTES: usize = 1024;
/// The approximate size of parts that small chunks are gathered into.
const MAX_COALESCED_BYTES: usize = 16 * 1024;
const MAX_SIZE_LINE_BYTES: usize = 256;
/// The bytes of extensions that are accepted beyond as many bytes of content.
const MAX_EXTENSION_BYTES: u64 = 16 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_body_is_decoded_up_to_its_end() {
        let mut read =
            BytesMut::from("4\r\nwiki\r\n6;ext=\"1\"\r\npedia \r\n0\r\nX-Sum: 7\r\n\r\nHTTP");

        let (data, trailers) = all(&mut read).expect("valid");

        assert_eq!(data, b"wikipedia ");
        assert_eq!(trailers["x-sum"], "7");
        assert_eq!(read, "HTTP");
    }

    #[test]
    fn ambiguous_input_is_refused() {
        for body in [
            "\r\n",
            "g\r\n",
            "+4\r\nwiki\r\n",
            "0x4\r\n",
            " 4\r\nwiki\r\n",
            "4 \r\nwiki\r\n",
            "-1\r\n",
            ";a\r\n",
            "12345678901234567\r\n",
            "4\nwiki\r\n",
            "4\r\nwikiXX",
            "4\r\nwiki\n0",
            "4;\x01\r\n",
            "0\r\nA B: c\r\n\r\n",
            "0\r\n A: b\r\n\r\n",
            "4\r;a\r\nwiki\r\n",
            "4\x0c;a\r\nwiki\r\n",
            "0\r\n\n",
            "0\r\nA: b\n\r\n",
        ] {
            let mut read = BytesMut::from(body);
            assert_eq!(all(&mut read), Err(InvalidChunk), "{body:?}");
        }
    }

    #[test]
    fn the_sizes_of_a_response_may_be_padded_behind() {
        let decode = |body: &str| {
            let mut decoder = Chunked::of_response();
            let mut read = BytesMut::from(body);
            match (decoder.decode(&mut read)?, decoder.decode(&mut read)?) {
                (ChunkEvent::Data(data), ChunkEvent::End(_)) => Ok(data),
                _ => Err(InvalidChunk),
            }
        };

        for body in ["5  \r\nhello\r\n0 \t\r\n\r\n", "5 ;a=b\r\nhello\r\n0   \r\n\r\n"] {
            assert_eq!(decode(body), Ok("hello".into()), "{body:?}");
        }
        for body in [" 5\r\nhello\r\n", "5 5\r\nhello\r\n", "5\x0b\r\nhello\r\n", " \r\n\r\n"] {
            assert_eq!(decode(body), Err(InvalidChunk), "{body:?}");
        }
    }

    #[test]
    fn an_endless_size_line_is_refused() {
        assert_eq!(
            Chunked::default().decode(&mut BytesMut::from(&*vec![b'0'; 300])),
            Err(InvalidChunk)
        );
        assert_eq!(
            all(&mut BytesMut::from(&*format!("1;{}\r\na\r\n", "x".repeat(300)))),
            Err(InvalidChunk)
        );
    }

    /// Regression test for hyper #3495.
    #[test]
    fn extensions_beyond_the_content_are_refused() {
        let chunks = |extension: usize, size: usize, count: usize| {
            let extension = "x".repeat(extension);
            let content = "a".repeat(size);
            format!("{size:x};{extension}\r\n{content}\r\n").repeat(count) + "0\r\n\r\n"
        };

        assert_eq!(all(&mut BytesMut::from(&*chunks(99, 1, 1000))), Err(InvalidChunk));
        let (data, _) =
            all(&mut BytesMut::from(&*chunks(99, 100, 1000))).expect("extensions within the bound");
        assert_eq!(data.len(), 100_000);
    }

    #[test]
    fn trailers_cannot_smuggle_framing_or_credentials() {
        let mut read = BytesMut::from(
            "0\r\nContent-Length: 5\r\nHost: a\r\nAuthorization: b\r\nSet-Cookie: c\r\nA: b\r\n\r\n",
        );

        let (_, trailers) = all(&mut read).expect("valid");

        assert_eq!(trailers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn small_chunks_that_arrived_together_are_one_part() {
        let mut read = BytesMut::from(&*"1\r\nx\r\n".repeat(5_000));
        let (mut decoder, mut parts, mut content) = (Chunked::default(), 0, 0);
        while let ChunkEvent::Data(data) = decoder.decode(&mut read).expect("valid") {
            (parts, content) = (parts + 1, content + data.len());
        }
        assert_eq!((parts, content), (1, 5_000));

        let large = "x".repeat(SMALL_CHUNK_BYTES);
        let mut read = BytesMut::from(&*format!("1\r\na\r\n{SMALL_CHUNK_BYTES:x}\r\n{large}\r\n"));
        assert_eq!(decoder.decode(&mut read), Ok(ChunkEvent::Data("a".into())));
        assert_eq!(
            decoder.decode(&mut read),
            Ok(ChunkEvent::Data(large.into())),
            "a large chunk is not copied"
        );
    }

    #[test]
    fn content_before_invalid_input_is_returned() {
        let (mut decoder, mut read) =
            (Chunked::default(), BytesMut::from("1\r\na\r\n1\r\nb\r\nz\r\n1\r\nc\r\n"));

        assert_eq!(decoder.decode(&mut read), Ok(ChunkEvent::Data("ab".into())));
        assert_eq!(decoder.decode(&mut read), Err(InvalidChunk));
        assert_eq!(decoder.decode(&mut read), Err(InvalidChunk));
    }

    proptest! {
        #[test]
        fn content_does_not_depend_on_the_size_of_reads(pieces in proptest::collection::vec("[a-z]{1,40}", 0..6), cuts in proptest::collection::vec(1usize..20, 1..60)) {
            let mut coded = String::new();
            for piece in &pieces {
                coded += &format!("{:x}\r\n{piece}\r\n", piece.len());
            }
            coded += "0\r\n\r\n";
            let (mut decoder, mut read, mut data) = (Chunked::default(), BytesMut::new(), Vec::new());
            let (mut rest, mut cuts) = (coded.as_bytes(), cuts.iter().cycle());
            loop {
                match decoder.decode(&mut read).expect("valid") {
                    ChunkEvent::Data(bytes) => data.extend_from_slice(&bytes),
                    ChunkEvent::End(_) => break,
                    ChunkEvent::Partial => {
                        let (now, later) = rest.split_at(rest.len().min(*cuts.next().expect("a cycle")));
                        read.extend_from_slice(now);
                        rest = later;
                    }
                }
            }
            prop_assert_eq!(data, pieces.concat().into_bytes());
        }

        #[test]
        fn no_input_makes_the_decoder_panic(bytes: Vec<u8>) {
            let mut read = BytesMut::from(&*bytes);
            let _ = all(&mut read);
        }
    }

    fn all(read: &mut BytesMut) -> Result<(Vec<u8>, HeaderMap), InvalidChunk> {
        let (mut decoder, mut data) = (Chunked::default(), Vec::new());
        loop {
            match decoder.decode(read)? {
                ChunkEvent::Data(bytes) => data.extend_from_slice(&bytes),
                ChunkEvent::End(trailers) => return Ok((data, trailers)),
                ChunkEvent::Partial => return Ok((data, HeaderMap::new())),
            }
        }
    }
}
