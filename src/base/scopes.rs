//! OAuth scopes (RFC 6749 §3.3).

use core::fmt;

/// A set of scopes, sorted, without duplicates.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Scopes(Box<[Box<str>]>);

impl Scopes {
    /// Parses a space-separated list, as in the `scope` claim and parameter.
    pub fn parse(text: &str) -> Self {
        text.split(' ').collect()
    }

    /// Parses the `scope` of a token response to a request for `requested`. A list of those alone that is separated by
    /// commas, as GitHub and `LinkedIn` write it, is a list too; any other comma is part of a scope (RFC 6749 §3.3).
    pub fn parse_granted(text: &str, requested: &Self) -> Self {
        let pieces = || text.split(',').filter(|piece| !piece.is_empty());
        if !text.contains(' ') && pieces().all(|piece| requested.contains(piece)) {
            return pieces().collect();
        }
        Self::parse(text)
    }

    /// Whether every scope of `self` is among `granted`.
    pub fn is_subset(&self, granted: &Self) -> bool {
        self.0.iter().all(|scope| granted.contains(scope))
    }

    /// Whether at least one scope of `self` is among `granted`.
    pub fn intersects(&self, granted: &Self) -> bool {
        self.0.iter().any(|scope| granted.contains(scope))
    }

    /// Whether `scope` is in the set, by exact comparison.
    pub fn contains(&self, scope: &str) -> bool {
        self.0.binary_search_by(|have| (**have).cmp(scope)).is_ok()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the scopes in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|scope| &**scope)
    }
}

impl<'a> FromIterator<&'a str> for Scopes {
    fn from_iter<I: IntoIterator<Item = &'a str>>(scopes: I) -> Self {
        let mut scopes: Vec<Box<str>> =
            scopes.into_iter().filter(|s| !s.is_empty()).map(Box::from).collect();
        scopes.sort_unstable();
        scopes.dedup();
        Self(scopes.into())
    }
}

impl fmt::Display for Scopes {
    /// Formats the set separated by spaces, as the `scope` attribute of RFC 6750 §3. A space within a scope, possible
    /// in lists of the configuration ("order manager"), is written `%20`, so that it is not read as two scopes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, scope) in self.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { " " })?;
            for (index, part) in scope.split(' ').enumerate() {
                f.write_str(if index == 0 { "" } else { "%20" })?;
                f.write_str(part)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_separate_granted_scopes_that_were_requested_and_no_others() {
        let requested = Scopes::parse("read:user user:email a,b");
        for (granted, expected) in [
            ("read:user,user:email", "read:user user:email"),
            ("read:user user:email", "read:user user:email"),
            ("user:email", "user:email"),
            ("read:user,admin", "read:user,admin"),
            ("a,b", "a,b"),
            ("", ""),
        ] {
            let scopes = Scopes::parse_granted(granted, &requested);

            assert_eq!(scopes, Scopes::parse(expected), "{granted}");
        }
    }

    #[test]
    fn order_and_repetition_do_not_matter() {
        assert_eq!(Scopes::parse("b a  b"), Scopes::parse("a b"));
        assert_eq!(Scopes::parse("write read").to_string(), "read write");
    }

    #[test]
    fn a_scope_with_a_space_is_not_shown_as_two() {
        let scopes: Scopes = ["read", "order manager"].into_iter().collect();

        assert_eq!(scopes.to_string(), "order%20manager read");
        assert!(!scopes.contains("order"));
    }

    #[test]
    fn subset_and_intersection_differ() {
        let granted = Scopes::parse("orders:read profile");

        assert!(Scopes::parse("orders:read").is_subset(&granted));
        assert!(!Scopes::parse("orders:read orders:write").is_subset(&granted));
        assert!(Scopes::parse("orders:read orders:write").intersects(&granted));
        assert!(Scopes::default().is_subset(&granted));
        assert!(!Scopes::default().intersects(&granted));
    }

    #[test]
    fn a_prefix_is_not_a_scope() {
        assert!(!Scopes::parse("orders:readonly").contains("orders:read"));
    }
}
