//! HTTP/2 frame by frame (RFC 9113), so that a test can send what no library would.

use core::time::Duration;
use std::collections::HashMap;

use super::{Client, Gateway, PATIENCE, frame, read_frame};

/// The head of a GET.
pub(crate) const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")];

/// One connection with prior knowledge.
pub(crate) struct Http2 {
    client: Client,
    /// What may be sent on the connection, and on each stream that has sent anything.
    window: i64,
    windows: HashMap<u32, i64>,
    /// What may be sent on a new stream.
    initial: i64,
}

/// What became of a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// It was answered with this status.
    Answered(u16),
    /// It was reset.
    Reset,
    /// The whole connection was given up.
    Closed,
}

impl Http2 {
    pub(crate) fn connect(gateway: &Gateway) -> Self {
        let mut client = gateway.connect();
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        // No dynamic table: SETTINGS_HEADER_TABLE_SIZE of 0.
        client.send(frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0]));
        Self { client, window: 65_535, windows: HashMap::new(), initial: 65_535 }
    }

    /// Opens a stream with these fields, as they are.
    pub(crate) fn head(&mut self, stream: u32, fields: &[(&str, &str)], ends: bool) {
        let mut block = Vec::new();
        for (name, value) in fields {
            // A literal without indexing, with a name of its own (RFC 7541 §6.2.2).
            block.push(0);
            for text in [name, value] {
                length(&mut block, text.len());
                block.extend_from_slice(text.as_bytes());
            }
        }
        let mut pieces = block.chunks(MAX_FRAME_BYTES).peekable();
        let (mut kind, mut flags) = (HEADERS, if ends { END_STREAM } else { 0 });
        while let Some(piece) = pieces.next() {
            let last = if pieces.peek().is_none() { END_HEADERS } else { 0 };
            let _ = self.client.try_send(frame(kind, flags | last, stream, piece));
            (kind, flags) = (CONTINUATION, 0);
        }
    }

    /// Opens a stream with a header block in frames of `size` bytes.
    pub(crate) fn pieces(&mut self, stream: u32, block: &[u8], size: usize) {
        let mut pieces = block.chunks(size).peekable();
        let (mut kind, mut flags) = (HEADERS, END_STREAM);
        while let Some(piece) = pieces.next() {
            let last = if pieces.peek().is_none() { END_HEADERS } else { 0 };
            let _ = self.client.try_send(frame(kind, flags | last, stream, piece));
            (kind, flags) = (CONTINUATION, 0);
        }
    }

    pub(crate) fn data(&mut self, stream: u32, data: &str, ends: bool) {
        let flags = if ends { END_STREAM } else { 0 };
        let _ = self.client.try_send(frame(DATA, flags, stream, data.as_bytes()));
    }

    pub(crate) fn reset(&mut self, stream: u32) -> std::io::Result<()> {
        self.client.try_send(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()))
    }

    /// Sends `count` frames of this type that belong to no stream, all at once.
    pub(crate) fn flood(&mut self, kind: u8, payload: &[u8], count: usize) -> std::io::Result<()> {
        self.client.try_send(frame(kind, 0, 0, payload).repeat(count))
    }

    /// Opens a stream with a header block as it is.
    pub(crate) fn block(&mut self, stream: u32, block: &[u8], ends: bool) {
        let flags = END_HEADERS | if ends { END_STREAM } else { 0 };
        let _ = self.client.try_send(frame(HEADERS, flags, stream, block));
    }

    /// Sends content of this size, as the gateway grants it, and the end; how much was sent when the gateway has granted
    /// nothing more for `patience`.
    pub(crate) fn upload(&mut self, stream: u32, size: usize, patience: Duration) -> usize {
        let mut sent = 0;
        while sent < size {
            let window = self.window.min(*self.windows.entry(stream).or_insert(self.initial));
            let piece = usize::try_from(window).unwrap_or(0).min(16_384).min(size - sent);
            if piece == 0 {
                self.client.stream.set_read_timeout(Some(patience)).expect("a socket");
                if self.client.stream.peek(&mut [0]).is_err() {
                    return sent;
                }
                self.frame().expect("an open connection");
                continue;
            }
            let flags = if sent + piece == size { END_STREAM } else { 0 };
            let data = vec![b'x'; piece];
            self.client.try_send(frame(DATA, flags, stream, &data)).expect("a reader");
            sent += piece;
            self.window -= piece as i64;
            *self.windows.entry(stream).or_default() -= piece as i64;
        }
        sent
    }

    /// Waits for what becomes of a stream.
    pub(crate) fn outcome(&mut self, stream: u32) -> Outcome {
        self.outcome_and_end(stream).0
    }

    /// The same, and whether the answer ends with its head.
    pub(crate) fn outcome_and_end(&mut self, stream: u32) -> (Outcome, bool) {
        self.client.stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        loop {
            let Some((kind, flags, on, payload)) = self.frame() else {
                return (Outcome::Closed, true);
            };
            match kind {
                HEADERS if on == stream => {
                    return (Outcome::Answered(status(&payload)), flags & END_STREAM != 0);
                }
                RST_STREAM if on == stream => return (Outcome::Reset, true),
                GOAWAY => return (Outcome::Closed, true),
                _ => {}
            }
        }
    }

    /// Lets the gateway send so many bytes more, on a stream and on the connection.
    pub(crate) fn grant(&mut self, stream: u32, bytes: u32) {
        if bytes == 0 {
            return;
        }
        for on in [0, stream] {
            let _ = self.client.try_send(frame(WINDOW_UPDATE, 0, on, &bytes.to_be_bytes()));
        }
    }

    /// Reads a stream's content to its end, granting for each piece what `share` says of its size; whether that is a reset.
    pub(crate) fn is_reset(&mut self, stream: u32, share: impl Fn(u32) -> u32) -> bool {
        self.client.stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        while let Some((kind, flags, on, payload)) = self.frame() {
            match kind {
                RST_STREAM if on == stream => return true,
                DATA if on == stream && flags & END_STREAM != 0 => return false,
                DATA if on == stream => self.grant(stream, share(payload.len() as u32)),
                _ => {}
            }
        }
        false
    }

    /// Waits for the reset of a stream; its code, or `None` if the connection ends before.
    pub(crate) fn reset_code(&mut self, stream: u32) -> Option<u32> {
        self.client.stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        loop {
            let (kind, _, on, payload) = self.frame()?;
            if kind == RST_STREAM && on == stream {
                return Some(number(&payload));
            }
        }
    }

    /// The next frame, with what it says of windows taken note of; `None` if the connection is over.
    fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let (kind, flags, on, payload) = read_frame(&mut self.client.stream).ok()?;
        match kind {
            SETTINGS if flags & ACK == 0 => {
                for setting in payload.chunks_exact(6) {
                    if setting[..2] == INITIAL_WINDOW_SIZE {
                        let size = i64::from(number(&setting[2..]));
                        self.windows.values_mut().for_each(|window| *window += size - self.initial);
                        self.initial = size;
                    }
                }
                // The connection may be over by now.
                let _ = self.client.try_send(frame(SETTINGS, ACK, 0, &[]));
            }
            WINDOW_UPDATE if on == 0 => self.window += i64::from(number(&payload)),
            WINDOW_UPDATE => {
                *self.windows.entry(on).or_insert(self.initial) += i64::from(number(&payload));
            }
            _ => {}
        }
        Some((kind, flags, on, payload))
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// A length with a prefix of seven bits (RFC 7541 §5.1).
fn length(block: &mut Vec<u8>, length: usize) {
    if length < 127 {
        return block.push(length as u8);
    }
    block.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        block.push((rest % 128 + 128) as u8);
        rest /= 128;
    }
    block.push(rest as u8);
}

/// The status at the start of an answer's block: from the static table, or three digits.
fn status(block: &[u8]) -> u16 {
    let block = if block[0] & 0xe0 == 0x20 { &block[1..] } else { block };
    match block[0] {
        indexed @ 0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)],
        _ if block[1] & 0x80 == 0 => {
            core::str::from_utf8(&block[2..5]).expect("digits").parse().expect("a status")
        }
        _ => {
            // Huffman: 0, 1, 2 have five bits, the others six (RFC 7541, appendix B).
            let padded = block[2..].iter().copied().chain([0; 3]).take(3);
            let bits = padded.fold(0_u32, |bits, byte| bits << 8 | u32::from(byte));
            let (mut at, mut status) = (24, 0);
            for _ in 0..3 {
                let five = bits >> (at - 5) & 0x1f;
                let digit = if five < 3 {
                    at -= 5;
                    five
                } else {
                    at -= 6;
                    (bits >> at & 0x3f) - 0x19 + 3
                };
                status = status * 10 + digit;
            }
            status as u16
        }
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
/// What a frame may hold unless the other side allows more (RFC 9113 §4.2).
const MAX_FRAME_BYTES: usize = 16_384;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
