//! Containers for the value of a key: absent, invalid, or a value with its position.
//!
//! Serde stops at the first error. These containers record the fault
//! and let deserialization continue, so that one run reports
//! every mistake, and [`Field::Invalid`] keeps `check` from reporting as missing
//! what is present but invalid.

use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::base::secret::HIDDEN;
use crate::config::fault::Position;
use crate::config::redact;

/// A value, its position, and how it may be quoted.
#[derive(Clone, Debug)]
pub(crate) struct Spanned<T> {
    /// The value.
    pub(crate) value: T,
    /// Position of the value.
    pub(crate) at: Position,
    /// Position of its key; the same as `at` for a list's elements.
    pub(crate) key_at: Position,
    /// The text as written, if it had variables.
    pub(crate) raw: Option<Box<str>>,
    /// Whether messages must not show the value.
    pub(crate) hidden: bool,
}

impl<T> Deref for Spanned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: fmt::Display> Spanned<T> {
    /// Returns the value as a message may show it: with the names of variables, not their values.
    pub(crate) fn shown(&self) -> String {
        if self.hidden {
            return quoted(HIDDEN);
        }
        quoted(&self.raw.as_ref().map_or_else(|| self.value.to_string(), ToString::to_string))
    }
}

/// The value of one key of the file.
#[derive(Clone, Debug, Default)]
pub(crate) enum Field<T> {
    /// The key is absent.
    #[default]
    Absent,
    /// The key is present, but its value is invalid; the fault is recorded.
    Invalid,
    /// The key is present and valid.
    Present(Spanned<T>),
}

impl<T> Field<T> {
    /// Returns the value, if it is present and valid.
    pub(crate) fn get(&self) -> Option<&Spanned<T>> {
        match self {
            Self::Present(at) => Some(at),
            Self::Absent | Self::Invalid => None,
        }
    }

    /// Returns `self`, or `other` if the key is absent.
    pub(crate) fn or_else<'s>(&'s self, other: Option<&'s Self>) -> &'s Self {
        other.filter(|_| self.is_absent()).unwrap_or(self)
    }

    /// Whether the key is absent.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    /// Whether the key is present and invalid.
    pub(crate) fn is_bad(&self) -> bool {
        matches!(self, Self::Invalid)
    }
}

impl<T: Clone> Field<T> {
    /// Returns the value, or `default` without one.
    pub(crate) fn or(&self, default: T) -> T {
        self.get().map_or(default, |at| at.value.clone())
    }
}

/// A list, or a single value in place of a list of one. An empty list is a fault, because readers of the file
/// disagree about its meaning, and a list of what is allowed must not mean "all".
#[derive(Clone, Debug)]
pub(crate) struct OneOrMany<T> {
    /// The elements that could be read.
    pub(crate) items: Vec<Spanned<T>>,
    /// Whether some could not; their faults are recorded.
    pub(crate) incomplete: bool,
}

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        Self { items: Vec::new(), incomplete: false }
    }
}

/// A list; a single value is not accepted. An empty list is a fault, as with [`OneOrMany`].
#[derive(Clone, Debug)]
pub(crate) struct List<T>(pub(crate) OneOrMany<T>);

/// A list that may be empty: for keys where that means "none" unambiguously.
#[derive(Clone, Debug)]
pub(crate) struct ListOrNone<T>(pub(crate) OneOrMany<T>);

impl<T> Default for ListOrNone<T> {
    fn default() -> Self {
        Self(OneOrMany::default())
    }
}

impl<T> Deref for ListOrNone<T> {
    type Target = OneOrMany<T>;

    fn deref(&self) -> &OneOrMany<T> {
        &self.0
    }
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(OneOrMany::default())
    }
}

impl<T> Deref for List<T> {
    type Target = OneOrMany<T>;

    fn deref(&self) -> &OneOrMany<T> {
        &self.0
    }
}

/// A mapping from names that the operator chooses.
#[derive(Clone, Debug)]
pub(crate) struct Map<T>(pub(crate) Vec<(Spanned<String>, Field<T>)>);

impl<T> Default for Map<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Map<T> {
    /// Returns the names with a valid value.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Spanned<String>, &Spanned<T>)> {
        self.0.iter().filter_map(|(name, set)| set.get().map(|value| (name, value)))
    }

    /// Returns all names, including those with an invalid value.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.value.as_str())
    }
}

