//! Pushed authorization requests (RFC 9126): the gateway sends the request to the
//! server first, authenticated, and the browser only carries a reference.

use std::borrow::Cow;

use http::StatusCode;
use serde_json::Value;

use crate::base::strict_json;
use crate::issuer::calls::call_context::CallContext;
use crate::issuer::calls::call_purpose::{Input, Purpose};
use crate::issuer::calls::client_auth::Form;
use crate::issuer::calls::unavailable::Unavailable;
use crate::issuer::settings::{Client, ClientAuth};
use crate::observe::metrics::Endpoint;

impl CallContext {
    /// Pushes `request` as `client`: returns its `request_uri`, or `None`
    /// if the server does not support that. Runs on the control runtime.
    pub(in crate::issuer) async fn push(
        &self,
        request: Vec<(Cow<'static, str>, String)>,
        client: &Client,
    ) -> Result<Option<String>, Unavailable> {
        let metadata = self.provider_cache.metadata().await;
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
        let response = self.exchange(Purpose::Push, input, post, |response| {
            (response.status == StatusCode::CREATED).then(|| request_uri(&response.body)).flatten()
        });
        response.await.map(Some).map_err(|(error, why)| {
            if let (Some(why), Some(suppressed)) = (why, self.http_client.may_warn()) {
                tracing::warn!(issuer = %self.settings.name, error = why, suppressed, "Could not push an authorization request; the login fails.");
            }
            error
        })
    }
}

fn request_uri(body: &[u8]) -> Option<String> {
    match strict_json::parse_object(body).ok()?.remove("request_uri") {
        Some(Value::String(name)) if !name.is_empty() => Some(name),
        _ => None,
    }
}

const ACCEPT: &str = "application/json";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_uri_is_a_nonempty_string() {
        assert_eq!(
            request_uri(br#"{"request_uri":"urn:a","expires_in":60}"#),
            Some("urn:a".to_owned())
        );
        for body in ["{}", r#"{"request_uri":1}"#, r#"{"request_uri":""}"#, "[]", "urn:a"] {
            assert_eq!(request_uri(body.as_bytes()), None, "{body}");
        }
    }
}
