//! What RFC 9113 and RFC 7541 call an error of a stream resets that stream, what they call an error of the connection ends
//! the connection, and what they allow is served. A case per requirement, each on a connection of its own.
//!
//! An error of a stream may also end the connection (RFC 9113 §5.4.2). With which code a connection ends is up to `h2`:
//! often `PROTOCOL_ERROR` where the RFC has another.

use std::io::{ErrorKind, Write};

use crate::support::{Gateway, PATIENCE, Upstream, frame, read_frame};

/// What a case must end in.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// A GOAWAY, or a closed connection.
    ConnectionError,
    /// An RST_STREAM of stream 1 with one of these codes, or an error of the connection.
    StreamError(&'static [u32]),
    /// The same, or a 400 (RFC 9113 §8.1.1).
    Malformed,
    /// A response on stream 1.
    Response,
    /// An acknowledgement of the PING that follows the case.
    Pong,
}

use Expected::{ConnectionError, Malformed, Pong, Response, StreamError};

#[test]
fn frames_that_must_be_ignored_or_served_are() {
    check(&[
        ("§4.1 an unknown frame type", vec![frame(0x16, 0, 0, &[0; 8])], Pong),
        ("§5.5 an unknown frame type on a stream", vec![frame(0x16, 0, 1, &[0; 8])], Pong),
        ("§4.1 undefined flags", vec![frame(PING, 0x16, 0, &[7; 8])], Pong),
        ("§4.1 a reserved bit", vec![frame(PING, 0, 1 << 31, &[7; 8])], Pong),
        ("§6.7 an acknowledgement", vec![frame(PING, ACK, 0, &[7; 8])], Pong),
        ("§6.5.2 an unknown setting", vec![frame(SETTINGS, 0, 0, &[0, 0xff, 0, 0, 0, 1])], Pong),
        (
            "§6.5.3 a setting that comes twice",
            vec![frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0x40, 0, 0, 4, 0, 0, 0, 1])],
            Pong,
        ),
        ("§7 an unknown code in GOAWAY", vec![goaway(0xff)], Pong),
        ("§7 an unknown code in RST_STREAM", vec![open(1), reset(1, 0xff)], Pong),
        ("§5.3 PRIORITY of an idle stream", vec![frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 9])], Pong),
        ("§8.3 a GET", vec![get(1)], Response),
        (
            "§6.1 padded content",
            vec![open(1), frame(DATA, END_STREAM | PADDED, 1, b"\x03hi###")],
            Response,
        ),
        (
            "§6.2 a padded head",
            vec![frame(HEADERS, END | PADDED, 1, &[&[3], GET, b"###"].concat())],
            Response,
        ),
        (
            "§6.2 a head with a priority",
            vec![frame(HEADERS, END | WITH_PRIORITY, 1, &[&[0, 0, 0, 0, 9], GET].concat())],
            Response,
        ),
        (
            "§6.10 a head of many frames",
            [
                vec![frame(HEADERS, END_STREAM, 1, &GET[..1])],
                GET[1..].iter().map(|byte| frame(CONTINUATION, 0, 1, &[*byte])).collect(),
                vec![frame(CONTINUATION, END_HEADERS, 1, b"")],
            ]
            .concat(),
            Response,
        ),
        (
            "§4.2 the longest frame",
            vec![open(1), frame(DATA, END_STREAM, 1, &[0; 16_384])],
            Response,
        ),
        (
            "§8.1 trailers",
            vec![open(1), frame(DATA, 0, 1, b"hi"), headers(1, END, b"\x00\x01t\x01v")],
            Response,
        ),
        (
            "RFC 7541 §4.2 a table size within the limit",
            vec![headers(1, END, &[b"\x3f\xe1\x1f", GET].concat())],
            Response,
        ),
        (
            "RFC 7541 §4.2 a smaller table",
            vec![headers(1, END, &[b"\x20", GET].concat())],
            Response,
        ),
    ]);
}

