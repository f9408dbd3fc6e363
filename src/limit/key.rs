//! Limit keys: which requests are counted together.
//!
//! A key is 64 bits of a keyed hash over the parts that the operator configured.
//! The hash key is random for each set of counters, so that no client can
//! choose a value that collides with another's; and no address, name
//! or API key is stored in the counters or in the file that survives a restart.

use core::hash::Hasher;
use core::net::IpAddr;

use aws_lc_rs::digest::{Context, SHA256};
use http::{HeaderMap, Method};
use serde_json::Value;
use siphasher::sip::SipHasher13;

use super::settings::{KeyPart, OnMissing};
use crate::base::header_fields::has_other_spelling;

/// The properties of a request that limits may use.
///
/// Before authentication, properties of the principal are `None`.
#[derive(Clone, Copy)]
pub struct LimitKeySource<'a> {
    /// The client's address, as reported by trusted proxies.
    pub ip: IpAddr,
    /// The route's id.
    pub route: &'a str,
    /// The token's issuer, or tenant; `client`, `subject` and `session` are distinct per issuer.
    pub issuer: Option<&'a str>,
    /// The OAuth client.
    pub client: Option<&'a str>,
    /// The token's subject.
    pub subject: Option<&'a str>,
    /// The login session.
    pub session: Option<&'a str>,
    /// The request's header fields.
    pub headers: &'a HeaderMap,
    /// Claims of the token by path, such as `org.id`.
    pub claim: &'a dyn Fn(&str) -> Option<&'a Value>,
    /// The request's method.
    pub method: &'a Method,
    /// The announced size of the body in bytes; `None` if it is unknown.
    pub request_size: Option<u64>,
}

impl core::fmt::Debug for LimitKeySource<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Subject").field("route", &self.route).finish_non_exhaustive()
    }
}

/// The random hash key of one set of counters.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) struct HashSeed(pub(super) [u8; 16]);

impl HashSeed {
    /// Returns the key of these parts, or how to treat a request without one.
    pub(super) fn key(
        &self,
        by: &[KeyPart],
        on_missing: OnMissing,
        subject: &LimitKeySource<'_>,
    ) -> Result<u64, NoKey> {
        let mut hash = Parts(SipHasher13::new_with_key(&self.0));
        hash.key(by, on_missing, subject)?;
        Ok(hash.0.finish())
    }
}

/// Returns the name of these parts in a store that several gateways share: 32 hexadecimal digits.
///
/// All gateways compute the same name, so the hash has no secret key; it is one for which no client finds a second
/// value with the same name. `limit` distinguishes limits with the same key.
pub(super) fn shared_name(
    limit: &str,
    by: &[KeyPart],
    on_missing: OnMissing,
    subject: &LimitKeySource<'_>,
) -> String {
    let mut hash = Parts(Sha256Hasher(Context::new(&SHA256)));
    hash.text(Tag::Text, limit);
    // A request without a key has no counter, and is decided before a name is needed.
    let _ = hash.key(by, on_missing, subject);
    let digest = hash.0.0.finish();
    digest.as_ref().iter().take(16).fold(String::with_capacity(32), |mut name, byte| {
        for digit in [byte >> 4, byte & 15] {
            name.extend(char::from_digit(digit.into(), 16));
        }
        name
    })
}

/// SHA-256 behind the interface of the standard library's hashers.
struct Sha256Hasher(Context);

impl Hasher for Sha256Hasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn write_u64(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn finish(&self) -> u64 {
        0
    }
}

impl core::fmt::Debug for HashSeed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Seed")
    }
}

/// A part of the key is missing, and `on_missing` gives no substitute.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NoKey {
    /// Refuse the request.
    Reject,
    /// Skip the limit.
    Skip,
    /// Refuse the request: a header field is there twice, or in another spelling of its name. Upstreams differ in which
    /// of the values is the key, so that a client whose key is used up could name another one beside it.
    Ambiguous,
}

/// An unambiguous encoding of parts: tag, length and value of each.
struct Parts<H>(H);

impl<H: Hasher> Parts<H> {
    /// Writes the parts of a key, or returns how to treat a request without one.
    fn key(
        &mut self,
        by: &[KeyPart],
        on_missing: OnMissing,
        subject: &LimitKeySource<'_>,
    ) -> Result<(), NoKey> {
        for part in by {
            if !self.part(part, subject)? {
                match on_missing {
                    OnMissing::Ip => self.ip(subject.ip),
                    OnMissing::Shared => self.tag(Tag::Missing, 0),
                    OnMissing::Reject => return Err(NoKey::Reject),
                    OnMissing::Skip => return Err(NoKey::Skip),
                }
            }
        }
        Ok(())
    }

