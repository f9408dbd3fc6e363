//! Pushed authorization requests (RFC 9126): the request is left with the
//! server first, authenticated, and the browser only carries its name.

use http::StatusCode;
use serde_json::Value;

use super::calls::Inner;
use super::client_auth::Form;
use super::json;
use super::purpose::{Input, Purpose};
use super::settings::{Client, ClientAuth};
use super::unavailable::Unavailable;
use crate::observe::metrics::Endpoint;

impl Inner {
    /// Leaves `request` with the server as `client_auth`: its `request_uri`, or `None`
    /// if the server takes no such requests. Runs on the control runtime.
    pub(super) async fn push(
        &self,
        request: Vec<(&'static str, String)>,
        client: &Client,
    ) -> Result<Option<String>, Unavailable> {
        let metadata = self.published.metadata().await;
        let Some(url) = &metadata.endpoints.pushed_authorization else { return Ok(None) };
        let mut form = Form::default();
        for (name, value) in &request {
            form.add(name, value);
        }
        let input = Input::new(Purpose::Push, &client.id, ACCEPT, form.as_str());
        // Part of the request itself (RFC 9126 §2.1); the other methods add it to the form anyway.
        if let ClientAuth::Basic(_) = client.auth {
            form.add("client_id", &client.id);
        }
        let post = self.form_of(client, Endpoint::PushedAuthorization, url, form)?;
        let reply = self.exchange(Purpose::Push, input, post, |reply| {
            (reply.status == StatusCode::CREATED).then(|| request_uri(&reply.body)).flatten()
        });
        reply.await.map(Some).map_err(|(error, why)| {
            if let (Some(why), Some(suppressed)) = (why, self.calls.may_warn()) {
                tracing::warn!(issuer = %self.settings.name, why, suppressed, "A login could not be pushed.");
            }
            error
        })
    }
}

fn request_uri(body: &[u8]) -> Option<String> {
    match json::parse_object(body).ok()?.remove("request_uri") {
        Some(Value::String(name)) if !name.is_empty() => Some(name),
        _ => None,
    }
}

const ACCEPT: &str = "application/json";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_uri_is_a_text() {
        assert_eq!(
            request_uri(br#"{"request_uri":"urn:a","expires_in":60}"#),
            Some("urn:a".to_owned())
        );
        for body in ["{}", r#"{"request_uri":1}"#, r#"{"request_uri":""}"#, "[]", "urn:a"] {
            assert_eq!(request_uri(body.as_bytes()), None, "{body}");
        }
    }
}