#[test]
fn a_frame_out_of_its_place_is_an_error_of_its_stream_or_of_the_connection() {
    check(&[
        ("§5.1 DATA of an idle stream", vec![frame(DATA, END_STREAM, 1, b"x")], ConnectionError),
        ("§5.1 RST_STREAM of an idle stream", vec![reset(1, 8)], ConnectionError),
        ("§5.1 WINDOW_UPDATE of an idle stream", vec![window_update(1, 9)], ConnectionError),
        (
            "§5.1 CONTINUATION of an idle stream",
            vec![frame(CONTINUATION, END_HEADERS, 1, GET)],
            ConnectionError,
        ),
        (
            "§5.1 DATA after the end",
            vec![get(1), frame(DATA, END_STREAM, 1, b"x")],
            StreamError(CLOSED),
        ),
        ("§5.1 HEADERS after the end", vec![get(1), get(1)], StreamError(CLOSED)),
        (
            "§5.1 CONTINUATION after the end",
            vec![get(1), frame(CONTINUATION, END_HEADERS, 1, GET)],
            ConnectionError,
        ),
        (
            "§5.1 DATA after a reset",
            vec![open(1), reset(1, 8), frame(DATA, END_STREAM, 1, b"x")],
            StreamError(CLOSED),
        ),
        ("§5.1 HEADERS after a reset", vec![open(1), reset(1, 8), get(1)], StreamError(CLOSED)),
        ("§8.1 trailers with a pseudo-header field", vec![open(1), get(1)], StreamError(PROTOCOL)),
        ("§5.1.1 an even stream", vec![get(2)], ConnectionError),
        ("§5.1.1 a lower stream", vec![get(5), get(3)], ConnectionError),
        (
            "§6.1 DATA of no stream",
            vec![open(1), frame(DATA, END_STREAM, 0, b"x")],
            ConnectionError,
        ),
        ("§6.2 HEADERS of no stream", vec![get(0)], ConnectionError),
        (
            "§6.3 PRIORITY of no stream",
            vec![frame(PRIORITY, 0, 0, &[0, 0, 0, 1, 9])],
            ConnectionError,
        ),
        ("§6.4 RST_STREAM of no stream", vec![open(1), reset(0, 8)], ConnectionError),
        ("§6.5 SETTINGS of a stream", vec![open(1), frame(SETTINGS, 0, 1, b"")], ConnectionError),
        ("§6.7 PING of a stream", vec![open(1), frame(PING, 0, 1, &[0; 8])], ConnectionError),
        ("§6.8 GOAWAY of a stream", vec![open(1), frame(GOAWAY, 0, 1, &[0; 8])], ConnectionError),
        (
            "§8.4 PUSH_PROMISE of a client",
            vec![open(1), frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2], GET].concat())],
            ConnectionError,
        ),
        (
            "§6.10 CONTINUATION of no stream",
            vec![begin(1), frame(CONTINUATION, END_HEADERS, 0, b"")],
            ConnectionError,
        ),
        (
            "§6.10 CONTINUATION after END_HEADERS",
            vec![open(1), frame(CONTINUATION, END_HEADERS, 1, b"")],
            ConnectionError,
        ),
        (
            "§6.10 CONTINUATION after its end",
            vec![
                begin(1),
                frame(CONTINUATION, END_HEADERS, 1, &GET[1..]),
                frame(CONTINUATION, END_HEADERS, 1, b""),
            ],
            ConnectionError,
        ),
        (
            "§6.10 CONTINUATION after DATA",
            vec![open(1), frame(DATA, 0, 1, b"x"), frame(CONTINUATION, END_HEADERS, 1, b"")],
            ConnectionError,
        ),
        (
            "§6.2 PRIORITY within a head",
            vec![begin(1), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9])],
            ConnectionError,
        ),
        ("§6.2 DATA within a head", vec![begin(1), frame(DATA, 0, 1, b"x")], ConnectionError),
        ("§6.2 another head within a head", vec![begin(1), get(3)], ConnectionError),
        (
            "§6.10 CONTINUATION of another stream",
            vec![begin(1), frame(CONTINUATION, END_HEADERS, 3, &GET[1..])],
            ConnectionError,
        ),
        (
            "§5.5 an unknown frame type within a head",
            vec![begin(1), frame(0x16, 0, 0, b"")],
            ConnectionError,
        ),
        (
            "§8.1 a second head without an end",
            vec![open(1), headers(1, END_HEADERS, b"\x00\x01t\x01v")],
            StreamError(PROTOCOL),
        ),
        (
            "§5.3.1 a head that depends on itself",
            vec![frame(HEADERS, END | WITH_PRIORITY, 1, &[&[0, 0, 0, 1, 9], GET].concat())],
            StreamError(PROTOCOL),
        ),
    ]);
}

