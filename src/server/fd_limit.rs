//! The limit on open files, compared with the configured number of connections.
//!
//! A gateway that reaches the limit keeps running, but cannot reach clients or upstreams until files are closed.

use std::fs;

/// Logs a warning if the limit on open files is too low for `connections` client connections.
pub fn warn_if_few(connections: usize) {
    // On systems without procfs the limit is unknown.
    let Ok(limits) = fs::read_to_string("/proc/self/limits") else { return };
    if let Some(limit) = open_files(&limits).filter(|limit| *limit < wanted(connections)) {
        tracing::warn!(
            limit,
            wanted = wanted(connections),
            max_connections = connections,
            "The limit on open files is too low for `server.max_connections`; connections may fail under load. Raise `ulimit -n` (LimitNOFILE), or lower `server.max_connections`."
        );
    }
}

/// Returns the soft limit of this process; `None` if it is unlimited.
fn open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A client connection usually needs one to an upstream.
const fn wanted(connections: usize) -> u64 {
    (connections as u64).saturating_mul(2).saturating_add(RESERVED_FILES)
}

/// Listeners, logs, calls to issuers, and the runtimes.
const RESERVED_FILES: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_what_counts() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max processes             95898                95898                processes \n\
                      Max open files            1024                 524288               files     \n";

        assert_eq!(open_files(limits), Some(1024));
        assert_eq!(
            open_files("Max open files            unlimited            unlimited            files"),
            None
        );
        assert_eq!(open_files(""), None);
        assert_eq!(wanted(10_000), 20_100);
    }
}
