//! Services that die, move and return: their health, their names, and what their clients notice of it.

mod dns;
mod health;
mod names;
mod retries;
mod service;
