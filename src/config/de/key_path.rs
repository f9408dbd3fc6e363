//! The keys that lead to a node of the tree.

/// The keys from the root to a node; `*` for a name, `[]` for an element of a list.
pub(crate) struct KeyPath<'p> {
    pub(crate) parent: Option<&'p KeyPath<'p>>,
    pub(crate) step: &'p str,
}
