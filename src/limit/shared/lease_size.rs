//! The sizes of leases, and the bounds that follow from them.

use super::protocol::Shape;

/// Returns the largest lease of one counter: the most that is lost with a killed gateway, and granted a second time
/// after the store has lost its data.
pub(in crate::limit) fn max_lease(shape: &Shape, gateways: u64) -> u64 {
    let gateways = gateways.max(1);
    match *shape {
        Shape::Window { limit, .. } | Shape::Slots { limit } => {
            (limit / LEASES_OF_A_LIMIT / gateways).clamp(MIN_LEASE, MAX_LEASE)
        }
        Shape::Rate { interval, keeps, .. } => {
            let soon = (RATE_LEASE_MICROS as f64 / interval) as u64;
            let most = shape.capacity() / LEASES_OF_A_LIMIT / gateways;
            if keeps { most } else { soon }.clamp(MIN_LEASE, MAX_LEASE)
        }
    }
}

/// Returns by how much all gateways together may exceed one counter whose smallest request costs `least_cost`: a lease of
/// each, if the store loses its data, and what each may admit in the first moments of an outage.
pub(in crate::limit) fn overrun_bound(shape: &Shape, gateways: u64, least_cost: u64) -> u64 {
    let limit = shape.capacity();
    let each = max_lease(shape, gateways) + first_share(limit, gateways, least_cost);
    // Before the first contact each admits one request, however small its share.
    each.saturating_mul(gateways).min(limit.max(least_cost.saturating_mul(gateways)))
}

/// Returns the least by which each gateway adds to [`overrun_bound`], however many there are.
pub(in crate::limit) fn least_overrun(least_cost: u64) -> u64 {
    MIN_LEASE + least_cost.saturating_mul(FIRST_REQUESTS)
}

/// Returns what a gateway may admit beyond its grants in the first moments of an outage.
pub(in crate::limit) fn first_share(limit: u64, gateways: u64, least_cost: u64) -> u64 {
    (limit / 100 / gateways.max(1)).max(least_cost.saturating_mul(FIRST_REQUESTS))
}

/// A lease is at most this part of the whole limit for each gateway.
const LEASES_OF_A_LIMIT: u64 = 500;
const MIN_LEASE: u64 = 1;
const MAX_LEASE: u64 = 10_000;
/// The requests that a gateway may admit in the first moments of an outage, if its share covers them.
const FIRST_REQUESTS: u64 = 16;
/// The time within which grants of a rate are used or lost.
pub(super) const RATE_LEASE_MICROS: u64 = 50_000;
