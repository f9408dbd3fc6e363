//! Services that die, move and return: their health, their names, and what their clients notice of it.

mod balance;
mod dns;
mod fallback;
mod health;
mod names;
mod outliers;
mod probes;
mod retries;
mod service;
