//! Runs every check on a file, in order, and builds the configuration that it describes.

use super::{Check, CheckContext, routes};
use crate::config::configuration::Config;
use crate::config::fault::Fault;
use crate::config::file::File;
use crate::config::named_files;

/// Builds the configuration that `file` describes. `hash` is passed on. Unusable if `faults` holds an error afterwards.
pub(crate) fn check(
    file: &File,
    hash: String,
    surroundings: CheckContext<'_>,
    faults: &mut Vec<Fault>,
) -> Config {
    let mut check = Check { surroundings, faults };
    check.version(file);
    let listeners = check.listeners(file);
    let server = check.server(file);
    let dpop_nonce_keys = check.dpop_nonce_keys(file);
    let admin = check.admin(file, &listeners);
    let mut issuers = check.issuers(file);
    for issuer in issuers.values_mut() {
        issuer.settings.state_dir.clone_from(&server.state_dir);
    }
    let redis = check.redis(file);
    let limits = check.limits(file);
    let metering = check.metering(file);
    let mut sessions = check.sessions(file, &issuers, &limits);
    for session in sessions.values_mut() {
        session.max_cookie_bytes = server.max_cookie_bytes();
    }
    let upstreams = check.upstreams(file);
    let routes = check.routes(file, &server, &limits);
    check.needs(file, &routes);
    check.shadowed(file, &sessions, &routes);
    check.hosts_without_cookies(file, &sessions, &routes);
    check.session_issuers(file, &issuers, &sessions, &routes);
    check.cookies(file, &sessions);
    check.unused(file, &listeners, &routes, &sessions, &issuers);
    let identity_headers = routes::identity_headers(&routes);
    check.conflicting_headers(file, &server, &identity_headers, &sessions, &routes);
    check.ineffective(file, &server, &identity_headers, &routes);
    check.ineffective_values(file, &routes);
    Config {
        listeners,
        server,
        dpop_nonce_keys,
        admin,
        logging: check.logging(file),
        metrics: check.metrics(file),
        issuers,
        redis,
        sessions,
        upstreams,
        limits,
        metering,
        routes,
        identity_headers,
        named_files: named_files::of(file),
        hash,
    }
}
