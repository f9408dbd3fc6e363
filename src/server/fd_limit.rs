//! Whether the system lets as many files be open at once as the configuration takes connections.
//!
//! A gateway that runs out of them goes on, but can reach neither clients nor services until some are closed.

use std::fs;

/// Says so in the log if fewer files may be open than `connections` can take.
pub fn warn_if_few(connections: usize) {
    // Where the system does not say it this way, nobody can tell.
    let Ok(limits) = fs::read_to_string("/proc/self/limits") else { return };
    if let Some(most) = open_files(&limits).filter(|most| *most < wanted(connections)) {
        tracing::warn!(
            most,
            wanted = wanted(connections),
            max_connections = connections,
            "Fewer files may be open than the connections can take: raise `ulimit -n` (LimitNOFILE), or lower `server.max_connections`."
        );
    }
}

/// The soft limit of this process; `None` if there is none.
fn open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A client's connection mostly comes with one to a service.
const fn wanted(connections: usize) -> u64 {
    (connections as u64).saturating_mul(2).saturating_add(RESERVED_FILES)
}

/// Listeners, logs, calls to issuers, and what the runtimes hold.
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
