//! Request ids, which link a response to its log lines.

use core::cell::Cell;

use http::HeaderValue;

use crate::base::clock::Timestamp;
use crate::base::random::try_random;

/// Returns a new id: a UUID of version 7 (RFC 9562 §5.7), so that ids sort by time.
///
/// Its random part makes ids unique; it is not a secret.
pub(crate) fn new(now: Timestamp) -> HeaderValue {
    let millis = now.as_nanos() / 1_000_000;
    let (a, b) = (random(), random());
    let high = millis << 16 | 0x7000 | (a & 0x0fff);
    let low = 0x8000_0000_0000_0000 | (b & 0x3fff_ffff_ffff_ffff);
    let [time, version] = [high >> 32, high].map(|part| hex(part as u32));
    let [variant, node] = [low >> 32, low].map(|part| hex(part as u32));
    let mut text = [b'-'; 36];
    text[..8].copy_from_slice(&time);
    text[9..13].copy_from_slice(&version[..4]);
    text[14..18].copy_from_slice(&version[4..]);
    text[19..23].copy_from_slice(&variant[..4]);
    text[24..28].copy_from_slice(&variant[4..]);
    text[28..].copy_from_slice(&node);
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("-"))
}

/// Formats `number` as eight hexadecimal digits without a loop: one byte for each digit, then each byte to its
/// character.
const fn hex(number: u32) -> [u8; 8] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let spread = number as u64;
    let spread = (spread << 16 | spread) & 0x0000_ffff_0000_ffff;
    let spread = (spread << 8 | spread) & 0x00ff_00ff_00ff_00ff;
    let digits = (spread << 4 | spread) & 0x0f0f_0f0f_0f0f_0f0f;
    // Adding six carries into the upper half of the byte from ten on.
    let letters = ((digits + 6 * ONES) >> 4) & ONES;
    (digits + b'0' as u64 * ONES + letters * (b'a' - b'0' - 10) as u64).to_be_bytes()
}

/// Whether an id from a trusted proxy is acceptable: 1 to 128 visible ASCII characters.
pub(crate) fn is_acceptable(id: &HeaderValue) -> bool {
    (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
}

/// Returns the next random number of this thread (`SplitMix64`), seeded by the system.
fn random() -> u64 {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(seed());
    }
    STATE.with(|state| {
        let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(next);
        let n = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ (n >> 31)
    })
}

fn seed() -> u64 {
    // Without randomness ids may repeat between restarts, which is harmless.
    u64::from_le_bytes(try_random().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_a_uuid_of_version_7_that_starts_with_the_time() {
        let id = new(Timestamp::from_nanos(0x0190_0000_0001 * 1_000_000));
        let id = id.to_str().expect("text");

        assert!(id.starts_with("01900000-0001-7"), "{id}");
        assert_eq!(id.len(), 36);
        assert!(matches!(id.as_bytes()[19], b'8' | b'9' | b'a' | b'b'), "{id}");
    }

    #[test]
    fn digits_are_those_of_the_number() {
        for number in [0, 1, 0x9a, 0x0123_4567, 0x89ab_cdef, 0xffff_ffff, 0xa000_000f] {
            assert_eq!(hex(number), *format!("{number:08x}").as_bytes());
        }
    }

    #[test]
    fn generated_ids_are_unique() {
        let ids: std::collections::HashSet<_> =
            (0..10_000).map(|_| new(Timestamp::from_secs(1))).collect();

        assert_eq!(ids.len(), 10_000);
    }

    #[test]
    fn an_id_from_a_proxy_must_fit_a_log_line() {
        assert!(is_acceptable(&HeaderValue::from_static("abc-1")));
        assert!(!is_acceptable(&HeaderValue::from_static("")));
        assert!(!is_acceptable(&HeaderValue::from_static("a b")));
        assert!(!is_acceptable(&HeaderValue::from_str(&"a".repeat(129)).expect("valid")));
    }
}
