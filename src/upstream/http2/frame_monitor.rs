//! The state of one connection that only its frames reveal, and limits on what a broken upstream may send.
//!
//! `h2` hides the frames of a connection. This scanner follows their headers (RFC 9113 §4.1): it reports when the
//! upstream's SETTINGS arrived, which allow more than one stream, and limit the heads of requests; when GOAWAY arrived, after
//! which no stream may begin; and whether anything arrived at all. Frames that cost work and carry nothing, and header blocks out of proportion to
//! the requests, end the connection (RFC 9113 §10.5).

use core::cell::Cell;
use std::io;
use std::rc::Rc;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::super::connections::handshake_error::ReceivedAlert;
use crate::base::inspected_stream::Inspector;
use crate::http2::ReceivedContents;
use crate::http2::frames::{
    CONTINUATION, DATA, END_STREAM, Flood, FrameHeaders, FramePart, GOAWAY, HEADERS, RST_STREAM,
    SETTINGS, TokenBucket, WINDOW_UPDATE,
};

/// The state of one connection as its frames tell it. Shared by the scanner, the driver and the pool.
#[derive(Debug, Default)]
pub(super) struct ConnectionFacts {
    /// Whether the first SETTINGS have arrived.
    has_settings: Cell<bool>,
    going_away: Cell<bool>,
    closed: Cell<bool>,
    /// Whether the upstream sent what no upstream of HTTP/2 sends.
    violated: Cell<bool>,
    /// Whether a response has begun, or GOAWAY names a request as processed.
    served: Cell<bool>,
    /// The largest head of a request that the upstream accepts, in bytes of RFC 9113 §6.5.2; `None` is no limit.
    max_header_list: Cell<Option<u32>>,
    /// The TLS alert that ended the connection.
    alert: ReceivedAlert,
    /// Whether a request has reported the loss of the connection.
    reported: Cell<bool>,
    /// Open streams.
    streams: Cell<usize>,
    /// The contents of their responses.
    pub(super) contents: ReceivedContents,
    /// Reads from the connection.
    reads: Cell<u64>,
    /// Bytes that the connection has taken.
    written: Cell<u64>,
    /// Header blocks that the upstream may still send.
    header_blocks: Cell<u32>,
    /// The number of reads when a request last doubted the connection.
    doubted_at: Cell<u64>,
    doubted: Notify,
    changed: Notify,
}

impl ConnectionFacts {
    /// Waits for the upstream's first SETTINGS (RFC 9113 §3.4); false if the connection ends before.
    pub(super) async fn settings_received(&self) -> bool {
        while !self.has_settings.get() && !self.closed.get() {
            self.changed.notified().await;
        }
        self.has_settings.get() && !self.closed.get()
    }

    /// Whether a new stream may begin: neither has the connection ended, nor will it.
    pub(super) fn accepts_streams(&self) -> bool {
        !self.closed.get() && !self.going_away.get()
    }

    /// Whether the connection will end, by GOAWAY or by the gateway's decision.
    pub(super) fn is_going_away(&self) -> bool {
        self.going_away.get()
    }

    /// Whether the gateway ended the connection because of what the upstream sent.
    pub(super) fn is_violated(&self) -> bool {
        self.violated.get()
    }

    /// Whether the upstream has begun a response to any request, or says that it has processed one.
    pub(super) fn has_served(&self) -> bool {
        self.served.get()
    }

    /// Whether the upstream accepts a request whose head has so many bytes, as RFC 9113 §6.5.2 counts them.
    pub(super) fn accepts_head(&self, bytes: usize) -> bool {
        self.max_header_list.get().is_none_or(|max| bytes <= max as usize)
    }

