//! Names of hosts and the domains that they belong to.

/// Whether `host` is `domain`, or below it (RFC 6265 §5.1.3). Both are names in lower case.
pub fn is_within(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_belongs_to_itself_and_to_the_domains_above() {
        for host in ["example.com", "www.example.com", "a.b.example.com"] {
            assert!(is_within(host, "example.com"), "{host}");
        }
        for host in ["nexample.com", "example.com.evil", "com", ""] {
            assert!(!is_within(host, "example.com"), "{host}");
        }
    }
}
