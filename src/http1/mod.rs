//! Floor 1: the message syntax of HTTP/1.1 (RFC 9112), the same towards clients and services.
//!
//! Bodies are taken out of a connection's bytes by a [`Decoder`] and written by
//! [`Sending`]; neither opens, closes or keeps a connection. Heads are read
//! where their meaning is known: a service's in `upstream`, a client's in
//! `server`.

mod chunked;
mod content;
mod names;
mod reading;
mod sending;
mod trailers;
mod upgrade;

pub use self::chunked::{Invalid, Part, is_bare};
pub use self::content::{Decoder, Framing};
pub use self::names::Names;
pub use self::reading::ReadSize;
pub use self::sending::{Broken, Length, Sending};
pub use self::trailers::may_trail;
pub use self::upgrade::{OnUpgrade, Upgraded};
