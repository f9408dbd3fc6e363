//! Refusals become responses, here and nowhere else (RFC 6750 §3, RFC 9457).

use http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderValue, Response};
use serde_json::json;

use super::rejection::{Challenge, Rejection};
use crate::base::body::Body;
use crate::token::binding::dpop;

/// How a client may prove itself on a route; every way gets a challenge in a 401.
#[derive(Clone, Debug, Default)]
pub struct AuthChallenges {
    /// By an access token.
    pub bearer: bool,
    /// By an access token with a proof; the only way to present one, unless `bearer` is there too.
    pub dpop: bool,
    /// By user name and password.
    pub basic: bool,
    /// By a session; the path where it begins.
    pub login: Option<Box<str>>,
    /// Where the metadata of this resource is (RFC 9728 §5.1).
    pub metadata: Option<Box<str>>,
}

/// What the client said it can read, kept from its request.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ResponseFormat {
    /// A program: problem+json.
    #[default]
    Program,
    /// A browser's page: plain words.
    Person,
}

impl ResponseFormat {
    /// Reads `Accept`: a person's browser prefers HTML.
    pub fn of(headers: &HeaderMap) -> Self {
        let html =
            |value: &HeaderValue| value.to_str().is_ok_and(|text| text.contains("text/html"));
        if headers.get(ACCEPT).is_some_and(html) { Self::Person } else { Self::Program }
    }
}

/// The response to a refused request. `login` sends a browser to a session's login page instead of a 401;
/// `speaks_dpop` is a client that presents its token with a proof, and is answered in the same scheme.
pub(crate) fn respond(
    rejection: &Rejection,
    challenges: &AuthChallenges,
    speaks_dpop: bool,
    reader: ResponseFormat,
    request_id: &HeaderValue,
    login: Option<HeaderValue>,
) -> Response<Body> {
    if let (Rejection::Unauthenticated(_), Some(login)) = (rejection, login) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = http::StatusCode::FOUND;
        response.headers_mut().insert(LOCATION, login);
        response.headers_mut().insert(CACHE_CONTROL, NO_STORE);
        return response;
    }
    let status = rejection.status();
    let id = request_id.to_str().unwrap_or_default();
    let (kind, body) = match reader {
        ResponseFormat::Program => {
            let mut problem = json!({
                "type": format!("urn:northgate:problem:{}", rejection.name()),
                "title": rejection.title(),
                "status": status.as_u16(),
                "request_id": id,
            });
            if let (Rejection::Unauthenticated(_), Some(login)) = (rejection, &challenges.login) {
                problem["login"] = json!(login);
            }
            (PROBLEM_JSON, problem.to_string())
        }
        ResponseFormat::Person => (
            PLAIN_TEXT,
            format!(
                "{} {}\n\n{}.\n\nRequest {id}\n",
                status.as_u16(),
                status.canonical_reason().unwrap_or_default(),
                rejection.title()
            ),
        ),
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CACHE_CONTROL, NO_STORE);
    match rejection {
        Rejection::Method { allow } => {
            headers.insert(ALLOW, allow.clone());
        }
        Rejection::Limited(limited) => {
            headers.extend(limited.retry_after_value().map(|seconds| (RETRY_AFTER, seconds)));
        }
        Rejection::IssuerUnavailable { retry_after }
        | Rejection::TooManyFailures { retry_after } => {
            headers.insert(RETRY_AFTER, HeaderValue::from(*retry_after));
        }
        Rejection::Overloaded
        | Rejection::Upstream(
            crate::upstream::UpstreamError::NoEndpoint | crate::upstream::UpstreamError::Overflow,
        ) => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        Rejection::Unauthenticated(_)
        | Rejection::MalformedCredentials
        | Rejection::InsufficientScope { .. } => {
            for challenge in challenge(rejection, challenges, speaks_dpop) {
                headers.append(WWW_AUTHENTICATE, challenge);
            }
        }
        _ => {}
    }
    response
}

