//! Deserializes a YAML tree into the structs of `file`, recording every fault.
//!
//! A serde `Deserializer` that differs from others in three ways. A failure
//! is recorded with its position when it happens, and the containers of
//! `field` let deserialization continue. An unknown key is recorded, with the key that
//! was probably meant, and skipped. Scalars have no type of their own:
//! the target type determines how the text is parsed.

use core::cell::RefCell;

use serde::de::{DeserializeOwned, Deserializer, Error as _, Expected, Visitor};

use super::access::{EnumParts, ExpectedShape, MapEntries, SeqElements};
use super::field::{MANY, SET, SHAPE};
use super::key_path::KeyPath;
use super::node::{Abort, NodeDeserializer, is_nothing, wrong_type};
use crate::config::fault::Fault;
use crate::config::redact::Secrecy;
use crate::config::yaml::{Kind, Node, Scalar, Style};

/// Deserializes a `T` from `root`, adding faults to `faults`.
pub(crate) fn deserialize<T: DeserializeOwned>(root: &Node, faults: &mut Vec<Fault>) -> Option<T> {
    let record = RefCell::new(core::mem::take(faults));
    let path = KeyPath { parent: None, step: "" };
    let reader = NodeDeserializer {
        node: root,
        key: root.at,
        path: &path,
        record: &record,
        has_fault: false,
        secrecy: Secrecy::Open,
    };
    let value = T::deserialize(reader).ok();
    *faults = record.into_inner();
    value
}

macro_rules! numbers {
    ($($method:ident $visit:ident $wanted:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Abort> {
            self.recorded(self.number($wanted).and_then(|number| visitor.$visit(number)))
        }
    )*};
}

impl<'de> Deserializer<'de> for NodeDeserializer<'de, '_> {
    type Error = Abort;

    /// Uses YAML's core schema; only values compared with a token's claims are read so.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Abort> {
        match &self.node.kind {
            Kind::Scalar(scalar) if scalar.broken => Err(Abort::Recorded),
            Kind::Scalar(Scalar { text, style: Style::Plain, .. }) => {
                self.recorded(match text.as_str() {
                    "" | "~" | "null" => visitor.visit_unit(),
                    "true" => visitor.visit_bool(true),
                    "false" => visitor.visit_bool(false),
                    _ => match (text.parse::<i64>(), text.parse::<f64>()) {
                        (Ok(number), _) => visitor.visit_i64(number),
                        (_, Ok(number))
                            if text.starts_with([
                                '-', '.', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9',
                            ]) =>
                        {
                            visitor.visit_f64(number)
                        }
                        _ => visitor.visit_str(text),
                    },
                })
            }
            Kind::Scalar(scalar) => self.recorded(visitor.visit_str(&scalar.text)),
            Kind::Sequence(_) => self.deserialize_seq(visitor),
            Kind::Mapping(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Abort> {
        self.recorded(self.scalar(&visitor).and_then(|scalar| match scalar.text.as_str() {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            _ => Err(wrong_type(&format!("expected true or false, found {}", self.quote()), "")),
        }))
    }

    numbers! {
        deserialize_u8 visit_u8 "a number from 0 to 255";
        deserialize_u16 visit_u16 "a number from 0 to 65535";
        deserialize_u32 visit_u32 "a whole number";
        deserialize_u64 visit_u64 "a whole number";
        deserialize_i64 visit_i64 "a whole number";
        deserialize_f64 visit_f64 "a number";
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Abort> {
        self.recorded(self.scalar(&visitor).and_then(|scalar| visitor.visit_str(&scalar.text)))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Abort> {
        self.deserialize_str(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Abort> {
        let Kind::Sequence(nodes) = &self.node.kind else {
            let message = format!("expected {}, found {}", &visitor as &dyn Expected, self.found());
            return self.recorded(Err(wrong_type(&message, "write a list, such as [one, two]")));
        };
        let path = KeyPath { parent: Some(self.path), step: "[]" };
        self.recorded(visitor.visit_seq(SeqElements {
            nodes: nodes.iter(),
            list: self,
            path: &path,
        }))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Abort> {
        let Kind::Mapping(entries) = &self.node.kind else {
            return self.recorded(Err(Abort::invalid_type(self.found(), &visitor)));
        };
        self.recorded(visitor.visit_map(MapEntries {
            all: entries,
            next: 0,
            fields: None,
            mapping: self,
            value: None,
        }))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Abort> {
        let Kind::Mapping(entries) = &self.node.kind else {
            let keys = format!("its keys are {}", fields.join(", "));
            let found = self.found();
            return self
                .recorded(Err(wrong_type(&format!("expected a mapping, found {found}"), &keys)));
        };
        let access =
            MapEntries { all: entries, next: 0, fields: Some(fields), mapping: self, value: None };
        self.recorded(visitor.visit_map(access))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Abort> {
        match (name, &self.node.kind) {
            (SET, _) => visitor.visit_seq(EnumParts { part: 0, reader: self }),
            (MANY, Kind::Sequence(_)) => self.deserialize_seq(visitor),
            (MANY, _) => {
                let nodes = core::slice::from_ref(self.node).iter();
                let path = KeyPath { parent: Some(self.path), step: "[]" };
                visitor.visit_seq(SeqElements { nodes, list: self, path: &path })
            }
            _ => self.recorded(visitor.visit_newtype_struct(self)),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        shapes: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Abort> {
        debug_assert_eq!(name, SHAPE, "words are read by units::Text");
        let shape = match &self.node.kind {
            Kind::Scalar(scalar) if is_nothing(scalar) => "",
            Kind::Scalar(_) => "scalar",
            Kind::Sequence(_) => "sequence",
            Kind::Mapping(_) => "mapping",
        };
        if shapes.contains(&shape) {
            return visitor.visit_enum(ExpectedShape { shape, reader: self });
        }
        let words = shapes.iter().map(|shape| match *shape {
            "scalar" => "a single value",
            "sequence" => "a list",
            _ => "a mapping",
        });
        let wanted = words.collect::<Vec<_>>().join(" or ");
        self.recorded(Err(wrong_type(&format!("expected {wanted}, found {}", self.found()), "")))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Abort> {
        visitor.visit_some(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Abort> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i128 u128 f32 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}
