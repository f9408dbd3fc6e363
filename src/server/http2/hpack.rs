//! Finds the `:path` of an HTTP/2 request (RFC 9113 §8.3.1) in its header block, if a `Uri` might not hold it.
//!
//! The `http` crate refuses some bytes of a target, and silently cuts off a fragment, so that an upstream would see
//! another target than the client sent, and than a proxy in front may have decided about. This scanner follows the
//! header blocks (RFC 7541) just far enough to know which bytes are the value of a `:path`. In a block that is read as
//! a whole, `raw_targets` replaces such a value. In a longer one, a `#` is turned into `>`: the two
//! differ in one bit both as literals and in the Huffman code, and no `Uri` contains `>`, so that h2 refuses the
//! request as malformed.
//!
//! Nothing is decoded or stored except such values, and lengths of strings, which determine the contents of the dynamic
//! table.

use core::mem::take;
use core::ops::Range;
use std::collections::VecDeque;

use bytes::Bytes;

use super::huffman::{self, MAX_CODE_BITS, code_length};
use crate::base::raw_target::MAX_TARGET_BYTES;

/// A scanner of the successive header blocks of a connection.
#[derive(Debug, Default)]
pub(crate) struct HeaderBlocks {
    state: State,
    table: Table,
    field: Field,
    /// Whether the bytes being scanned are a whole block.
    whole: bool,
    /// The position in a whole block.
    at: usize,
    /// The unusual path of the block being scanned.
    path: Option<UnusualPath>,
    /// Whether the block being scanned has a pseudo-header field (RFC 9113 §8.3).
    has_pseudo: bool,
    /// The fields of the block so far.
    fields: usize,
}

/// The `:path` of a whole header block that a `Uri` might not hold.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct UnusualPath {
    /// The value, decoded.
    pub(crate) value: Bytes,
    /// The position of the string in the block; `None` for a path of the dynamic table.
    pub(crate) literal: Option<Range<usize>>,
    /// Whether the field is added to the dynamic table, or comes from there.
    pub(crate) indexed: bool,
}

/// A field of the dynamic table is an unusual path, and the block that refers to the field is not whole.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct UnusualPathInPieces;

/// The element of a header block that the next byte belongs to.
#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// The first byte of a representation.
    #[default]
    Representation,
    /// The rest of an integer (RFC 7541 §5.1).
    Integer { of: Integer, value: usize, shift: u32 },
    /// The first byte of a string length.
    Length(Text),
    /// A string literal (RFC 7541 §5.2) with `left` bytes to come.
    Text { text: Text, huffman: bool, left: usize },
    /// The block is malformed: h2 closes the connection.
    Malformed,
}

