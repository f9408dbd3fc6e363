//! Serde access types over YAML nodes: elements of a list, entries of a mapping, and the parts of `field` types.
//! The deserializer itself is in `deserializer`.

use serde::de::value::{BoolDeserializer, StrDeserializer, U64Deserializer};
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

use super::field::{SHAPE, pack, quoted};
use super::key_path::KeyPath;
use super::node::{Abort, NodeDeserializer};
use crate::base::secret::HIDDEN;
use crate::config::fault::{Code, Position};
use crate::config::not_implemented;
use crate::config::redact::Secrecy;
use crate::config::suggestion;
use crate::config::yaml::{Entry, Kind, Node};

/// The parts of a [`super::field::Field`]: position, key's position, raw text, whether it is hidden, value.
pub(crate) struct EnumParts<'n, 'p> {
    pub(crate) part: u8,
    pub(crate) reader: NodeDeserializer<'n, 'p>,
}

impl<'n> SeqAccess<'n> for EnumParts<'n, '_> {
    type Error = Abort;

    fn next_element_seed<S: DeserializeSeed<'n>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Abort> {
        self.part += 1;
        let number = |position| -> U64Deserializer<Abort> { pack(position).into_deserializer() };
        match self.part {
            1 => seed.deserialize(number(self.reader.node.at)).map(Some),
            2 => seed.deserialize(number(self.reader.key)).map(Some),
            3 => {
                let raw = match &self.reader.node.kind {
                    Kind::Scalar(scalar) => scalar.raw.as_deref().unwrap_or_default(),
                    _ => "",
                };
                seed.deserialize(StrDeserializer::new(raw)).map(Some)
            }
            4 => seed.deserialize(hidden(self.reader.hides())).map(Some),
            _ if self.reader.has_fault => Err(Abort::Recorded),
            _ => seed.deserialize(self.reader).map(Some),
        }
    }
}

/// The elements of a list, in order.
pub(crate) struct SeqElements<'n, 'p, I> {
    pub(crate) nodes: I,
    pub(crate) list: NodeDeserializer<'n, 'p>,
    pub(crate) path: &'p KeyPath<'p>,
}

impl<'n, I: Iterator<Item = &'n Node>> SeqAccess<'n> for SeqElements<'n, '_, I> {
    type Error = Abort;

    fn next_element_seed<S: DeserializeSeed<'n>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Abort> {
        let Some(node) = self.nodes.next() else { return Ok(None) };
        seed.deserialize(NodeDeserializer { node, key: node.at, path: self.path, ..self.list })
            .map(Some)
    }
}

/// The entries of a mapping; those of a struct are matched with its fields.
pub(crate) struct MapEntries<'n, 'p> {
    pub(crate) all: &'n [Entry],
    pub(crate) next: usize,
    pub(crate) fields: Option<&'static [&'static str]>,
    pub(crate) mapping: NodeDeserializer<'n, 'p>,
    pub(crate) value: Option<(&'n Entry, &'n str, bool)>,
}

impl<'n> MapEntries<'n, '_> {
    /// Returns the next known entry, its field name, and whether its value is invalid.
    fn next_known(&mut self) -> Option<(&'n Entry, &'n str, bool)> {
        loop {
            let entry = self.all.get(self.next)?;
            self.next += 1;
            if entry.again {
                continue;
            }
            let Some(fields) = self.fields else { return Some((entry, &entry.key, false)) };
            if let Some(not_built) = not_implemented::fault_for(self.mapping.path, entry) {
                self.mapping.fault(
                    not_built.code,
                    not_built.position,
                    not_built.message,
                    not_built.help,
                );
                if fields.contains(&entry.key.as_str()) {
                    return Some((entry, &entry.key, true));
                }
            } else if fields.contains(&entry.key.as_str()) {
                return Some((entry, &entry.key, false));
            } else if let Some(meant) = self.unknown(entry, fields) {
                return Some((entry, meant, true));
            }
        }
    }

    /// Records an unknown key. If it is likely a misspelling of a key that is absent, that key counts as present and
    /// invalid, so that it is not reported as missing.
    fn unknown(&self, entry: &Entry, fields: &'static [&'static str]) -> Option<&'static str> {
        let meant = suggestion::closest(&entry.key, fields.iter().copied());
        let help = match meant {
            Some(meant) => format!("did you mean `{meant}`?"),
            None if fields.len() <= 16 => format!("the keys here are {}", fields.join(", ")),
            None => "docs/config.md lists the keys".to_owned(),
        };
        // Below a key that takes a secret, the key itself may be the secret.
        let secrecy = self.mapping.secrecy.of_mapping();
        let key = match (secrecy, secrecy.below(&entry.key)) {
            (Secrecy::Secret, Secrecy::Secret) => quoted(HIDDEN),
            _ if entry.key_secret => quoted(HIDDEN),
            _ => quoted(&entry.key),
        };
        self.mapping.fault(Code::C101, entry.key_at, format!("unknown key {key}"), help);
        meant.filter(|meant| self.all.iter().all(|entry| entry.key != *meant))
    }
}

