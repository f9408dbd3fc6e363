//! Why a path is refused.

/// A path that must not reach any upstream.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum PathError {
    /// A control character, a malformed or overlong escape, no leading slash, or a climb above the root.
    #[error("the path is malformed or climbs above the root")]
    Malformed,
    /// The path has more readings than the gateway compares.
    #[error("the path can be read in too many ways")]
    TooManyReadings,
}
