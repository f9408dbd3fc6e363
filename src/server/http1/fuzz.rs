//! Parses arbitrary bytes as the requests of a connection, with the invariants that hold for any bytes.

use bytes::BytesMut;

use super::head_limits::HeadLimits;
use super::request_head::HeadParser;
use crate::gateway::FramingError;
use crate::http1::{ChunkEvent, Decoder};

/// The parsed parts of one request, for comparison.
#[derive(Debug, Default, Eq, PartialEq)]
struct Parsed {
    line: String,
    fields: usize,
    framing_error: Option<FramingError>,
    persists: bool,
    content: Vec<u8>,
    complete: bool,
}

/// Checks that the same requests are parsed however reads split the bytes.
pub fn requests(bytes: &[u8], piece: usize) {
    let (whole, refused) = read(bytes, usize::MAX);
    let (cut, cut_refused) = read(bytes, piece.max(1));
    assert_eq!(cut, whole);
    // A head that arrives byte by byte is parsed when it is complete.
    assert!(refused || !cut_refused);
    for parsed in &whole {
        // A request whose end is undetermined is the last one parsed.
        assert!(parsed.framing_error.is_none() || !parsed.persists);
        assert!(parsed.framing_error.is_none() || parsed.content.is_empty());
    }
}

/// Returns the requests, and whether the parser refused the rest.
fn read(bytes: &[u8], piece: usize) -> (Vec<Parsed>, bool) {
    let mut pieces = bytes.chunks(piece.min(bytes.len().max(1)));
    let (mut buffer, mut heads, mut all) = (BytesMut::new(), HeadParser::default(), Vec::new());
    loop {
        let head = loop {
            if !buffer.is_empty() {
                match heads.parse(&mut buffer, BOUNDS) {
                    Ok(Some(head)) => break head,
                    Ok(None) => {}
                    Err(_) => return (all, true),
                }
            }
            let Some(next) = pieces.next() else { return (all, false) };
            buffer.extend_from_slice(next);
        };
        let framing_error = head.parts.extensions.get::<FramingError>().copied();
        let mut parsed = Parsed {
            line: format!("{} {} {:?}", head.parts.method, head.parts.uri, head.parts.version),
            fields: head.parts.headers.len(),
            framing_error,
            persists: head.persists,
            ..Parsed::default()
        };
        let mut body = Decoder::new(head.framing);
        loop {
            match body.take(&mut buffer) {
                Ok(ChunkEvent::Data(data)) => parsed.content.extend_from_slice(&data),
                Ok(ChunkEvent::End(_)) => break parsed.complete = true,
                Ok(ChunkEvent::Partial) => match pieces.next() {
                    Some(next) => buffer.extend_from_slice(next),
                    None => break,
                },
                Err(_) => {
                    all.push(parsed);
                    return (all, true);
                }
            }
        }
        let (ended, last) = (!parsed.complete, !parsed.persists);
        all.push(parsed);
        if ended || last {
            return (all, false);
        }
    }
}

const BOUNDS: HeadLimits = HeadLimits { size: 8 * 1024, fields: 100, cookies: 6 * 1024 };

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parsed_requests_do_not_depend_on_how_reads_split_them(
            bytes in "(POST / HTTP/1[.][01]\r\n|Host: a\r\n|Content-Length: [0-9]{1,2}\r\n|Transfer-Encoding: (gzip, )?chunked\r\n|Connection: (close|keep-alive)\r\n|[0-9a-f]{1,2}(;x)?\r\n|\r\n|\n|\r|#|[a-z]{1,9}){0,24}",
            piece in 1_usize..20,
        ) {
            super::requests(bytes.as_bytes(), piece);
        }
    }
}
