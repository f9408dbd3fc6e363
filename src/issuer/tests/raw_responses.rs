//! Responses of various servers, byte for byte on a real socket.

use core::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use url::Url;

use super::super::settings::{Client, ClientAuth, Discovery, Endpoints, Settings};
use super::super::{
    AcceptedFormat, Grant, GrantError, IntrospectionResponse, Issuer, TokenHint, Tokens,
};
use crate::base::clock::{Clock, Timestamp};
use crate::base::secret::Secret;
use crate::observe::metrics::Metrics;

/// The bytes written for one request; then the connection stays open, or closes.
#[derive(Clone, Copy)]
enum Say {
    Keep(&'static [&'static str]),
    Close(&'static [&'static str]),
}

/// A server that sends the next response to each request, on any connection.
struct Script {
    url: Url,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Script {
    async fn start(says: Vec<Say>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = Url::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let (all, says) = (Arc::clone(&heard), Arc::new(Mutex::new(says.into_iter())));
        Handle::current().spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (all, says) = (Arc::clone(&all), Arc::clone(&says));
                Handle::current().spawn(async move {
                    while let Some(request) = read(&mut stream).await {
                        all.lock().unwrap().push(request);
                        let Some(say) = says.lock().unwrap().next() else { break };
                        let (Say::Keep(parts) | Say::Close(parts)) = say;
                        for part in parts {
                            stream.write_all(part.as_bytes()).await.unwrap();
                            stream.flush().await.unwrap();
                            tokio::task::yield_now().await;
                        }
                        if matches!(say, Say::Close(_)) {
                            break;
                        }
                    }
                });
            }
        });
        Self { url, heard }
    }

    fn issuer(&self) -> Issuer {
        let client = Client { id: "web".into(), auth: ClientAuth::Post("s3cret".into()) };
        let mut settings = Settings::new("main", self.url.as_str());
        settings.discovery = Discovery::Off;
        settings.client = Some(client);
        settings.endpoints = Endpoints {
            token: Some(self.url.clone()),
            introspection: Some(self.url.clone()),
            revocation: Some(self.url.clone()),
            ..Endpoints::default()
        };
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        Issuer::new(settings, clock, &Metrics::new(&[1.0]), Handle::current()).unwrap()
    }

    fn heard(&self) -> usize {
        self.heard.lock().unwrap().len()
    }
}

/// Reads one request with its content; `None` at the end of the connection.
async fn read(stream: &mut TcpStream) -> Option<String> {
    let mut request = String::new();
    loop {
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).await.ok().filter(|count| *count > 0)?;
        request.push_str(core::str::from_utf8(&bytes[..count]).unwrap());
        let Some((head, body)) = request.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            return Some(request);
        }
    }
}

async fn refresh(issuer: &Issuer) -> Result<Tokens, GrantError> {
    let client = issuer.settings().client.clone().unwrap();
    let refresh_token = Secret::from("r");
    issuer.grant(Grant::Refresh { refresh_token: &refresh_token, resource: None }, &client).await
}

async fn is_inactive(issuer: &Issuer) -> bool {
    issuer.introspect(&"t".into(), AcceptedFormat::Json).await
        == Ok(IntrospectionResponse::Inactive)
}

const TOKENS: &str = r#"{"access_token":"a","token_type":"bearer","expires_in":"60"}"#;
const CLOSED: Say = Say::Close(&[]);
const INACTIVE: Say =
    Say::Keep(&["HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n", r#"{"active":false}"#]);

#[tokio::test]
async fn token_responses_are_read_in_any_framing() {
    for says in [
        Say::Close(&["HTTP/1.0 200 OK\r\n\r\n", TOKENS]),
        Say::Close(&["HTTP/1.0 200 OK\r\nContent-Length: 60\r\n\r\n", TOKENS]),
        Say::Close(&["HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", TOKENS]),
        Say::Close(&[
            "HTTP/1.1 200\r\nConnection: close\r\nContent-Type: text/html\r\n\r\n",
            TOKENS,
        ]),
        Say::Keep(&[
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "1\r\n{\r\n",
            "3b;x=y\r\n",
            "\"access_token\":\"a\",\"token_type\":\"bearer\",\"expires_in\":\"60\"}\r\n",
            "0\r\nX-Trailer: 1\r\n\r\n",
        ]),
        Say::Keep(&[
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 200 OK\r\nserver: x\r\ncontent-length:60\r\n\r\n",
            TOKENS,
        ]),
    ] {
        let script = Script::start(vec![says]).await;

        let tokens = refresh(&script.issuer()).await.unwrap();

        assert_eq!(tokens.access_token, "a".into());
    }
}

#[tokio::test]
async fn a_truncated_response_is_none() {
    for says in [
        Say::Close(&["HTTP/1.1 200 OK\r\nContent-Length: 61\r\n\r\n", TOKENS]),
        Say::Close(&["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3c\r\n", TOKENS]),
        Say::Close(&["HTTP/1.1 200 OK\r\n"]),
        CLOSED,
    ] {
        let script =
            Script::start(vec![says, Say::Close(&["HTTP/1.0 200 OK\r\n\r\n", TOKENS])]).await;

        // The token may have been redeemed: repeated, the server would take it for stolen.
        assert_eq!(refresh(&script.issuer()).await.unwrap_err(), GrantError::Unavailable);
        assert_eq!(script.heard(), 1);
    }
}

#[tokio::test]
async fn a_call_without_effect_is_repeated_if_the_connection_was_closed() {
    let script = Script::start(vec![INACTIVE, CLOSED, INACTIVE, CLOSED, CLOSED, INACTIVE]).await;
    let issuer = script.issuer();

    assert!(is_inactive(&issuer).await);
    assert!(is_inactive(&issuer).await, "a connection that is closed when it is used");
    assert_eq!(script.heard(), 3);
    assert!(!is_inactive(&issuer).await, "twice in a row it is no accident");
    let client = issuer.settings().client.clone().unwrap();
    issuer.revoke(&"r".into(), TokenHint::RefreshToken, &client).await.unwrap();
}

#[tokio::test]
async fn a_grant_is_not_redirected() {
    let elsewhere = Script::start(vec![Say::Close(&["HTTP/1.0 200 OK\r\n\r\n", TOKENS])]).await;
    for status in ["301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect"]
    {
        let there = &elsewhere.url;
        let says = format!("HTTP/1.1 {status}\r\nLocation: {there}\r\nContent-Length: 0\r\n\r\n");
        let script = Script::start(vec![Say::Keep(Box::leak(Box::new([&*says.leak()])))]).await;

        assert_eq!(refresh(&script.issuer()).await.unwrap_err(), GrantError::Unavailable);
        assert_eq!((script.heard(), elsewhere.heard()), (1, 0), "{status}");
    }
}

#[tokio::test]
async fn many_responses_on_closing_connections_are_all_read() {
    let closing = "HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"active\":false}";
    let script = Script::start(vec![Say::Close(Box::leak(Box::new([closing]))); 200]).await;
    let issuer = script.issuer();

    // Keep-alive is announced, but the connection closes.
    for round in 0..200 {
        if script.heard() >= 200 {
            break;
        }
        assert!(is_inactive(&issuer).await, "{round}");
    }
}
