//! Checks `listen`, `server`, `admin`, `logging`, `metrics`.

use core::net::SocketAddr;
use core::num::NonZeroUsize;
use core::time::Duration;
use std::sync::Arc;

use http::HeaderName;
use url::Url;

use super::{Check, MAX_DURATION};
use crate::base::secret::Secret;
use crate::config::de::field::{Field, OneOrMany, Spanned};
use crate::config::de::units::{InvalidValue, Size};
use crate::config::fault::{Code, Position};
use crate::config::file::File;
use crate::config::file::server::{self, ClientAuth, MinVersion};
use crate::config::file::value::{KeywordOr, Value};
use crate::config::patterns;
use crate::config::server::{Address, Admin, Certificates, Listener, Metrics, Server, Tls};
use crate::issuer::keys::signing_key::SigningKey;
use crate::observe;
use crate::observe::log::{self, Level};
use crate::tls;

impl Check<'_> {
    pub(super) fn listeners(&mut self, file: &File) -> Vec<Listener> {
        let help = "write the address that clients connect to, such as `listen: 0.0.0.0:8080`";
        let Some(listen) = self.required(&file.listen, Position::START, "listen", help) else {
            return Vec::new();
        };
        let mut listeners: Vec<Listener> = Vec::new();
        for item in &listen.items {
            let (address, listener) = match &item.value {
                KeywordOr::Scalar(address) => {
                    let at = Spanned {
                        value: address.0.clone(),
                        at: item.at,
                        key_at: item.key_at,
                        raw: item.raw.clone(),
                        hidden: item.hidden,
                    };
                    (at, self.listener(&address.0, &server::Listener::default()))
                }
                KeywordOr::Mapping(keys) => {
                    let help = "write the address that clients connect to, such as `address: 0.0.0.0:8443`";
                    let address = self.required(&keys.address, item.at, "address", help);
                    let Some(address) = address else { continue };
                    let listener = self.listener(&address.value.0, keys);
                    let Some(listener) = listener else { continue };
                    self.proxy_protocol(keys, file);
                    let value = address.value.0.clone();
                    (
                        Spanned {
                            value,
                            at: address.at,
                            key_at: address.key_at,
                            raw: address.raw.clone(),
                            hidden: address.hidden,
                        },
                        Some(listener),
                    )
                }
            };
            if matches!(address.value.meant, Address::Unix(_)) {
                let message = "listening on Unix sockets is not built yet";
                self.fault(Code::C106, address.at, message, "write an address and a port");
            }
            let Some(listener) = listener else { continue };
            if listeners.iter().any(|other| same(&other.address, &listener.address)) {
                let message = "another listener has this address";
                self.fault(Code::C111, address.at, message, "keep one of them");
            }
            listeners.push(listener);
        }
        listeners
    }

    fn listener(&mut self, address: &server::Address, keys: &server::Listener) -> Option<Listener> {
        let tls = match &keys.tls {
            Field::Present(tls) => Some(self.tls(tls)?),
            Field::Absent => None,
            Field::Invalid => return None,
        };
        let redirect_https = keys.redirect_https.get();
        let redirects = redirect_https.and_then(|redirect| redirect.value.0.0);
        if let (Some(_), Some(_), Some(at)) = (&tls, redirects, redirect_https) {
            let message = "a listener with `tls` cannot redirect to https: it would lead to itself";
            self.fault(Code::C106, at.key_at, message, "put it on the listener without `tls`");
        }
        Some(Listener {
            name: address.text.as_str().into(),
            address: address.meant.clone(),
            tls,
            http2: keys.http2.or(true),
            redirect_https: redirects,
            proxy_protocol: keys.proxy_protocol.or(false),
        })
    }

    /// Refuses the PROXY protocol without a sender that may speak it.
    fn proxy_protocol(&mut self, keys: &server::Listener, file: &File) {
        let Some(asked) = keys.proxy_protocol.get().filter(|asked| asked.value) else { return };
        let senders = file.server.get().map(|server| &server.value.trusted_proxies);
        if senders.is_none_or(|senders| {
            !senders.is_bad() && senders.get().is_none_or(|senders| senders.items.is_empty())
        }) {
            let message = "`proxy_protocol` without `server.trusted_proxies`: no sender may name a client's address";
            let help = "name the networks of your load balancers in `server.trusted_proxies`";
            self.fault(Code::C109, asked.key_at, message, help);
        }
    }

    fn tls(&mut self, tls: &Spanned<KeywordOr<server::SelfSigned, server::Tls>>) -> Option<Tls> {
        let keys = match &tls.value {
            KeywordOr::Scalar(_) => {
                let message = "clients do not trust a self-signed certificate";
                self.fault(
                    Code::C110,
                    tls.at,
                    message,
                    "write tls: { cert: …, key: … }; this is for trials",
                );
                return Some(Tls {
                    certificates: Certificates::SelfSigned,
                    only_tls13: false,
                    session_tickets: true,
                    clients: None,
                });
            }
            KeywordOr::Mapping(keys) => keys,
        };
        let help = "write tls: { cert: chain.pem, key: key.pem }, or tls: self_signed for a trial";
        let cert = self.required(&keys.cert, tls.at, "cert", help);
        let key = self.required(&keys.key, tls.at, "key", help);
        let (cert, key) = (cert?, key?);
        if cert.incomplete || key.incomplete {
            return None;
        }
        if cert.items.len() != key.items.len() {
            let message =
                format!("`cert` lists {} files and `key` {}", cert.items.len(), key.items.len());
            self.fault(
                Code::C106,
                key.at,
                message,
                "write the key of each certificate, in the same order",
            );
            return None;
        }
        let identities = self.identities(cert, key);
        let clients = self.clients(keys);
        Some(Tls {
            certificates: Certificates::Files(identities?),
            only_tls13: keys
                .min_version
                .get()
                .is_some_and(|version| version.value.0 == MinVersion::Tls13),
            session_tickets: keys.session_tickets.or(clients.is_none()),
            clients,
        })
    }

    /// Returns the authorities for client certificates.
    fn clients(&mut self, keys: &server::Tls) -> Option<tls::server::ClientVerification> {
        let asked = keys.client_auth.get().filter(|at| at.value.0 != ClientAuth::None);
        let Some(asked) = asked else {
            if let Some(ca) = keys.client_ca.get().filter(|_| !keys.client_auth.is_bad()) {
                let message = "`client_ca` has no effect: client certificates are not requested";
                self.fault(
                    Code::C106,
                    ca.key_at,
                    message,
                    "write client_auth: required or optional",
                );
            }
            return None;
        };
        if let Some(tickets) = keys.session_tickets.get().filter(|at| at.value) {
            let message = "a resumed TLS session does not verify the client certificate again";
            self.fault(Code::C106, tickets.key_at, message, "remove it: it is false here");
        }
        if keys.client_ca.is_absent() {
            let message = "there is no `client_ca` to verify client certificates with";
            let help = "write client_ca: path of the PEM certificates of your authority";
            self.fault(Code::C106, asked.key_at, message, help);
        }
        let path = keys.client_ca.get()?;
        let pem = self.file(path)?;
        match tls::server::ClientVerification::from_pem(&pem, asked.value.0 == ClientAuth::Required)
        {
            Ok(clients) => Some(clients),
            Err(error) => {
                let help = "write PEM certificates of authorities into it";
                self.fault(Code::C108, path.at, format!("{}: {error}", path.shown()), help);
                None
            }
        }
    }

    /// Returns the keys for nonces of `DPoP` proofs.
    pub(super) fn dpop_nonce_keys(&mut self, file: &File) -> Vec<Secret<[u8; 32]>> {
        let Some(list) = file.server.get().and_then(|server| server.dpop_nonce_keys.get()) else {
            return Vec::new();
        };
        list.items.iter().filter_map(|key| self.key(key)).collect()
    }

    fn identities(
        &mut self,
        cert: &OneOrMany<String>,
        key: &OneOrMany<String>,
    ) -> Option<Vec<tls::Identity>> {
        let mut all = Some(Vec::new());
        for (cert, key) in cert.items.iter().zip(&key.items) {
            let Some((identity, ..)) = self.identity(cert, key) else {
                all = None;
                continue;
            };
            match tls::server::CertificateNames::of(&identity) {
                Ok(names) => {
                    let left = names.expires.since(self.surroundings.now);
                    if left < EXPIRY_WARNING {
                        let message = match left.as_secs() / 86_400 {
                            0 if left.is_zero() => format!("{} has expired", cert.shown()),
                            days => {
                                format!("{} expires in less than {} days", cert.shown(), days + 1)
                            }
                        };
                        self.fault(
                            Code::C110,
                            cert.at,
                            message,
                            "renew it; a reload takes the new one",
                        );
                    }
                    if let Some(all) = &mut all {
                        all.push(identity);
                    }
                }
                Err(error) => {
                    let help = "make one with a subject alternative name";
                    self.fault(Code::C108, cert.at, format!("{}: {error}", cert.shown()), help);
                    all = None;
                }
            }
        }
        all
    }

    pub(super) fn server(&mut self, file: &File) -> Server {
        let absent = server::Server::default();
        let keys = file.server.get().map_or(&absent, |server| &server.value);
        let seconds = Duration::from_secs;
        let workers = keys.workers.get().map(|_| self.number(&keys.workers, 1..=1024, 1));
        let off = |number: u64| (number > 0).then(|| usize::try_from(number).unwrap_or(usize::MAX));
        Server {
            workers: workers.and_then(|n| NonZeroUsize::new(n as usize)),
            header_timeout: self.time(&keys.header_timeout, seconds(10), MAX_DURATION),
            body_timeout: self.time(&keys.body_timeout, seconds(30), MAX_DURATION),
            min_body_rate: Some(size(&keys.min_body_rate, 240)).filter(|rate| *rate > 0),
            idle_timeout: self.time(&keys.idle_timeout, seconds(75), MAX_DURATION),
            max_header_size: self.head_size(&keys.max_header_size),
            max_headers: self.number(&keys.max_headers, 1..=10_000, 100) as usize,
            max_body_size: self.body_size(&keys.max_body_size, Some(10 << 20)),
            max_connections: self.number(&keys.max_connections, 1..=10_000_000, 10_000) as usize,
            max_connections_per_ip: off(self.number(
                &keys.max_connections_per_ip,
                0..=10_000_000,
                0,
            )),
            max_requests_in_flight: off(self.number(
                &keys.max_requests_in_flight,
                0..=10_000_000,
                0,
            )),
            http2_max_concurrent_streams: self.number(
                &keys.http2_max_concurrent_streams,
                1..=10_000,
                100,
            ) as u32,
            trusted_proxies: self.trusted_proxies(keys),
            forwarded_headers: keys
                .forwarded_headers
                .get()
                .map(|at| at.value.0)
                .unwrap_or_default(),
            public_url: self
                .public_url(&keys.public_url, "clients would send tokens there in the clear"),
            drain_delay: self.time_or_zero(&keys.drain_delay, Duration::ZERO, MAX_DURATION),
            drain_timeout: self.time(&keys.drain_timeout, seconds(30), MAX_DURATION),
            state_dir: keys.state_dir.get().and_then(|path| self.directory(path)),
            identity_keys: self.identity_keys(&keys.identity_keys),
            server_header: keys.server_header.get().and_then(|at| at.value.0.0.clone()),
            request_id_header: self.request_id_header(&keys.request_id_header),
        }
    }

    fn identity_keys(&mut self, set: &Field<OneOrMany<String>>) -> Vec<Arc<SigningKey>> {
        let Some(paths) = set.get() else { return Vec::new() };
        paths.items.iter().filter_map(|path| self.private_key(path)).collect()
    }

    /// Returns the maximum size of a request body in bytes, `None` for no limit.
    pub(super) fn body_size(&mut self, size: &Value<Size>, default: Option<u64>) -> Option<u64> {
        let Some(at) = size.get() else { return default };
        if at.value.0.0 == 0 {
            let help = "write a size such as 10MiB";
            self.fault(Code::C110, at.at, "bodies of any size will be accepted", help);
            return None;
        }
        Some(at.value.0.0)
    }

    fn head_size(&mut self, size: &Value<Size>) -> usize {
        let default = 32 << 10;
        let Some(at) = size.get() else { return default };
        let bytes = at.value.0.0;
        if (8 << 10..=16 << 20).contains(&bytes) {
            return bytes as usize;
        }
        self.fault(Code::C103, at.at, "a head's size is out of range", "write 8KiB to 16MiB");
        default
    }

    fn trusted_proxies(&mut self, keys: &server::Server) -> Vec<ipnet::IpNet> {
        let Some(proxies) = keys.trusted_proxies.get() else { return Vec::new() };
        for proxy in &proxies.items {
            if proxy.value.0.prefix_len() == 0 {
                let message = "every client could choose its own address";
                self.fault(Code::C109, proxy.at, message, "name the networks of your own proxies");
            }
        }
        proxies.items.iter().map(|proxy| proxy.value.0).collect()
    }

    /// Returns a URL of scheme and host alone; `unsafe_because` is why http is unsafe except on loopback.
    pub(super) fn public_url(&mut self, url: &Value<Url>, unsafe_because: &str) -> Option<Url> {
        let at = url.get()?;
        let url = &at.value.0;
        if url.path() != "/" || url.query().is_some() {
            let whole = url.origin().ascii_serialization();
            self.wrong(at, InvalidValue::new("has a path", format!("write {whole}")));
            return None;
        }
        if url.host_str().is_some_and(|host| host.contains('*')) {
            self.wrong(at, InvalidValue::new("is a pattern", "write one host that browsers see"));
            return None;
        }
        if !is_private(url) {
            let help = "write https://; http is for loopback alone";
            self.fault(Code::C109, at.at, unsafe_because, help);
            return None;
        }
        Some(url.clone())
    }

    fn request_id_header(&mut self, name: &Value<HeaderName>) -> HeaderName {
        let Some(at) = name.get() else { return HeaderName::from_static("x-request-id") };
        if patterns::is_framing(&at.value.0) {
            let message = "this field belongs to the connection";
            self.fault(Code::C103, at.at, message, "write another, such as X-Request-Id");
        }
        at.value.0.clone()
    }

    pub(super) fn admin(&mut self, file: &File, listeners: &[Listener]) -> Admin {
        let absent = server::Admin::default();
        let keys = file.admin.get().map_or(&absent, |admin| &admin.value);
        let default = SocketAddr::from(([127, 0, 0, 1], 9901));
        let listen = match keys.listen.get().map(|at| (at, &at.value.0.meant)) {
            Some((_, Address::Tcp(address))) => *address,
            Some((at, Address::Unix(_))) => {
                let message = "listening on Unix sockets is not built yet";
                self.fault(Code::C106, at.at, message, "write an address and a port");
                default
            }
            None => default,
        };
        let position = keys.listen.get().map_or(Position::START, |at| at.at);
        if listeners.iter().any(|listener| takes(&listener.address, listen)) {
            let message = "a listener has the address of the admin listener already";
            self.fault(Code::C111, position, message, "give `admin.listen` a port of its own");
        }
        let token = keys.token.get().and_then(|token| self.secret(token));
        let public_metrics_only = keys.public_metrics_only.or(false);
        if !listen.ip().is_loopback()
            && keys.token.is_absent()
            && !public_metrics_only
            && !keys.public_metrics_only.is_bad()
        {
            let message =
                "any client that reaches this address could reload and read the configuration";
            let help =
                "set `admin.token`, or `admin.public_metrics_only: true`, or listen on 127.0.0.1";
            self.fault(Code::C109, position, message, help);
        }
        Admin { listen, token, public_metrics_only }
    }

    pub(super) fn logging(&mut self, file: &File) -> log::Settings {
        let mut settings = log::Settings::default();
        let Some(keys) = file.logging.get().map(|logging| &logging.value) else { return settings };
        if let Some(level) = keys.level.get() {
            match Level::parse(&level.value) {
                Ok(parsed) => settings.level = parsed,
                Err(invalid) => {
                    self.wrong(level, InvalidValue::new("is not a filter", invalid.to_string()));
                }
            }
        }
        settings.format = keys.format.get().map(|at| at.value.0);
        if let Some(access) = keys.access.get() {
            settings.access = access.value.0;
        }
        if let Some(sample) = keys.sample.get() {
            settings.sample = sample.value.0.0;
        }
        if let Some(redacted) = keys.redact_query.get() {
            settings.redact_query = redacted.items.iter().map(|at| at.value.clone()).collect();
        }
        settings
    }

    pub(super) fn metrics(&mut self, file: &File) -> Metrics {
        let keys = file.metrics.get().map(|metrics| &metrics.value);
        let mut settings = observe::metrics::Settings::default();
        if let Some(keys) = keys {
            settings.methods = keys.methods.or(true);
            if let Some(buckets) = keys.buckets.get() {
                let numbers: Vec<f64> = buckets.items.iter().map(|at| at.value).collect();
                let ascending = numbers.windows(2).all(|pair| pair[0] < pair[1]);
                let finite = numbers.iter().all(|number| number.is_finite() && *number > 0.0);
                if (1..=30).contains(&numbers.len()) && ascending && finite {
                    settings.buckets = numbers;
                } else if !buckets.incomplete {
                    let message = "these are not upper bounds of a histogram";
                    self.fault(
                        Code::C103,
                        buckets.at,
                        message,
                        "write 1 to 30 seconds, ascending, such as [0.01, 0.1, 1]",
                    );
                }
            }
        }
        let mut path = "/metrics".to_owned();
        if let Some(at) = keys.and_then(|keys| keys.path.get()) {
            match patterns::check_literal(&at.value) {
                Ok(()) if is_admin_path(&at.value) => {
                    let message = format!("{} is another path of the admin listener", at.shown());
                    self.fault(Code::C106, at.at, message, "write another, such as /metrics");
                }
                Ok(()) => path.clone_from(&at.value),
                Err(wrong) => self.wrong(at, wrong),
            }
        }
        Metrics { path, settings }
    }
}

