//! `${NAME}`, `${NAME:-default}`, `${NAME:?message}`, filled in after parsing.
//!
//! A value can never add structure to the file, and never appears in a message:
//! each scalar keeps its text as written beside its text as meant.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::fault::{Code, Fault, Place};
use super::yaml::{Kind, Node, Scalar, Style};

/// Where variables come from.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// The process's own, as it is now. The one place that reads it.
    pub fn of_process() -> Self {
        Self(std::env::vars_os().collect())
    }

    /// The same, with these set besides or instead.
    #[must_use]
    pub fn with<N: Into<OsString>, V: Into<OsString>>(
        mut self,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.0.extend(variables.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// The value of `name`.
    ///
    /// # Errors
    ///
    /// [`NotText`] if it is set to something that is not UTF-8.
    pub fn value(&self, name: &str) -> Result<Option<&str>, NotText> {
        self.0
            .get(std::ffi::OsStr::new(name))
            .map(|value| value.to_str().ok_or(NotText))
            .transpose()
    }
}

impl<N: Into<OsString>, V: Into<OsString>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// A variable's value is not UTF-8.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the variable's value is not UTF-8")]
pub struct NotText;

/// Fills in the variables of every plain and double-quoted value below `node`.
pub(crate) fn expand(node: &mut Node, environment: &Environment, faults: &mut Vec<Fault>) {
    match &mut node.kind {
        Kind::Sequence(items) => {
            for item in items {
                expand(item, environment, faults);
            }
        }
        Kind::Mapping(entries) => {
            for entry in entries {
                expand(&mut entry.value, environment, faults);
            }
        }
        Kind::Scalar(scalar) => {
            if scalar.style != Style::Verbatim && scalar.text.contains("${") {
                expand_scalar(scalar, node.at, environment, faults);
            }
        }
    }
}

fn expand_scalar(
    scalar: &mut Scalar,
    at: Place,
    environment: &Environment,
    faults: &mut Vec<Fault>,
) {
    let mut filled = String::with_capacity(scalar.text.len());
    let mut broken = false;
    let mut rest = scalar.text.as_str();
    while let Some(start) = rest.find("${") {
        filled.push_str(&rest[..start]);
        let inside = &rest[start + 2..];
        let Some(end) = inside.find('}') else {
            faults.push(
                Fault::new(Code::C103, at, "a variable begins with `${` and has no `}`")
                    .help("write ${NAME}, or put the text in single quotes"),
            );
            scalar.broken = true;
            return;
        };
        match fill(&inside[..end], environment) {
            Ok(value) => filled.push_str(&value),
            Err(wrong) => {
                faults.push(Fault { place: at, ..wrong });
                broken = true;
            }
        }
        rest = &inside[end + 1..];
    }
    filled.push_str(rest);
    scalar.broken = broken;
    scalar.raw = Some(core::mem::replace(&mut scalar.text, filled));
}

/// What stands for the variable between `${` and `}`; the fault's place is the caller's to set.
fn fill(inside: &str, environment: &Environment) -> Result<String, Fault> {
    let name_end =
        inside.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inside.len());
    let (name, otherwise) = inside.split_at(name_end);
    let fault =
        |text: String, help: &str| Err(Fault::new(Code::C103, Place::START, text).help(help));
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return fault(
            "a variable has no name".into(),
            "write ${NAME}, or put the text in single quotes",
        );
    }
    let Ok(value) = environment.value(name) else {
        return fault(format!("the variable {name} is not UTF-8"), "set it to text");
    };
    let value = value.map(str::to_owned);
    // Like a shell's `:-` and `:?`, an empty value counts as none.
    let some = value.clone().filter(|value| !value.is_empty());
    if otherwise.is_empty() {
        let unset = || {
            fault(format!("the variable {name} is not set"), "set it, or write ${NAME:-default}")
        };
        value.map_or_else(unset, Ok)
    } else if let Some(default) = otherwise.strip_prefix(":-") {
        Ok(some.unwrap_or_else(|| default.to_owned()))
    } else if let Some(message) = otherwise.strip_prefix(":?") {
        some.map_or_else(|| fault(format!("the variable {name} is not set"), message), Ok)
    } else {
        fault(
            format!("behind the variable's name {name} stands something else"),
            "write ${NAME}, ${NAME:-default} or ${NAME:?message}",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::yaml;

    #[test]
    fn fills_in_values_and_defaults() {
        assert_eq!(expanded("a-${SET}-b"), ("a-value-b".into(), vec![]));
        assert_eq!(expanded("\"${SET}${SET}\""), ("valuevalue".into(), vec![]));
        assert_eq!(expanded("${UNSET:-80}"), ("80".into(), vec![]));
        assert_eq!(expanded("${EMPTY:-80}"), ("80".into(), vec![]));
        assert_eq!(expanded("${SET:?needed}"), ("value".into(), vec![]));
        assert_eq!(expanded("${EMPTY}"), (String::new(), vec![]));
    }

    #[test]
    fn leaves_alone_what_is_no_variable() {
        assert_eq!(expanded("'${SET}'"), ("${SET}".into(), vec![]));
        assert_eq!(expanded("^v[0-9]+$"), ("^v[0-9]+$".into(), vec![]));
        assert_eq!(expanded("$SET"), ("$SET".into(), vec![]));
    }

    #[test]
    fn says_what_is_missing_and_where() {
        assert_eq!(
            expanded("${UNSET}").1,
            ["1:4 the variable UNSET is not set; set it, or write ${NAME:-default}"]
        );
        assert_eq!(
            expanded("${UNSET:?ask the platform team}").1,
            ["1:4 the variable UNSET is not set; ask the platform team"]
        );
        assert_eq!(
            expanded("${UNSET").1,
            [
                "1:4 a variable begins with `${` and has no `}`; write ${NAME}, or put the text in single quotes"
            ]
        );
        assert_eq!(
            expanded("${1}").1,
            ["1:4 a variable has no name; write ${NAME}, or put the text in single quotes"]
        );
        assert_eq!(
            expanded("${SET:+x}").1,
            [
                "1:4 behind the variable's name SET stands something else; write ${NAME}, ${NAME:-default} or ${NAME:?message}"
            ]
        );
    }

    #[test]
    fn a_value_is_not_expanded_again_and_adds_no_structure() {
        assert_eq!(expanded("${NESTED}"), ("${SET}: [x]".into(), vec![]));
    }

    #[test]
    fn keys_are_left_alone() {
        let mut node = yaml::parse("${SET}: 1", &mut Vec::new()).expect("a tree");
        expand(&mut node, &environment(), &mut Vec::new());

        let Kind::Mapping(entries) = node.kind else { panic!("a mapping") };
        assert_eq!(entries[0].key, "${SET}");
    }

    fn environment() -> Environment {
        [("SET", "value"), ("EMPTY", ""), ("NESTED", "${SET}: [x]")].into_iter().collect()
    }

    fn expanded(value: &str) -> (String, Vec<String>) {
        let mut faults = Vec::new();
        let mut node = yaml::parse(&format!("k: {value}"), &mut faults).expect("a tree");
        expand(&mut node, &environment(), &mut faults);
        let Kind::Mapping(entries) = node.kind else { panic!("a mapping") };
        let Kind::Scalar(scalar) = &entries[0].value.kind else { panic!("a scalar") };
        let faults = faults
            .iter()
            .map(|f| format!("{}:{} {}; {}", f.place.line, f.place.column, f.message, f.help))
            .collect();
        (scalar.text.clone(), faults)
    }
}
