//! The families: every name, label and help text the gateway exports.
//!
//! A family is what Prometheus calls the series that share a name. The rooms'
//! handles (this file's neighbours) hold numbers; a [`Scrape`] asks each for
//! its numbers and puts them under the names written here. Nothing else in the
//! gateway knows a metric's name.

use std::collections::HashMap;

use prometheus::core::Desc;
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};

use super::primitives::{Counter, Gauge, Histogram};

/// The series under one name.
#[derive(Debug)]
pub struct Family {
    /// Begins with `northgate_`; counters end in `_total`, times in `_seconds`, sizes in `_bytes`.
    pub name: &'static str,
    /// What Prometheus does with its numbers.
    pub kind: Kind,
    /// Names of its labels. Never a path, user, client, token or address.
    pub labels: &'static [&'static str],
    /// One sentence for the person who reads `/metrics`.
    pub help: &'static str,
}

/// What kind of number a family holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Only grows; read it through `rate()`.
    Counter,
    /// Comes and goes.
    Gauge,
    /// Counts by upper bounds; read it through `histogram_quantile()`.
    Histogram,
}

/// Defines each family and the list of them all, so that none is forgotten in it.
macro_rules! families {
    ($($id:ident = $kind:ident $name:literal [$($label:literal)*] $help:literal;)*) => {
        $(pub(super) const $id: Family =
            Family { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)*
        /// Every family, in the order of the guide.
        pub const FAMILIES: &[Family] = &[$($id),*];
    };
}

families! {
    REQUESTS = Counter "northgate_http_requests_total" ["route" "method" "code"]
        "Requests answered; 499 means that the client went away.";
    REQUEST_DURATION = Histogram "northgate_http_request_duration_seconds" ["route" "class"]
        "From the request's first byte to the answer's last.";
    OVERHEAD = Histogram "northgate_http_overhead_seconds" ["route"]
        "The gateway's own share of the time to the answer's head: without waiting for clients, authorization servers and upstreams.";
    IN_FLIGHT = Gauge "northgate_http_requests_in_flight" ["route"]
        "Requests begun and not yet answered to the last byte.";
    REQUEST_BYTES = Counter "northgate_http_request_bytes_total" ["route"]
        "Bytes of request bodies.";
    RESPONSE_BYTES = Counter "northgate_http_response_bytes_total" ["route"]
        "Bytes of answers' bodies.";
    REJECTIONS = Counter "northgate_http_rejections_total" ["route" "reason"]
        "Requests that the gateway itself answered with a refusal.";
    UPGRADED = Gauge "northgate_upgraded_connections" ["route"]
        "Connections taken over by another protocol, such as WebSocket.";
    CONNECTIONS = Gauge "northgate_connections" ["listener" "protocol"]
        "Client connections open.";
    CONNECTIONS_ACCEPTED = Counter "northgate_connections_total" ["listener" "protocol"]
        "Client connections accepted.";
    HANDSHAKE_FAILURES = Counter "northgate_tls_handshake_failures_total" ["listener" "reason"]
        "TLS handshakes that came to nothing.";
    AUTH_REQUESTS = Counter "northgate_auth_requests_total" ["route" "auth" "result"]
        "Requests by how they were authenticated and what came of it.";
    VERIFICATION = Histogram "northgate_token_verification_seconds" ["auth" "cache"]
        "Finding out whom a credential speaks for.";
    CACHE_REQUESTS = Counter "northgate_token_cache_requests_total" ["cache" "result"]
        "Look-ups in the caches of verified credentials; shared means that another's call was awaited.";
    CACHE_ENTRIES = Gauge "northgate_token_cache_entries" ["cache"]
        "Verdicts held in the caches of verified credentials.";
    AUTH_SERVER_REQUESTS = Counter "northgate_auth_server_requests_total" ["issuer" "endpoint" "code"]
        "Calls to authorization servers; the code error means that no answer came.";
    AUTH_SERVER_DURATION = Histogram "northgate_auth_server_request_duration_seconds" ["issuer" "endpoint"]
        "Calls to authorization servers, to the last byte of the answer.";
    JWKS_KEYS = Gauge "northgate_jwks_keys" ["issuer"]
        "Usable signing keys of an issuer.";
    JWKS_LAST_SUCCESS = Gauge "northgate_jwks_last_success_timestamp_seconds" ["issuer"]
        "When an issuer's signing keys were last read.";
    LOGINS = Counter "northgate_session_logins_total" ["session" "result"]
        "Attempts to log in.";
    REFRESHES = Counter "northgate_session_refreshes_total" ["session" "result"]
        "Refresh tokens redeemed; reuse means that somebody redeemed one a second time.";
    LOGOUTS = Counter "northgate_session_logouts_total" ["session" "kind"]
        "Sessions ended, by what ended them.";
    UPSTREAM_REQUESTS = Counter "northgate_upstream_requests_total" ["upstream" "code"]
        "Answers from services, each attempt by itself.";
    UPSTREAM_DURATION = Histogram "northgate_upstream_request_duration_seconds" ["upstream"]
        "From sending to a service to the head of its answer.";
    UPSTREAM_ERRORS = Counter "northgate_upstream_errors_total" ["upstream" "reason"]
        "Attempts that no service answered.";
    UPSTREAM_RETRIES = Counter "northgate_upstream_retries_total" ["upstream" "result"]
        "Requests sent again, by how it ended.";
    TARGET_HEALTHY = Gauge "northgate_upstream_target_healthy" ["upstream" "target"]
        "1 if the target gets requests, 0 if it is left out.";
    UPSTREAM_CONNECTIONS = Gauge "northgate_upstream_connections" ["upstream" "state"]
        "Connections to services, busy and kept for the next request.";
    LIMIT_DECISIONS = Counter "northgate_limit_decisions_total" ["limit" "route" "result"]
        "Requests measured against a limit; overflow shares one bucket because the limit has too many keys.";
    LIMIT_KEYS = Gauge "northgate_limit_keys" ["limit"]
        "Callers a limit keeps count of.";
    RELOADS = Counter "northgate_config_reloads_total" ["result"]
        "Configurations read since the start, the first included.";
    LAST_RELOAD = Gauge "northgate_config_last_reload_successful" []
        "1 if the file was good when it was last read.";
    LAST_RELOAD_SUCCESS = Gauge "northgate_config_last_reload_success_timestamp_seconds" []
        "When the configuration in use was read.";
    CONFIG_INFO = Gauge "northgate_config_info" ["hash"]
        "1, under the hash of the configuration in use.";
    CERTIFICATE_EXPIRY = Gauge "northgate_tls_certificate_expiry_timestamp_seconds" ["listener" "name"]
        "When a certificate ends.";
    BUILD_INFO = Gauge "northgate_build_info" ["version" "commit" "rustc"]
        "1, under what this program was built from.";
    READY = Gauge "northgate_ready" []
        "1 while the gateway wants traffic.";
    LOG_LINES_DROPPED = Counter "northgate_log_lines_dropped_total" []
        "Log lines thrown away because the writer could not keep up.";
}

/// One collection of everything: numbers come in, families go out.
pub(super) struct Scrape(HashMap<&'static str, (&'static Family, Vec<Metric>)>);

