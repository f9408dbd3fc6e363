//! What the fuzz target reaches of the second look at heads.

/// The bytes of a connection: however they are cut, what is refused is the same.
pub fn requests(bytes: &[u8], piece: usize) {
    assert_eq!(
        super::strict::looked_at(bytes, piece.max(1)),
        super::strict::looked_at(bytes, usize::MAX)
    );
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn requests_are_the_same_however_they_are_cut(
            bytes in "(POST / HTTP/1[.]1\r\n|Content-Length: [0-9]{1,2}\r\n|Transfer-Encoding: chunked\r\n|[0-9a-f]{1,2}\r\n|\r\n|\n|\r|#|[a-z]{1,9}){0,24}",
            piece in 1_usize..20,
        ) {
            super::requests(bytes.as_bytes(), piece);
        }
    }
}