    /// Writes one part; false if the request lacks it.
    fn part(&mut self, part: &KeyPart, subject: &LimitKeySource<'_>) -> Result<bool, NoKey> {
        match part {
            KeyPart::Ip => self.ip(subject.ip),
            KeyPart::Route => self.text(Tag::Route, subject.route),
            KeyPart::Global => self.tag(Tag::Global, 0),
            KeyPart::Client => return Ok(self.named(Tag::Client, subject.client, subject)),
            KeyPart::Subject => return Ok(self.named(Tag::Subject, subject.subject, subject)),
            KeyPart::Session => return Ok(self.named(Tag::Session, subject.session, subject)),
            KeyPart::Header(name) => {
                let mut values = subject.headers.get_all(name).iter();
                let value = values.next();
                if values.next().is_some() || has_other_spelling(subject.headers, name) {
                    return Err(NoKey::Ambiguous);
                }
                if let Some(value) = value {
                    self.bytes(Tag::HeaderValue, value.as_bytes());
                }
                self.tag(Tag::Header, u64::from(value.is_some()));
                return Ok(value.is_some());
            }
            KeyPart::Claim(path) => match (subject.claim)(path) {
                None | Some(Value::Null) => return Ok(false),
                Some(value) => self.value(value),
            },
        }
        Ok(true)
    }

    /// Writes an IPv4 address, however it is written; of an IPv6 address the /64 of one subscriber.
    fn ip(&mut self, ip: IpAddr) {
        match ip.to_canonical() {
            IpAddr::V4(ip) => {
                self.tag(Tag::Ipv4, ip.to_bits().into());
            }
            IpAddr::V6(ip) => {
                self.tag(Tag::Ipv6, 0);
                self.0.write_u64((ip.to_bits() >> 64) as u64);
            }
        }
    }

    /// Writes a name that is only unique per issuer.
    fn named(&mut self, tag: Tag, name: Option<&str>, subject: &LimitKeySource<'_>) -> bool {
        let Some(name) = name else { return false };
        self.text(Tag::Issuer, subject.issuer.unwrap_or_default());
        self.text(tag, name);
        true
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.tag(Tag::Missing, 0),
            Value::Bool(value) => self.tag(Tag::Bool, u64::from(*value)),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => self.bytes(Tag::Unsigned, &number.to_le_bytes()),
                (_, Some(number)) => self.bytes(Tag::Signed, &number.to_le_bytes()),
                _ => {
                    let number = number.as_f64().unwrap_or_default();
                    self.bytes(Tag::Float, &number.to_bits().to_le_bytes());
                }
            },
            Value::String(text) => self.text(Tag::Text, text),
            Value::Array(items) => {
                self.tag(Tag::Array, items.len() as u64);
                for item in items {
                    self.value(item);
                }
            }
            Value::Object(members) => {
                self.tag(Tag::Object, members.len() as u64);
                for (name, value) in members {
                    self.text(Tag::Text, name);
                    self.value(value);
                }
            }
        }
    }

    fn text(&mut self, tag: Tag, text: &str) {
        self.bytes(tag, text.as_bytes());
    }

    fn bytes(&mut self, tag: Tag, bytes: &[u8]) {
        self.tag(tag, bytes.len() as u64);
        self.0.write(bytes);
    }

    /// Writes one word: the tag, and the length or number.
    fn tag(&mut self, tag: Tag, number: u64) {
        self.0.write_u64((tag as u64) << 56 | number);
    }
}

/// The kind of the value that follows. The numbers are part of the file format of saved counters.
#[derive(Clone, Copy)]
enum Tag {
    Missing = 0,
    Global = 1,
    Ipv4 = 2,
    Ipv6 = 3,
    Route = 4,
    Issuer = 5,
    Client = 6,
    Subject = 7,
    Session = 8,
    Header = 9,
    Bool = 10,
    Unsigned = 11,
    Signed = 12,
    Float = 13,
    Text = 14,
    Array = 15,
    Object = 16,
    HeaderValue = 17,
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use serde_json::json;

    use super::*;

    #[test]
    fn counts_an_ipv6_subscriber_once_and_an_ipv4_address_however_written() {
        let by = [KeyPart::Ip];
        let key = |ip: &str| of(&by, &Facts { ip, ..Facts::default() });

        assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff::9"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_eq!(key("192.0.2.7"), key("::ffff:192.0.2.7"));
        assert_ne!(key("192.0.2.7"), key("192.0.2.8"));
    }

    #[test]
    fn tells_clients_of_two_issuers_apart() {
        let by = [KeyPart::Client];
        let key = |issuer| {
            of(&by, &Facts { issuer: Some(issuer), client: Some("app"), ..Facts::default() })
        };

        assert_ne!(key("https://a.example"), key("https://b.example"));
    }

    #[test]
    fn never_takes_one_part_for_another() {
        let by = [KeyPart::Client, KeyPart::Subject];
        let key = |client, subject| {
            of(&by, &Facts { client: Some(client), subject: Some(subject), ..Facts::default() })
        };

        assert_ne!(key("ab", "c"), key("a", "bc"));
        assert_ne!(
            of(&[KeyPart::Client], &Facts { client: Some("x"), ..Facts::default() }),
            of(&[KeyPart::Subject], &Facts { subject: Some("x"), ..Facts::default() }),
        );
    }