fn size(set: &Value<Size>, default: u64) -> u64 {
    set.get().map_or(default, |at| at.value.0.0)
}

/// Whether a listener at `own` leaves no room for another program's at `other`: it has the address, or one has all of the
/// family.
fn takes(own: &Address, other: SocketAddr) -> bool {
    let Address::Tcp(own) = *own else { return false };
    let any_of_family = own.is_ipv4() == other.is_ipv4()
        && (own.ip().is_unspecified() || other.ip().is_unspecified());
    own.port() == other.port() && own.port() != 0 && (own.ip() == other.ip() || any_of_family)
}

/// Whether `path` is one that probes and operators need from the admin listener.
fn is_admin_path(path: &str) -> bool {
    matches!(path, "/livez" | "/healthz" | "/readyz") || path.starts_with("/-/")
}

/// Whether two listeners have the same address. Port 0 is any free port.
fn same(a: &Address, b: &Address) -> bool {
    let free = matches!(a, Address::Tcp(address) if address.port() == 0);
    a == b && !free
}

/// Whether a connection to `url` is confidential: https, or loopback.
pub(super) fn is_private(url: &Url) -> bool {
    let loopback = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    url.scheme() == "https" || loopback
}

/// The remaining validity below which a certificate causes a warning.
const EXPIRY_WARNING: Duration = Duration::from_secs(14 * 86_400);
