//! What either side of HTTP/2 knows of frames (RFC 9113 §4.1, §6), and the limit on those that cost work and carry
//! nothing (§10.5).

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

/// The burst of frames without content that a peer may send.
pub(crate) const MAX_BURST_FRAMES: u32 = 10_000;
/// The frames per second without content that a peer may send after its burst.
const MAX_FRAMES_PER_SECOND: u32 = 1_000;

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