impl<'n> MapAccess<'n> for MapEntries<'n, '_> {
    type Error = Abort;

    fn next_key_seed<S: DeserializeSeed<'n>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Abort> {
        self.value = self.next_known();
        let Some((entry, name, _)) = self.value else { return Ok(None) };
        let hidden = entry.key_secret;
        seed.deserialize(Key { name, at: entry.key_at, hidden }).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'n>>(&mut self, seed: S) -> Result<S::Value, Abort> {
        let Some((entry, name, has_fault)) = self.value.take() else { return Err(Abort::Recorded) };
        let step = if self.fields.is_some() { name } else { "*" };
        let path = KeyPath { parent: Some(self.mapping.path), step };
        seed.deserialize(NodeDeserializer {
            node: &entry.value,
            key: entry.key_at,
            path: &path,
            record: self.mapping.record,
            has_fault,
            secrecy: self.mapping.secrecy.below(&entry.key),
        })
    }
}

/// The key of a mapping entry.
#[derive(Clone, Copy)]
struct Key<'n> {
    name: &'n str,
    at: Position,
    hidden: bool,
}

impl<'de> Deserializer<'de> for Key<'de> {
    type Error = Abort;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Abort> {
        visitor.visit_str(self.name)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Abort> {
        visitor.visit_seq(KeyParts { part: 0, key: self })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// The parts of a [`super::field::Field`] that holds a key.
struct KeyParts<'n> {
    part: u8,
    key: Key<'n>,
}

impl<'n> SeqAccess<'n> for KeyParts<'n> {
    type Error = Abort;

    fn next_element_seed<S: DeserializeSeed<'n>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Abort> {
        self.part += 1;
        let position: U64Deserializer<Abort> = pack(self.key.at).into_deserializer();
        match self.part {
            1 | 2 => seed.deserialize(position),
            3 => seed.deserialize(StrDeserializer::new("")),
            4 => seed.deserialize(hidden(self.key.hidden)),
            _ => seed.deserialize(self.key),
        }
        .map(Some)
    }
}

fn hidden(hidden: bool) -> BoolDeserializer<Abort> {
    hidden.into_deserializer()
}

/// An enum variant chosen by the kind of the node.
pub(crate) struct ExpectedShape<'n, 'p> {
    pub(crate) shape: &'static str,
    pub(crate) reader: NodeDeserializer<'n, 'p>,
}

impl<'n> EnumAccess<'n> for ExpectedShape<'n, '_> {
    type Error = Abort;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'n>>(self, seed: S) -> Result<(S::Value, Self), Abort> {
        let name: StrDeserializer<'_, Abort> = StrDeserializer::new(self.shape);
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'n> VariantAccess<'n> for ExpectedShape<'n, '_> {
    type Error = Abort;

    fn unit_variant(self) -> Result<(), Abort> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'n>>(self, seed: S) -> Result<S::Value, Abort> {
        seed.deserialize(self.reader)
    }

    fn tuple_variant<V: Visitor<'n>>(self, _: usize, visitor: V) -> Result<V::Value, Abort> {
        self.reader.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'n>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Abort> {
        self.reader.deserialize_struct(SHAPE, fields, visitor)
    }
}
