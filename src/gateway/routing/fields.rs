//! Conditions of routes on header fields, in all readings of a field.
//!
//! Of a field that is there twice an upstream uses the first value, the last, or all of them joined by commas (RFC 9110
//! §5.3). A field in another spelling (`X_Tenant`) is the same one to upstreams that translate fields to variables. A
//! condition that these readings answer differently is ambiguous.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::base::header_fields::are_alike;
use crate::config::route::HeaderMatch;

/// The header fields that routes match: those that the upstream will see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a> {
    /// The client's fields, after stripping.
    pub client: &'a HeaderMap,
    /// The fields that the gateway sets, in place of the client's fields of the same name, in any spelling.
    pub gateway: &'a HeaderMap,
}

/// Whether a request meets conditions on its fields.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Match {
    /// In every reading.
    Yes,
    /// In no reading.
    No,
    /// In some readings: upstreams differ (CVE-2020-25017).
    Ambiguous,
}

impl Fields<'_> {
    /// Returns whether a request meets all of `conditions`.
    pub(super) fn meet<'c>(self, conditions: impl IntoIterator<Item = &'c HeaderMatch>) -> Match {
        let mut all = Match::Yes;
        for wanted in conditions {
            match self.meet_one(wanted) {
                Match::Yes => {}
                Match::No => return Match::No,
                Match::Ambiguous => all = Match::Ambiguous,
            }
        }
        all
    }

    fn meet_one(self, wanted: &HeaderMatch) -> Match {
        if let Some(value) = self.gateway.get(&wanted.name) {
            return Match::of(wanted.value.fits(value));
        }
        let mut respelled = self.other_spellings(&wanted.name);
        let mut values = self.client.get_all(&wanted.name).iter();
        match (values.next(), values.next(), respelled.next()) {
            (None, _, None) => Match::No,
            (Some(value), None, None) => Match::of(wanted.value.fits(value)),
            (Some(_), Some(_), None) => self.meet_all(&wanted.name, wanted),
            // Upstreams that do not fold spellings find the field absent.
            (None, _, Some(name)) if respelled.next().is_none() => {
                match self.meet_all(name, wanted) {
                    Match::No => Match::No,
                    Match::Yes | Match::Ambiguous => Match::Ambiguous,
                }
            }
            // Which of several spellings decides differs between upstreams.
            _ => Match::Ambiguous,
        }
    }

    /// Compares each value of the field `name`, and the values joined.
    fn meet_all(self, name: &HeaderName, wanted: &HeaderMatch) -> Match {
        let values: Vec<&HeaderValue> = self.client.get_all(name).iter().collect();
        let bytes: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
        let joined = [&b", "[..], b","].map(|comma| HeaderValue::from_bytes(&bytes.join(comma)));
        let readings = values.iter().copied().chain(joined.iter().flatten());
        let fits = |value: &HeaderValue| wanted.value.fits(value);
        match (readings.clone().all(fits), readings.clone().any(fits)) {
            (true, _) => Match::Yes,
            (_, false) => Match::No,
            (false, true) => Match::Ambiguous,
        }
    }

    fn other_spellings<'n>(
        &self,
        name: &'n HeaderName,
    ) -> impl Iterator<Item = &HeaderName> + use<'_, 'n> {
        self.client.keys().filter(move |sent| *sent != name && are_alike(sent, name))
    }
}

impl Match {
    const fn of(fits: bool) -> Self {
        if fits { Self::Yes } else { Self::No }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::route::ValueMatch;

    /// CVE-2020-25017, CVE-2026-26308
    #[test]
    fn a_field_with_several_readings_is_ambiguous() {
        for (fields, expected) in [
            (&[("x-tenant", "a")][..], Match::Yes),
            (&[("x-tenant", "b")], Match::No),
            (&[("x-tenant", "a, b")], Match::No),
            (&[], Match::No),
            (&[("x-tenant", "b"), ("x-tenant", "c")], Match::No),
            (&[("x-tenant", "a"), ("x-tenant", "b")], Match::Ambiguous),
            (&[("x-tenant", "b"), ("x-tenant", "a")], Match::Ambiguous),
            (&[("x-tenant", "b"), ("x-tenant", "a"), ("x-tenant", "c")], Match::Ambiguous),
            (&[("x-tenant", "a"), ("x-tenant", "")], Match::Ambiguous),
            (&[("x-tenant", "a"), ("x-tenant", "a")], Match::Ambiguous),
            (&[("x_tenant", "a")], Match::Ambiguous),
            (&[("x_tenant", "b")], Match::No),
            (&[("x.tenant", "b"), ("x.tenant", "a")], Match::Ambiguous),
            (&[("x-tenant", "b"), ("x_tenant", "b")], Match::Ambiguous),
            (&[("x.tenant", "b"), ("x_tenant", "b")], Match::Ambiguous),
            (&[("x-tenants", "a"), ("x-tenan", "a")], Match::No),
        ] {
            assert_eq!(met(fields, "a"), expected, "{fields:?}");
        }
    }

    proptest! {
        /// Upstreams that take the first value, the last or the joined ones, and know one spelling or all.
        #[test]
        fn an_answer_is_that_of_every_upstream(
            fields in prop::collection::vec(
                (prop::sample::select(vec!["x-tenant", "x_tenant", "x.tenant", "x-other"]),
                 prop::sample::select(vec!["a", "b", "", "a,b", "a, b"])),
                0..4,
            ),
            wanted in prop::sample::select(vec!["a", "b", "a,b", "a, b"]),
        ) {
            let answers = [false, true].into_iter().flat_map(|knows_all| {
                let is = |name: &str| name == "x-tenant" || (knows_all && name != "x-other");
                let values = fields.iter().filter(|(name, _)| is(name)).map(|(_, value)| *value);
                let values: Vec<&str> = values.collect();
                let joined = |comma| (!values.is_empty()).then(|| values.join(comma));
                let single = |value: Option<&&str>| value.map(ToString::to_string);
                [single(values.first()), single(values.last()), joined(","), joined(", ")]
                    .map(|value| value.as_deref() == Some(wanted))
            });

            let met = met(&fields, wanted);

            for answer in answers {
                prop_assert!(met == Match::Ambiguous || met == Match::of(answer), "{met:?}");
            }
        }
    }

    fn met(fields: &[(&'static str, &'static str)], wanted: &'static str) -> Match {
        let mut client = HeaderMap::new();
        for (name, value) in fields {
            client.append(*name, HeaderValue::from_static(value));
        }
        let wanted = HeaderMatch {
            name: HeaderName::from_static("x-tenant"),
            value: ValueMatch::Exact(HeaderValue::from_static(wanted)),
        };
        Fields { client: &client, gateway: &HeaderMap::new() }.meet([&wanted])
    }
}
