//! A YAML node that is being deserialized, and the reasons why it cannot be.

use core::cell::RefCell;
use core::fmt::Display;

use serde::de::{self, Error as _, Expected, Unexpected};

use super::field::{LOOK_AT_THE_VARIABLE, quoted};
use super::key_path::KeyPath;
use crate::base::secret::HIDDEN;
use crate::config::fault::{Code, Fault, Position};
use crate::config::redact::{self, Secrecy};
use crate::config::yaml::{Kind, Node, Scalar, Style};

/// Why a value could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Abort {
    /// The fault is recorded.
    #[error("already recorded")]
    Recorded,
    /// A list is empty where an element is required.
    #[error("the list is empty")]
    Empty,
    /// The fault is not recorded yet: only the caller that visits the node knows its position.
    #[error("{message}")]
    Refused {
        /// The kind of fault.
        code: Code,
        /// The problem; for a scalar, the words after the value itself.
        message: String,
        /// The fix.
        help: String,
    },
}

impl de::Error for Abort {
    /// Splits `problem` or `problem\nfix`.
    fn custom<T: Display>(text: T) -> Self {
        let text = text.to_string();
        let (message, help) = text.split_once('\n').unwrap_or((&text, ""));
        Self::Refused { code: Code::C103, message: message.to_owned(), help: help.to_owned() }
    }

    fn invalid_length(_: usize, _: &dyn Expected) -> Self {
        Self::Empty
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        wrong_type(&format!("expected {expected}, found {found}"), "")
    }
}

pub(super) fn wrong_type(message: &str, help: &str) -> Abort {
    Abort::Refused { code: Code::C102, message: message.to_owned(), help: help.to_owned() }
}

/// A node being deserialized. `'p` is the lifetime of the path to it.
#[derive(Clone, Copy)]
pub(crate) struct NodeDeserializer<'n, 'p> {
    pub(crate) node: &'n Node,
    /// Position of the node's key, or of the node itself.
    pub(crate) key: Position,
    pub(crate) path: &'p KeyPath<'p>,
    pub(crate) record: &'p RefCell<Vec<Fault>>,
    /// The fault is recorded before the value is visited.
    pub(crate) has_fault: bool,
    /// The part of the node that a message may quote.
    pub(crate) secrecy: Secrecy,
}

impl<'n> NodeDeserializer<'n, '_> {
    pub(crate) fn fault(
        &self,
        code: Code,
        at: Position,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.record.borrow_mut().push(Fault::new(code, at, message).help(help));
    }

    /// Records why this node could not be deserialized, unless a node within it has recorded its own fault.
    pub(super) fn recorded<T>(&self, result: Result<T, Abort>) -> Result<T, Abort> {
        if let Err(Abort::Empty) = result {
            let help =
                "an empty list is not read as \"none\": write at least one, or remove the key";
            self.fault(Code::C105, self.node.at, format!("`{}` is empty", self.path.step), help);
            return Err(Abort::Recorded);
        }
        if let Err(Abort::Refused { code, message, help }) = result {
            let message = match &self.node.kind {
                Kind::Scalar(_) if code != Code::C102 => format!("{} {message}", self.quote()),
                _ => message,
            };
            let help = match &self.node.kind {
                Kind::Scalar(scalar) if is_nothing(scalar) => {
                    "write a value, or remove the key".into()
                }
                Kind::Scalar(scalar) if scalar.raw.is_some() => LOOK_AT_THE_VARIABLE.into(),
                Kind::Scalar(scalar) => redact::help(help, &scalar.text, self.hides()),
                _ => help,
            };
            self.fault(code, self.node.at, message, help);
            return Err(Abort::Recorded);
        }
        result
    }

    /// Returns the node's text, or records a fault that names the node found instead.
    pub(super) fn scalar(&self, wanted: &dyn Expected) -> Result<&'n Scalar, Abort> {
        match &self.node.kind {
            Kind::Scalar(scalar) if scalar.broken => Err(Abort::Recorded),
            Kind::Scalar(scalar) if !is_nothing(scalar) => Ok(scalar),
            _ => Err(Abort::invalid_type(self.found(), wanted)),
        }
    }

    pub(super) fn found(&self) -> Unexpected<'n> {
        match &self.node.kind {
            Kind::Scalar(scalar) if is_nothing(scalar) => Unexpected::Other("nothing"),
            Kind::Scalar(_) => Unexpected::Other("a single value"),
            Kind::Sequence(_) => Unexpected::Other("a list"),
            Kind::Mapping(_) => Unexpected::Other("a mapping"),
        }
    }

    pub(super) fn number<T: core::str::FromStr>(&self, wanted: &str) -> Result<T, Abort> {
        let digits = self.scalar(&wanted)?.text.replace('_', "");
        digits
            .parse()
            .map_err(|_| wrong_type(&format!("expected {wanted}, found {}", self.quote()), ""))
    }

    pub(super) fn quote(&self) -> String {
        match &self.node.kind {
            Kind::Scalar(_) if self.hides() => quoted(HIDDEN),
            Kind::Scalar(scalar) => quoted(scalar.raw.as_ref().unwrap_or(&scalar.text)),
            _ => self.found().to_string(),
        }
    }

    /// Whether no message may quote the node, by its key's name, or another key that uses it through an alias.
    pub(crate) fn hides(&self) -> bool {
        match &self.node.kind {
            Kind::Scalar(scalar) if scalar.secret => true,
            Kind::Scalar(_) if self.secrecy == Secrecy::Open => false,
            Kind::Scalar(scalar) => self.secrecy.hides(scalar.raw.as_ref().unwrap_or(&scalar.text)),
            _ => false,
        }
    }
}

/// Whether a key has no value: `limits:` followed by nothing.
pub(super) fn is_nothing(scalar: &Scalar) -> bool {
    scalar.style == Style::Plain && scalar.text.is_empty() && scalar.raw.is_none()
}
