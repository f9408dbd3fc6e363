//! Floor 4: HTTP Basic authentication of API clients, by the password grant.

mod exchange;

pub use self::exchange::{BasicError, BasicExchange, ExchangedCredentials};
