use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use super::*;

#[test]
fn a_path_that_every_uri_holds_passes_in_place() {
    let mut client =
        [headers(END_HEADERS | END_STREAM, b"\x82\x04\x05/a?{|"), data(b"#<")].concat();
    let sent = client.clone();

    assert_eq!(after_preface().rewrite(&mut client).ok(), Some(sent.len()));
    assert_eq!(client, sent);
}

#[test]
fn an_unusual_path_leaves_a_placeholder_and_a_field() {
    for (block, placeholder) in [
        (&b"\x82\x04\x04/a<b\x86"[..], &b"\x82\x04\x01/\x86"[..]),
        (b"\x82\x44\x04/a\"b\x86", b"\x82\x44\x04/xxx\x86"),
        (b"\x00\x05:path\x04/a>b", b"\x00\x05:path\x01/"),
        (b"\x00\x05:path\x04/a b", b"\x00\x05:path\x01/"),
        // `/a#b` in the Huffman code.
        (b"\x44\x84\x60\x7f\xf5\x1f\x86", b"\x44\x04/xxx\x86"),
    ] {
        let (rewritten, value) = rewritten(&headers(END_HEADERS | END_STREAM, block));

        assert_eq!(rewritten, [head(placeholder.len(), END_STREAM), placeholder.to_vec()].concat());
        assert_eq!([&value[..2], &value[3..]].concat(), b"/ab", "{block:?}");
    }
}

#[test]
fn an_unusual_path_comes_back_from_the_dynamic_table() {
    let mut frames = after_preface();
    frames.rewrite(&mut headers(END_HEADERS, b"\x44\x04/a\"b\x40\x01n\x01v")).expect("frames");
    frames.written.clear();

    frames.rewrite(&mut on(3, headers(END_HEADERS, b"\x82\xbf"))).expect("frames");

    let (block, value) = split(&frames.written);
    assert_eq!((&block[9..], &*value), (&b"\x82\xbf"[..], &b"/a\"b"[..]));
    frames.written.clear();
    let fragments = [headers(0, b"\x82"), continuation(END_HEADERS, b"\xbf")];
    let fragments = fragments.map(|frame| on(5, frame)).concat();
    frames.rewrite(&mut fragments.clone()).expect("frames");
    let (block, value) = split(&frames.written);
    assert_eq!((&block[9..], &*value), (&b"\x82\xbf"[..], &b"/a\"b"[..]));
}

#[test]
fn a_pseudo_header_field_in_trailers_makes_them_malformed() {
    for (block, is_pseudo) in [
        (&b"\x44\x02/a"[..], true),
        (b"\x44\x04/a\"b", true),
        (b"\x82", true),
        (b"\x8e", true),
        (b"\x40\x02:x\x01v", true),
        // `:x` in the Huffman code.
        (b"\x40\x82\xb9\xe7\x01v", true),
        (b"\x40\x01n\x01v", false),
        (b"\x8f\x90", false),
        (b"\x40\x02x:\x01v", false),
    ] {
        let mut frames = after_preface();
        let request = headers(END_HEADERS, b"\x82\x84");
        assert_eq!(frames.rewrite(&mut request.clone()).ok(), Some(request.len()));

        frames.rewrite(&mut headers(END_HEADERS | END_STREAM, block)).expect("frames");

        let malformed = frames.written.windows(10).any(|bytes| bytes == b"connection");
        assert_eq!(malformed, is_pseudo, "{block:?}");
    }
}

#[test]
fn an_unusual_path_in_several_frames_is_carried_like_one_in_a_single_frame() {
    let block = b"\x82\x04\x06/a<\xe9>b\x86";
    let mut whole = after_preface();
    whole.rewrite(&mut headers(END_HEADERS | END_STREAM, block)).expect("frames");
    for at in 0..=block.len() {
        let (first, rest) = block.split_at(at);
        let (second, last) = rest.split_at(rest.len() / 2);
        let sent = [
            headers(END_STREAM, first),
            continuation(0, second),
            continuation(END_HEADERS, last),
            data(b"<#>"),
        ]
        .concat();
        let mut frames = after_preface();

        assert_eq!(frames.rewrite(&mut sent.clone()).ok(), Some(0), "{at}");

        assert_eq!(frames.written, [&whole.written[..], &data(b"<#>")].concat(), "{at}");
    }
}

#[test]
fn a_usual_path_in_several_frames_passes_in_its_frames() {
    let sent = [
        headers(PADDED, b"\x02\x82\x04\x06/ab##"),
        continuation(0, b""),
        continuation(END_HEADERS, b"c?d\x86"),
    ]
    .concat();
    let mut frames = after_preface();

    frames.rewrite(&mut sent.clone()).expect("frames");

    assert_eq!(frames.written, sent);
}

