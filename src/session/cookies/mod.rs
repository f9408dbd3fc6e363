//! What a browser holds: cookies, how they are sealed, and who may send them.

pub(crate) mod cookie;
pub(crate) mod csrf;
pub(crate) mod deferred_cookies;
pub(crate) mod origin;
pub(crate) mod seal;
