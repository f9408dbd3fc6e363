//! The metric families: every name, label and help text that the gateway exports.
//!
//! A family is what Prometheus calls the series that share a name. The rooms'
//! handles (this file's neighbours) hold numbers; a [`Scrape`] collects the
//! numbers of each under the names defined here. Nothing else in the
//! gateway knows a metric's name.

use std::collections::HashMap;

use prometheus::core::Desc;
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};

use super::primitives::{Counter, Gauge, Histogram};

/// The series under one name.
#[derive(Debug)]
pub struct Family {
    /// The name; begins with `northgate_`; counters end in `_total`, times in `_seconds`, sizes in `_bytes`.
    pub name: &'static str,
    /// The Prometheus metric type.
    pub kind: Kind,
    /// Names of its labels. Never a path, user, client, token or address.
    pub labels: &'static [&'static str],
    /// The help text, one sentence.
    pub help: &'static str,
}

/// The type of a metric family.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Only increases; to be read through `rate()`.
    Counter,
    /// Increases and decreases.
    Gauge,
    /// Counts observations by upper bounds; to be read through `histogram_quantile()`.
    Histogram,
}

/// Defines each family, and the list of all of them.
macro_rules! families {
    ($($id:ident = $kind:ident $name:literal [$($label:literal)*] $help:literal;)*) => {
        $(pub(super) const $id: Family =
            Family { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)*
        /// Every family, in the order of the documentation.
        pub const FAMILIES: &[Family] = &[$($id),*];
    };
}

families! {
    REQUESTS = Counter "northgate_http_requests_total" ["route" "method" "code"]
        "Requests completed; 499 means that the client disconnected.";
    REQUEST_DURATION = Histogram "northgate_http_request_duration_seconds" ["route" "class"]
        "Time from the request's first byte to the response's last.";
    OVERHEAD = Histogram "northgate_http_overhead_seconds" ["route"]
        "Time to the response head without waiting for clients, authorization servers and upstreams.";
    IN_FLIGHT = Gauge "northgate_http_requests_in_flight" ["route"]
        "Requests in flight.";
    REQUEST_BYTES = Counter "northgate_http_request_bytes_total" ["route"]
        "Bytes of request bodies.";
    RESPONSE_BYTES = Counter "northgate_http_response_bytes_total" ["route"]
        "Bytes of response bodies.";
    REJECTIONS = Counter "northgate_http_rejections_total" ["route" "reason"]
        "Requests rejected by the gateway itself.";
    UPGRADED = Gauge "northgate_upgraded_connections" ["route"]
        "Connections upgraded to another protocol, such as WebSocket.";
    CONNECTIONS = Gauge "northgate_connections" ["listener" "protocol"]
        "Open client connections.";
    CONNECTIONS_ACCEPTED = Counter "northgate_connections_total" ["listener" "protocol"]
        "Accepted client connections.";
    HANDSHAKE_FAILURES = Counter "northgate_tls_handshake_failures_total" ["listener" "reason"]
        "Failed TLS handshakes.";
    CONNECTION_REFUSALS = Counter "northgate_connection_refusals_total" ["listener"]
        "Connections closed because their client's address had max_connections_per_ip.";
    PROXY_REFUSALS = Counter "northgate_proxy_protocol_refusals_total" ["listener" "reason"]
        "Connections refused for their PROXY protocol header.";
    AUTH_REQUESTS = Counter "northgate_auth_requests_total" ["route" "auth" "result"]
        "Requests by authentication method and result.";
    VERIFICATION = Histogram "northgate_token_verification_seconds" ["auth" "cache"]
        "Time to verify a credential.";
    CACHE_REQUESTS = Counter "northgate_token_cache_requests_total" ["cache" "result"]
        "Look-ups in the caches of verified credentials; shared means that the call of another request was awaited.";
    CACHE_ENTRIES = Gauge "northgate_token_cache_entries" ["cache"]
        "Entries in the caches of verified credentials.";
    AUTH_SERVER_REQUESTS = Counter "northgate_auth_server_requests_total" ["issuer" "endpoint" "code"]
        "Calls to authorization servers; the code error means that no response was received.";
    AUTH_SERVER_DURATION = Histogram "northgate_auth_server_request_duration_seconds" ["issuer" "endpoint"]
        "Duration of calls to authorization servers, to the last byte of the response.";
    JWKS_KEYS = Gauge "northgate_jwks_keys" ["issuer"]
        "Usable signing keys of an issuer.";
    JWKS_LAST_SUCCESS = Gauge "northgate_jwks_last_success_timestamp_seconds" ["issuer"]
        "Time of the last successful refresh of an issuer's signing keys.";
    LOGINS = Counter "northgate_session_logins_total" ["session" "result"]
        "Login attempts.";
    REFRESHES = Counter "northgate_session_refreshes_total" ["session" "result"]
        "Refresh tokens redeemed; reuse means that a refresh token was used a second time.";
    LOGOUTS = Counter "northgate_session_logouts_total" ["session" "kind"]
        "Ended sessions, by cause.";
    UPSTREAM_REQUESTS = Counter "northgate_upstream_requests_total" ["upstream" "code"]
        "Responses from upstreams, one per attempt.";
    UPSTREAM_DURATION = Histogram "northgate_upstream_request_duration_seconds" ["upstream"]
        "Time from sending a request to an upstream to its response head.";
    UPSTREAM_ERRORS = Counter "northgate_upstream_errors_total" ["upstream" "reason"]
        "Attempts without a response from the upstream, and gRPC calls that it ended with the status of a failing upstream.";
    UPSTREAM_RETRIES = Counter "northgate_upstream_retries_total" ["upstream" "result"]
        "Retries, by result.";
    TARGET_HEALTHY = Gauge "northgate_upstream_target_healthy" ["upstream" "target"]
        "1 if the target may receive requests, 0 if it is out: down, or ejected and not needed.";
    TARGET_HTTP_VERSION = Gauge "northgate_upstream_target_http_version" ["upstream" "target"]
        "Major version of HTTP on the last connection that a request opened to the target: 1 or 2; 0 before the first.";
    CIRCUIT_STATE = Gauge "northgate_upstream_circuit_state" ["upstream"]
        "State of the circuit breaker: 0 closed, 1 half-open, 2 open.";
    FALLBACKS = Counter "northgate_upstream_fallbacks_total" ["upstream" "kind"]
        "Responses of the fallback in place of the upstream's.";
    MIRRORED = Counter "northgate_upstream_mirrored_requests_total" ["upstream" "result"]
        "Copies of requests to the upstream that receives them: ok, failed (no response) or left_out (not sent).";
    HEALTH_CHECKS = Counter "northgate_upstream_health_checks_total" ["upstream" "result"]
        "Active health checks, by result.";
    NAME_RESOLUTIONS = Counter "northgate_upstream_resolutions_total" ["upstream" "result"]
        "Resolutions of the names of targets, by result; after a failed one the last addresses stay in use.";
    UPSTREAM_CONNECTIONS = Gauge "northgate_upstream_connections" ["upstream" "state"]
        "Connections to upstreams, active and idle.";
    LIMIT_DECISIONS = Counter "northgate_limit_decisions_total" ["limit" "route" "result"]
        "Requests checked by a limit; overflow means that the key shares one counter because the limit has too many keys.";
    LIMIT_KEYS = Gauge "northgate_limit_keys" ["limit"]
        "Keys with a counter of their own in a limit.";
    LIMIT_STORE_DURATION = Histogram "northgate_limit_store_duration_seconds" []
        "Time until the shared store of limits responded.";
    LIMIT_STORE_FAILURES = Counter "northgate_limit_store_failures_total" []
        "Calls to the shared store of limits without a response in time, or with an error.";
    LIMIT_STORE_USABLE = Gauge "northgate_limit_store_usable" []
        "1 while requests ask the shared store of limits; 0 while on_store_error decides.";
    LIMIT_LEASED = Counter "northgate_limit_leased_total" ["limit"]
        "Requests, or units of cost, that the shared store has granted to this gateway.";
    LIMIT_LEASES_UNUSED = Gauge "northgate_limit_leases_unused" ["limit"]
        "Granted and not used yet, over all keys: what other gateways would lack for some seconds if this one were killed.";
    LIMIT_OVERRUN_BOUND = Gauge "northgate_limit_overrun_bound" ["limit"]
        "The most that one key may exceed its limit if the shared store loses its data or begins to fail, or all gateways are killed: a lease and a first share per gateway. A longer outage, and lost data of keys that no gateway has touched since its start or for ten minutes, may add the limit once more.";
    STATE_WRITES = Counter "northgate_state_writes_total" ["result"]
        "Writes of quotas to server.state_dir.";
    STATE_WRITABLE = Gauge "northgate_state_writable" []
        "1 while quotas can be written to server.state_dir, 0 if a restart would lose them; absent without it.";
    USAGE_EVENTS = Counter "northgate_usage_events_total" ["result"]
        "Usage events exported to every destination, or failed at one and tried again.";
    USAGE_WAITING = Gauge "northgate_usage_batches_waiting" []
        "Batches of usage events that a destination lacks; they are on disk.";
    RELOADS = Counter "northgate_config_reloads_total" ["result"]
        "Configurations loaded since the start, including the first.";
    LAST_RELOAD = Gauge "northgate_config_last_reload_successful" []
        "1 if the last load of the configuration succeeded.";
    LAST_RELOAD_SUCCESS = Gauge "northgate_config_last_reload_success_timestamp_seconds" []
        "Time when the configuration in use was loaded.";
    CONFIG_INFO = Gauge "northgate_config_info" ["hash"]
        "1, labelled with the hash of the configuration in use.";
    CERTIFICATE_EXPIRY = Gauge "northgate_tls_certificate_expiry_timestamp_seconds" ["listener" "name"]
        "Time when a certificate expires.";
    BUILD_INFO = Gauge "northgate_build_info" ["version" "commit" "rustc"]
        "1, labelled with the version, commit and compiler of this build.";
    READY = Gauge "northgate_ready" []
        "1 while the gateway is ready for traffic.";
    LOG_LINES_DROPPED = Counter "northgate_log_lines_dropped_total" []
        "Log lines dropped because the writer could not keep up.";
}

/// One scrape: collects the numbers of all handles into families.
pub(super) struct Scrape(HashMap<&'static str, (&'static Family, Vec<Metric>)>);

