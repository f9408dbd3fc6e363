//! What `northgate dev` starts around the gateway, over real sockets.

use std::net::TcpListener;
use std::path::PathBuf;

use http::{Method, StatusCode};
use northgate::base::clock::Clock;
use northgate::config::Environment;
use northgate::dev::{DevConfig, Ports, StartError, Support, banner, start_support};
use serde_json::{Value, json};
use tokio::runtime::Handle;

#[tokio::test]
async fn orders_tells_what_it_received_and_never_the_token() {
    let dev = start();

    let seen = dev
        .http
        .get(dev.orders("/api/orders?page=1"))
        .bearer_auth("a.secret.token")
        .header("x-auth-subject", "alice")
        .header("x-forwarded-for", "192.0.2.1")
        .header("x-request-id", "018f")
        .send()
        .await
        .expect("an answer");

    assert_eq!(seen.headers()["x-served-by"], format!("orders:{}", dev.ports.orders()[0]).as_str());
    let text = seen.text().await.expect("a body");
    assert!(!text.contains("secret"));
    let seen: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(seen["content"][0]["item"], "teapot");
    let received = &seen["received"];
    assert_eq!(received["authorization"], "Bearer, a signed token");
    assert_eq!(received["identity"], json!({ "x-auth-subject": "alice" }));
    assert_eq!(received["forwarded"], json!({ "x-forwarded-for": "192.0.2.1" }));
    assert_eq!(received["request_id"], "018f");
}