#[derive(Clone, Copy, Debug)]
enum Integer {
    Indexed,
    TableSize,
    /// The name of a literal field; whether the field is added to the table.
    Name {
        indexed: bool,
    },
    Length {
        text: Text,
        huffman: bool,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Text {
    Name,
    Value,
}

/// The literal field being scanned.
#[derive(Debug, Default)]
struct Field {
    indexed: bool,
    is_path: bool,
    is_pseudo: bool,
    name: usize,
    value: usize,
    /// The position of the value, with its length, in a whole block.
    start: usize,
    /// Whether a `Uri` might not hold the value.
    unusual: bool,
    /// An unusual path, decoded.
    decoded: Option<Bytes>,
    /// The beginning of a name, as encoded.
    prefix: [u8; PATH.len()],
    at: usize,
    /// Bits of a Huffman-coded string that are not a whole symbol yet, and their number.
    bits: u64,
    count: u32,
}

impl HeaderBlocks {
    /// Scans a whole block, and returns the path if it is unusual.
    pub(crate) fn scan_whole(&mut self, block: &mut [u8]) -> Option<UnusualPath> {
        self.begin();
        (self.whole, self.at, self.path) = (true, 0, None);
        // Only a block in pieces has this error.
        let _ = self.scan(block);
        self.whole = false;
        self.path.take()
    }

    /// Begins a block.
    pub(crate) const fn begin(&mut self) {
        (self.has_pseudo, self.fields) = (false, 0);
    }

    /// Whether the block has more fields than any client sends. One byte can stand for a field that takes a hundred in memory.
    pub(crate) const fn has_too_many_fields(&self) -> bool {
        self.fields > MAX_FIELDS
    }

    /// Whether the whole block that was scanned last has a pseudo-header field (RFC 9113 §8.3).
    pub(crate) const fn had_pseudo_field(&self) -> bool {
        self.has_pseudo
    }

    /// Scans `bytes` of a block that is too long to be read as a whole.
    ///
    /// # Errors
    ///
    /// [`UnusualPathInPieces`]: the caller must not let h2 see the block.
    pub(crate) fn scan(&mut self, mut bytes: &mut [u8]) -> Result<(), UnusualPathInPieces> {
        while let [first, ..] = *bytes {
            let taken = match self.state {
                State::Representation => {
                    self.state = self.start_representation(first);
                    1
                }
                State::Integer { of, value, shift } => {
                    self.state = self.continue_integer(of, value, shift, first);
                    1
                }
                State::Length(text) => {
                    let (huffman, value) = (first & 0x80 != 0, usize::from(first & 0x7f));
                    self.field.start = self.at;
                    self.state = self.prefix(Integer::Length { text, huffman }, value, 0x7f);
                    1
                }
                State::Text { text, huffman, left } => {
                    let count = left.min(bytes.len());
                    self.text(text, huffman, &mut bytes[..count]);
                    self.state = match left - count {
                        0 => self.end_text(text, huffman, self.at + count),
                        left => State::Text { text, huffman, left },
                    };
                    count
                }
                State::Malformed => return Ok(()),
            };
            self.at += taken;
            bytes = &mut take(&mut bytes)[taken..];
            if !self.whole && self.path.take().is_some() {
                return Err(UnusualPathInPieces);
            }
        }
        Ok(())
    }

    fn start_representation(&mut self, first: u8) -> State {
        let value = usize::from(first);
        self.fields += 1;
        match first {
            0x80.. => self.prefix(Integer::Indexed, value & 0x7f, 0x7f),
            0x40.. => self.prefix(Integer::Name { indexed: true }, value & 0x3f, 0x3f),
            0x20.. => self.prefix(Integer::TableSize, value & 0x1f, 0x1f),
            _ => self.prefix(Integer::Name { indexed: false }, value & 0x0f, 0x0f),
        }
    }

    /// Starts an integer whose prefix is `value`; if all prefix bits are set, more bytes follow.
    fn prefix(&mut self, of: Integer, value: usize, all: usize) -> State {
        if value == all {
            State::Integer { of, value, shift: 0 }
        } else {
            self.finish_integer(of, value)
        }
    }

    fn continue_integer(&mut self, of: Integer, value: usize, shift: u32, byte: u8) -> State {
        if shift > MAX_SHIFT {
            return State::Malformed;
        }
        let value = value + (usize::from(byte & 0x7f) << shift);
        if byte & 0x80 != 0 {
            State::Integer { of, value, shift: shift + 7 }
        } else {
            self.finish_integer(of, value)
        }
    }

    fn finish_integer(&mut self, of: Integer, value: usize) -> State {
        match of {
            Integer::Indexed => {
                self.has_pseudo |= self.table.name(value).is_some_and(|name| name.is_pseudo);
                if let Some(value) = self.table.unusual_path(value) {
                    self.path = Some(UnusualPath { value, literal: None, indexed: true });
                }
                State::Representation
            }
            Integer::TableSize if value > MAX_TABLE_SIZE => State::Malformed,
            Integer::TableSize => {
                self.table.resize(value);
                State::Representation
            }
            Integer::Name { indexed } => {
                self.field = Field { indexed, ..Field::default() };
                if value == 0 {
                    return State::Length(Text::Name);
                }
                let Some(name) = self.table.name(value) else { return State::Malformed };
                (self.field.name, self.field.is_path) = (name.length, name.is_path);
                self.record_pseudo(name.is_pseudo);
                State::Length(Text::Value)
            }
            Integer::Length { text, huffman } if value == 0 => {
                self.end_text(text, huffman, self.at + 1)
            }
            Integer::Length { text, huffman } => State::Text { text, huffman, left: value },
        }
    }

    /// Records whether the field being scanned is a pseudo-header field.
    const fn record_pseudo(&mut self, is_pseudo: bool) {
        self.field.is_pseudo = is_pseudo;
        self.has_pseudo |= is_pseudo;
    }

    fn text(&mut self, text: Text, huffman: bool, bytes: &mut [u8]) {
        let field = &mut self.field;
        if text == Text::Name {
            for byte in &*bytes {
                if let Some(slot) = field.prefix.get_mut(field.at) {
                    *slot = *byte;
                }
                field.at += 1;
            }
        }
        let is_target = text == Text::Value && field.is_path;
        let refuses = is_target && !self.whole;
        let length = if huffman {
            bytes.iter_mut().map(|byte| field.symbols(byte, refuses)).sum()
        } else {
            if refuses {
                bytes.iter_mut().filter(|byte| **byte == b'#').for_each(|byte| *byte = b'>');
            }
            field.unusual |= is_target && bytes.iter().any(|byte| is_unusual(*byte));
            bytes.len()
        };
        // A `Uri` does not hold a path that is too long, either.
        field.unusual |= is_target && length > MAX_TARGET_BYTES;
        if is_target && self.whole && field.unusual {
            // h2 refuses a string that cannot be decoded.
            let decoded = if huffman { huffman::decode(bytes) } else { Some(bytes.to_vec()) };
            field.decoded = decoded.map(Bytes::from);
        }
        match text {
            Text::Name => field.name += length,
            Text::Value => field.value += length,
        }
    }

    fn end_text(&mut self, text: Text, huffman: bool, end: usize) -> State {
        let field = &mut self.field;
        // The remaining bits of the Huffman code are padding.
        (field.bits, field.count) = (0, 0);
        match text {
            Text::Name => {
                field.unusual = false;
                field.is_path = if huffman {
                    field.at == 4
                        && u32::from_be_bytes(*field.prefix.first_chunk().unwrap_or(&[0; 4])) >> 3
                            == PATH_IN_HUFFMAN
                } else {
                    field.at == PATH.len() && field.prefix == *PATH
                };
                let first = if huffman { field.prefix[0] >> 1 } else { field.prefix[0] };
                let colon = if huffman { COLON_IN_HUFFMAN } else { b':' };
                let is_pseudo = field.at > 0 && first == colon;
                self.record_pseudo(is_pseudo);
                State::Length(Text::Value)
            }
            Text::Value => {
                let unusual_path = field.decoded.take();
                if let Some(value) = &unusual_path {
                    let literal = Some(field.start..end);
                    let (value, indexed) = (value.clone(), field.indexed);
                    self.path = Some(UnusualPath { value, literal, indexed });
                }
                if field.indexed {
                    self.table.add(Entry {
                        name: field.name,
                        value: field.value,
                        is_path: field.is_path,
                        is_pseudo: field.is_pseudo,
                        unusual_path,
                    });
                }
                State::Representation
            }
        }
    }
}

impl Field {
    /// Returns the number of Huffman symbols (RFC 7541, appendix B) that end in `byte`. Turns `#` into `>` where a
    /// fragment is to be refused.
    fn symbols(&mut self, byte: &mut u8, refuses: bool) -> usize {
        (self.bits, self.count) = (self.bits << 8 | u64::from(*byte), self.count + 8);
        let mut symbols = 0;
        loop {
            let window = if self.count >= MAX_CODE_BITS {
                self.bits >> (self.count - MAX_CODE_BITS)
            } else {
                self.bits << (MAX_CODE_BITS - self.count)
            };
            let length = code_length(window);
            if length > self.count {
                return symbols;
            }
            self.count -= length;
            let code = self.bits >> self.count;
            self.bits &= (1 << self.count) - 1;
            symbols += 1;
            self.unusual |= is_unusual_code(code, length);
            if refuses && length == HASH_BITS && code == HASH {
                // The last bit of the code is in this byte: the symbol was incomplete before.
                *byte |= 1 << self.count;
            }
        }
    }
}

/// Whether a `Uri` may refuse this byte of a path.
const fn is_unusual(byte: u8) -> bool {
    matches!(byte, 0..=b' ' | b'"' | b'#' | b'<' | b'>' | b'`' | 0x7f..)
}

/// Whether a Huffman code is that of such a byte.
const fn is_unusual_code(code: u64, length: u32) -> bool {
    match length {
        // The space, `"`, `#` and `>`, NUL, `<` and the backtick.
        6 => code == 0x14,
        10 => code == 0x3f9,
        12 => true,
        13 => code == 0x1ff8,
        15 => code != 0x7ffe,
        // `\` has the shortest of the long codes; all others are of control characters and bytes above 0x7F.
        19 => code != 0x7fff0,
        _ => length > 19,
    }
}

/// The lengths of the entries of the dynamic table (RFC 7541 §2.3.2, §4).
#[derive(Debug)]
struct Table {
    entries: VecDeque<Entry>,
    size: usize,
    max_size: usize,
}

#[derive(Clone, Debug)]
struct Entry {
    name: usize,
    value: usize,
    is_path: bool,
    is_pseudo: bool,
    /// The value, if it is an unusual path of a whole block.
    unusual_path: Option<Bytes>,
}

/// The name of an entry, as far as it matters.
struct Name {
    length: usize,
    is_path: bool,
    /// Whether it is the name of a pseudo-header field.
    is_pseudo: bool,
}

impl Entry {
    const fn size(&self) -> usize {
        self.name + self.value + 32
    }
}

impl Default for Table {
    fn default() -> Self {
        Self { entries: VecDeque::new(), size: 0, max_size: MAX_TABLE_SIZE }
    }
}

impl Table {
    /// Returns the name of an entry.
    fn name(&self, index: usize) -> Option<Name> {
        let index = index.checked_sub(1)?;
        if let Some(length) = STATIC_NAMES.get(index) {
            let (is_path, is_pseudo) = (matches!(index, 3 | 4), index < STATIC_PSEUDO_NAMES);
            return Some(Name { length: usize::from(*length), is_path, is_pseudo });
        }
        let entry = self.entries.get(index - STATIC_NAMES.len())?;
        let Entry { name, is_path, is_pseudo, .. } = *entry;
        Some(Name { length: name, is_path, is_pseudo })
    }

    /// Returns the value of an entry that is an unusual path.
    fn unusual_path(&self, index: usize) -> Option<Bytes> {
        self.entries.get(index.checked_sub(1 + STATIC_NAMES.len())?)?.unusual_path.clone()
    }

    fn add(&mut self, entry: Entry) {
        self.shrink(self.max_size.saturating_sub(entry.size()));
        if entry.size() <= self.max_size {
            self.size += entry.size();
            self.entries.push_front(entry);
        }
    }

    fn resize(&mut self, max_size: usize) {
        self.max_size = max_size;
        self.shrink(max_size);
    }

    fn shrink(&mut self, to: usize) {
        while self.size > to
            && let Some(entry) = self.entries.pop_back()
        {
            self.size -= entry.size();
        }
    }
}

/// The maximum size of the dynamic table: h2 announces no other than the default (RFC 9113 §6.5.2).
pub(crate) const MAX_TABLE_SIZE: usize = 4096;
/// The maximum shift of an integer: more bits than any length that h2 accepts.
const MAX_SHIFT: u32 = 28;
/// Far more than the fields of a head and the crumbs of its cookies.
const MAX_FIELDS: usize = 4096;
const PATH: &[u8; 5] = b":path";
/// `:path` in the Huffman code, without its padding of three bits.
const PATH_IN_HUFFMAN: u32 = 0xb958_d33f >> 3;
/// The Huffman code of `#`, and its length in bits.
const HASH: u64 = 0xffa;
const HASH_BITS: u32 = 12;
/// The Huffman code of `:`, of seven bits.
const COLON_IN_HUFFMAN: u8 = 0x5c;
/// The first entries of the static table are those of pseudo-header fields.
const STATIC_PSEUDO_NAMES: usize = 14;
/// Lengths of the names in the static table (RFC 7541, appendix A).
const STATIC_NAMES: [u8; 61] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14,
    16, 13, 12, 6, 4, 4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10,
    25, 17, 10, 4, 3, 16,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// `/a#b` in the Huffman code, and its replacement.
    const HUFFMAN: [u8; 4] = [0b0110_0000, 0b0111_1111, 0b1111_0101, 0b0001_1111];
    const REFUSED: [u8; 4] = [0b0110_0000, 0b0111_1111, 0b1111_0111, 0b0001_1111];
    /// `:path` in the Huffman code.
    const NAME: [u8; 4] = [0b1011_1001, 0b0101_1000, 0b1101_0011, 0b0011_1111];

    #[test]
    fn a_fragment_is_found_in_every_encoding_of_a_path() {
        for (before, after) in [
            (b"\x00\x05:path\x04/a#b".to_vec(), b"\x00\x05:path\x04/a>b".to_vec()),
            (b"\x04\x04/#?#".to_vec(), b"\x04\x04/>?>".to_vec()),
            (b"\x45\x04/a#b".to_vec(), b"\x45\x04/a>b".to_vec()),
            (b"\x14\x04/a#b".to_vec(), b"\x14\x04/a>b".to_vec()),
            ([b"\x04\x84", &HUFFMAN[..]].concat(), [b"\x04\x84", &REFUSED[..]].concat()),
            (
                [b"\x00\x84", &NAME[..], b"\x04/a#b"].concat(),
                [b"\x00\x84", &NAME[..], b"\x04/a>b"].concat(),
            ),
            // By the name of an entry of the dynamic table, after another one.
            (
                b"\x40\x05:path\x01/\x40\x01a\x01b\x0f\x30\x02/#".to_vec(),
                b"\x40\x05:path\x01/\x40\x01a\x01b\x0f\x30\x02/>".to_vec(),
            ),
        ] {
            assert_eq!(followed(&before, before.len()), after, "{before:?}");
            assert_eq!(followed(&before, 1), after, "byte by byte: {before:?}");
        }
    }

    #[test]
    fn other_fields_and_bytes_stay_unchanged() {
        for block in [
            b"\x00\x07referer\x04/a#b".to_vec(),
            b"\x0f\x24\x04/a#b".to_vec(),
            b"\x04\x06/a%23b".to_vec(),
            b"\x00\x06:paths\x02/#".to_vec(),
            [b"\x0f\x24\x84", &HUFFMAN[..]].concat(),
            // The entry whose name is used is `a`.
            b"\x40\x05:path\x01/\x40\x01a\x01b\x0f\x2f\x02/#".to_vec(),
            // The entry was evicted: the block is malformed.
            b"\x40\x05:path\x01/\x20\x0f\x2f\x02/#".to_vec(),
        ] {
            assert_eq!(followed(&block, block.len()), block);
            assert_eq!(followed(&block, 1), block, "byte by byte");
        }
    }

    /// An entry that is too large empties the table, and later entries are added as usual.
    #[test]
    fn the_table_evicts_entries_that_do_not_fit() {
        let mut blocks = HeaderBlocks::default();
        assert_eq!(blocks.scan(&mut b"\x40\x05:path\x01/".to_vec()), Ok(()));
        // 4096 bytes of `x`: 127 + 0x01 + (0x1f << 7).
        let mut large = [b"\x40\x01a\x7f\x81\x1f".to_vec(), vec![b'x'; 4096]].concat();
        assert_eq!(blocks.scan(&mut large), Ok(()));

        assert!(matches!(blocks.state, State::Representation), "{:?}", blocks.state);
        assert_eq!((blocks.table.entries.len(), blocks.table.size), (0, 0));
    }

    fn followed(block: &[u8], piece: usize) -> Vec<u8> {
        let (mut blocks, mut block) = (HeaderBlocks::default(), block.to_vec());
        block.chunks_mut(piece).for_each(|piece| assert_eq!(blocks.scan(piece), Ok(())));
        block
    }
}