impl Scrape {
    pub(super) fn begin() -> Self {
        Self(FAMILIES.iter().map(|family| (family.name, (family, Vec::new()))).collect())
    }

    /// Adds a counter.
    pub(super) fn counter(&mut self, family: &Family, labels: &[&str], counter: &Counter) {
        self.count(family, labels, counter.value());
    }

    /// Adds a counter given as a plain number.
    pub(super) fn count(&mut self, family: &Family, labels: &[&str], count: u64) {
        debug_assert_eq!(family.kind, Kind::Counter);
        let mut value = proto::Counter::default();
        value.set_value(count as f64);
        self.series(family, labels).set_counter(value);
    }

    /// Adds a gauge.
    pub(super) fn gauge(&mut self, family: &Family, labels: &[&str], gauge: &Gauge) {
        self.level(family, labels, gauge.value());
    }

    /// Adds a gauge given as a plain number.
    pub(super) fn level(&mut self, family: &Family, labels: &[&str], level: i64) {
        debug_assert_eq!(family.kind, Kind::Gauge);
        let mut value = proto::Gauge::default();
        value.set_value(level as f64);
        self.series(family, labels).set_gauge(value);
    }

    /// Adds a histogram.
    pub(super) fn histogram(&mut self, family: &Family, labels: &[&str], histogram: &Histogram) {
        debug_assert_eq!(family.kind, Kind::Histogram);
        let reading = histogram.read();
        let bucket = |&(bound, count): &(f64, u64)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        };
        let mut value = proto::Histogram::default();
        value.set_bucket(reading.buckets.iter().map(bucket).collect());
        value.set_sample_count(reading.count);
        value.set_sample_sum(reading.sum);
        self.series(family, labels).set_histogram(value);
    }

    pub(super) fn finish(self) -> Vec<MetricFamily> {
        let family = |(family, metrics): (&Family, Vec<Metric>)| {
            let mut out = MetricFamily::default();
            out.set_name(family.name.to_owned());
            out.set_help(family.help.to_owned());
            out.set_field_type(match family.kind {
                Kind::Counter => MetricType::COUNTER,
                Kind::Gauge => MetricType::GAUGE,
                Kind::Histogram => MetricType::HISTOGRAM,
            });
            out.set_metric(metrics);
            out
        };
        self.0.into_values().map(family).collect()
    }

    /// Adds a series. A label with an empty value is left out, which is the same to Prometheus.
    fn series(&mut self, family: &Family, labels: &[&str]) -> &mut Metric {
        debug_assert_eq!(family.labels.len(), labels.len(), "{}", family.name);
        let pairs = family.labels.iter().zip(labels).filter(|(_, value)| !value.is_empty());
        let pairs = pairs.map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        let metrics = &mut self.0.get_mut(family.name).expect("FAMILIES lists every family").1;
        metrics.push(Metric::from_label(pairs.collect()));
        metrics.last_mut().expect("it was just put there")
    }
}

