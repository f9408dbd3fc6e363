//! Chromium without a window, driven over a pipe by its own protocol.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

/// A fresh browser, without cookies or history.
pub(crate) struct Browser {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: Option<String>,
    asked: u64,
    _profile: TempDir,
}

impl Browser {
    /// Starts it with an empty page. It takes any certificate.
    pub(crate) fn start(program: &Path) -> Self {
        let profile = tempfile::tempdir().expect("a folder");
        // It reads from file 3 and writes to file 4, which only a shell hands over without unsafe code.
        let mut process = Command::new("bash")
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 < /dev/null > /dev/null 2> /dev/null"#])
            .arg(program)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"])
            .args(["--ignore-certificate-errors", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let to = process.stdin.take().expect("it was asked for");
        let from = BufReader::new(process.stdout.take().expect("it was asked for"));
        let mut browser = Self { process, to, from, session: None, asked: 0, _profile: profile };
        browser.tab();
        browser
    }

    /// Opens another tab, which is what everything is said to from now on. Its name is for [`Browser::show`].
    pub(crate) fn tab(&mut self) -> String {
        self.session = None;
        let page = self.ask("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": page["targetId"], "flatten": true });
        let attached = self.ask("Target.attachToTarget", attach);
        let tab = attached["sessionId"].as_str().expect("a tab").to_owned();
        self.show(&tab);
        tab
    }

    /// Goes back to a tab.
    pub(crate) fn show(&mut self, tab: &str) {
        self.session = Some(tab.to_owned());
    }

    /// Goes to `url`.
    pub(crate) fn open(&mut self, url: &str) {
        let gone = self.ask("Page.navigate", json!({ "url": url }));
        assert_eq!(gone["errorText"], Value::Null, "{url}");
    }

    /// Waits until the page's script finds `expression` true, and returns what it is.
    ///
    /// # Panics
    ///
    /// If that takes longer than twenty seconds; with what the page shows.
    pub(crate) fn wait_for(&mut self, expression: &str) -> Value {
        for _ in 0..200 {
            let value = self.evaluate(expression);
            if value != Value::Null && value != false && value != "" {
                return value;
            }
            sleep(Duration::from_millis(100));
        }
        let shown = self.evaluate("location.href + '\\n' + document.body?.innerText");
        panic!("never: {expression}\nthe page shows: {}", shown.as_str().unwrap_or_default())
    }

    /// Clicks the first element that `selector` finds, once there is one.
    pub(crate) fn click(&mut self, selector: &str) {
        let found = format!("document.querySelector({})", json!(selector));
        self.wait_for(&format!("{found} !== null"));
        self.evaluate(&format!("{found}.click()"));
    }

    /// Types into the field that `selector` finds.
    pub(crate) fn fill(&mut self, selector: &str, text: &str) {
        let found = format!("document.querySelector({})", json!(selector));
        self.wait_for(&format!("{found} !== null"));
        self.evaluate(&format!("{found}.value = {}", json!(text)));
    }

    /// What the page's script makes of `expression`; null if it fails, as it does between two pages.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let how = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        self.ask("Runtime.evaluate", how)["result"]["value"].clone()
    }

    /// Sends a command and waits for its answer, past whatever else is told meanwhile.
    fn ask(&mut self, method: &str, parameters: Value) -> Value {
        self.asked += 1;
        let mut command = json!({ "id": self.asked, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            command["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{command}\0").as_bytes()).expect("Chromium listens");
        loop {
            let mut message = Vec::new();
            self.from.read_until(0, &mut message).expect("Chromium speaks");
            assert_eq!(message.pop(), Some(0), "Chromium ended");
            let message: Value = serde_json::from_slice(&message).expect("JSON");
            if message["id"] == self.asked {
                return message["result"].clone();
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It has ended by itself, then.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