    #[test]
    fn follows_on_missing_for_the_missing_part_alone() {
        let by = [KeyPart::Route, KeyPart::Client];
        let missing =
            |on_missing, ip, route| key(&by, on_missing, &Facts { ip, route, ..Facts::default() });

        let ip = OnMissing::Ip;
        assert_ne!(missing(ip, "192.0.2.1", "a"), missing(ip, "192.0.2.2", "a"));
        let shared = OnMissing::Shared;
        assert_eq!(missing(shared, "192.0.2.1", "a"), missing(shared, "192.0.2.2", "a"));
        assert_ne!(missing(shared, "192.0.2.1", "a"), missing(shared, "192.0.2.1", "b"));
        assert_eq!(missing(OnMissing::Reject, "192.0.2.1", "a"), Err(NoKey::Reject));
        assert_eq!(missing(OnMissing::Skip, "192.0.2.1", "a"), Err(NoKey::Skip));
    }

    #[test]
    fn a_missing_part_equals_no_existing_value() {
        let by = [KeyPart::Client];
        let missing = key(&by, OnMissing::Shared, &Facts::default());

        assert_ne!(
            missing,
            key(&by, OnMissing::Shared, &Facts { client: Some(""), ..Facts::default() })
        );
    }

    #[test]
    fn a_claim_is_counted_by_type_and_value() {
        let by = [KeyPart::Claim("tier".into())];
        let key = |claims: Value| of(&by, &Facts { claims, ..Facts::default() });

        assert_eq!(key(json!({ "tier": "1" })), key(json!({ "tier": "1", "other": 2 })));
        assert_ne!(key(json!({ "tier": "1" })), key(json!({ "tier": 1 })));
        assert_ne!(key(json!({ "tier": ["a", "b"] })), key(json!({ "tier": [["a"], "b"] })));
        assert_eq!(key(json!({ "tier": null })), key(json!({})));
    }

    #[test]
    fn a_field_with_several_readings_is_no_key() {
        let by = [KeyPart::Header(HeaderName::from_static("x-key"))];
        for on_missing in [OnMissing::Ip, OnMissing::Shared, OnMissing::Skip, OnMissing::Reject] {
            let key = |header: &'static [(&'static str, &'static str)]| {
                key(&by, on_missing, &Facts { header, ..Facts::default() })
            };

            assert!(key(&[("x-key", "a")]).is_ok());
            assert_ne!(key(&[("x-key", "a")]), key(&[("x-key", "b")]));
            assert_eq!(key(&[("x-keys", "a")]), key(&[]));
            for fields in [
                &[("x-key", "a"), ("x-key", "b")][..],
                &[("x-key", "a"), ("x-key", "a")],
                &[("x-key", "a"), ("x-key", "")],
                &[("x-key", "a"), ("x_key", "b")],
                &[("x_key", "a")],
                &[("x.key", "a")],
            ] {
                assert_eq!(key(fields), Err(NoKey::Ambiguous), "{fields:?}");
            }
        }
    }

    #[test]
    fn another_seed_gives_other_keys() {
        let facts = Facts::default();
        let with = |seed: [u8; 16]| {
            facts.with(|subject| HashSeed(seed).key(&[KeyPart::Ip], OnMissing::Ip, subject))
        };

        assert_ne!(with([1; 16]), with([2; 16]));
    }

    struct Facts<'a> {
        ip: &'a str,
        route: &'a str,
        issuer: Option<&'a str>,
        client: Option<&'a str>,
        subject: Option<&'a str>,
        header: &'static [(&'static str, &'static str)],
        claims: Value,
    }

    impl Default for Facts<'_> {
        fn default() -> Self {
            Self {
                ip: "192.0.2.1",
                route: "orders",
                issuer: None,
                client: None,
                subject: None,
                header: &[],
                claims: json!({}),
            }
        }
    }

    impl Facts<'_> {
        fn with<R>(&self, ask: impl FnOnce(&LimitKeySource<'_>) -> R) -> R {
            let mut headers = HeaderMap::new();
            for (name, value) in self.header {
                headers.append(*name, HeaderValue::from_static(value));
            }
            ask(&LimitKeySource {
                ip: self.ip.parse().unwrap(),
                route: self.route,
                issuer: self.issuer,
                client: self.client,
                subject: self.subject,
                session: None,
                headers: &headers,
                claim: &|path| self.claims.get(path),
                method: &Method::GET,
                request_size: None,
            })
        }
    }

    fn of(by: &[KeyPart], facts: &Facts<'_>) -> Result<u64, NoKey> {
        key(by, OnMissing::Ip, facts)
    }

    fn key(by: &[KeyPart], on_missing: OnMissing, facts: &Facts<'_>) -> Result<u64, NoKey> {
        facts.with(|subject| HashSeed([7; 16]).key(by, on_missing, subject))
    }
}
