//! The text that `northgate dev` prints: commands to try, in order.

use core::fmt::Write;
use core::time::Duration;

use super::issuer::{Mint, MintError};
use super::{DevConfig, Support};

/// The line above all others, on the terminal and on every page.
pub const BANNER: &str = "DEVELOPMENT: keys and users are public";

/// Returns the commands, each with freshly minted tokens.
///
/// `program` is the first argument of the process, so that Northgate's own subcommands can be pasted too.
///
/// # Errors
///
/// [`MintError`] if a token cannot be minted.
pub fn lines(support: &Support, config: &DevConfig, program: &str) -> Result<String, MintError> {
    // The subcommands read another file than this one unless it is named.
    let file = config.configuration.display().to_string();
    let of_file = if file == DEFAULT_FILE { String::new() } else { format!(" -c '{file}'") };
    let ports = config.ports;
    let mint = |mint: Mint| support.issuer().mint(&mint.lifetime(TOKEN_LIFETIME));
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
        ("next", format!("{program} check{of_file}"), ""),
        ("", format!("{program} explain GET {http}/api/orders{of_file}"), ""),
    ];
    let mut text = String::new();
    for (name, line, outcome) in rows {
        // The expected outcome is a shell comment, so that the whole line can be pasted.
        let outcome = if outcome.is_empty() { String::new() } else { format!("   # {outcome}") };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<13} {line}{outcome}");
    }
    Ok(text)
}

/// The default of `--config`.
const DEFAULT_FILE: &str = "gateway.yaml";
/// The lifetime of the printed tokens.
const TOKEN_LIFETIME: Duration = Duration::from_secs(8 * 3600);
