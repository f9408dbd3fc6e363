//! `northgate health`: a health check for containers without curl.

use std::process::ExitCode;

use super::exit::fail;
use super::run;
use crate::server::chain;

/// Sends a GET request to `url`; succeeds if the response is a 2xx.
pub(super) fn health(url: &str) -> ExitCode {
    let result = run::control_runtime().map_err(|error| error.to_string()).and_then(|runtime| {
        runtime.block_on(async {
            let client = reqwest::Client::builder()
                .no_proxy()
                .timeout(core::time::Duration::from_secs(3))
                .build()
                .map_err(|error| chain(&error))?;
            client
                .get(url)
                .send()
                .await
                .map(|response| response.status())
                .map_err(|error| chain(&error))
        })
    });
    match result {
        Ok(status) if status.is_success() => ExitCode::SUCCESS,
        Ok(status) => fail(&format!("{url} responded with {status}")),
        Err(error) => fail(&format!("cannot reach {url}: {error}")),
    }
}
