//! The bytes of a connection, taken for requests, with the promises that must hold for any bytes.

use bytes::BytesMut;

use super::request_head::{HeadLimits, HeadParser};
use crate::gateway::FramingError;
use crate::http1::{ChunkEvent, Decoder};

/// What was read of one request, to be compared.
#[derive(Debug, Default, Eq, PartialEq)]
struct Seen {
    line: String,
    fields: usize,
    unclear: Option<FramingError>,
    persists: bool,
    content: Vec<u8>,
    whole: bool,
}

/// However the bytes are cut, the same requests are read from them.
pub fn requests(bytes: &[u8], piece: usize) {
    let (whole, refused) = read(bytes, usize::MAX);
    let (cut, cut_refused) = read(bytes, piece.max(1));
    assert_eq!(cut, whole);
    // A head that comes byte by byte is looked at when it is all there.
    assert!(refused || !cut_refused);
    for seen in &whole {
        // What nobody can tell the end of is the last that is read.
        assert!(seen.unclear.is_none() || !seen.persists);
        assert!(seen.unclear.is_none() || seen.content.is_empty());
    }
}

/// The requests, and whether the bytes were refused at last.
fn read(bytes: &[u8], piece: usize) -> (Vec<Seen>, bool) {
    let mut pieces = bytes.chunks(piece.min(bytes.len().max(1)));
    let (mut buffer, mut heads, mut all) = (BytesMut::new(), HeadParser::default(), Vec::new());
    loop {
        let head = loop {
            if !buffer.is_empty() {
                match heads.take(&mut buffer, BOUNDS) {
                    Ok(Some(head)) => break head,
                    Ok(None) => {}
                    Err(_) => return (all, true),
                }
            }
            let Some(next) = pieces.next() else { return (all, false) };
            buffer.extend_from_slice(next);
        };
        let unclear = head.parts.extensions.get::<FramingError>().copied();
        let mut seen = Seen {
            line: format!("{} {} {:?}", head.parts.method, head.parts.uri, head.parts.version),
            fields: head.parts.headers.len(),
            unclear,
            persists: head.persists,
            ..Seen::default()
        };
        let mut body = Decoder::new(head.framing);
        loop {
            match body.take(&mut buffer) {
                Ok(ChunkEvent::Data(data)) => seen.content.extend_from_slice(&data),
                Ok(ChunkEvent::End(_)) => break seen.whole = true,
                Ok(ChunkEvent::Partial) => match pieces.next() {
                    Some(next) => buffer.extend_from_slice(next),
                    None => break,
                },
                Err(_) => {
                    all.push(seen);
                    return (all, true);
                }
            }
        }
        let (ended, last) = (!seen.whole, !seen.persists);
        all.push(seen);
        if ended || last {
            return (all, false);
        }
    }
}

const BOUNDS: HeadLimits = HeadLimits { size: 8 * 1024, fields: 100 };

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn requests_are_the_same_however_they_are_cut(
            bytes in "(POST / HTTP/1[.][01]\r\n|Host: a\r\n|Content-Length: [0-9]{1,2}\r\n|Transfer-Encoding: (gzip, )?chunked\r\n|Connection: (close|keep-alive)\r\n|[0-9a-f]{1,2}(;x)?\r\n|\r\n|\n|\r|#|[a-z]{1,9}){0,24}",
            piece in 1_usize..20,
        ) {
            super::requests(bytes.as_bytes(), piece);
        }
    }
}