impl Scrape {
    pub(super) fn begin() -> Self {
        Self(FAMILIES.iter().map(|family| (family.name, (family, Vec::new()))).collect())
    }

    /// Adds a counter's number.
    pub(super) fn counter(&mut self, family: &Family, labels: &[&str], counter: &Counter) {
        self.count(family, labels, counter.value());
    }

    /// Adds a count that is kept as a plain number.
    pub(super) fn count(&mut self, family: &Family, labels: &[&str], count: u64) {
        debug_assert_eq!(family.kind, Kind::Counter);
        let mut value = proto::Counter::default();
        value.set_value(count as f64);
        self.series(family, labels).set_counter(value);
    }

    /// Adds a gauge's number.
    pub(super) fn gauge(&mut self, family: &Family, labels: &[&str], gauge: &Gauge) {
        self.level(family, labels, gauge.value());
    }

    /// Adds a level that is kept as a plain number.
    pub(super) fn level(&mut self, family: &Family, labels: &[&str], level: i64) {
        debug_assert_eq!(family.kind, Kind::Gauge);
        let mut value = proto::Gauge::default();
        value.set_value(level as f64);
        self.series(family, labels).set_gauge(value);
    }

    /// Adds a histogram's buckets.
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

    /// A new series. A label whose value is empty is left out, as Prometheus would.
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

/// What the registry asks of a collector before it takes it in.
pub(super) fn descriptors() -> Vec<Desc> {
    let desc = |family: &Family| {
        let labels = family.labels.iter().map(|label| (*label).to_owned()).collect();
        Desc::new(family.name.to_owned(), family.help.to_owned(), labels, HashMap::new())
    };
    FAMILIES.iter().map(desc).collect::<Result<_, _>>().expect("the names above are well-formed")
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
