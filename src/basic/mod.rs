//! Floor 4: HTTP Basic authentication of API clients, by the password grant.

mod password_grant;

pub use self::password_grant::{BasicError, BasicExchange, ExchangedCredentials};
