//! Turns rejections into responses; no other module does (RFC 6750 §3, RFC 9457).

use core::fmt::Write as _;

use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, RETRY_AFTER,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use serde_json::{Map, Value, json};

use super::error_page::{self, ErrorPage};
use super::grpc_refusal;
use super::rejection::{Challenge, Rejection};
use crate::base::accept_header;
use crate::base::body::Body;
use crate::base::grpc::Variant;
use crate::session::{LoginRedirect, navigation};
use crate::token::binding::dpop;

/// The authentication methods of a route; each gets a challenge in a 401.
#[derive(Clone, Debug, Default)]
pub struct AuthChallenges {
    /// Access tokens.
    pub bearer: bool,
    /// Access tokens with a `DPoP` proof; the only kind of token unless `bearer` is set too.
    pub dpop: bool,
    /// The scopes that a token must have, separated by spaces.
    pub scopes: Option<Box<str>>,
    /// User name and password.
    pub basic: bool,
    /// Sessions, with the path of the login.
    pub login: Option<Box<str>>,
    /// The URL of the protected-resource metadata (RFC 9728 §5.1).
    pub metadata: Option<Box<str>>,
}

impl AuthChallenges {
    /// No authentication method.
    pub const NONE: Self = Self {
        bearer: false,
        dpop: false,
        scopes: None,
        basic: false,
        login: None,
        metadata: None,
    };
}

/// The format of error responses, by the request's `Accept`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ResponseFormat {
    /// `application/problem+json`, for programs.
    #[default]
    ProblemJson,
    /// `text/html`, a page for people in a browser.
    Page,
    /// A status of gRPC, for its clients.
    Grpc(Variant),
}

impl ResponseFormat {
    /// Whether the request is a gRPC call.
    pub const fn is_grpc(self) -> bool {
        matches!(self, Self::Grpc(_))
    }

    /// Selects the format by `Content-Type` (gRPC) and `Accept`: browsers ask for HTML.
    pub fn of(headers: &HeaderMap) -> Self {
        if let Some(variant) = Variant::of(headers) {
            return Self::Grpc(variant);
        }
        // A script reads it, even if it has asked for a page to show.
        if accept_header::prefers_html(headers) && !navigation::is_script(headers) {
            Self::Page
        } else {
            Self::ProblemJson
        }
    }
}

/// Builds the response to a refused request. `login` redirects a user agent to a session's login page instead of a
/// 401; `speaks_dpop` is a client that presents its token with a proof, and gets the challenge of that scheme.
pub(crate) fn respond(
    rejection: &Rejection,
    challenges: &AuthChallenges,
    speaks_dpop: bool,
    format: ResponseFormat,
    request_id: &HeaderValue,
    login: Option<LoginRedirect>,
) -> Response<Body> {
    let login = login.filter(|_| !format.is_grpc());
    let asks_for_login = matches!(
        rejection,
        Rejection::Unauthenticated(_) | Rejection::InsufficientAuthentication { .. }
    );
    if asks_for_login && let Some(LoginRedirect::Location(login)) = &login {
        let login = login.clone();
        let mut response = Response::new(Body::empty());
        *response.status_mut() = http::StatusCode::FOUND;
        response.headers_mut().insert(LOCATION, login);
        response.headers_mut().insert(CACHE_CONTROL, NO_STORE);
        return response;
    }
    let mut response = match format {
        ResponseFormat::Grpc(variant) => grpc_refusal::respond(rejection, variant),
        ResponseFormat::ProblemJson => {
            problem_json(rejection, challenges, request_id, login.as_ref())
        }
        ResponseFormat::Page => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = rejection.status();
            response
        }
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, NO_STORE);
    if asks_for_login && let Some(LoginRedirect::Htmx(login)) = login {
        headers.insert(navigation::HX_REDIRECT, login);
    }
    fields(rejection, challenges, speaks_dpop, headers);
    if format == ResponseFormat::Page {
        let login = challenges.login.as_deref();
        let login = login.filter(|_| matches!(rejection, Rejection::Unauthenticated(_)));
        let after = headers.get(RETRY_AFTER).cloned();
        let id = request_id.to_str().unwrap_or_default();
        let page =
            ErrorPage::new(rejection.status(), rejection.title(), id, after.as_ref(), login).html();
        headers.insert(CONTENT_TYPE, HTML);
        headers.insert(CONTENT_SECURITY_POLICY, error_page::policy());
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        *response.body_mut() = Body::from(page);
    }
    response
}

