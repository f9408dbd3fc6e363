//! What the fuzz target reaches of the second look at heads.

/// The bytes of a connection: however they are cut, what is refused is the same.
pub fn requests(bytes: &[u8], piece: usize) {
    assert_eq!(
        super::strict::looked_at(bytes, piece.max(1)),
        super::strict::looked_at(bytes, usize::MAX)
    );
}