/// One challenge per way that the route takes. Only a token's challenge says what was wrong, and it says
/// nothing where nothing was presented (RFC 6750 §3.1).
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
    // A client that has a key is not invited to leave it out.
    let bearer = (challenges.bearer && !speaks_dpop)
        .then(|| format!(r#"Bearer realm="northgate"{error}{metadata}"#));
    let unauthenticated = matches!(rejection, Rejection::Unauthenticated(_));
    let basic = (challenges.basic && (unauthenticated || !takes_tokens))
        .then(|| r#"Basic realm="northgate", charset="UTF-8""#.to_owned());
    let cookie = challenges
        .login
        .as_ref()
        .filter(|_| unauthenticated)
        .map(|path| format!(r#"Cookie form-action="{path}""#));
    [dpop, bearer, basic, cookie]
        .into_iter()
        .flatten()
        .filter_map(|text| HeaderValue::try_from(text).ok())
        .collect()
}

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
const PLAIN_TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::StatusCode;

    use super::*;
    use crate::base::scopes::Scopes;

    #[test]
    fn a_request_without_a_token_is_told_how_but_not_what_was_wrong() {
        let answer = answer(&Rejection::Unauthenticated(Challenge::Missing));

        assert_eq!(challenges(&answer), [r#"Bearer realm="northgate""#]);
    }

    #[test]
    fn a_bad_token_is_named_as_such() {
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
    fn a_missing_scope_is_403_and_says_which() {
        let required = Arc::new(Scopes::parse("orders:write"));
        let answer = answer(&Rejection::InsufficientScope { required });

        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        assert!(challenges(&answer)[0].ends_with(r#"scope="orders:write""#));
    }

    #[test]
    fn every_way_of_the_route_gets_a_challenge() {
        let challenges = AuthChallenges {
            bearer: true,
            dpop: false,
            basic: true,
            login: Some("/auth/login".into()),
            metadata: None,
        };
        let rejection = Rejection::Unauthenticated(Challenge::Missing);
        let answer = respond(
            &rejection,
            &challenges,
            false,
            ResponseFormat::Program,
            &HeaderValue::from_static("id"),
            None,
        );

        assert_eq!(
            self::challenges(&answer),
            [
                r#"Bearer realm="northgate""#,
                r#"Basic realm="northgate", charset="UTF-8""#,
                r#"Cookie form-action="/auth/login""#,
            ]
        );
    }

    #[test]
    fn a_client_that_brings_a_proof_is_answered_in_its_scheme() {
        let told = |bearer, dpop, speaks_dpop, challenge| {
            let metadata = Some("https://a.example/m".into());
            let ways = AuthChallenges { bearer, dpop, metadata, ..AuthChallenges::default() };
            let rejection = Rejection::Unauthenticated(challenge);
            super::challenge(&rejection, &ways, speaks_dpop)
                .iter()
                .map(|value| value.to_str().expect("text").to_owned())
                .collect::<Vec<_>>()
        };

        let wants = told(false, true, false, Challenge::Missing);
        assert!(wants[0].starts_with(r#"DPoP realm="northgate", algs="RS256 "#), "{wants:?}");
        assert!(wants[0].ends_with(r#"EdDSA", resource_metadata="https://a.example/m""#));
        let bad = told(true, false, true, Challenge::InvalidProof);
        assert!(bad.len() == 1 && bad[0].contains(r#"error="invalid_dpop_proof""#), "{bad:?}");
        let nonce = told(true, false, true, Challenge::NonceRequired);
        assert!(nonce.len() == 1 && nonce[0].contains(r#"error="use_dpop_nonce""#), "{nonce:?}");
        let plain = told(true, false, false, Challenge::Missing);
        assert_eq!(plain, [r#"Bearer realm="northgate", resource_metadata="https://a.example/m""#]);
        assert!(told(false, false, true, Challenge::Missing).is_empty());
    }

    #[tokio::test]
    async fn a_program_reads_problem_json_and_a_person_words() {
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
            serde_json::from_str(&read(ResponseFormat::Program).await).expect("JSON");
        assert_eq!(problem["type"], "urn:northgate:problem:no-route");
        assert_eq!(
            (problem["status"].as_u64(), problem["request_id"].as_str()),
            (Some(404), Some("id-1"))
        );
        assert_eq!(
            read(ResponseFormat::Person).await,
            "404 Not Found\n\nThere is nothing here.\n\nRequest id-1\n"
        );
    }

    #[test]
    fn a_client_is_told_when_to_come_back() {
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
            ResponseFormat::Program,
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