#[test]
fn a_frame_of_the_wrong_form_is_an_error_of_its_stream_or_of_the_connection() {
    let settings = |payload: &[u8]| vec![frame(SETTINGS, 0, 0, payload)];
    check(&[
        (
            "§4.2 DATA beyond the longest frame",
            vec![open(1), frame(DATA, END_STREAM, 1, &[0; 16_385])],
            StreamError(FRAME_SIZE),
        ),
        (
            "§4.2 HEADERS beyond the longest frame",
            vec![headers(1, END, &[GET, &[0; 16_384]].concat())],
            ConnectionError,
        ),
        (
            "§6.1 more padding than content",
            vec![open(1), frame(DATA, END_STREAM | PADDED, 1, b"\x09x")],
            ConnectionError,
        ),
        (
            "§6.2 more padding than head",
            vec![frame(HEADERS, END | PADDED, 1, &[&[200], GET].concat())],
            ConnectionError,
        ),
        ("§6.3 a short PRIORITY", vec![frame(PRIORITY, 0, 1, &[0; 4])], StreamError(FRAME_SIZE)),
        (
            "§6.4 a short RST_STREAM",
            vec![open(1), frame(RST_STREAM, 0, 1, &[0; 3])],
            ConnectionError,
        ),
        (
            "§6.5 an acknowledgement with settings",
            vec![frame(SETTINGS, ACK, 0, &[0, 4, 0, 0, 0, 1])],
            ConnectionError,
        ),
        ("§6.5 a part of a setting", settings(&[0, 4, 0]), ConnectionError),
        ("§6.5.2 ENABLE_PUSH of 2", settings(&[0, 2, 0, 0, 0, 2]), ConnectionError),
        ("§6.5.2 a window that is too large", settings(&[0, 4, 0x80, 0, 0, 0]), ConnectionError),
        (
            "§6.5.2 a frame size that is too small",
            settings(&[0, 5, 0, 0, 0x3f, 0xff]),
            ConnectionError,
        ),
        ("§6.5.2 a frame size that is too large", settings(&[0, 5, 1, 0, 0, 0]), ConnectionError),
        ("§6.7 a short PING", vec![frame(PING, 0, 0, &[0; 6])], ConnectionError),
        ("§6.9 a short WINDOW_UPDATE", vec![frame(WINDOW_UPDATE, 0, 0, &[0; 3])], ConnectionError),
        ("§6.9 an increment of 0", vec![window_update(0, 0)], ConnectionError),
        (
            "§6.9 an increment of 0 on a stream",
            vec![open(1), window_update(1, 0)],
            StreamError(PROTOCOL),
        ),
        (
            "§6.9.1 a window of a connection that overflows",
            vec![window_update(0, MAX_WINDOW), window_update(0, MAX_WINDOW)],
            ConnectionError,
        ),
        (
            "§6.9.1 a window of a stream that overflows",
            vec![open(1), window_update(1, MAX_WINDOW), window_update(1, MAX_WINDOW)],
            StreamError(FLOW_CONTROL),
        ),
    ]);
}

