//! What `northgate dev` prints: lines to paste, in an order that tells a story.

use core::fmt::Write;
use core::time::Duration;

use super::issuer::{Mint, MintError};
use super::{Options, Support};

/// What is said before anything else.
pub const BANNER: &str = "DEVELOPMENT: keys and users are public";

/// The lines, each with real, freshly minted tokens, ready to paste.
///
/// `program` is how Northgate was called, so that its own verbs can be pasted too.
///
/// # Errors
///
/// [`MintError`] if no token can be made.
pub fn lines(support: &Support, options: &Options, program: &str) -> Result<String, MintError> {
    let ports = options.ports;
    let mint = |mint: Mint| support.issuer().mint(&mint.lifetime(LIFETIME));
    let signed = mint(Mint::client("api").scopes("orders:read"))?;
    let reference = mint(Mint::client("partner"))?;
    let http = format!("http://localhost:{}", ports.http());
    let https = format!("https://localhost:{}", ports.https());
    let issuer = support.issuer().url();
    let bearer = |token: &str| format!("-H \"Authorization: Bearer {token}\"");
    let (signed, partner) = (bearer(&signed), bearer(&reference));
    let rows = [
        ("open", format!("{https}/"), "log in, see your session, try every route"),
        ("public", format!("curl -i {http}/public/catalog"), ""),
        ("no token", format!("curl -i {http}/api/orders"), "-> 401"),
        ("JWT", format!("curl -i {http}/api/orders {signed}"), ""),
        (
            "wrong scope",
            format!("curl -i -X DELETE {http}/api/orders/1 {signed}"),
            "-> 403 insufficient_scope",
        ),
        ("reference", format!("curl -i {http}/api/partners {partner}"), ""),
        (
            "revoke it",
            format!(
                "curl -X POST {issuer}/revoke -u partner:partner-secret -d token={reference} ; \
                 curl -i {http}/api/partners {partner}"
            ),
            "-> 401",
        ),
        ("Basic", format!("curl -i -u alice:wonderland {http}/api/batch"), ""),
        (
            "log in",
            format!(
                "curl -k -i -c jar {https}/auth/login -d 'username=alice&password=wonderland' ; \
                 curl -k -b jar {https}/app"
            ),
            "",
        ),
        (
            "spike",
            format!(
                "for i in $(seq 30); do curl -s -o /dev/null -w '%{{http_code}} ' \
                 {http}/public/catalog; done"
            ),
            "-> 200 … 429",
        ),
        (
            "metrics",
            format!(
                "curl -s http://localhost:{}/metrics | grep northgate_auth_requests_total",
                ports.admin()
            ),
            "",
        ),
        ("next", format!("{program} check"), ""),
        ("", format!("{program} explain GET {http}/api/orders"), ""),
    ];
    let mut text = String::new();
    for (name, line, outcome) in rows {
        // What follows the command is a comment to a shell, so that the whole line can be pasted.
        let outcome = if outcome.is_empty() { String::new() } else { format!("   # {outcome}") };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<13} {line}{outcome}");
    }
    Ok(text)
}

/// How long the printed tokens live.
const LIFETIME: Duration = Duration::from_secs(8 * 3600);
