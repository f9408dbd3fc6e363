//! `server`, `server`, `admin`.

use core::net::{Ipv4Addr, SocketAddr};
use core::time::Duration;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use serde::Deserialize;
use url::Url;

use super::{KeywordOr, Secret, Value};
use crate::config::de::field::{Field, List, ListOrNone, OneOrMany};
use crate::config::de::units::{FromScalar, InvalidValue, Keyword, Size};
use crate::config::server::{self, ForwardedHeaders};

/// `listen[]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Listener {
    /// `host:port`, `[::]:443`. Required.
    pub(crate) address: Value<Address>,
    /// `{ cert, key }`, or `self_signed`: a certificate for localhost made at start. Default off.
    pub(crate) tls: Field<KeywordOr<SelfSigned, Tls>>,
    /// HTTP/2: by ALPN with TLS, by prior knowledge without. Default true.
    pub(crate) http2: Field<bool>,
    /// Answers everything with a 308 to https: true, or the port it is on. Default false.
    pub(crate) redirect_https: Value<RedirectHttps>,
}

/// `listen[].tls`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Tls {
    /// A PEM chain, or a list of them: the name the client asks for (SNI) chooses. Required.
    pub(crate) cert: Field<OneOrMany<String>>,
    /// The PEM key of each chain, in the same order. Required.
    pub(crate) key: Field<OneOrMany<String>>,
    /// `1.2` or `1.3`. Default 1.2.
    pub(crate) min_version: Value<MinVersion>,
    /// Lets clients resume a session. Default true; false where clients show certificates.
    pub(crate) session_tickets: Field<bool>,
    /// PEM certificates of the authorities whose clients are trusted. Required to ask for certificates.
    pub(crate) client_ca: Field<String>,
    /// Whether clients show a certificate: `none`, `optional` or `required`. Default none.
    pub(crate) client_auth: Value<ClientAuth>,
}

/// `server`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Server {
    /// Threads that serve, 1 to 1024. Default: the CPU quota.
    pub(crate) workers: Field<u64>,
    /// The longest time for a TLS handshake, a request's head, the first HTTP/2 HEADERS. Default 10s.
    pub(crate) header_timeout: Value<Duration>,
    /// The longest gap between parts of a body, or while a client reads nothing. Default 30s.
    pub(crate) body_timeout: Value<Duration>,
    /// The least a request's body brings per second, after 5 s; 0 is off. Default 240B.
    pub(crate) min_body_rate: Value<Size>,
    /// How long a connection may wait for its next request. Default 60s.
    pub(crate) idle_timeout: Value<Duration>,
    /// The largest head of a request; 431 above. Default 32KiB.
    pub(crate) max_header_size: Value<Size>,
    /// The most fields in it; 431 above. Default 100.
    pub(crate) max_headers: Field<u64>,
    /// The largest body of a request; 413 above; 0 is no limit. Default 10MiB.
    pub(crate) max_body_size: Value<Size>,
    /// Connections at once; accepting pauses above. Default 10000.
    pub(crate) max_connections: Field<u64>,
    /// Connections of one address at once; one more is closed; 0 is off. Default 0.
    pub(crate) max_connections_per_ip: Field<u64>,
    /// Requests at once; one more is answered 503; 0 is off. Default 0.
    pub(crate) max_requests_in_flight: Field<u64>,
    /// Streams at once on one HTTP/2 connection. Default 100.
    pub(crate) http2_max_concurrent_streams: Field<u64>,
    /// Networks whose `Forwarded` and `X-Forwarded-*` are believed. Default none.
    pub(crate) trusted_proxies: Field<ListOrNone<super::Scalar<IpNet>>>,
    /// What services receive: `x-forwarded`, `forwarded`, `both` or `none`. Default x-forwarded.
    pub(crate) forwarded_headers: Value<ForwardedHeaders>,
    /// Scheme and host that clients know the gateway by: its metadata (RFC 9728), and what `DPoP` proofs are for.
    /// Default none.
    pub(crate) public_url: Value<Url>,
    /// Keys of 32 bytes in base64: `DPoP` proofs must carry a nonce made with the first, or with another. Default none.
    pub(crate) dpop_nonce_keys: Field<List<Secret>>,
    /// How long after SIGTERM new requests are still served. Default 0s.
    pub(crate) drain_delay: Value<Duration>,
    /// How long the last requests may then take. Default 30s.
    pub(crate) drain_timeout: Value<Duration>,
    /// Where local quotas, last good signing keys and keys of identity tokens are kept for the next start. Default none.
    pub(crate) state_dir: Field<String>,
    /// PEM private keys that sign identity tokens: the first signs, all are published. Default: made by the
    /// gateway, kept in `state_dir`, a new one every day.
    pub(crate) identity_keys: Field<OneOrMany<String>>,
    /// `Server` on the gateway's own answers, or false. Default false.
    pub(crate) server_header: Value<ServerHeader>,
    /// Where a request's id travels. Default X-Request-Id.
    pub(crate) request_id_header: Value<HeaderName>,
}

