//! Routes requests to the endpoints of a session.

use core::net::IpAddr;
use std::sync::Arc;

use http::header::WWW_AUTHENTICATE;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use serde_json::json;

use super::response::{lead_to, method_not_allowed, problem, uncached};
use super::{Flow, Sessions, navigation};
use crate::base::body::Body;

impl Sessions {
    /// Has a script navigate to the login that it has requested: no script can follow a redirect to the issuer.
    fn name_login(&self, head: &Parts) -> Response<Body> {
        let login =
            head.uri.path_and_query().map_or(&*self.settings.paths.login, |url| url.as_str());
        if navigation::is_htmx(&head.headers)
            && let Ok(location) = HeaderValue::from_str(login)
        {
            return lead_to(&head.headers, location, || uncached(StatusCode::OK, Body::empty()));
        }
        let title = "Logging in needs a page: navigate to `login`.";
        let (status, login) = (StatusCode::UNAUTHORIZED, json!({ "login": login }));
        let mut response = problem(status, "login-required", title, login);
        response.headers_mut().insert(WWW_AUTHENTICATE, self.challenge());
        response
    }

    /// Returns the paths of the endpoints that [`Sessions::serve`] handles.
    pub fn own_paths(&self) -> impl Iterator<Item = &str> {
        self.settings.own_paths()
    }

    /// Handles a request to one of [`Sessions::own_paths`].
    ///
    /// `address` is the client's, and `secure` is whether the client used TLS,
    /// both as reported by trusted proxies.
    pub async fn serve(
        self: &Arc<Self>,
        request: Request<Body>,
        address: IpAddr,
        secure: bool,
    ) -> Response<Body> {
        let paths = &self.settings.paths;
        let path = request.uri().path();
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let posts = *request.method() == Method::POST;
        if path == &*paths.login && self.settings.flow == Flow::Password {
            return match (reads, posts) {
                (true, _) => self.login_page(&request, address, secure),
                (_, true) => self.handle_login(request, address, secure).await,
                _ => method_not_allowed("GET, HEAD, POST"),
            };
        }
        if path == &*paths.login {
            let (head, _) = request.into_parts();
            return if reads && navigation::is_script(&head.headers) {
                self.name_login(&head)
            } else if reads {
                self.redirect_to_issuer(&head).await
            } else {
                method_not_allowed("GET, HEAD")
            };
        }
        if path == &*paths.callback && self.settings.flow == Flow::Code {
            return if reads {
                self.handle_callback(request).await
            } else {
                method_not_allowed("GET, HEAD")
            };
        }
        if path == &*paths.logout {
            return match (reads, posts) {
                (true, _) => self.pages.logout(&paths.logout, self.end_session_endpoint().as_ref()),
                (_, true) => self.log_out(request, address).await,
                _ => method_not_allowed("GET, HEAD, POST"),
            };
        }
        if path == &*paths.status {
            return if reads {
                self.status(request).await
            } else {
                method_not_allowed("GET, HEAD")
            };
        }
        if path == &*paths.refresh {
            return if posts { self.refresh(request).await } else { method_not_allowed("POST") };
        }
        if path == &*paths.back_channel_logout {
            return if posts { self.handle(request).await } else { method_not_allowed("POST") };
        }
        problem(StatusCode::NOT_FOUND, "no-route", "Not found.", json!({}))
    }
}