#[tokio::test]
async fn orders_knows_one_order_from_none() {
    let dev = start();
    let status = async |id: &str| {
        let path = format!("/api/orders/{id}");
        dev.http.get(dev.orders(&path)).send().await.expect("an answer").status()
    };

    assert_eq!(status("1").await, StatusCode::OK);
    assert_eq!(status("17").await, StatusCode::NOT_FOUND);
    assert_eq!(status("one").await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_orders_service_sends_its_events_one_by_one() {
    let dev = start();
    let path = dev.orders("/api/orders/events?count=3&ms=1");

    let answer = dev.http.get(path).send().await.expect("an answer");

    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let text = answer.text().await.expect("a body");
    assert_eq!(text.matches("data: ").count(), 3);
    assert!(text.ends_with("\n\n"));
}

#[tokio::test]
async fn bodies_are_counted_and_echoed() {
    let dev = start();
    let sent = vec![7_u8; 300_000];

    let upload = dev.http.post(dev.orders("/api/orders/upload")).body(sent.clone());
    let counted: Value = upload.send().await.expect("an answer").json().await.expect("JSON");
    let echo = dev.http.post(dev.orders("/api/orders/echo")).body(sent.clone());
    let back = echo.send().await.expect("an answer").bytes().await.expect("a body");

    assert_eq!(counted["bytes"], 300_000);
    assert_eq!(back, sent);
}

#[tokio::test]
async fn the_shops_page_needs_nothing_from_elsewhere() {
    let dev = start();

    let page = dev.http.get(dev.shop("/")).send().await.expect("an answer");

    let policy = page.headers()["content-security-policy"].to_str().expect("text").to_owned();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"));
    let html = page.text().await.expect("a page");
    for asset in ["/dev/style.css", "/dev/shop.css", "/dev/shop.js"] {
        assert!(html.contains(asset));
        let answer = dev.http.get(dev.shop(asset)).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn the_shop_serves_head_wherever_it_serves_get_and_names_the_methods_it_allows() {
    let dev = start();
    let ask = async |method: Method, path: &str| {
        let response = dev.http.request(method, dev.shop(path)).send().await.expect("an answer");
        let allow = response.headers().get("allow").map(|v| v.to_str().expect("text").to_owned());
        (response.status(), allow, response.bytes().await.expect("a body"))
    };

    for path in ["/", "/dev", "/dev/shop.js", "/dev/config", "/health", "/app", "/app/", "/app/x/y"]
    {
        assert_eq!(ask(Method::GET, path).await.0, StatusCode::OK, "{path}");
        let (status, _, body) = ask(Method::HEAD, path).await;
        assert_eq!((status, body.len()), (StatusCode::OK, 0), "{path}");
        let (status, allow, _) = ask(Method::POST, path).await;
        assert_eq!((status, &*allow.expect("Allow")), (StatusCode::METHOD_NOT_ALLOWED, "GET,HEAD"));
    }
    assert_eq!(ask(Method::GET, "/elsewhere").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn orders_takes_the_last_segment_below_any_prefix_and_keeps_the_path_it_was_asked_for() {
    let dev = start();
    let ask = async |path: &str| {
        let response = dev.http.get(dev.orders(path)).send().await.expect("an answer");
        response.json::<Value>().await.expect("JSON")
    };

    let slow = ask("/any/prefix/slow?ms=1").await;
    let other = ask("/any/prefix?ms=1").await;

    assert_eq!(slow["content"], json!({ "waited_ms": 1 }));
    assert_eq!(slow["received"]["path"], "/any/prefix/slow");
    assert_eq!(slow["received"]["query"], "ms=1");
    assert_eq!(
        (&other["content"], &other["received"]["path"]),
        (&Value::Null, &json!("/any/prefix"))
    );
}

#[tokio::test]
async fn an_account_greets_by_name_and_escapes_it() {
    let dev = start();
    let request = dev.http.get(dev.shop("/app")).header("accept", "text/html");
    let request = request.header("x-auth-subject", "<i>alice</i>");

    let page = request.send().await.expect("an answer").text().await.expect("a page");

    assert!(page.contains("Hello, &#60;i&#62;alice&#60;/i&#62;") && !page.contains("<i>"));
}

#[tokio::test]
async fn tokens_to_try_are_for_this_machines_user_alone() {
    let dev = start();
    let ask = async |host: &str| {
        let request = dev.http.get(dev.shop("/dev/tokens")).header("x-forwarded-host", host);
        request.send().await.expect("an answer")
    };

    assert_eq!(ask("rebound.example.com").await.status(), StatusCode::MISDIRECTED_REQUEST);
    let tokens: Value = ask("localhost:8443").await.json().await.expect("JSON");
    assert_eq!(tokens["signed"].as_str().expect("a token").split('.').count(), 3);
    assert!(!tokens["reference"].as_str().expect("a token").contains('.'));
}

#[tokio::test]
async fn the_page_lists_the_routes_of_the_file_in_use() {
    let dev = start();

    let routes = dev.http.get(dev.shop("/dev/routes")).send().await.expect("an answer");

    let routes: Value = routes.json().await.expect("JSON");
    let row = |id: &str| {
        let rows = routes.as_array().expect("rows");
        rows.iter().find(|row| row["id"] == id).expect("the route").clone()
    };
    assert_eq!(row("catalog")["who"], "every client");
    assert_eq!(row("catalog")["sample"], "/public/catalog");
    assert_eq!(row("orders-write")["method"], "POST");
    assert_eq!(row("orders-write")["who"], "a signed token with orders:write");
    assert_eq!(row("partners")["credential"], "reference");
    assert_eq!(row("app")["credential"], "session");
}

#[tokio::test]
async fn a_taken_port_is_said_plainly() {
    let dev = start();

    let again = start_support(&dev.options, Clock::system(), &Handle::current());

    let error = again.expect_err("the ports are taken");
    assert!(matches!(error, StartError::Taken(_)));
    let text = error.to_string();
    assert!(text.contains(&dev.ports.orders()[0].to_string()) && text.contains("--port-offset"));
}

#[tokio::test]
async fn the_printed_lines_come_in_order_and_hold_real_tokens() {
    let dev = start();

    let text = banner::lines(&dev.support, &dev.options, "northgate").expect("tokens");

    let names: Vec<_> = text.lines().map(|line| line[..13].trim()).collect();
    let story =
        "open public,no token,JWT,wrong scope,reference,revoke it,Basic,log in,spike,metrics,next,";
    assert_eq!(names.join(","), story.replacen(' ', ",", 1));
    assert!(!text.contains('…') || text.contains("200 … 429"));
    for line in text.lines().filter(|line| line.contains("Bearer ")) {
        let (_, token) = line.rsplit_once("Bearer ").expect("a token");
        let token = token.split('"').next().expect("a token");
        let form = [("token", token)];
        let request = dev.http.post(dev.issuer("/introspect")).form(&form);
        let request = request.basic_auth("gateway", Some("gateway-secret"));
        let told: Value = request.send().await.expect("an answer").json().await.expect("JSON");
        assert_eq!(told["active"], true, "{line}");
    }
}

struct Dev {
    support: Support,
    options: DevConfig,
    ports: Ports,
    http: reqwest::Client,
}

/// The system on ports that are free, whichever they are.
fn start() -> Dev {
    for _ in 0..50 {
        let ports = Ports::with_offset(free_offset()).expect("small enough");
        let options = DevConfig {
            ports,
            configuration: PathBuf::from("gateway.yaml"),
            environment: Environment::default(),
        };
        match start_support(&options, Clock::system(), &Handle::current()) {
            Ok(support) => {
                let http = reqwest::Client::builder().no_proxy().build().expect("a client");
                return Dev { support, options, ports, http };
            }
            Err(StartError::Taken(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no offset has all its ports free")
}

/// An offset under which one of the ports is free; likely the others are, too.
fn free_offset() -> u16 {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        if let Some(offset) = port.checked_sub(9400).filter(|o| Ports::with_offset(*o).is_ok()) {
            return offset;
        }
    }
}

impl Dev {
    fn orders(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ports.orders()[0])
    }

    fn shop(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ports.shop())
    }

    fn issuer(&self, path: &str) -> String {
        format!("{}{path}", self.support.issuer().url())
    }
}
