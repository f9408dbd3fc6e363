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

    /// Returns the header edits of all layers; for a name set twice, the stronger layer wins.
    pub(super) fn edits(&self, way: impl Fn(&'f Headers) -> &'f Field<Edits>) -> HeaderEdits {
        let mut all = HeaderEdits::default();
        for edits in self
            .layers
            .iter()
            .filter_map(|layer| layer.headers.get())
            .filter_map(|headers| way(headers).get())
        {
            all.remove.extend(
                edits
                    .remove
                    .get()
                    .into_iter()
                    .flat_map(|list| list.items.iter().map(|at| at.value.0.clone())),
            );
            for (name, value) in named(&edits.set) {
                all.set.retain(|(other, _)| *other != name);
                all.set.push((name, value));
            }
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
