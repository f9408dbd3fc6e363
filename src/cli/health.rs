//! `northgate health`: for containers that have no other program to ask with.

use std::process::ExitCode;

use super::{fail, run};

/// Asks `url`; succeeds if the answer is a 2xx.
pub(super) fn health(url: &str) -> ExitCode {
    let asked = run::control_runtime().map_err(|error| error.to_string()).and_then(|runtime| {
        runtime.block_on(async {
            let client = reqwest::Client::builder()
                .no_proxy()
                .timeout(core::time::Duration::from_secs(3))
                .build()
                .map_err(|error| error.to_string())?;
            client
                .get(url)
                .send()
                .await
                .map(|answer| answer.status())
                .map_err(|error| error.to_string())
        })
    });
    match asked {
        Ok(status) if status.is_success() => ExitCode::SUCCESS,
        Ok(status) => fail(&format!("{url} answers {status}")),
        Err(story) => fail(&format!("{url} cannot be asked: {story}")),
    }
}