/// Returns the descriptors that the registry requires of a collector.
pub(super) fn descriptors() -> Vec<Desc> {
    let desc = |family: &Family| {
        let labels = family.labels.iter().map(|label| (*label).to_owned()).collect();
        Desc::new(family.name.to_owned(), family.help.to_owned(), labels, HashMap::new())
    };
    FAMILIES.iter().map(desc).collect::<Result<_, _>>().expect("the names above are well-formed")
}

/// A handle that can be scraped.
pub(super) trait Source {
    /// Adds its series to a scrape.
    fn report(&self, to: &mut Scrape);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_prometheus() {
        for family in FAMILIES {
            let Family { name, kind, help, .. } = family;
            assert!(name.starts_with("northgate_"), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert!(*kind != Kind::Histogram || name.ends_with("_seconds"), "{name}");
            assert!(help.ends_with('.'), "{name}: help is a sentence");
        }
    }

    #[test]
    fn no_label_can_grow_with_the_number_of_callers() {
        const FIXED: &[&str] = &[
            "route", "method", "code", "class", "reason", "listener", "protocol", "auth", "result",
            "cache", "issuer", "endpoint", "session", "kind", "upstream", "target", "state",
            "limit", "hash", "name", "version", "commit", "rustc",
        ];
        for family in FAMILIES {
            for label in family.labels {
                assert!(FIXED.contains(label), "{} has the label {label}", family.name);
            }
        }
    }
}
