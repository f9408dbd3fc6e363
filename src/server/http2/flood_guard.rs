//! HTTP/2 flood protection: scans the frames of a connection for what h2 does not limit.
//!
//! Frames that cost work and carry nothing (RFC 9113 §10.5; CVE-2019-9512, -9515, -9518): a PING or SETTINGS costs
//! its sender a few bytes and the gateway a response; PRIORITY, empty DATA and unknown types are read for nothing. A
//! connection may send a burst of them and then so many a second, far more than clients that measure round trips do;
//! beyond that it is closed.
//!
//! Client errors, which h2 answers with `RST_STREAM` (CVE-2025-8671), have a rate of their own, since a client
//! makes a mistake now and then in a long life. These and connection errors are counted.
//!
//! A connection beyond a limit is closed by GOAWAY with `ENHANCE_YOUR_CALM`: h2 reads nothing more of it, and
//! `connection` has h2 write that.
//!
//! Requests, resets, CONTINUATION and header bytes are limited by h2. `WINDOW_UPDATE` costs no response, and a
//! fast download sends very many.

use core::cell::Cell;
use std::io;
use std::rc::Rc;

use h2::Reason;
use tokio::time::Instant;

use super::{PADDED, PREFACE_BYTES};
use crate::base::inspected_stream::Inspector;
use crate::http2::ReceivedContents;
use crate::http2::frames::{
    CONTINUATION, DATA, END_STREAM, FRAME_HEADER_BYTES, Flood, FrameHeaders, FramePart, GOAWAY,
    HEADERS, PUSH_PROMISE, RST_STREAM, SETTINGS, TokenBucket, WINDOW_UPDATE,
};

/// Has a connection that floods closed.
#[derive(Debug)]
pub(crate) struct FloodGuard<F> {
    flood: Rc<DetectedFlood>,
    contents: Rc<ReceivedContents>,
    frames: FloodScanner,
    resets: ResetCounter,
    /// Called for each client error that h2 detects.
    fault: F,
}

/// The reason to close a connection, once there is one. Shared by its guard and its driver.
pub(crate) type DetectedFlood = Cell<Option<Reason>>;

/// An error of the client that ended a stream or the connection (RFC 9113 §5.4).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ProtocolError {
    /// The stream; 0 is the connection.
    pub(crate) stream: u32,
    /// The error code (RFC 9113 §7).
    pub(crate) code: u32,
}

impl ProtocolError {
    /// Returns the name of the error code.
    pub(crate) const fn name(self) -> &'static str {
        match self.code {
            PROTOCOL_ERROR => "PROTOCOL_ERROR",
            FLOW_CONTROL_ERROR => "FLOW_CONTROL_ERROR",
            STREAM_CLOSED => "STREAM_CLOSED",
            FRAME_SIZE_ERROR => "FRAME_SIZE_ERROR",
            COMPRESSION_ERROR => "COMPRESSION_ERROR",
            ENHANCE_YOUR_CALM => "ENHANCE_YOUR_CALM",
            _ => "another error",
        }
    }
}

impl<F: FnMut(ProtocolError)> FloodGuard<F> {
    /// Creates the guard of a connection that begins `now`, with the preface. `fault` is called when the gateway
    /// resets a stream or closes the connection because the client violated the protocol.
    pub(crate) fn new(
        now: Instant,
        contents: Rc<ReceivedContents>,
        flood: Rc<DetectedFlood>,
        fault: F,
    ) -> Self {
        let (frames, resets) = (FloodScanner::new(now), ResetCounter::new(now));
        Self { flood, contents, frames, resets, fault }
    }
}

impl<F: FnMut(ProtocolError)> Inspector for FloodGuard<F> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let data = |length| self.contents.frame_arrived(length);
        if self.frames.scan(bytes, data).is_err() {
            self.flood.set(Some(self.frames.reason()));
        }
        Ok(())
    }

    fn pauses(&self) -> bool {
        self.contents.is_gathering_due()
    }

    fn wrote(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.resets.scan(bytes, &mut self.fault).is_err() {
            self.frames.silence();
            self.flood.set(Some(Reason::ENHANCE_YOUR_CALM));
        }
        Ok(())
    }
}

/// A scanner of the frames sent to the client, which counts client errors.
#[derive(Debug)]
struct ResetCounter {
    /// Bytes to skip: the rest of a payload.
    skip: usize,
    /// The frame header, and the beginning of the payload where it matters.
    prefix: [u8; FRAME_HEADER_BYTES + 8],
    have: usize,
    faults: TokenBucket,
    /// Streams beyond those that the client may have at a time: until it has read the gateway's settings, it does not know
    /// how many these are. And frames on their way to streams that the gateway has reset, beyond those that h2 remembers.
    refused: TokenBucket,
    own: OwnResets,
}