    /// Returns the cause that a TLS alert gives for the end of the connection.
    pub(super) fn alert(&self) -> Option<&'static str> {
        self.alert.cause()
    }

    /// Reports the loss of the connection. Returns whether another request has before.
    pub(super) fn report_loss(&self) -> bool {
        self.reported.replace(true)
    }

    /// Whether the connection has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Records that no stream may begin any more.
    pub(super) fn retire(&self) {
        self.going_away.set(true);
    }

    /// Records that the upstream's SETTINGS have arrived.
    fn settle(&self) {
        if !self.has_settings.replace(true) {
            self.changed.notify_one();
        }
    }

    /// Records the end of the connection.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.changed.notify_waiters();
        self.changed.notify_one();
    }

    /// Returns the number of open streams.
    pub(super) fn streams(&self) -> usize {
        self.streams.get()
    }

    /// Records the number of open streams.
    pub(super) fn set_streams(&self, streams: usize) {
        self.streams.set(streams);
    }

    /// Returns a number that changes whenever something is received.
    pub(super) fn reads(&self) -> u64 {
        self.reads.get()
    }

    /// Returns the number of bytes that the connection has taken.
    pub(super) fn written(&self) -> u64 {
        self.written.get()
    }

    /// Doubts the connection: a request was given up, and nothing was received since it was sent.
    pub(super) fn doubt(&self) {
        self.doubted_at.set(self.reads.get());
        self.doubted.notify_one();
    }

    /// Waits until a request doubts the connection and nothing was received since.
    pub(super) async fn doubted(&self) {
        loop {
            self.doubted.notified().await;
            if self.doubted_at.get() == self.reads.get() {
                return;
            }
        }
    }

    /// Records a request, whose response may have so many header blocks: interim ones, the head, trailers.
    pub(super) fn request_sent(&self) {
        let blocks = self.header_blocks.get().saturating_add(MAX_HEADER_BLOCKS_PER_RESPONSE);
        self.header_blocks.set(blocks);
    }
}

/// The scanner of the frames that an upstream sends.
#[derive(Debug)]
pub(super) struct FrameScanner {
    facts: Rc<ConnectionFacts>,
    headers: FrameHeaders,
    /// Frames without content that may still be received.
    bucket: TokenBucket,
    /// Header blocks that may still be received beyond those of the requests: interim responses, whose bytes are bounded for
    /// each request.
    blocks: TokenBucket,
    /// The payload that is being received.
    payload: Payload,
}

impl FrameScanner {
    /// Creates the scanner of a connection that begins `now`.
    pub(super) const fn new(facts: Rc<ConnectionFacts>, now: Instant) -> Self {
        let headers = FrameHeaders::after(0);
        let blocks = TokenBucket::new(MAX_BURST_BLOCKS, MAX_BLOCKS_PER_SECOND, now);
        let bucket = TokenBucket::of_empty_frames(now);
        Self { facts, headers, bucket, blocks, payload: Payload::Skipped }
    }

    fn scan(&mut self, bytes: &mut [u8]) -> Result<(), Flood> {
        let Self { facts, headers, bucket, blocks, payload } = self;
        headers.scan(bytes, |part| {
            let (kind, flags, length) = match part {
                FramePart::Header { kind, flags, length } => (kind, flags, length),
                FramePart::Payload(bytes) => {
                    payload.read(bytes, facts);
                    return Ok(());
                }
            };
            *payload = Payload::Skipped;
            // An upstream that speaks another protocol is detected by its first bytes.
            if !facts.has_settings.get() && (kind != SETTINGS || flags & ACK != 0) {
                return Err(Flood);
            }
            if kind == DATA {
                facts.contents.frame_arrived(length);
            }
            match kind {
                DATA if flags & END_STREAM == 0 && length == 0 => bucket.spend(),
                DATA | RST_STREAM | WINDOW_UPDATE | CONTINUATION => Ok(()),
                HEADERS => {
                    match facts.header_blocks.get().checked_sub(1) {
                        Some(left) => facts.header_blocks.set(left),
                        None => blocks.spend()?,
                    }
                    facts.served.set(true);
                    Ok(())
                }
                GOAWAY => {
                    *payload = Payload::GoAway { have: 0 };
                    facts.retire();
                    bucket.spend()
                }
                SETTINGS if flags & ACK == 0 => {
                    *payload = Payload::of_settings(length, facts);
                    bucket.spend()
                }
                // PRIORITY, PING, acknowledged SETTINGS, and unknown types.
                _ => bucket.spend(),
            }
        })
    }
}

/// The payload of a frame, of which reads deliver pieces.
#[derive(Debug)]
enum Payload {
    /// It is of no interest.
    Skipped,
    /// SETTINGS: pairs of an identifier and a value (RFC 9113 §6.5.1).
    Settings {
        /// Bytes that are still to come.
        left: usize,
        entry: [u8; SETTING_BYTES],
        have: usize,
    },
    /// GOAWAY: the first bytes are the last stream that was or might be processed (RFC 9113 §6.8).
    GoAway { have: usize },
}

