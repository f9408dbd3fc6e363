//! The people who can log in. Their passwords are public: this is a development issuer.

use std::sync::Arc;

use crate::base::secret::Secret;

/// Somebody with a password.
#[derive(Clone, Debug)]
pub struct Person {
    /// The user name, and the `sub` of tokens.
    pub name: Arc<str>,
    /// What they type in.
    pub password: Secret<String>,
    /// The name as it is spoken: the `name` claim.
    pub full_name: String,
    /// The `groups` claim of their tokens (RFC 9068 §2.2.3.1).
    pub groups: Vec<String>,
}

impl Person {
    /// A person in no group.
    pub fn new(name: &str, password: &str, full_name: &str) -> Self {
        Self {
            name: name.into(),
            password: password.into(),
            full_name: full_name.to_owned(),
            groups: Vec::new(),
        }
    }

    /// The same person in one group more.
    #[must_use]
    pub fn in_group(mut self, group: &str) -> Self {
        self.groups.push(group.to_owned());
        self
    }

    /// Their `email` claim, on a domain that reaches nobody (RFC 2606).
    pub fn email(&self) -> String {
        format!("{}@example.com", self.name)
    }
}

/// Everybody who can log in.
#[derive(Debug)]
pub(super) struct People(Vec<Person>);

impl People {
    pub(super) fn new(people: Vec<Person>) -> Self {
        Self(people)
    }

    /// The person with this name and password.
    pub(super) fn authenticate(&self, name: &str, password: &str) -> Option<&Person> {
        self.named(name).filter(|person| person.password == Secret::from(password))
    }

    pub(super) fn named(&self, name: &str) -> Option<&Person> {
        self.0.iter().find(|person| *person.name == *name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Person> {
        self.0.iter()
    }
}
