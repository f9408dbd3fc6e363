//! Precedence of route settings: built-in default < `defaults` < each of `policies` in order < route.

use http::HeaderName;

use crate::config::de::field::{Field, Map, Spanned};
use crate::config::de::units::Scalar;
use crate::config::file::routes::{Edits, Headers, Route};
use crate::config::route::{HeaderEdits, Template};

/// The layers of one route, the weakest first, the route itself last.
#[derive(Clone, Debug)]
pub(super) struct Layers<'f> {
    pub(super) layers: Vec<&'f Route>,
    /// Whether a policy is missing because its name is undefined: its settings are unknown.
    pub(super) incomplete: bool,
}

impl<'f> Layers<'f> {
    /// Returns the setting of the strongest layer that has the key; `absent` if none has it.
    pub(super) fn first_set<T>(
        &self,
        absent: &'f Field<T>,
        key: impl Fn(&'f Route) -> &'f Field<T>,
    ) -> &'f Field<T> {
        self.layers
            .iter()
            .rev()
            .map(|layer| key(layer))
            .find(|set| !set.is_absent())
            .unwrap_or(absent)
    }

    /// Returns the value of the strongest layer that has the key.
    pub(super) fn given<T>(
        &self,
        key: impl Fn(&'f Route) -> &'f Field<T>,
    ) -> Option<&'f Spanned<T>> {
        self.layers.iter().rev().map(|layer| key(layer)).find(|set| !set.is_absent())?.get()
    }

    /// Returns the names of limits of all layers, except of those below a layer that inherits none.
    pub(super) fn limits(&self) -> Vec<&'f Spanned<String>> {
        let mut names = Vec::new();
        for layer in &self.layers {
            if !layer.inherit_limits.or(true) {
                names.clear();
            }
            names.extend(layer.limits.get().into_iter().flat_map(|list| &list.value.items));
        }
        names
    }

    /// Returns the header edits of all layers: what a layer removes or sets undoes what weaker layers set and added to the
    /// same field.
    pub(super) fn edits(&self, way: impl Fn(&'f Headers) -> &'f Field<Edits>) -> HeaderEdits {
        let mut all = HeaderEdits::default();
        for edits in self
            .layers
            .iter()
            .filter_map(|layer| layer.headers.get())
            .filter_map(|headers| way(headers).get())
        {
            let removed = edits.remove.get().into_iter().flat_map(|list| &list.items);
            let removed: Vec<HeaderName> = removed.map(|at| at.value.0.clone()).collect();
            let set: Vec<(HeaderName, Template)> = named(&edits.set).collect();
            let is_edited = |name: &HeaderName| {
                removed.contains(name) || set.iter().any(|(other, _)| other == name)
            };
            all.set.retain(|(name, _)| !is_edited(name));
            all.add.retain(|(name, _)| !is_edited(name));
            all.remove.extend(removed);
            all.set.extend(set);
            all.add.extend(named(&edits.add));
        }
        all
    }
}

/// Returns the valid names with their values.
fn named(set: &Field<Map<Scalar<Template>>>) -> impl Iterator<Item = (HeaderName, Template)> {
    set.get().into_iter().flat_map(|map| map.value.iter()).filter_map(|(name, value)| {
        Some((HeaderName::from_bytes(name.value.as_bytes()).ok()?, value.value.0.clone()))
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::base::clock::Timestamp;
    use crate::config::{self, Environment};

    #[test]
    fn a_route_undoes_edits_of_the_defaults() {
        let text = "\
version: 1
listen: 127.0.0.1:8080
defaults: { headers: { response: { set: { X-A: a, X-B: b }, add: { X-C: c, X-D: d } } } }
routes:
  - id: all
    path: /
    respond: {}
    auth: none
    headers: { response: { remove: [X-A, X-C], set: { X-D: mine }, add: { X-E: e } } }
";
        let now = Timestamp::from_secs(1_800_000_000);
        let loaded = config::load_text("f", text, Path::new(""), &Environment::default(), now);
        let (config, _) = loaded.unwrap_or_else(|faults| panic!("{faults}"));

        let edits = &config.routes[0].response_headers;
        let names = |all: &[(http::HeaderName, _)]| -> Vec<String> {
            all.iter().map(|(name, _)| name.to_string()).collect()
        };

        assert_eq!(edits.remove, ["x-a", "x-c"]);
        assert_eq!(names(&edits.set), ["x-b", "x-d"]);
        assert_eq!(names(&edits.add), ["x-e"]);
    }
}
