//! The Huffman code of header fields (RFC 7541 §5.2, appendix B): lengths of codes, and the decoding of one string.
//!
//! The code is canonical: sorted by length and then by symbol, the codes are consecutive numbers. So the length of a
//! code follows from its value, and the symbol from both.

/// Returns the length of the code at the beginning of `window`, in bits.
pub(super) fn code_length(window: u64) -> u32 {
    CODES.iter().find(|(end, _)| window < *end).map_or(MAX_CODE_BITS, |(_, length)| *length)
}

/// Decodes a string; `None` if it is malformed.
pub(super) fn decode(encoded: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(encoded.len() * 8 / 5);
    let (mut bits, mut count) = (0_u64, 0);
    for &byte in encoded {
        (bits, count) = (bits << 8 | u64::from(byte), count + 8);
        while count >= MAX_CODE_BITS {
            count -= take_symbol(bits, count, &mut out)?;
            bits &= (1 << count) - 1;
        }
    }
    loop {
        // The padding is the beginning of the end-of-string code, which consists of ones.
        let is_padding = count < 8 && bits == (1 << count) - 1;
        if is_padding {
            return Some(out);
        }
        count -= take_symbol(bits, count, &mut out)?;
        bits &= (1 << count) - 1;
    }
}

/// Appends the symbol at the beginning of `count` bits, and returns the length of its code.
fn take_symbol(bits: u64, count: u32, out: &mut Vec<u8>) -> Option<u32> {
    let window = if count >= MAX_CODE_BITS {
        bits >> (count - MAX_CODE_BITS)
    } else {
        bits << (MAX_CODE_BITS - count)
    };
    let length = code_length(window);
    if length > count {
        return None;
    }
    let (mut first, mut symbols) = (0, 0);
    for (end, of_length) in CODES {
        if of_length == length {
            let offset = (window - first) >> (MAX_CODE_BITS - length);
            // The last code is the end of a string, which must not occur in one.
            out.push(*SYMBOLS.get(symbols + usize::try_from(offset).ok()?)?);
            return Some(length);
        }
        symbols += usize::try_from((end - first) >> (MAX_CODE_BITS - of_length)).ok()?;
        first = end;
    }
    None
}

/// Bits of the longest code.
pub(super) const MAX_CODE_BITS: u32 = 30;

/// The upper bound of the codes of each length, in thirty bits.
const CODES: [(u64, u32); 21] = {
    const COUNTS: [(u64, u32); 21] = [
        (10, 5),
        (26, 6),
        (32, 7),
        (6, 8),
        (5, 10),
        (3, 11),
        (2, 12),
        (6, 13),
        (2, 14),
        (3, 15),
        (3, 19),
        (8, 20),
        (13, 21),
        (26, 22),
        (29, 23),
        (12, 24),
        (4, 25),
        (15, 26),
        (19, 27),
        (29, 28),
        (4, 30),
    ];
    let mut codes = [(0, 0); 21];
    let (mut end, mut at) = (0, 0);
    while at < COUNTS.len() {
        let (count, length) = COUNTS[at];
        end += count << (MAX_CODE_BITS - length);
        codes[at] = (end, length);
        at += 1;
    }
    codes
};

/// The symbols, sorted by their codes.
const SYMBOLS: &[u8; 256] =
    b"012aceiost %-./3456789=A_bdfghlmnpru:BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz&*,;XZ!\"()?'+|#>\x00$@[]~^}<`{\
      \\\xc3\xd0\x80\x82\x83\xa2\xb8\xc2\xe0\xe2\x99\xa1\xa7\xac\xb0\xb1\xb3\xd1\xd8\xd9\xe3\xe5\xe6\x81\
      \x84\x85\x86\x88\x92\x9a\x9c\xa0\xa3\xa4\xa9\xaa\xad\xb2\xb5\xb9\xba\xbb\xbd\xbe\xc4\xc6\xe4\xe8\xe9\
      \x01\x87\x89\x8a\x8b\x8c\x8d\x8f\x93\x95\x96\x97\x98\x9b\x9d\x9e\xa5\xa6\xa8\xae\xaf\xb4\xb6\xb7\xbc\
      \xbf\xc5\xe7\xef\x09\x8e\x90\x91\x94\x9f\xab\xce\xd7\xe1\xec\xed\xc7\xcf\xea\xeb\xc0\xc1\xc8\xc9\xca\
      \xcd\xd2\xd5\xda\xdb\xee\xf0\xf2\xf3\xff\xcb\xcc\xd3\xd4\xd6\xdd\xde\xdf\xf1\xf4\xf5\xf6\xf7\xf8\xfa\
      \xfb\xfc\xfd\xfe\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x17\x18\x19\x1a\
      \x1b\x1c\x1d\x1e\x1f\x7f\xdc\xf9\x0a\x0d\x16";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_huffman_table_has_every_symbol_once() {
        assert_eq!(CODES[20], (1 << 30, 30));
        // 0xffa is the first code of twelve bits, and 0xffb the other one (RFC 7541, appendix B).
        assert_eq!(
            [0xff9, 0xffa, 0xffb, 0xffc].map(|code: u64| code_length(code << 18)),
            [11, 12, 12, 13]
        );
        let mut symbols = SYMBOLS.to_vec();
        symbols.sort_unstable();
        assert_eq!(symbols, (0..=u8::MAX).collect::<Vec<_>>());
    }

    /// The examples of RFC 7541, appendix C, and the longest and rarest codes of appendix B.
    #[test]
    fn huffman_strings_are_decoded() {
        for (encoded, text) in [
            (&b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"[..], &b"www.example.com"[..]),
            (b"\xa8\xeb\x10\x64\x9c\xbf", b"no-cache"),
            (b"\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf", b"custom-value"),
            (b"\x60\x7f\xf5\x1f", b"/a#b"),
            (b"\xff\xff\xff\xf3", b"\n"),
            (b"\xff\xff\xff\xfb", b"\x16"),
            (b"\xff\xc7", b"\0"),
            (b"\xff\xfe\x6f", b"\x80"),
            (b"", b""),
        ] {
            assert_eq!(decode(encoded).as_deref(), Some(text), "{encoded:x?}");
        }
    }

    #[test]
    fn a_malformed_string_is_not_decoded() {
        // The end of a string within it, a padding of ten bits, one of zeros, and half a code.
        for encoded in [&b"\xff\xff\xff\xff"[..], b"\x63\xff", b"\x60", b"\xff\xfe"] {
            assert_eq!(decode(encoded), None, "{encoded:x?}");
        }
    }
}
