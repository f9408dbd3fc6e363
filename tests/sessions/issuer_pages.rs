//! A person's way through the development issuer's pages.

use http::StatusCode;
use http::header::{COOKIE, LOCATION, SET_COOKIE};
use reqwest::{Client, RequestBuilder, redirect};
use url::Url;

/// Goes from `away` through login and consent, with `decision`, until the issuer sends the browser back.
pub(crate) async fn walk(away: &Url, decision: &str) -> Url {
    let http = Client::builder().no_proxy().redirect(redirect::Policy::none()).build().unwrap();
    let mut cookie = String::new();
    let mut request = http.get(away.clone());
    for _ in 0..8 {
        let (location, page) = send(request, &mut cookie).await;
        request = match location {
            Some(location) => {
                let next = away.join(&location).unwrap();
                if next.path() == "/auth/callback" {
                    return next;
                }
                http.get(next)
            }
            None => {
                let name = between(&page, "name=\"request\" value=\"", "\"");
                let (path, form) = if page.contains("name=\"password\"") {
                    let person = [("username", "alice"), ("password", "wonderland")];
                    ("/authorize/login", person.to_vec())
                } else {
                    let boxes = [
                        "scope openid",
                        "scope profile",
                        "scope offline_access",
                        "scope orders:read",
                    ];
                    let mut form = vec![("decision", decision)];
                    form.extend(
                        boxes
                            .into_iter()
                            .filter(|name| page.contains(name))
                            .map(|name| (name, "on")),
                    );
                    ("/authorize/consent", form)
                };
                let form = [&[("request", &*name)], &form[..]].concat();
                http.post(away.join(path).unwrap()).form(&form)
            }
        };
    }
    panic!("the issuer did not redirect back");
}

async fn send(request: RequestBuilder, cookie: &mut String) -> (Option<String>, String) {
    let answer = request.header(COOKIE, &*cookie).send().await.unwrap();
    if let Some(set) = answer.headers().get(SET_COOKIE) {
        set.to_str().unwrap().split(';').next().unwrap().clone_into(cookie);
    }
    let location = answer.headers().get(LOCATION).map(|to| to.to_str().unwrap().to_owned());
    let fine =
        matches!(answer.status(), StatusCode::OK | StatusCode::SEE_OTHER | StatusCode::FOUND);
    let (status, page) = (answer.status(), answer.text().await.unwrap());
    assert!(fine, "{status}: {page}");
    (location, page)
}

fn between(text: &str, before: &str, after: &str) -> String {
    let rest = text.split_once(before).expect("the beginning").1;
    rest.split_once(after).expect("the end").0.to_owned()
}
