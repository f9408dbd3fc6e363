//! Logging in: the form, the authorization code flow, and the limits on failed attempts.

pub(crate) mod authorization_code;
pub(crate) mod code_redemptions;
pub(crate) mod deferred_forms;
pub(crate) mod issuer_observations;
pub(crate) mod login_cookies;
pub(crate) mod login_identity;
pub(crate) mod login_requirements;
pub(crate) mod login_transaction;
pub(crate) mod password_login;
pub(crate) mod redeem_code;
pub(crate) mod replaced_session;
pub(crate) mod return_to;
pub(crate) mod session_hosts;
pub(crate) mod step_up;
pub(crate) mod unseen_sessions;