#[test]
fn a_header_block_that_cannot_be_decoded_is_an_error_of_the_connection() {
    let cases = [
        ("RFC 7541 §6.1 index 0", &b"\x80"[..]),
        ("RFC 7541 §2.3.3 an index beyond the tables", b"\xc6"),
        ("RFC 7541 §2.3.3 a name beyond the tables", b"\x7f\x00\x01v"),
        ("RFC 7541 §4.2 a table size at the end", b"\x82\x20"),
        ("RFC 7541 §6.3 a table size above the limit", b"\x3f\xe1\xff\x03"),
        ("RFC 7541 §5.2 padding of a byte", b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff"),
        ("RFC 7541 §5.2 padding of zeros", b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90"),
        (
            "RFC 7541 §5.2 the end of a string within it",
            b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\xff\xff\xff\xfa\x42\xff\xff",
        ),
        ("RFC 7541 §5.1 a length beyond the block", b"\x00\x05:path\x7fx"),
        (
            "RFC 7541 §5.1 an endless integer",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ),
    ];
    let cases = cases.map(|(name, bad)| {
        let block = [GET, bad].concat();
        (name, vec![headers(1, END, &block)], ConnectionError)
    });
    check(&cases);
}

#[test]
fn a_malformed_request_is_an_error_of_its_stream() {
    const METHOD: &[u8] = b"\x82";
    const SCHEME: &[u8] = b"\x86";
    const PATH: &[u8] = b"\x84";
    let with = |more: &[u8]| [GET, more].concat();
    let blocks = [
        ("§8.2.1 an uppercase name", with(b"\x00\x01T\x01v")),
        ("§8.3 an unknown pseudo-header field", with(b"\x00\x05:test\x01v")),
        ("§8.3 that of a response", with(b"\x00\x07:status\x03200")),
        ("§8.3 one behind other fields", [METHOD, SCHEME, b"\x00\x01t\x01v", PATH].concat()),
        ("§8.2.2 a connection-specific field", with(b"\x00\x0aconnection\x0akeep-alive")),
        ("§8.2.2 TE with anything but trailers", with(b"\x00\x02te\x04gzip")),
        ("§8.3.1 an empty path", [METHOD, SCHEME, b"\x04\x00"].concat()),
        ("§8.3.1 no method", [SCHEME, PATH].concat()),
        ("§8.3.1 no scheme", [METHOD, PATH].concat()),
        ("§8.3.1 no path", [METHOD, SCHEME].concat()),
        ("§8.3.1 two methods", with(METHOD)),
        ("§8.3.1 two schemes", with(SCHEME)),
        ("§8.3.1 two paths", with(PATH)),
    ];
    let cases: Vec<_> = blocks
        .iter()
        .map(|(name, block)| (*name, vec![headers(1, END, block)], Malformed))
        .collect();
    check(&cases);

    let post = |length: &[u8]| headers(1, END_HEADERS, &with(&[b"\x0f\x0d\x01", length].concat()));
    check(&[
        (
            "§8.1.1 content longer than it says",
            vec![post(b"1"), frame(DATA, END_STREAM, 1, b"hi")],
            Malformed,
        ),
        (
            "§8.1.1 content shorter than it says",
            vec![post(b"3"), frame(DATA, 0, 1, b"h"), frame(DATA, END_STREAM, 1, b"i")],
            Malformed,
        ),
    ]);
}

#[test]
fn content_respects_the_windows_of_its_reader() {
    let service = Upstream::polite();
    let gateway = gateway(&service);
    let initial = |size: u8| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, size]);
    let mut client = gateway.connect();
    client.stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let mut writer = client.stream.try_clone().expect("a socket");
    let mut send = |frames: &[Vec<u8>]| writer.write_all(&frames.concat()).expect("a reader");
    let mut content = |expected: &[u8]| loop {
        match next(&mut client.stream) {
            Some((DATA, _, 1, payload)) => return assert_eq!(payload, expected),
            Some((PING, ..)) => return assert_eq!(b"", expected),
            Some(_) => {}
            None => panic!("closed before {expected:?}"),
        }
    };

    send(&[PREFACE.to_vec(), initial(1), get(1)]);
    content(b"f");
    send(&[window_update(1, 1)]);
    content(b"o");
    // A window of 0 becomes -1, and 0 again (§6.9.2).
    send(&[initial(0), window_update(1, 1), frame(PING, 0, 0, &[0; 8])]);
    content(b"");
    send(&[window_update(1, 9)]);
    content(b"ur");
}