/// `admin`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Admin {
    /// Where it listens. Default 127.0.0.1:9901.
    pub(crate) listen: Value<Address>,
    /// Bearer for everything but health and metrics: a secret. Default none.
    pub(crate) token: Field<Secret>,
    /// Callers from elsewhere get health and metrics alone. Default false.
    pub(crate) public_metrics_only: Field<bool>,
}

/// A place to listen, as text and as meant.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) text: String,
    pub(crate) meant: server::Address,
}

impl FromScalar for Address {
    const WANTED: &'static str = "an address such as 0.0.0.0:8080";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        let wrong = |help: String| InvalidValue::new("is not an address to listen on", help);
        if let Some(path) = text.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err(wrong("write a whole path, such as unix:/run/northgate.sock".into()));
            }
            return Ok(Self { text: text.to_owned(), meant: server::Address::Unix(path.into()) });
        }
        let address = match text.parse::<SocketAddr>() {
            Ok(address) => address,
            Err(_) => match text.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>())) {
                Some(("localhost", Ok(port))) => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
                Some(("" | "*", Ok(port))) => {
                    return Err(wrong(format!("write 0.0.0.0:{port} or [::]:{port}")));
                }
                _ => {
                    return Err(wrong(
                        "write an address and a port, such as 0.0.0.0:8080 or [::]:8443".into(),
                    ));
                }
            },
        };
        Ok(Self { text: text.to_owned(), meant: server::Address::Tcp(address) })
    }
}

/// `self_signed`
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SelfSigned;

impl Keyword for SelfSigned {
    const WANTED: &'static str = "`self_signed`, or a mapping with cert and key";
    const WORDS: &'static [(&'static str, Self)] = &[("self_signed", Self)];
}

/// Whether TLS 1.2 is spoken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum MinVersion {
    Tls12,
    Tls13,
}

impl Keyword for MinVersion {
    const WANTED: &'static str = "1.2 or 1.3";
    const WORDS: &'static [(&'static str, Self)] = &[("1.2", Self::Tls12), ("1.3", Self::Tls13)];
}

/// Whether clients show a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ClientAuth {
    None,
    Optional,
    Required,
}

impl Keyword for ClientAuth {
    const WANTED: &'static str = "none, optional or required";
    const WORDS: &'static [(&'static str, Self)] =
        &[("none", Self::None), ("optional", Self::Optional), ("required", Self::Required)];
}

/// The port that https is on, if at all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RedirectHttps(pub(crate) Option<u16>);

impl FromScalar for RedirectHttps {
    const WANTED: &'static str = "true, false or a port";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        match (text, text.parse()) {
            ("true", _) => Ok(Self(Some(443))),
            ("false", _) => Ok(Self(None)),
            (_, Ok(port @ 1..)) => Ok(Self(Some(port))),
            _ => Err(InvalidValue::new(
                "is neither true, false nor a port",
                "write the port that https is on",
            )),
        }
    }
}

/// `Server` on the gateway's own answers.
#[derive(Clone, Debug)]
pub(crate) struct ServerHeader(pub(crate) Option<HeaderValue>);

impl FromScalar for ServerHeader {
    const WANTED: &'static str = "a word, or false";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        match text {
            "false" => Ok(Self(None)),
            "true" | "" => Err(InvalidValue::new(
                "is not what a server may call itself",
                "write a word, or false",
            )),
            text => HeaderValue::parse(text).map(|value| Self(Some(value))),
        }
    }
}

impl Keyword for ForwardedHeaders {
    const WANTED: &'static str = "x-forwarded, forwarded, both or none";
    const WORDS: &'static [(&'static str, Self)] = &[
        ("x-forwarded", Self::XForwarded),
        ("forwarded", Self::Forwarded),
        ("both", Self::Both),
        ("none", Self::None),
    ];
}
