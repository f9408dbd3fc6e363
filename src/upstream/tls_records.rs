//! Where the records of a TLS connection end (RFC 8446 §5.1).
//!
//! A session does not say whether the beginning of a record waits in it for
//! the rest. Whoever wants to know that nothing is left of what a service has
//! sent follows the records' lengths as the bytes pass.

use std::io;

use crate::base::tapped::Tap;

/// Where in the records a stream is.
#[derive(Debug, Default)]
pub(super) struct TlsRecordTracker {
    /// How much of a record's head has passed.
    head: usize,
    /// How much of its content is to come, as far as its head has said.
    left: usize,
}

impl TlsRecordTracker {
    /// Whether all records that have begun have come to their ends.
    pub(super) const fn is_at_record_boundary(&self) -> bool {
        self.head == 0 && self.left == 0
    }

    /// Follows what was read of the stream by other means.
    pub(super) fn advance(&mut self, mut bytes: &[u8]) {
        while let [byte, rest @ ..] = bytes {
            if self.head < RECORD_HEADER_BYTES {
                // The last two bytes are the length.
                if self.head >= RECORD_HEADER_BYTES - 2 {
                    self.left = self.left << 8 | usize::from(*byte);
                }
                self.head += 1;
                bytes = rest;
            } else {
                let count = self.left.min(bytes.len());
                self.left -= count;
                bytes = &bytes[count..];
            }
            if self.head == RECORD_HEADER_BYTES && self.left == 0 {
                self.head = 0;
            }
        }
    }
}

impl Tap for TlsRecordTracker {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.advance(bytes);
        Ok(())
    }
}

const RECORD_HEADER_BYTES: usize = 5;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_stream_is_between_records_where_one_has_ended(
            lengths in prop::collection::vec(prop_oneof![Just(0_usize), 1..300_usize, Just(16_640)], 1..8),
            cut in 1..400_usize,
        ) {
            let (mut bytes, mut ends) = (Vec::new(), vec![0]);
            for length in lengths {
                bytes.extend([23, 3, 3]);
                bytes.extend((length as u16).to_be_bytes());
                bytes.extend(vec![7; length]);
                ends.push(bytes.len());
            }
            let (mut records, mut at) = (TlsRecordTracker::default(), 0);
            for piece in bytes.chunks(cut) {
                records.advance(piece);
                at += piece.len();
                prop_assert_eq!(records.is_at_record_boundary(), ends.contains(&at), "after {} bytes", at);
            }
        }
    }
}