impl ResetCounter {
    const fn new(now: Instant) -> Self {
        let faults = TokenBucket::new(MAX_BURST_FAULTS, MAX_FAULTS_PER_SECOND, now);
        let refused = TokenBucket::of_empty_frames(now);
        let own = OwnResets { streams: Vec::new(), older: 0 };
        Self { skip: 0, prefix: [0; FRAME_HEADER_BYTES + 8], have: 0, faults, refused, own }
    }

    fn scan(
        &mut self,
        mut bytes: &[u8],
        fault: &mut impl FnMut(ProtocolError),
    ) -> Result<(), Flood> {
        let mut scanned = Ok(());
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            // The error code follows the header of RST_STREAM, and the last stream id in GOAWAY.
            let wanted = match self.prefix[3] {
                _ if self.have < FRAME_HEADER_BYTES => FRAME_HEADER_BYTES,
                RST_STREAM => FRAME_HEADER_BYTES + 4,
                _ => FRAME_HEADER_BYTES + 8,
            };
            let count = (wanted - self.have).min(bytes.len());
            self.prefix[self.have..self.have + count].copy_from_slice(&bytes[..count]);
            self.have += count;
            bytes = &bytes[count..];
            let [a, b, c, kind, ..] = self.prefix;
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            match self.have {
                FRAME_HEADER_BYTES
                    if matches!((kind, length), (RST_STREAM, 4..) | (GOAWAY, 8..)) => {}
                FRAME_HEADER_BYTES => (self.have, self.skip) = (0, length),
                have if have > FRAME_HEADER_BYTES && have == wanted => {
                    let code = self.prefix[have - 4..have]
                        .iter()
                        .fold(0, |code, byte| code << 8 | u32::from(*byte));
                    let [_, _, _, _, _, a, b, c, d, ..] = self.prefix;
                    let stream = u32::from_be_bytes([a, b, c, d]);
                    (self.have, self.skip) = (0, length - (have - FRAME_HEADER_BYTES));
                    match kind {
                        RST_STREAM if code == STREAM_CLOSED && self.own.contains(stream) => {
                            scanned = scanned.and(self.refused.spend());
                        }
                        RST_STREAM if is_client_fault(code) => {
                            fault(ProtocolError { stream, code });
                            scanned = scanned.and(self.faults.spend());
                        }
                        RST_STREAM => {
                            self.own.add(stream);
                            if code == REFUSED_STREAM {
                                scanned = scanned.and(self.refused.spend());
                            }
                        }
                        GOAWAY if code != NO_ERROR => fault(ProtocolError { stream: 0, code }),
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        scanned
    }
}

/// The streams that the gateway has reset for no fault of the client, which may have sent more on them meanwhile.
#[derive(Debug)]
struct OwnResets {
    streams: Vec<u32>,
    /// Streams up to this one count as reset: there are too many to remember each.
    older: u32,
}

impl OwnResets {
    fn add(&mut self, stream: u32) {
        if self.streams.len() >= MAX_OWN_RESETS {
            self.older = self.streams.drain(..).fold(self.older, u32::max);
        }
        self.streams.push(stream);
    }

    fn contains(&self, stream: u32) -> bool {
        stream <= self.older || self.streams.contains(&stream)
    }
}

/// Whether a stream reset with this code is an error of the client (RFC 9113 §7).
const fn is_client_fault(code: u32) -> bool {
    matches!(
        code,
        PROTOCOL_ERROR | FLOW_CONTROL_ERROR | STREAM_CLOSED | FRAME_SIZE_ERROR | COMPRESSION_ERROR
    )
}

/// A scanner of the frames of the client, with the limit on useless ones.
#[derive(Debug)]
struct FloodScanner {
    headers: FrameHeaders,
    bucket: TokenBucket,
    /// Whether the client's first frame was read, which is SETTINGS (RFC 9113 §3.4).
    settled: bool,
    /// Whether it was another one.
    begins_badly: bool,
}

impl FloodScanner {
    fn new(now: Instant) -> Self {
        let headers = FrameHeaders::after(PREFACE_BYTES);
        let bucket = TokenBucket::of_empty_frames(now);
        Self { headers, bucket, settled: false, begins_badly: false }
    }

    /// Returns the reason to close the connection of a client whose frames were refused.
    const fn reason(&self) -> Reason {
        if self.begins_badly { Reason::PROTOCOL_ERROR } else { Reason::ENHANCE_YOUR_CALM }
    }

    /// Lets h2 read nothing more.
    const fn silence(&mut self) {
        self.headers.silence();
    }

    /// Scans `bytes`, and calls `data` with the payload length of each DATA frame.
    fn scan(&mut self, bytes: &mut [u8], mut data: impl FnMut(usize)) -> Result<(), Flood> {
        let Self { headers, bucket, settled, begins_badly } = self;
        headers.scan(bytes, |part| {
            let FramePart::Header { kind, flags, length } = part else { return Ok(()) };
            if !core::mem::replace(settled, true) {
                *begins_badly = kind != SETTINGS;
                return if *begins_badly { Err(Flood) } else { Ok(()) };
            }
            if kind == DATA {
                data(length);
            }
            if is_empty_frame(kind, flags, length) { bucket.spend() } else { Ok(()) }
        })
    }
}

const fn is_empty_frame(kind: u8, flags: u8, length: usize) -> bool {
    match kind {
        DATA if flags & END_STREAM != 0 => false,
        // A short frame may be all padding.
        DATA => length == 0 || (flags & PADDED != 0 && length <= MAX_PADDING_BYTES),
        HEADERS | RST_STREAM | PUSH_PROMISE | GOAWAY | WINDOW_UPDATE | CONTINUATION => false,
        // PRIORITY, SETTINGS, PING, and unknown types.
        _ => true,
    }
}

/// Checks that what is counted does not depend on how reads and writes split the frames.
#[cfg(any(fuzzing, test))]
pub fn frames(bytes: &[u8], piece: usize) {
    let scan = |piece: usize| {
        let (mut frames, mut resets) = {
            let now = Instant::now();
            (FloodScanner::new(now), ResetCounter::new(now))
        };
        let mut faults = 0;
        // A flood ends a connection; when, depends on the clock.
        let mut received = bytes.to_vec();
        let mut pieces = received.chunks_mut(piece);
        let received = pieces.all(|piece| frames.scan(piece, |_| ()).is_ok());
        let sent =
            bytes.chunks(piece).all(|piece| resets.scan(piece, &mut |_| faults += 1).is_ok());
        (received && sent).then_some(faults)
    };
    if let (Some(faults), Some(at_once)) = (scan(piece.max(1)), scan(bytes.len().max(1))) {
        assert_eq!(faults, at_once);
    }
}

/// Burst of streams reset for client errors.
const MAX_BURST_FAULTS: u32 = 200;
/// Streams per second reset for client errors.
const MAX_FAULTS_PER_SECOND: u32 = 20;

/// Streams of one connection that the gateway has reset and remembers one by one.
const MAX_OWN_RESETS: usize = 1024;

/// Error codes (RFC 9113 §7).
const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;
/// The padding length and the longest padding (RFC 9113 §6.1).
const MAX_PADDING_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use proptest::prelude::*;
    use tokio::time::advance;

    use super::*;
    use crate::http2::frames::MAX_BURST_FRAMES;

    const PING: u8 = 6;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_useless_frames_closes_the_connection() {
        for (kind, flags, payload) in [
            (PING, 0, 8),
            (4, 0, 6),
            (2, 0, 5),
            (DATA, 0, 0),
            (DATA, PADDED, 1),
            (DATA, PADDED, 256),
            (0x55, 0, 0),
            (0xff, 0, 100),
        ] {
            let mut frames = after_preface();
            let frame = frame(kind, flags, payload);
            let mut taken = 0;
            while taken <= MAX_BURST_FRAMES && frames.scan(&mut frame.clone(), |_| ()).is_ok() {
                taken += 1;
            }
            assert_eq!(taken, MAX_BURST_FRAMES, "{kind} {flags} {payload}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn frames_with_content_are_not_limited() {
        let mut frames = after_preface();
        let whole: Vec<u8> = [
            frame(HEADERS, 5, 30),
            frame(DATA, 0, 1),
            frame(DATA, PADDED, 257),
            frame(DATA, END_STREAM, 0),
            frame(WINDOW_UPDATE, 0, 4),
        ]
        .concat();

        for _ in 0..MAX_BURST_FRAMES * 2 {
            assert_eq!(frames.scan(&mut whole.clone(), |_| ()), Ok(()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_measures_round_trips_is_not_limited() {
        let mut frames = after_preface();
        let pings = frame(PING, 0, 8).repeat(900);

        for _ in 0..100 {
            assert_eq!(frames.scan(&mut pings.clone(), |_| ()), Ok(()));
            advance(Duration::from_secs(1)).await;
        }
    }

    proptest! {
        #[test]
        fn counts_do_not_depend_on_how_reads_split_frames(kinds in proptest::collection::vec(0_u8..12, 1..40), piece in 1_usize..40) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let _within = runtime.enter();
            let bytes: Vec<u8> = kinds.iter().flat_map(|kind| frame(*kind, 0, usize::from(*kind) * 3)).collect();
            let (mut whole, mut cut) = (after_preface(), after_preface());
            let _ = whole.scan(&mut bytes.clone(), |_| ());
            for piece in bytes.clone().chunks_mut(piece) {
                let _ = cut.scan(piece, |_| ());
            }
            prop_assert_eq!(
                (whole.bucket.left(), whole.headers),
                (cut.bucket.left(), cut.headers)
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_alike_in_any_pieces(bytes in proptest::collection::vec(any::<u8>(), 0..300), piece in 0_usize..30) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let _within = runtime.enter();
            super::frames(&bytes, piece);
            super::frames(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\x01\0\x01\x04\0\0\0\x01", &bytes[..]].concat(), piece);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn client_errors_are_limited_by_rate() {
        let reset = |code: u32| [frame(RST_STREAM, 0, 0), code.to_be_bytes().to_vec()].concat();
        let mut reset_for_fault = reset(PROTOCOL_ERROR);
        reset_for_fault[2] = 4;
        let mut answers = ResetCounter::new(Instant::now());
        let mut faults = 0;

        // One error a second, for an hour.
        for _ in 0..3600 {
            assert_eq!(answers.scan(&reset_for_fault, &mut |_| faults += 1), Ok(()));
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!(faults, 3600);
        let flood = (0..1000).find(|_| answers.scan(&reset_for_fault, &mut |_| {}).is_err());
        assert!(
            flood.is_some_and(|after| (MAX_FAULTS_PER_SECOND..=MAX_BURST_FAULTS).contains(&after)),
            "{flood:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn only_client_errors_count_as_faults() {
        let with = |kind, payload: &[u8]| {
            let mut frame = frame(kind, 0, 0);
            frame[2] = payload.len() as u8;
            [frame, payload.to_vec()].concat()
        };
        let written = [
            with(DATA, b"0000000000"),
            with(RST_STREAM, &[0, 0, 0, 5]),
            with(RST_STREAM, &[0, 0, 0, 8]),
            with(GOAWAY, &[0, 0, 0, 9, 0, 0, 0, 0]),
            with(HEADERS, &[0x88]),
            with(GOAWAY, &[0, 0, 0, 9, 0, 0, 0, 9, b'w', b'h', b'y']),
            with(RST_STREAM, &[0, 0, 0, 0]),
        ]
        .concat();

        for piece in [1, 2, 7, 13, written.len()] {
            let (mut answers, mut faults) = (ResetCounter::new(Instant::now()), 0);
            for piece in written.chunks(piece) {
                assert_eq!(answers.scan(piece, &mut |_| faults += 1), Ok(()));
            }
            assert_eq!(faults, 2, "in pieces of {piece}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn frames_on_streams_that_the_gateway_has_reset_are_no_faults() {
        let reset = |stream: u32, code: u32| {
            let mut reset = frame(RST_STREAM, 0, 4);
            reset[5..9].copy_from_slice(&stream.to_be_bytes());
            reset[9..].copy_from_slice(&code.to_be_bytes());
            reset
        };
        let (mut answers, mut faults) = (ResetCounter::new(Instant::now()), Vec::new());
        let mut scan =
            |bytes: Vec<u8>| answers.scan(&bytes, &mut |fault| faults.push(fault.stream));
        let refused = || (0..3000).map(|n| 2 * n + 1);

        for stream in refused() {
            assert_eq!(scan(reset(stream, NO_ERROR)), Ok(()));
        }
        for stream in refused() {
            assert_eq!(scan(reset(stream, STREAM_CLOSED)), Ok(()));
        }
        assert_eq!(scan(reset(9001, STREAM_CLOSED)), Ok(()));

        assert_eq!(faults, [9001], "that one was not reset by the gateway");
    }

    fn after_preface() -> FloodScanner {
        let mut frames = FloodScanner::new(Instant::now());
        let mut preface = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        assert_eq!(frames.scan(&mut preface, |_| ()), Ok(()));
        assert_eq!(frames.scan(&mut frame(SETTINGS, 0, 0), |_| ()), Ok(()));
        frames
    }

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let mut frame = (length as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.extend(vec![7; length]);
        frame
    }
}
