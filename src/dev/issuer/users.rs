//! The users who can log in. Their passwords are public: this is a development issuer.

use std::sync::Arc;

use crate::base::secret::Secret;

/// A user with a password.
#[derive(Clone, Debug)]
pub struct User {
    /// The user name, and the `sub` of tokens.
    pub name: Arc<str>,
    /// The password.
    pub password: Secret<String>,
    /// The full name: the `name` claim.
    pub full_name: String,
    /// The `groups` claim of the user's tokens (RFC 9068 §2.2.3.1).
    pub groups: Vec<String>,
}

impl User {
    /// Creates a user in no group.
    pub fn new(name: &str, password: &str, full_name: &str) -> Self {
        Self {
            name: name.into(),
            password: password.into(),
            full_name: full_name.to_owned(),
            groups: Vec::new(),
        }
    }

    /// Adds the user to `group`.
    #[must_use]
    pub fn in_group(mut self, group: &str) -> Self {
        self.groups.push(group.to_owned());
        self
    }

    /// Returns the `email` claim, in a domain without mailboxes (RFC 2606).
    pub fn email(&self) -> String {
        format!("{}@example.com", self.name)
    }
}

/// All users.
#[derive(Debug)]
pub(super) struct Users(Vec<User>);

impl Users {
    pub(super) fn new(users: Vec<User>) -> Self {
        Self(users)
    }

    /// Returns the user called `name`, if `password` is right.
    pub(super) fn authenticate(&self, name: &str, password: &str) -> Option<&User> {
        self.find(name).filter(|user| user.password == Secret::from(password))
    }

    pub(super) fn find(&self, name: &str) -> Option<&User> {
        self.0.iter().find(|user| *user.name == *name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &User> {
        self.0.iter()
    }
}
