//! Frames of HTTP/2 as a scanner of either side sees them (RFC 9113 §4.1, §6), and the limit on those that cost work
//! and carry nothing (§10.5).

use core::mem::take;

use tokio::time::Instant;

/// Bytes of a frame header (RFC 9113 §4.1).
pub const FRAME_HEADER_BYTES: usize = 9;
/// Frame types.
pub const DATA: u8 = 0;
/// See [`DATA`].
pub const HEADERS: u8 = 1;
/// See [`DATA`].
pub const RST_STREAM: u8 = 3;
/// See [`DATA`].
pub const SETTINGS: u8 = 4;
/// See [`DATA`].
pub const PUSH_PROMISE: u8 = 5;
/// See [`DATA`].
pub const GOAWAY: u8 = 7;
/// See [`DATA`].
pub const WINDOW_UPDATE: u8 = 8;
/// See [`DATA`].
pub const CONTINUATION: u8 = 9;
/// The flag of DATA and HEADERS that ends a stream.
pub const END_STREAM: u8 = 1;
/// The position of the type in a frame header.
const TYPE_AT: usize = 3;
/// A type that no version of HTTP/2 has.
const UNKNOWN: u8 = 0xff;

/// The burst of frames without content that a peer may send.
pub(crate) const MAX_BURST_FRAMES: u32 = 10_000;
/// The frames per second without content that a peer may send after its burst.
const MAX_FRAMES_PER_SECOND: u32 = 1_000;

/// The position in a stream of frames, of which reads may end anywhere.
#[derive(Debug, Eq, PartialEq)]
pub struct FrameHeaders {
    /// Bytes to skip: the rest of the preface or of a payload.
    skip: usize,
    /// A frame header split between two reads.
    head: [u8; FRAME_HEADER_BYTES],
    have: usize,
    /// Whether a frame was refused.
    silenced: bool,
}

/// A part of a frame, as reads deliver it.
#[derive(Clone, Copy, Debug)]
pub enum FramePart<'a> {
    /// The whole header.
    Header {
        /// The type.
        kind: u8,
        /// The flags.
        flags: u8,
        /// The length of the payload.
        length: usize,
    },
    /// A piece of the payload that belongs to the last header, or of the preface before the first one; not empty.
    Payload(&'a [u8]),
}

impl FrameHeaders {
    /// Creates the position before the first frame, which follows after `skip` bytes of a preface.
    pub const fn after(skip: usize) -> Self {
        Self { skip, head: [0; FRAME_HEADER_BYTES], have: 0, silenced: false }
    }

    /// Turns every frame that follows into one that is ignored.
    pub const fn silence(&mut self) {
        self.silenced = true;
    }

    /// Calls `frame` with the header of each frame whose header ends in `bytes`, and with the pieces of its payload.
    ///
    /// DATA without a payload that ends nothing becomes a frame of an unknown type, which is ignored: `h2` closes a
    /// connection after a hundred of them, in however long a life. So does a frame that `frame` refuses, and all that
    /// follows it: `h2` has nothing more to read, and can still close the connection.
    ///
    /// # Errors
    ///
    /// The first [`Flood`] of `frame`, once.
    pub fn scan(
        &mut self,
        mut bytes: &mut [u8],
        mut frame: impl FnMut(FramePart<'_>) -> Result<(), Flood>,
    ) -> Result<(), Flood> {
        let mut scanned = Ok(());
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            let (payload, rest) = take(&mut bytes).split_at_mut(skipped);
            bytes = rest;
            if !payload.is_empty() && !self.silenced && frame(FramePart::Payload(payload)).is_err()
            {
                (self.silenced, scanned) = (true, Err(Flood));
            }
            let before = self.have;
            let wanted = (FRAME_HEADER_BYTES - before).min(bytes.len());
            let (head, rest) = take(&mut bytes).split_at_mut(wanted);
            if self.silenced {
                head.copy_from_slice(&IGNORED[before..before + wanted]);
            }
            self.head[before..before + wanted].copy_from_slice(head);
            self.have += wanted;
            bytes = rest;
            if self.have == FRAME_HEADER_BYTES {
                self.have = 0;
                let [a, b, c, kind, flags, ..] = self.head;
                self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                let header = FramePart::Header { kind, flags, length: self.skip };
                if !self.silenced && frame(header).is_err() {
                    (self.silenced, scanned) = (true, Err(Flood));
                }
                let is_void = kind == DATA && self.skip == 0 && flags & END_STREAM == 0;
                // The type of a frame whose header is split may have passed.
                if (is_void || self.silenced)
                    && let Some(at) = TYPE_AT.checked_sub(before)
                {
                    head[at] = UNKNOWN;
                }
            }
        }
        scanned
    }
}

/// The header of a frame without content that is ignored (RFC 9113 §5.5).
const IGNORED: [u8; FRAME_HEADER_BYTES] = [0, 0, 0, UNKNOWN, 0, 0, 0, 0, 0];

/// A limit on events of one kind: a burst, and a rate per second.
#[derive(Debug)]
pub struct TokenBucket {
    left: u32,
    burst: u32,
    per_second: u32,
    refilled: Instant,
}

/// The error of events beyond a limit, or of a peer that speaks another protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Flood;

impl TokenBucket {
    /// Creates a full bucket at `now`.
    pub const fn new(burst: u32, per_second: u32, now: Instant) -> Self {
        Self { left: burst, burst, per_second, refilled: now }
    }

    /// Creates a full bucket for frames without content at `now`.
    pub const fn of_empty_frames(now: Instant) -> Self {
        Self::new(MAX_BURST_FRAMES, MAX_FRAMES_PER_SECOND, now)
    }

    /// Returns the events that are left until the next refill.
    #[cfg(test)]
    pub const fn left(&self) -> u32 {
        self.left
    }

    /// Counts one event.
    ///
    /// # Errors
    ///
    /// [`Flood`] if the burst is used up and the last second has refilled nothing.
    pub fn spend(&mut self) -> Result<(), Flood> {
        if self.left == 0 {
            let seconds = self.refilled.elapsed().as_secs();
            if seconds == 0 {
                return Err(Flood);
            }
            self.refilled = Instant::now();
            let refill = seconds.saturating_mul(self.per_second.into());
            self.left = u32::try_from(refill).unwrap_or(u32::MAX).min(self.burst);
        }
        self.left -= 1;
        Ok(())
    }
}
