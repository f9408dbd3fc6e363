//! A response that is the same for every request.

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};

use crate::base::body::Body;
use crate::config;

/// A fixed response.
#[derive(Clone, Debug)]
pub(crate) struct StaticResponse {
    /// The status.
    pub status: StatusCode,
    /// The header fields.
    pub headers: HeaderMap,
    /// The content.
    pub body: Bytes,
}

impl StaticResponse {
    /// Returns the response for one request.
    pub(crate) fn response(&self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body.clone()));
        *response.status_mut() = self.status;
        response.headers_mut().clone_from(&self.headers);
        response
    }
}

impl From<&config::StaticResponse> for StaticResponse {
    fn from(settings: &config::StaticResponse) -> Self {
        let config::StaticResponse { status, body, headers } = settings;
        Self {
            status: *status,
            headers: headers.iter().cloned().collect(),
            body: body.clone().into(),
        }
    }
}