/// Runs each case on a connection of its own.
fn check(cases: &[(&str, Vec<Vec<u8>>, Expected)]) {
    let service = Upstream::polite();
    let gateway = gateway(&service);
    let mut failed = Vec::new();
    for (name, frames, expected) in cases {
        let mut client = gateway.connect();
        client.send(PREFACE);
        client.send(frame(SETTINGS, 0, 0, b""));
        let mut sent = frames.concat();
        if matches!(expected, Pong) {
            sent.extend(frame(PING, 0, 0, b"the last"));
        }
        // At once: a fixed response may precede content that turns out to be malformed. The gateway may close the
        // connection before all is sent.
        let _ = client.try_send(sent);
        client.stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut seen = Vec::new();
        let fulfilled = loop {
            let Some((kind, flags, on, payload)) = next(&mut client.stream) else {
                break !matches!(expected, Pong | Response);
            };
            match (expected, kind) {
                (Pong, PING) if flags & ACK != 0 && payload == b"the last" => break true,
                (Response, HEADERS) if on == 1 => break true,
                (Malformed, HEADERS) if on == 1 => break payload.first() == Some(&STATUS_400),
                (Malformed | StreamError(_), RST_STREAM) if on == 1 => {
                    let codes = if let StreamError(codes) = expected { codes } else { PROTOCOL };
                    let code = payload.iter().fold(0, |code, byte| code << 8 | u32::from(*byte));
                    break codes.contains(&code);
                }
                (_, GOAWAY) => break !matches!(expected, Pong | Response),
                _ => seen.push((kind, flags, on, payload)),
            }
        };
        if !fulfilled {
            failed.push(format!("{name}: not {expected:?} but {seen:?}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// The next frame; `None` if the connection has ended. Fails the test if there is neither in time.
fn next(stream: &mut std::net::TcpStream) -> Option<(u8, u8, u32, Vec<u8>)> {
    match read_frame(stream) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("no frame, and no end"),
        read => read.ok(),
    }
}

/// A gateway that answers a GET with four bytes, and forwards a POST.
fn gateway(service: &Upstream) -> Gateway {
    let routes = format!(
        "upstreams: {{ service: {{ targets: [\"{}\"] }} }}\n\
         routes:\n  - {{ id: get, path: /**, methods: [GET], auth: none, respond: {{ status: 200, body: four }} }}\n\
         \x20 - {{ id: post, path: /**, methods: [POST], auth: none, upstream: service }}\n",
        service.url()
    );
    Gateway::start("", &routes)
}

/// A whole request without content.
fn get(stream: u32) -> Vec<u8> {
    headers(stream, END, GET)
}

/// The head of a request whose content follows.
fn open(stream: u32) -> Vec<u8> {
    headers(stream, END_HEADERS, &[&b"\x83"[..], &GET[1..]].concat())
}

/// The first frame of a head that goes on.
fn begin(stream: u32) -> Vec<u8> {
    headers(stream, END_STREAM, &GET[..1])
}

fn headers(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, flags, stream, block)
}

fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

fn window_update(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

fn goaway(code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[[0; 4], code.to_be_bytes()].concat())
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// `GET http://a/`, of the static table but for the authority.
const GET: &[u8] = b"\x82\x86\x84\x01\x01a";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// `:status: 400` of the static table.
const STATUS_400: u8 = 0x8c;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const END: u8 = END_STREAM | END_HEADERS;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 32;

const PROTOCOL: &[u32] = &[1];
const FLOW_CONTROL: &[u32] = &[3];
const CLOSED: &[u32] = &[5];
const FRAME_SIZE: &[u32] = &[6];
const MAX_WINDOW: u32 = (1 << 31) - 1;
