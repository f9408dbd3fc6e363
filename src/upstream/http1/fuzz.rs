//! The properties of responses that the fuzz target checks for any bytes.

use bytes::{Bytes, BytesMut};
use http::Method;

use super::head::{self, ParseOutcome};
use crate::base::trailers::is_allowed_trailer;
use crate::http1::{ChunkEvent, Decoder, Framing, HeaderNameCache};

/// The comparable result of reading a response.
type Read = Result<(u16, Vec<u8>, bool), ()>;

/// Reads a response whole and in pieces of `piece` bytes, and compares the results.
pub fn upstream_response(bytes: &[u8], piece: usize, to_head: bool) {
    let method = if to_head { Method::HEAD } else { Method::GET };
    let whole = read(bytes, bytes.len().max(1), &method);
    let cut = read(bytes, piece.max(1), &method);
    // An invalid message may be detected earlier or later, but valid content is the same in any pieces.
    if let (Ok(whole), Ok(cut)) = (&whole, &cut) {
        assert_eq!(whole, cut);
    }
    assert_eq!(whole.is_ok(), cut.is_ok());
}

fn read(bytes: &[u8], piece: usize, method: &Method) -> Read {
    let mut pieces = bytes.chunks(piece);
    let (mut buffer, mut names) = (BytesMut::new(), HeaderNameCache::default());
    let head = loop {
        if !buffer.is_empty() {
            match head::parse(&mut buffer, &mut names, method).map_err(drop)? {
                ParseOutcome::Head(head) => break head,
                ParseOutcome::Interim(_) => continue,
                ParseOutcome::Partial => {}
            }
        }
        let Some(next) = pieces.next() else { return Ok((0, Vec::new(), false)) };
        buffer.extend_from_slice(next);
    };
    assert!(!(head.reusable && head.framing == Framing::UntilClose));
    let (mut decoder, mut content) = (Decoder::of_response(head.framing), Vec::new());
    loop {
        match decoder.take(&mut buffer).map_err(drop)? {
            ChunkEvent::Data(data) => take(&mut content, &data),
            ChunkEvent::End(trailers) => {
                assert!(trailers.keys().all(is_allowed_trailer));
                return Ok((head.response.status().as_u16(), content, true));
            }
            ChunkEvent::Partial => match pieces.next() {
                Some(next) => buffer.extend_from_slice(next),
                None => return Ok((head.response.status().as_u16(), content, false)),
            },
        }
    }
}

fn take(content: &mut Vec<u8>, data: &Bytes) {
    assert!(!data.is_empty(), "a piece of nothing would be the last chunk");
    content.extend_from_slice(data);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_response_does_not_depend_on_the_size_of_reads(
            head in "HTTP/1[.][01] (100|200|204|304)( OK)?(\r\n|\n|\r)(content-length: [0-9]{1,2}\r\n)?(transfer-encoding: chunked\r\n)?(connection: close\r\n)?\r\n",
            body in "([0-9a-f]{1,2}(;x)?\r\n|[a-z]{0,12}\r\n){0,4}(0\r\n)?(etag: 1\r\n)?(\r\n)?",
            piece in 1_usize..20,
            to_head: bool,
        ) {
            super::upstream_response(format!("{head}{body}").as_bytes(), piece, to_head);
        }
    }
}
