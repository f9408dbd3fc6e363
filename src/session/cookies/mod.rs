//! The browser's side of a session: cookies, their sealing, and CSRF checks.

pub(crate) mod cookie;
pub(crate) mod csrf;
pub(crate) mod deferred_cookies;
pub(crate) mod origin;
pub(crate) mod seal;