/// Sets the fields that belong to a rejection.
fn fields(
    rejection: &Rejection,
    challenges: &AuthChallenges,
    speaks_dpop: bool,
    headers: &mut HeaderMap,
) {
    match rejection {
        Rejection::HeadTooLarge { clears_cookies: true } => {
            headers.insert(CLEAR_SITE_DATA, HeaderValue::from_static("\"cookies\""));
        }
        Rejection::Method { allow } => {
            headers.insert(ALLOW, allow.clone());
        }
        Rejection::Limited(limited) => {
            headers.extend(limited.retry_after_value().map(|seconds| (RETRY_AFTER, seconds)));
        }
        Rejection::IssuerUnavailable { retry_after }
        | Rejection::TooManyFailures { retry_after }
        | Rejection::Upstream(crate::upstream::UpstreamError::CircuitOpen {
            seconds: retry_after,
        }) => {
            headers.insert(RETRY_AFTER, HeaderValue::from(*retry_after));
        }
        Rejection::Overloaded
        | Rejection::StoreUnavailable
        | Rejection::Upstream(
            crate::upstream::UpstreamError::NoEndpoint
            | crate::upstream::UpstreamError::Overflow
            | crate::upstream::UpstreamError::Refused,
        ) => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        Rejection::Unauthenticated(_)
        | Rejection::MalformedCredentials
        | Rejection::InsufficientScope { .. }
        | Rejection::InsufficientAuthentication { .. } => {
            for challenge in challenge(rejection, challenges, speaks_dpop) {
                headers.append(WWW_AUTHENTICATE, challenge);
            }
        }
        _ => {}
    }
}

fn problem_json(
    rejection: &Rejection,
    challenges: &AuthChallenges,
    request_id: &HeaderValue,
    login: Option<&LoginRedirect>,
) -> Response<Body> {
    let mut problem = json!({
        "type": format!("urn:northgate:problem:{}", rejection.name()),
        "title": rejection.title(),
        "status": rejection.status().as_u16(),
        "request_id": request_id.to_str().unwrap_or_default(),
    });
    match (rejection, &challenges.login) {
        (Rejection::Unauthenticated(_), Some(path)) => problem["login"] = json!(path),
        // Without its parameters the login would not be the one that is required.
        (Rejection::InsufficientAuthentication { .. }, Some(path)) => {
            let url = login.and_then(|login| login.url().to_str().ok());
            problem["login"] = json!(url.unwrap_or(path));
        }
        _ => {}
    }
    if let Rejection::InsufficientAuthentication { required } = rejection {
        if !required.acr.is_empty() {
            problem["acr_values"] = json!(required.acr_values());
        }
        if let Some(max_age) = required.max_age {
            problem["max_age"] = json!(max_age.as_secs());
        }
    }
    let mut response = Response::new(Body::from(problem.to_string()));
    *response.status_mut() = rejection.status();
    response.headers_mut().insert(CONTENT_TYPE, PROBLEM_JSON);
    response
}

/// Adds the request id to the problem document of a stage that does not know it.
pub(crate) fn add_request_id(response: Response<Body>, request_id: &HeaderValue) -> Response<Body> {
    if response.headers().get(CONTENT_TYPE) != Some(&PROBLEM_JSON) {
        return response;
    }
    let (head, body) = response.into_parts();
    let body = match body.into_buffered() {
        Ok(bytes) => {
            let mut problem =
                serde_json::from_slice::<Map<String, Value>>(&bytes).unwrap_or_default();
            problem.insert("request_id".into(), request_id.to_str().unwrap_or_default().into());
            Body::from(Value::Object(problem).to_string())
        }
        Err(streaming) => streaming,
    };
    Response::from_parts(head, body)
}

