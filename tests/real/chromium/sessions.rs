//! Sessions as a browser lives them: what each kind of request is told when one ends, and two tabs.
//!
//! A browser is waited for without yielding, so the service behind the gateway has a thread of its own.

use std::time::Duration;

use super::super::oidc_provider::World;
use super::super::support::programs;
use super::browser::Browser;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_request_gets_its_answer_when_the_session_ends() {
    let Some((mut browser, world)) = start("expiry", &[]).await else { return };
    let home = world.gateway.url.clone();
    browser.open(&format!("{home}/brief?page=1"));
    log_in(&mut browser);
    browser.wait_for("location.pathname + location.search === '/brief?page=1'");
    let status = "fetch('/brief').then(answer => answer.status)";
    assert_eq!(browser.evaluate(status), 200);
    assert_eq!(browser.evaluate("document.cookie"), "", "a script can read the session");

    // No request comes for as long as the session may be idle.
    tokio::time::sleep(Duration::from_millis(3_500)).await;

    let told = "fetch('/brief').then(async answer => [answer.status, answer.redirected, (await answer.json()).login])";
    assert_eq!(browser.evaluate(told).to_string(), r#"[401,false,"/brief/login"]"#);
    let events = "new Promise(done => { const events = new EventSource('/brief'); \
                  events.onerror = () => done(events.readyState === EventSource.CLOSED) })";
    assert_eq!(browser.evaluate(events), true);
    let socket = "new Promise(done => { const socket = new WebSocket(location.origin.replace('http', 'ws') + '/brief'); \
                  socket.onopen = () => done('open'); socket.onclose = () => done('closed') })";
    assert_eq!(browser.evaluate(socket), "closed");

    browser.evaluate("location.href = '/brief?page=2'");
    browser.wait_for("location.pathname === '/brief/login'");
    log_in(&mut browser);
    browser.wait_for("location.pathname + location.search === '/brief?page=2'");
    assert_eq!(browser.evaluate(status), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_with_fifty_requests_survives_its_tokens_end() {
    let lifetime = [("ACCESS_TOKEN_TTL", "4")];
    let Some((mut browser, world)) = start("refresh", &lifetime).await else { return };
    browser.open(&format!("{}/session", world.gateway.url));
    log_in(&mut browser);
    browser.wait_for("location.pathname === '/session'");
    let crowd = "Promise.all([...Array(50)].map(() => fetch('/session').then(answer => answer.status)))\
                 .then(all => all.filter(status => status === 200).length)";

    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(browser.evaluate(crowd), 50);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tabs_log_in_at_once() {
    let Some((mut browser, world)) = start("two tabs", &[]).await else { return };
    let login = |page: u8| format!("{}/app?page={page}", world.gateway.url);
    let one = browser.tab();
    browser.open(&login(1));
    browser.wait_for("document.querySelector('input[name=login]') !== null");
    let two = browser.tab();
    browser.open(&login(2));
    browser.wait_for("document.querySelector('input[name=login]') !== null");

    for (tab, page) in [(two, 2), (one, 1)] {
        browser.show(&tab);
        browser.fill("input[name=login]", "alice");
        browser.fill("input[name=password]", "wonderland");
        browser.click("form button");
        let there = format!("location.pathname + location.search === '/app?page={page}'");
        // The second of two tabs may find its consent given already.
        browser.wait_for(&format!(
            "{there} || document.querySelector('input[value=consent]') !== null"
        ));
        browser.evaluate("document.querySelector('input[value=consent]')?.form.submit()");
        browser.wait_for(&there);
        browser.wait_for("document.body.innerText.includes('Bearer ey')");
    }
}

/// A browser, and a gateway that trusts oidc-provider.
async fn start(
    suite: &str,
    variables: &[(&'static str, &'static str)],
) -> Option<(Browser, World)> {
    let [chromium] = programs(&format!("chromium: {suite}"), ["chromium"])?;
    let world = World::start(suite, variables).await?;
    Some((Browser::start(&chromium), world))
}

/// Fills in the gateway's own form.
fn log_in(browser: &mut Browser) {
    browser.fill("input[name=username]", "alice");
    browser.fill("input[name=password]", "wonderland");
    browser.click("form button");
}
