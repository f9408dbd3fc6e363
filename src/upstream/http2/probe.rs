//! Probes in HTTP/2: the handshake of a connection, without a request.
//!
//! A stopped process still has its connections accepted by the system. Only the SETTINGS of HTTP/2 (RFC 9113 §3.4) show that
//! it runs.

use std::borrow::Cow;
use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::connections::connect::Stream;
use super::super::connections::handshake_error;
use super::shared_connections::{ALLOWS_NO_STREAM, CLOSED_BEFORE_SETTINGS, NOT_HTTP2};
use crate::http2::frames::{FRAME_HEADER_BYTES, SETTINGS};

/// Waits for the settings of the upstream on `stream`, a new connection. To be run within a timeout.
///
/// # Errors
///
/// The cause of the failure, for the operator: no connection of HTTP/2, or one that allows no stream.
pub(in crate::upstream) async fn shake_hands(mut stream: Stream) -> Result<(), Cow<'static, str>> {
    let lost = |error: io::Error| handshake_error::alert(&error).unwrap_or(CLOSED_BEFORE_SETTINGS);
    stream.write_all(PREFACE).await.map_err(lost)?;
    stream.flush().await.map_err(lost)?;
    let mut header = [0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut header).await.map_err(lost)?;
    let [a, b, c, kind, flags, ..] = header;
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    if kind != SETTINGS || flags != 0 || length > MAX_SETTINGS_BYTES {
        return Err(NOT_HTTP2.into());
    }
    let mut settings = [0; MAX_SETTINGS_BYTES];
    let settings = &mut settings[..length];
    stream.read_exact(settings).await.map_err(lost)?;
    let (settings, _) = settings.as_chunks::<6>();
    let max_streams = settings.iter().rfind(|setting| setting[..2] == MAX_CONCURRENT_STREAMS);
    if max_streams.is_some_and(|setting| setting[2..] == [0; 4]) {
        return Err(ALLOWS_NO_STREAM.into());
    }
    // The upstream answers in any case; what becomes of the end of the connection is of no interest.
    drop(stream.write_all(GOODBYE).await);
    drop(stream.shutdown().await);
    Ok(())
}

/// The preface of a client, with empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The acknowledgement of the settings, and GOAWAY without an error.
const GOODBYE: &[u8] = b"\0\0\0\x04\x01\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// The identifier of a setting (RFC 9113 §6.5.2).
const MAX_CONCURRENT_STREAMS: [u8; 2] = [0, 3];
/// More than any upstream sends: there are few settings, of six bytes each.
const MAX_SETTINGS_BYTES: usize = 1024;