/// Builds one challenge for each authentication method of the route. Only a token's challenge has an error code, and
/// none if no token was presented (RFC 6750 §3.1).
fn challenge(
    rejection: &Rejection,
    challenges: &AuthChallenges,
    speaks_dpop: bool,
) -> Vec<HeaderValue> {
    let error = match rejection {
        Rejection::MalformedCredentials => {
            r#", error="invalid_request", error_description="The credentials are malformed""#
                .to_owned()
        }
        Rejection::InsufficientScope { required } => {
            format!(
                r#", error="insufficient_scope", error_description="The access token lacks a scope", scope="{required}""#
            )
        }
        Rejection::InsufficientAuthentication { required } => {
            let mut error = r#", error="insufficient_user_authentication", error_description="A stronger or more recent login is required""#.to_owned();
            if !required.acr.is_empty() {
                let _ = write!(error, r#", acr_values="{}""#, required.acr_values());
            }
            if let Some(max_age) = required.max_age {
                let _ = write!(error, r#", max_age="{}""#, max_age.as_secs());
            }
            error
        }
        Rejection::Unauthenticated(Challenge::InvalidToken(description)) => {
            format!(r#", error="invalid_token", error_description="{description}""#)
        }
        Rejection::Unauthenticated(Challenge::InvalidProof) => {
            r#", error="invalid_dpop_proof", error_description="The DPoP proof is not valid for this request""#
                .to_owned()
        }
        Rejection::Unauthenticated(Challenge::NonceRequired) => {
            r#", error="use_dpop_nonce", error_description="The DPoP proof must carry the nonce of DPoP-Nonce""#
                .to_owned()
        }
        // What to ask the authorization server for (RFC 6750 §3).
        Rejection::Unauthenticated(Challenge::Missing) => {
            let scopes = challenges.scopes.as_ref();
            scopes.map_or_else(String::new, |scopes| format!(r#", scope="{scopes}""#))
        }
        _ => String::new(),
    };
    let metadata = challenges
        .metadata
        .as_ref()
        .map_or_else(String::new, |url| format!(r#", resource_metadata="{url}""#));
    let takes_tokens = challenges.bearer || challenges.dpop;
    let dpop = (challenges.dpop || (takes_tokens && speaks_dpop)).then(|| {
        let algorithms = dpop::algorithms().join(" ");
        format!(r#"DPoP realm="northgate", algs="{algorithms}"{error}{metadata}"#)
    });
    // A client that presented a `DPoP` proof is not offered Bearer.
    let bearer = (challenges.bearer && !speaks_dpop)
        .then(|| format!(r#"Bearer realm="northgate"{error}{metadata}"#));
    let unauthenticated = matches!(rejection, Rejection::Unauthenticated(_));
    let asks_for_login =
        unauthenticated || matches!(rejection, Rejection::InsufficientAuthentication { .. });
    let basic = (challenges.basic && (unauthenticated || !takes_tokens))
        .then(|| r#"Basic realm="northgate", charset="UTF-8""#.to_owned());
    let cookie = challenges
        .login
        .as_ref()
        .filter(|_| asks_for_login)
        .map(|path| format!(r#"Cookie form-action="{path}""#));
    [dpop, bearer, basic, cookie]
        .into_iter()
        .flatten()
        .filter_map(|text| HeaderValue::try_from(text).ok())
        .collect()
}

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
/// Makes browsers delete the cookies of the site (Clear Site Data §3.1).
const CLEAR_SITE_DATA: HeaderName = HeaderName::from_static("clear-site-data");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::StatusCode;

    use super::*;
    use crate::base::scopes::Scopes;

    #[test]
    fn the_challenge_for_a_missing_token_has_no_error_code() {
        let answer = answer(&Rejection::Unauthenticated(Challenge::Missing));

        assert_eq!(challenges(&answer), [r#"Bearer realm="northgate""#]);
    }

    #[test]
    fn the_challenge_for_a_bad_token_has_an_error_code() {
        let answer =
            answer(&Rejection::Unauthenticated(Challenge::InvalidToken("The token has expired")));

        assert_eq!(
            challenges(&answer),
            [
                r#"Bearer realm="northgate", error="invalid_token", error_description="The token has expired""#
            ]
        );
    }

    #[test]
    fn a_missing_scope_is_403_and_is_named() {
        let required = Arc::new(Scopes::parse("orders:write"));
        let answer = answer(&Rejection::InsufficientScope { required });

        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        assert!(challenges(&answer)[0].ends_with(r#"scope="orders:write""#));
    }

    #[test]
    fn every_authentication_method_gets_a_challenge() {
        let challenges = AuthChallenges {
            bearer: true,
            dpop: false,
            scopes: Some("orders:read orders:write".into()),
            basic: true,
            login: Some("/auth/login".into()),
            metadata: None,
        };
        let rejection = Rejection::Unauthenticated(Challenge::Missing);
        let answer = respond(
            &rejection,
            &challenges,
            false,
            ResponseFormat::ProblemJson,
            &HeaderValue::from_static("id"),
            None,
        );

        assert_eq!(
            self::challenges(&answer),
            [
                r#"Bearer realm="northgate", scope="orders:read orders:write""#,
                r#"Basic realm="northgate", charset="UTF-8""#,
                r#"Cookie form-action="/auth/login""#,
            ]
        );
    }

    #[test]
    fn a_client_with_a_proof_gets_a_dpop_challenge() {
        let challenge_of = |bearer, dpop, speaks_dpop, challenge| {
            let metadata = Some("https://a.example/m".into());
            let ways = AuthChallenges { bearer, dpop, metadata, ..AuthChallenges::default() };
            let rejection = Rejection::Unauthenticated(challenge);
            super::challenge(&rejection, &ways, speaks_dpop)
                .iter()
                .map(|value| value.to_str().expect("text").to_owned())
                .collect::<Vec<_>>()
        };

        let wants = challenge_of(false, true, false, Challenge::Missing);
        assert!(wants[0].starts_with(r#"DPoP realm="northgate", algs="RS256 "#), "{wants:?}");
        assert!(wants[0].ends_with(r#"EdDSA", resource_metadata="https://a.example/m""#));
        let bad = challenge_of(true, false, true, Challenge::InvalidProof);
        assert!(bad.len() == 1 && bad[0].contains(r#"error="invalid_dpop_proof""#), "{bad:?}");
        let nonce = challenge_of(true, false, true, Challenge::NonceRequired);
        assert!(nonce.len() == 1 && nonce[0].contains(r#"error="use_dpop_nonce""#), "{nonce:?}");
        let plain = challenge_of(true, false, false, Challenge::Missing);
        assert_eq!(plain, [r#"Bearer realm="northgate", resource_metadata="https://a.example/m""#]);
        assert!(challenge_of(false, false, true, Challenge::Missing).is_empty());
    }

    #[tokio::test]
    async fn a_program_gets_problem_json_and_a_browser_a_page() {
        let rejection = Rejection::NoRoute;
        let read = async |reader| {
            let answer = respond(
                &rejection,
                &AuthChallenges::default(),
                false,
                reader,
                &HeaderValue::from_static("id-1"),
                None,
            );
            let body = answer.into_body().collect(1000).await.expect("small");
            String::from_utf8(body.to_vec()).expect("text")
        };

        let problem: serde_json::Value =
            serde_json::from_str(&read(ResponseFormat::ProblemJson).await).expect("JSON");
        assert_eq!(problem["type"], "urn:northgate:problem:no-route");
        assert_eq!(
            (problem["status"].as_u64(), problem["request_id"].as_str()),
            (Some(404), Some("id-1"))
        );
        let page = read(ResponseFormat::Page).await;
        assert!(page.contains("<h1>Not Found</h1>") && page.contains("id-1"), "{page}");
    }

    #[tokio::test]
    async fn a_problem_of_a_session_gets_the_request_id() {
        let mut response = Response::new(Body::from(r#"{"title":"a","login":"/l"}"#));
        response.headers_mut().insert(CONTENT_TYPE, PROBLEM_JSON);
        let id = HeaderValue::from_static("id-\"2");

        let body = add_request_id(response, &id).into_body().collect(1000).await.expect("small");

        let problem: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(problem, json!({ "title": "a", "login": "/l", "request_id": "id-\"2" }));
    }

    #[test]
    fn a_limited_client_gets_retry_after() {
        assert_eq!(
            answer(&Rejection::IssuerUnavailable { retry_after: 7 }).headers()[RETRY_AFTER],
            "7"
        );
    }

    fn answer(rejection: &Rejection) -> Response<Body> {
        let challenges = AuthChallenges { bearer: true, ..AuthChallenges::default() };
        respond(
            rejection,
            &challenges,
            false,
            ResponseFormat::ProblemJson,
            &HeaderValue::from_static("id"),
            None,
        )
    }

    fn challenges(answer: &Response<Body>) -> Vec<&str> {
        answer
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .map(|v| v.to_str().expect("text"))
            .collect()
    }
}
