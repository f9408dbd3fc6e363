//! Active health checks: one request of the gateway's own, by the control runtime, in the version of HTTP that requests
//! use: the one that ALPN selects, HTTP/2 by prior knowledge with `http2: always`, else HTTP/1.1.

use std::io;

use http::HeaderValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::upstream::balancing::endpoint::Endpoint;
use crate::upstream::connections::connect::{Stream, connect};
use crate::upstream::connections::handshake_error;
use crate::upstream::connections::tls_connectors::Offer;
use crate::upstream::http1::{MAX_FIELDS, MAX_HEAD_BYTES};
use crate::upstream::http2;
use crate::upstream::settings::{HealthCheck, HostHeader, Settings};

/// Checks `endpoint` once.
///
/// # Errors
///
/// The cause of the failure, for the operator.
pub(in crate::upstream) async fn check(
    endpoint: &Endpoint,
    settings: &Settings,
    check: &HealthCheck,
) -> Result<(), Box<str>> {
    let host = match &settings.host_header {
        HostHeader::Fixed(name) => name,
        HostHeader::Target | HostHeader::Preserve => endpoint.host(),
    };
    if let Some(service) = &check.grpc {
        return match http2::health::check(endpoint, host, service, check.timeout).await {
            Ok(()) => Ok(()),
            Err(cause) => Err(format!("health check: {cause}").into()),
        };
    }
    let checking = async {
        let stream = connect(endpoint, check.timeout, Offer::Http2).await;
        let stream = stream.map_err(|error| error.cause)?;
        let is_http2 = endpoint.requires_http2() || stream.selected_http2() == Some(true);
        let status = if is_http2 {
            let status = http2::health::status_of(stream, endpoint, host, &check.path).await;
            status.map_err(|cause| format!("health check: {cause}"))?
        } else {
            status_of(stream, host, &check.path).await?
        };
        let is_healthy = check.status.iter().any(|&(low, high)| (low..=high).contains(&status));
        if is_healthy { Ok(()) } else { Err(format!("health check: status {status}").into()) }
    };
    let timed_out = || format!("health check: no response within {} ms", check.timeout.as_millis());
    tokio::time::timeout(check.timeout, checking).await.unwrap_or_else(|_| Err(timed_out().into()))
}

/// Sends `GET path` in HTTP/1.1, and returns the status of the final response. Its content is not read.
async fn status_of(mut stream: Stream, host: &HeaderValue, path: &str) -> Result<u16, Box<str>> {
    let lost = |error: io::Error| {
        let alert = handshake_error::alert(&error);
        let cause = alert.unwrap_or("connection closed without a response");
        Box::from(format!("health check: {cause}"))
    };
    let mut request = format!("GET {path} HTTP/1.1\r\nhost: ").into_bytes();
    request.extend_from_slice(host.as_bytes());
    request.extend_from_slice(
        b"\r\nuser-agent: northgate-health-check\r\naccept: */*\r\nconnection: close\r\n\r\n",
    );
    stream.write_all(&request).await.map_err(lost)?;
    stream.flush().await.map_err(lost)?;
    let mut received = Vec::new();
    loop {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        match response.parse(&received) {
            Ok(httparse::Status::Complete(length)) => match response.code {
                Some(100..=199) => drop(received.drain(..length)),
                Some(status) => return Ok(status),
                None => return Err("health check: not HTTP".into()),
            },
            Ok(httparse::Status::Partial) if received.len() < MAX_HEAD_BYTES => {
                if stream.read_buf(&mut received).await.map_err(lost)? == 0 {
                    return Err("health check: connection closed without a response".into());
                }
            }
            Ok(httparse::Status::Partial) | Err(_) => return Err("health check: not HTTP".into()),
        }
    }
}