#[test]
fn a_block_too_long_to_be_held_passes_unless_its_path_is_unusual() {
    let many = || {
        let field = [b"\x00\x01n\x7f\x80\x01", &b"v".repeat(255)[..]].concat();
        (0..700).flat_map(move |_| on(3, continuation(0, &field))).collect::<Vec<_>>()
    };
    let usual =
        [on(3, headers(0, b"\x82")), many(), on(3, continuation(END_HEADERS, b"\x04\x02/a"))];
    let mut frames = after_preface();
    let mut read = usual.concat();
    let passed = frames.rewrite(&mut read).expect("frames");
    let mut all = frames.written.to_vec();
    while frames.is_behind {
        frames.written.clear();
        frames.rewrite(&mut []).expect("frames");
        all.extend_from_slice(&frames.written);
    }
    assert_eq!((passed, all), (0, usual.concat()));

    let mut frames = after_preface();
    frames.rewrite(&mut headers(END_HEADERS, b"\x44\x04/a\"b")).expect("frames");
    frames.written.clear();
    let mut outcome = frames.rewrite(&mut [on(3, headers(0, b"\x82")), many()].concat());
    while outcome.is_ok() && frames.is_behind {
        frames.written.clear();
        outcome = frames.rewrite(&mut []);
    }
    outcome.expect("frames");
    let pieces = frames.rewrite(&mut on(3, continuation(END_HEADERS, b"\xbe")));
    assert!(pieces.is_err(), "h2 would serve the placeholder");
}

#[test]
fn a_frame_within_a_block_lets_h2_see_what_is_wrong() {
    let mut of_another = continuation(END_HEADERS, b"\x02/#");
    of_another[8] = 3;
    for within in [data(b"x"), of_another.clone(), headers(END_HEADERS, b"\x82")] {
        let sent = [headers(0, b"\x82\x04"), within].concat();
        let mut frames = after_preface();

        frames.rewrite(&mut sent.clone()).expect("frames");

        assert_eq!(frames.written[..11], sent[..11], "{sent:?}");
        assert_eq!(frames.written.len(), sent.len());
    }
}

/// One byte of a block can stand for 4 KiB.
#[tokio::test]
async fn a_rewritten_header_block_is_bounded() {
    let (near, mut far) = duplex(1 << 20);
    let mut stream = RawTargets::new(near);
    let mut first = b"\x44".to_vec();
    push_string(&mut first, &[b"/", &b"<".repeat(4000)[..]].concat());
    let again = (0..1000).flat_map(|n| on(2 * n + 3, headers(END_HEADERS, b"\xbe")));
    let sent = [PREFACE.to_vec(), headers(END_HEADERS, &first), again.collect()];
    far.write_all(&sent.concat()).await.expect("a pipe");
    drop(far);

    let (mut some, mut read) = (vec![0; 16 * 1024], 0);
    while let count @ 1.. = stream.read(&mut some).await.expect("a pipe") {
        read += count;
        assert!(stream.frames.written.len() < MAX_WRITTEN_BYTES + MAX_FRAME_BYTES);
        assert!(stream.frames.held.len() <= some.len() + MAX_FRAME_BYTES);
    }

    assert!(read > 1001 * 4000, "{read}");
}

#[test]
fn a_control_character_becomes_a_space() {
    let (_, value) = rewritten(&headers(END_HEADERS, b"\x04\x06/\x00\r\n\x7f\xe9"));

    assert_eq!(value, b"/    \xe9");
}

#[test]
fn a_long_path_takes_several_frames() {
    let path = [b"/", &b"<".repeat(16_000)[..]].concat();
    let mut block = b"\x04".to_vec();
    push_string(&mut block, &path);
    let mut frames = after_preface();
    frames
        .rewrite(&mut headers(
            END_HEADERS,
            &[&block[..], b"\x40\x7f\xdf\x01", &b"n".repeat(350), b"\x01v"].concat(),
        ))
        .expect("frames");

    let mut left = &frames.written[..];
    let mut lengths = Vec::new();
    while let [a, b, c, kind, flags, ..] = *left {
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        lengths.push((kind, flags, length <= MAX_FRAME_BYTES));
        left = &left[FRAME_HEADER_BYTES + length..];
    }
    assert_eq!(lengths, [(HEADERS, 0, true), (CONTINUATION, END_HEADERS, true)]);
}