impl Payload {
    /// Creates the payload of SETTINGS, which may be empty.
    fn of_settings(left: usize, facts: &ConnectionFacts) -> Self {
        if left == 0 {
            facts.settle();
        }
        Self::Settings { left, entry: [0; SETTING_BYTES], have: 0 }
    }

    fn read(&mut self, bytes: &[u8], facts: &ConnectionFacts) {
        match self {
            Self::Skipped => {}
            Self::Settings { left, entry, have } => {
                for byte in bytes {
                    entry[*have] = *byte;
                    *have = (*have + 1) % SETTING_BYTES;
                    let [a, b, value @ ..] = *entry;
                    if *have == 0 && u16::from_be_bytes([a, b]) == MAX_HEADER_LIST_SIZE {
                        facts.max_header_list.set(Some(u32::from_be_bytes(value)));
                    }
                }
                *left = left.saturating_sub(bytes.len());
                if *left == 0 {
                    facts.settle();
                }
            }
            Self::GoAway { have } => {
                let of_stream = bytes.iter().take(STREAM_ID_BYTES.saturating_sub(*have));
                if of_stream.into_iter().any(|byte| *byte != 0) {
                    facts.served.set(true);
                }
                *have += bytes.len();
            }
        }
    }
}

impl Inspector for FrameScanner {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.facts.reads.set(self.facts.reads.get().wrapping_add(1));
        self.scan(bytes).map_err(|Flood| {
            self.facts.violated.set(true);
            io::ErrorKind::InvalidData.into()
        })
    }

    fn failed(&mut self, error: &io::Error) {
        self.facts.alert.record(error);
    }

    fn pauses(&self) -> bool {
        self.facts.contents.is_gathering_due()
    }

    fn wrote(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.facts.written.set(self.facts.written.get() + bytes.len() as u64);
        Ok(())
    }
}

/// Scans `bytes` in pieces, after one request. Returns whether they are accepted, and what they tell.
#[cfg(any(fuzzing, test))]
pub(super) fn outcome(bytes: &[u8], piece: usize) -> (bool, bool, bool) {
    let facts = Rc::<ConnectionFacts>::default();
    facts.request_sent();
    let mut frames = FrameScanner::new(Rc::clone(&facts), Instant::now());
    let mut bytes = bytes.to_vec();
    let accepted = bytes.chunks_mut(piece).all(|piece| frames.scan(piece).is_ok());
    (accepted, facts.has_settings.get(), facts.accepts_streams())
}