/// The names by which the containers request from `de` what plain serde cannot express.
pub(crate) const SET: &str = "$set";
/// A list, or one value.
pub(crate) const MANY: &str = "$many";
/// An enum whose variants are named after the kinds of nodes.
pub(crate) const SHAPE: &str = "$shape";

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(SET, SetVisitor(PhantomData))
    }
}

struct SetVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for SetVisitor<T> {
    type Value = Field<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    /// Receives from `de`: position, key's position, raw text, whether it is hidden, and value.
    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Field<T>, A::Error> {
        let at = unpack(parts.next_element()?.unwrap_or_default());
        let key_at = unpack(parts.next_element()?.unwrap_or_default());
        let raw: String = parts.next_element()?.unwrap_or_default();
        let raw = (!raw.is_empty()).then(|| raw.into_boxed_str());
        let hidden = parts.next_element()?.unwrap_or_default();
        Ok(match parts.next_element() {
            Ok(Some(value)) => Field::Present(Spanned { value, at, key_at, raw, hidden }),
            // The fault is recorded already; the error only repeats it.
            Ok(None) | Err(_) => Field::Invalid,
        })
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(MANY, ManyVisitor::not_empty())
    }
}

struct ManyVisitor<T> {
    may_be_empty: bool,
    element: PhantomData<T>,
}

impl<T> ManyVisitor<T> {
    const fn not_empty() -> Self {
        Self { may_be_empty: false, element: PhantomData }
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for ManyVisitor<T> {
    type Value = OneOrMany<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<OneOrMany<T>, A::Error> {
        let mut many = OneOrMany::default();
        while let Some(element) = elements.next_element::<Field<T>>()? {
            match element {
                Field::Present(at) => many.items.push(at),
                Field::Absent | Field::Invalid => many.incomplete = true,
            }
        }
        if many.items.is_empty() && !many.incomplete && !self.may_be_empty {
            return Err(A::Error::invalid_length(0, &self));
        }
        Ok(many)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ManyVisitor::not_empty()).map(Self)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ListOrNone<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let visitor = ManyVisitor { may_be_empty: true, element: PhantomData };
        deserializer.deserialize_seq(visitor).map(Self)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Map<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MapVisitor(PhantomData))
    }
}

struct MapVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for MapVisitor<T> {
    type Value = Map<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Map<T>, A::Error> {
        let mut map = Map::default();
        while let Some((key, value)) = entries.next_entry::<Field<String>, Field<T>>()? {
            if let Field::Present(key) = key {
                map.0.push((key, value));
            }
        }
        Ok(map)
    }
}

/// The fix for an invalid value of a variable: quoting any part of the value could reveal the rest.
pub(crate) const LOOK_AT_THE_VARIABLE: &str = "look at what the variable holds";

/// Returns a text in backticks, cut to [`MAX_QUOTED_CHARS`], without the password of a URL; nothing of a text that
/// is recognizably a secret.
pub(crate) fn quoted(text: &str) -> String {
    let scheme = text.find("://").map(|start| start + 3);
    let (text, rest) = match scheme.zip(text.rfind('@')) {
        Some((start, at)) if start <= at => {
            let (before, behind) = (&text[..start], &text[at..]);
            (format!("{before}{HIDDEN}{behind}"), format!("{before}{}", &behind[1..]))
        }
        _ => (text.to_owned(), text.to_owned()),
    };
    let text = if redact::gives_a_secret_away(&rest) { HIDDEN.to_owned() } else { text };
    let mut short: String =
        text.chars().take(MAX_QUOTED_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("`{short}`")
}

/// The characters of a text that a message quotes.
const MAX_QUOTED_CHARS: usize = 60;

/// Packs a position into one number, since serde passes no other type here.
pub(crate) fn pack(position: Position) -> u64 {
    u64::from(position.line) << 32 | u64::from(position.column)
}

fn unpack(packed: u64) -> Position {
    Position { line: (packed >> 32) as u32, column: packed as u32 }
}

/// Returns the keys of a struct of the file.
#[cfg(test)]
pub(crate) fn keys_of<T: serde::de::DeserializeOwned>() -> &'static [&'static str] {
    struct Fields<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Fields<'_> {
        type Error = serde::de::value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(Self::Error::custom("no struct"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            Err(Self::Error::custom("the fields are all that is wanted"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut fields: &'static [&'static str] = &[];
    drop(T::deserialize(Fields(&mut fields)));
    fields
}