#[test]
fn header_blocks_are_found_after_padding_and_priority() {
    for (flags, before, after) in [
        (0, &b""[..], &b""[..]),
        (PADDED, b"\x03", b"###"),
        (PRIORITY, b"\0\0\0\0#", b""),
        (PADDED | PRIORITY, b"\x01\0\0\0\0#", b"#"),
    ] {
        let payload = [before, b"\x04\x02/#", after].concat();

        let (rewritten, value) = rewritten(&headers(flags | END_HEADERS, &payload));

        assert_eq!((&rewritten[9..], &*value), (&b"\x04\x01/"[..], &b"/#"[..]), "{flags}");
    }
}

#[tokio::test]
async fn a_reader_gets_the_rest_of_a_stream_that_ends_within_a_frame() {
    let (near, mut far) = duplex(64);
    let mut stream = RawTargets::new(near);
    far.write_all(&[PREFACE, &[0, 0, 9, HEADERS]].concat()).await.expect("a pipe");
    drop(far);
    let mut read = Vec::new();

    stream.read_to_end(&mut read).await.expect("a pipe");

    assert_eq!(read, [PREFACE, &[0, 0, 9, HEADERS]].concat());
}

proptest! {
    /// However reads split the frames of a client, h2 reads the same bytes.
    #[test]
    fn a_head_in_pieces_is_rewritten_like_a_whole_one(
        paths in prop::collection::vec("/[a\"<{#]{0,6}", 1..6), indexed in any::<bool>(), piece in 1_usize..60, room in 1_usize..40,
    ) {
        let mut sent = PREFACE.to_vec();
        for path in &paths {
            let mut block = vec![if indexed { 0x44 } else { 0x04 }];
            push_string(&mut block, path.as_bytes());
            sent.extend([headers(END_HEADERS | PADDED, &[b"\x02", &block[..], b"pp"].concat()), data(b"<#>")].concat());
        }
        super::in_pieces(&sent, piece);
        let mut whole = FrameRewriter::default();
        let mut expected = sent.clone();
        let passed = whole.rewrite(&mut expected).expect("frames");
        expected.truncate(passed);
        expected.extend_from_slice(&whole.written);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let read = runtime.block_on(async {
            let (near, mut far) = duplex(piece);
            let mut stream = RawTargets::new(near);
            let writing = async move { far.write_all(&sent).await.expect("a pipe") };
            let reading = async {
                let (mut all, mut some) = (Vec::new(), vec![0; room]);
                loop {
                    match stream.read(&mut some).await.expect("a pipe") {
                        0 => return all,
                        count => all.extend_from_slice(&some[..count]),
                    }
                }
            };
            tokio::join!(writing, reading).1
        });
        prop_assert_eq!(read, expected);
    }
}

/// Returns the bytes that h2 reads without the appended field, and the value of that.
fn rewritten(frame: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut frames = after_preface();
    assert_eq!(frames.rewrite(&mut frame.to_vec()).ok(), Some(0));
    split(&frames.written)
}

fn split(frame: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut field = vec![NEVER_INDEXED];
    push_string(&mut field, FIELD.as_str().as_bytes());
    let at = frame.windows(field.len()).position(|window| window == field).expect("the field");
    let (length, value) = frame[at + field.len()..].split_first().expect("a value");
    assert_eq!(usize::from(*length), value.len());
    let mut block = frame[..at].to_vec();
    let whole = block.len() - FRAME_HEADER_BYTES;
    assert_eq!(usize::from(frame[1]) << 8 | usize::from(frame[2]), frame.len() - 9);
    (block[1], block[2]) = (0, whole as u8);
    (block, value.to_vec())
}

fn after_preface() -> FrameRewriter {
    FrameRewriter { skip: 0, ..FrameRewriter::default() }
}

/// Returns a frame as one of another stream.
fn on(stream: u32, mut frame: Vec<u8>) -> Vec<u8> {
    frame[5..FRAME_HEADER_BYTES].copy_from_slice(&stream.to_be_bytes());
    frame
}

fn headers(flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[HEADERS, flags, 0, 0, 0, 1], payload].concat()
}

fn continuation(flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = headers(flags, payload);
    frame[3] = CONTINUATION;
    frame
}

fn head(length: usize, flags: u8) -> Vec<u8> {
    headers(flags | END_HEADERS, &vec![0; length])[..FRAME_HEADER_BYTES].to_vec()
}

fn data(payload: &[u8]) -> Vec<u8> {
    let mut frame = headers(0, payload);
    frame[3] = 0;
    frame
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
