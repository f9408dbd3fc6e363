//! Tracks the record boundaries of a TLS connection (RFC 8446 §5.1).
//!
//! A TLS session does not report whether a partial record is buffered.
//! To check that nothing remains of an upstream's
//! bytes, the tracker follows the records' lengths as the bytes pass.

use std::io;

use crate::base::inspected_stream::Inspector;

/// The position of a stream within its records.
#[derive(Debug, Default)]
pub(in crate::upstream) struct TlsRecordTracker {
    /// The number of bytes of a record's header that have passed.
    head: usize,
    /// The number of bytes of its content that follow, as far as the header was read.
    left: usize,
}

impl TlsRecordTracker {
    /// Whether all records that have begun are complete.
    pub(in crate::upstream) const fn is_at_record_boundary(&self) -> bool {
        self.head == 0 && self.left == 0
    }

    /// Advances over bytes that were read from the stream directly.
    pub(in crate::upstream) fn advance(&mut self, mut bytes: &[u8]) {
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

impl Inspector for TlsRecordTracker {
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
