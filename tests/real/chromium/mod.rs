//! A person at a browser, and the system that `northgate dev` runs for a newcomer.

mod browser;
mod sessions;

use std::process::{Command, Stdio};
use std::time::Duration;

use northgate::dev::Ports;

pub(crate) use self::browser::Browser;
use super::support::{Running, eventually, programs, reserve};

#[tokio::test]
async fn a_person_logs_in_sees_the_account_and_logs_out() {
    let suite = "chromium: login";
    let Some([chromium]) = programs(suite, ["chromium"]) else { return };
    let (_system, ports) = dev().await;
    let mut browser = Browser::start(&chromium);
    let shop = format!("https://localhost:{}", ports.https());

    browser.open(&format!("{shop}/"));
    browser.wait_for("document.querySelector('#session').innerText.includes('Logged out')");
    browser.click("#session a.button");
    browser.fill("input[name=username]", "alice");
    browser.fill("input[name=password]", "wonderland");
    browser.click("form button");

    browser.wait_for("document.querySelector('#session strong')?.innerText === 'Alice Liddell'");
    assert_eq!(browser.evaluate("location.href"), format!("{shop}/"));
    assert_eq!(browser.evaluate("document.cookie"), "", "a script can read the session");

    browser.open(&format!("{shop}/app"));
    browser.wait_for("document.querySelector('h1')?.innerText === 'Hello, alice'");

    browser.click("form[action='/auth/logout'] button");
    browser.wait_for("document.querySelector('#session')?.innerText.includes('Logged out')");

    // From the gateway's own page too, whose policy names where its form may lead.
    browser.click("#session a.button");
    browser.fill("input[name=username]", "alice");
    browser.fill("input[name=password]", "wonderland");
    browser.click("form button");
    browser.wait_for("document.querySelector('#session strong')?.innerText === 'Alice Liddell'");
    browser.open(&format!("{shop}/auth/logout"));
    browser.click("form button");
    browser.wait_for("document.querySelector('#session')?.innerText.includes('Logged out')");
}

#[tokio::test]
async fn every_button_of_the_page_is_answered() {
    let suite = "chromium: routes";
    let Some([chromium]) = programs(suite, ["chromium"]) else { return };
    let (_system, ports) = dev().await;
    let mut browser = Browser::start(&chromium);
    browser.open(&format!("https://localhost:{}/", ports.https()));

    browser.wait_for("document.querySelectorAll('#routes button').length > 3");
    let routes = browser.evaluate("document.querySelectorAll('#routes button').length");
    for route in 0..routes.as_u64().expect("a number") {
        browser.evaluate("document.getElementById('answer').hidden = true");
        browser.evaluate(&format!("document.querySelectorAll('#routes button')[{route}].click()"));
        browser.wait_for("!document.getElementById('answer').hidden");
        let status = browser.evaluate("document.querySelector('#answer .status')?.innerText");
        let status = status.as_str().unwrap_or_default();
        let expected =
            ["2", "401", "429", "a redirect"].iter().any(|begin| status.starts_with(begin));
        assert!(expected, "route {route}: {status}");
    }
}

fn all(ports: Ports) -> Vec<u16> {
    let ports = ports.variables().into_iter();
    ports.map(|(_, port)| port.parse().expect("a port")).collect()
}

/// `northgate dev`, moved to free ports.
async fn dev() -> (Running, Ports) {
    let (offset, ports) = (4_000..20_000)
        .map(|offset| (offset, Ports::with_offset(offset).expect("a port")))
        .find(|(_, ports)| reserve(&all(*ports)))
        .expect("free ports");
    let mut command = Command::new(env!("CARGO_BIN_EXE_northgate"));
    command.args(["dev", "--port-offset", &offset.to_string()]);
    let system = Running::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let ready = format!("http://127.0.0.1:{}/readyz", ports.admin());
    eventually(Duration::from_secs(30), async || match reqwest::get(&ready).await {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => Err(answer.status().to_string()),
        Err(error) => Err(error.to_string()),
    })
    .await;
    (system, ports)
}
