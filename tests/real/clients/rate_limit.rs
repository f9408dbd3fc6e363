//! A parser of structured fields reads what responses say about limits.

use super::super::gateway::Gateway;
use super::python;
use crate::support::run;

#[tokio::test]
async fn a_parser_of_structured_fields_reads_the_fields_about_limits() {
    let Some(mut client) = python("clients: RateLimit", "rate_limit_fields.py") else { return };
    let largest = "n".repeat(63);
    let gateway = Gateway::start(&format!(
        "listen: OWN
limits:
  spike: {{ rate: 100/min, burst: 100 }}
  daily: {{ quota: 3/day }}
  slots: {{ concurrency: 5 }}
  {largest}: {{ quota: 999999999999999/day }}
routes:
  - {{ id: all, path: /all, respond: {{ body: ok }}, auth: none, limits: [spike, daily, slots] }}
  - {{ id: largest, path: /largest, respond: {{ body: ok }}, auth: none, limits: [{largest}] }}
"
    ))
    .await;

    run(client.arg(&gateway.url), "");
}
