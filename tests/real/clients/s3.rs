//! boto3 and moto: keys that are awkward in a path, parts of objects, presigned URLs, uploads in parts, many deletions.

use super::{Route, python};
use crate::support::run;

#[tokio::test]
async fn boto3_stores_and_finds_every_key() {
    let suite = "clients: S3";
    let Some((_server, route)) = Route::to_script(suite, "s3_server.py", &[]).await else { return };
    let Some(mut client) = python(suite, "s3_client.py") else { return };

    run(client.arg(&route.gateway.url), "");
}

#[tokio::test]
async fn boto3_stores_and_finds_every_key_over_tls() {
    let suite = "clients: S3 over TLS";
    let Some((_server, route)) = Route::to_script(suite, "s3_server.py", &[]).await else { return };
    let Some(mut client) = python(suite, "s3_client.py") else { return };

    run(client.arg(&route.secure).env("PYTHONWARNINGS", "ignore"), "");
}
