//! Fields that the gateway adds to a request's head, without putting them into its map.

use std::borrow::Cow;

use http::header::VIA;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};

/// What is written behind a head's own fields, in this order.
///
/// A map would hash every name to find out that nobody has it: whoever fills
/// this has taken the client's fields of these names away.
#[derive(Debug, Default)]
pub struct Fields<'a>(Vec<(&'a HeaderName, Cow<'a, HeaderValue>)>);

impl<'a> Fields<'a> {
    /// Nothing yet, with room for what is usual.
    pub fn new() -> Self {
        Self(Vec::with_capacity(USUAL))
    }

    /// Adds a field.
    pub fn add(&mut self, name: &'a HeaderName, value: &'a HeaderValue) {
        self.0.push((name, Cow::Borrowed(value)));
    }

    /// Adds a field whose value was made for this request.
    pub fn add_owned(&mut self, name: &'a HeaderName, value: HeaderValue) {
        self.0.push((name, Cow::Owned(value)));
    }

    /// Puts them into `headers` after all, for whoever edits what is there: in the place of what has their
    /// names, but for `Via`, which is a list.
    pub fn fold_into(&mut self, headers: &mut HeaderMap) {
        for (name, value) in self.0.drain(..) {
            if *name == VIA {
                headers.append(name, value.into_owned());
            } else {
                headers.insert(name, value.into_owned());
            }
        }
    }

    /// Each field in turn.
    pub fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.0.iter().map(|(name, value)| (*name, &**value))
    }
}

/// What a service is to see of a request, but for `Host` and the framing.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// Method, target and fields.
    pub head: &'a Parts,
    /// Further fields.
    pub fields: Fields<'a>,
}

const USUAL: usize = 10;