/// Header blocks per response: some interim responses, the head, and trailers. Unused ones count towards the
/// connection's later responses.
const MAX_HEADER_BLOCKS_PER_RESPONSE: u32 = 16;
/// Header blocks beyond these at a time: about as many as the limit of interim responses to one request allows.
const MAX_BURST_BLOCKS: u32 = 2_000;
const MAX_BLOCKS_PER_SECOND: u32 = 200;
const ACK: u8 = 1;
/// The identifier of a setting (RFC 9113 §6.5.2).
const MAX_HEADER_LIST_SIZE: u16 = 6;
const SETTING_BYTES: usize = 6;
const STREAM_ID_BYTES: usize = 4;

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use proptest::prelude::*;
    use tokio::time::advance;

    use super::*;
    use crate::http2::frames::{FRAME_HEADER_BYTES, MAX_BURST_FRAMES};

    const PING: u8 = 6;

    #[tokio::test(start_paused = true)]
    async fn a_connection_begins_with_settings() {
        let (facts, mut frames) = scanner();
        assert_eq!(frames.scan(&mut b"HTTP/1.1 400 Bad Request\r\n".to_vec()), Err(Flood));
        assert!(!facts.has_settings.get());

        let (facts, mut frames) = scanner();
        for byte in frame(SETTINGS, 0, 6) {
            assert_eq!(frames.scan(&mut [byte]), Ok(()));
        }
        assert!(facts.settings_received().await);
    }

    #[tokio::test(start_paused = true)]
    async fn no_stream_begins_after_goaway() {
        let (facts, mut frames) = scanner();
        let mut sent = [frame(SETTINGS, 0, 0), frame(GOAWAY, 0, 8)].concat();
        let cut = sent.len() - 12;
        let (first, last) = sent.split_at_mut(cut);
        assert_eq!(frames.scan(first), Ok(()));
        assert!(facts.accepts_streams());

        assert_eq!(frames.scan(last), Ok(()));

        assert!(!facts.accepts_streams());
    }

    #[tokio::test(start_paused = true)]
    async fn goaway_tells_whether_a_request_was_processed_however_reads_split_it() {
        for (last, served) in [(0_u32, false), (1, true), (1 << 30, true)] {
            let (facts, mut frames) = connected();
            let mut goaway = frame(GOAWAY, 0, 8);
            goaway[FRAME_HEADER_BYTES..][..4].copy_from_slice(&last.to_be_bytes());
            // The code and a debug text are no stream.
            goaway[FRAME_HEADER_BYTES + 7] = 11;

            for byte in goaway {
                assert_eq!(frames.scan(&mut [byte]), Ok(()));
            }

            assert_eq!(facts.has_served(), served, "{last}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_limit_on_heads_that_was_announced_applies() {
        let (facts, mut frames) = connected();
        assert!(facts.accepts_head(usize::MAX));
        for max in [8_192_u32, 0, 16_384] {
            let mut settings = frame(SETTINGS, 0, 12);
            settings[FRAME_HEADER_BYTES + 6..][..2].copy_from_slice(&[0, 6]);
            settings[FRAME_HEADER_BYTES + 8..][..4].copy_from_slice(&max.to_be_bytes());

            settings.chunks_mut(5).for_each(|piece| assert_eq!(frames.scan(piece), Ok(())));

            assert!(facts.accepts_head(max as usize));
            assert!(!facts.accepts_head(max as usize + 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_frames_without_content_ends_the_connection() {
        for (kind, flags, payload) in [(PING, 0, 8), (SETTINGS, 0, 6), (DATA, 0, 0), (0x55, 0, 3)] {
            let (_, mut frames) = connected();
            let taken = (0..=MAX_BURST_FRAMES)
                .take_while(|_| frames.scan(&mut frame(kind, flags, payload)).is_ok())
                .count();
            assert_eq!(taken as u32, MAX_BURST_FRAMES - 1, "{kind}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_that_measures_round_trips_is_not_limited() {
        let (_, mut frames) = connected();
        for _ in 0..100 {
            assert_eq!(frames.scan(&mut frame(PING, 0, 8).repeat(900)), Ok(()));
            advance(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn header_blocks_beyond_those_of_the_requests_end_the_connection() {
        let (facts, mut frames) = connected();
        facts.request_sent();
        for _ in 0..MAX_HEADER_BLOCKS_PER_RESPONSE + MAX_BURST_BLOCKS {
            assert_eq!(frames.scan(&mut frame(HEADERS, 4, 30)), Ok(()));
        }

        assert_eq!(frames.scan(&mut frame(HEADERS, 4, 30)), Err(Flood));
    }

    proptest! {
        #[test]
        fn the_outcome_does_not_depend_on_how_reads_split_frames(
            kinds in proptest::collection::vec(0_u8..12, 0..40),
            piece in 1_usize..40,
        ) {
            let frames = kinds.iter().flat_map(|kind| frame(*kind, 0, usize::from(*kind) * 3));
            let bytes: Vec<u8> = frame(SETTINGS, 0, 0).into_iter().chain(frames).collect();
            prop_assert_eq!(outcome(&bytes, bytes.len()), outcome(&bytes, piece));
        }
    }

    fn scanner() -> (Rc<ConnectionFacts>, FrameScanner) {
        let facts = Rc::<ConnectionFacts>::default();
        (Rc::clone(&facts), FrameScanner::new(facts, Instant::now()))
    }

    fn connected() -> (Rc<ConnectionFacts>, FrameScanner) {
        let (facts, mut frames) = scanner();
        assert_eq!(frames.scan(&mut frame(SETTINGS, 0, 0)), Ok(()));
        (facts, frames)
    }

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = (payload as u32).to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.resize(FRAME_HEADER_BYTES + payload, 0);
        frame
    }
}
