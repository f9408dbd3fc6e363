//! Chromium: a page with 150 cookies, and addresses that only a browser would write.

use serde_json::json;

use super::Route;
use crate::chromium::Browser;
use crate::support::programs;

#[tokio::test]
async fn chromium_sends_150_cookies_and_odd_addresses() {
    let suite = "clients: Chromium";
    let Some([chromium]) = programs(suite, ["chromium"]) else { return };
    let Some((echo, route)) = Route::to_script(suite, "raw_echo.py", &[]).await else { return };
    let mut browser = Browser::start(&chromium);

    for base in [&route.gateway.url, &route.secure] {
        browser.open(&format!("{base}/"));
        browser.wait_for("document.body?.innerText.includes('target')");
        browser.evaluate(
            "for (let n = 0; n < 150; n++) document.cookie = `cookie${n}=${'v'.repeat(60)}`",
        );
        let sent = browser
            .wait_for("fetch('/cookies').then(r => r.json()).then(seen => seen.cookies.length)");
        assert_eq!(sent, 150, "{base}");

        for address in ADDRESSES {
            let seen = format!(
                "fetch({}).then(r => r.ok ? r.json() : {{target: r.status}}).then(seen => seen.target)",
                json!(address)
            );
            let through = browser.evaluate(&seen);
            // As the service sees the browser without the gateway.
            let direct = format!(
                "new URL({address}, {base}).pathname + new URL({address}, {base}).search",
                address = json!(address),
                base = json!(format!("{}/", echo.url)),
            );
            assert_eq!(through, browser.evaluate(&direct), "{base} {address}");
        }
    }
}

#[tokio::test]
async fn chromium_gets_out_of_a_head_with_too_many_cookies() {
    let suite = "clients: Chromium";
    let Some([chromium]) = programs(suite, ["chromium"]) else { return };
    let Some((_echo, route)) = Route::to_script(suite, "raw_echo.py", &[]).await else { return };
    let mut browser = Browser::start(&chromium);

    for base in [&route.gateway.url, &route.secure] {
        browser.open(&format!("{base}/"));
        browser.wait_for("document.body?.innerText.includes('target')");
        browser.evaluate(
            "for (let n = 0; n < 60; n++) document.cookie = `large${n}=${'v'.repeat(1000)}`",
        );
        let status = browser.wait_for("fetch('/').then(response => response.status)");
        assert_eq!(status, 431, "{base}");

        let status = browser.wait_for("fetch('/').then(response => response.status)");
        assert_eq!(status, 200, "{base}");
    }
}

const ADDRESSES: [&str; 12] = [
    "/a b/\"c\"/<d>/`e`/{f}|g^h",
    "/?q={__name__=~\"a|b\"}&x=<y>'`z`",
    "/ä/日本/?ö=ü",
    "/;jsessionid=1A?b",
    "/a;b=c/d",
    "/a//b/",
    "/http://example.com/?u=http://b//c",
    "/a%2Fb%5Cc%3B",
    "/100%25",
    "/a/./b/../c",
    "/?[]=1&a[b]=2&\\=3",
    "/~user/*/!$&'()+,=:@",
];
