//! Random bytes that no client can predict.

use aws_lc_rs::rand;

/// Returns `N` unpredictable bytes.
///
/// # Panics
///
/// If the system has no random numbers: without them there is no TLS either.
pub fn random<const N: usize>() -> [u8; N] {
    try_random().expect("the system has random numbers")
}

/// Returns `N` unpredictable bytes, or `None` if the system has no random numbers.
pub fn try_random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).ok().map(|()| bytes)
}
