//! Expands `${NAME}`, `${NAME:-default}` and `${NAME:?message}` after parsing.
//!
//! A value can never add structure to the file, and never appears in a message:
//! each scalar keeps its text as written beside the expanded one.
//!
//! A text is parsed whole before expansion, so that a default may hold variables of its own, braces
//! are counted, and a mistake in a default is found whether or not that default is used. The value of a variable
//! is data: it is never expanded, and refused if it looks as though it should have been.

use super::variable_syntax::{OPENING, Otherwise, Piece, parse};
use std::collections::BTreeMap;
use std::ffi::OsString;

use super::fault::{Code, Fault, Position};
use super::yaml::{Kind, Node, Scalar, Style};

/// The variables that the configuration may refer to.
///
/// # Examples
///
/// ```
/// use northgate::config::Environment;
///
/// let environment = Environment::default().with([("PORT", "8443")]);
/// assert_eq!(environment.value("PORT"), Ok(Some("8443")));
/// assert_eq!(environment.value("HOST"), Ok(None));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// Copies the environment of the process. No other function reads it.
    pub fn from_process() -> Self {
        Self(std::env::vars_os().collect())
    }

    /// Returns a copy with these variables added or replaced.
    #[must_use]
    pub fn with<N: Into<OsString>, V: Into<OsString>>(
        mut self,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.0.extend(variables.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// Returns the value of `name`.
    ///
    /// # Errors
    ///
    /// [`NotUnicode`] if it is set to something that is not UTF-8.
    pub fn value(&self, name: &str) -> Result<Option<&str>, NotUnicode> {
        self.0
            .get(std::ffi::OsStr::new(name))
            .map(|value| value.to_str().ok_or(NotUnicode))
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
pub struct NotUnicode;

/// Expands the variables of every plain and double-quoted value below `node`.
pub(crate) fn expand(node: &mut Node, environment: &Environment, faults: &mut Vec<Fault>) {
    match &mut node.kind {
        Kind::Sequence(items) => {
            for item in items {
                expand(item, environment, faults);
            }
        }
        Kind::Mapping(entries) => {
            for entry in entries {
                if entry.key_style != Style::Verbatim && entry.key.contains(OPENING) {
                    faults.push(
                        Fault::new(Code::C103, entry.key_at, "variables are not expanded in keys")
                            .help("write the key without variables, or put it in single quotes"),
                    );
                }
                expand(&mut entry.value, environment, faults);
            }
        }
        Kind::Scalar(scalar) => {
            if scalar.style != Style::Verbatim && scalar.text.contains(OPENING) {
                expand_scalar(scalar, node.at, environment, faults);
            }
        }
    }
}

fn expand_scalar(
    scalar: &mut Scalar,
    at: Position,
    environment: &Environment,
    faults: &mut Vec<Fault>,
) {
    let before = faults.len();
    let mut filled = String::with_capacity(scalar.text.len());
    match parse(&scalar.text) {
        Ok(pieces) => fill(&pieces, environment, &mut filled, &mut |(message, help)| {
            faults.push(Fault::new(Code::C103, at, message).help(help));
        }),
        Err(malformed) => {
            let (message, help) = malformed.describe(scalar.secret);
            faults.push(Fault::new(Code::C103, at, message).help(help));
        }
    }
    scalar.broken = faults.len() > before;
    scalar.raw = Some(core::mem::replace(&mut scalar.text, filled));
}

/// Appends the expansion of `pieces` to `filled`; reports each problem and its fix to `fault`.
fn fill(
    pieces: &[Piece<'_>],
    environment: &Environment,
    filled: &mut String,
    fault: &mut dyn FnMut((String, String)),
) {
    // Whether a variable's value, or a default, is what was appended last.
    let mut ends_in_value = !filled.is_empty();
    for piece in pieces {
        let (name, otherwise) = match piece {
            Piece::Text(text) => {
                if ends_in_value && filled.ends_with('$') && text.starts_with('{') {
                    fault((
                        "the value of a variable makes a `${` with the text after it".to_owned(),
                        "$${ is a `${` that is meant so; write the text in one".to_owned(),
                    ));
                }
                filled.push_str(text);
                ends_in_value = false;
                continue;
            }
            Piece::Variable { name, otherwise } => (name, otherwise),
        };
        let Ok(value) = environment.value(name) else {
            fault((format!("the variable {name} is not UTF-8"), "set it to text".to_owned()));
            continue;
        };
        // As with a shell's `:-` and `:?`, an empty value counts as none.
        let value = value.filter(|value| !value.is_empty() || matches!(otherwise, Otherwise::Fail));
        match (value, otherwise) {
            (Some(value), _) if value.contains(OPENING) => fault((
                format!("the value of the variable {name} contains `${{`, which is not expanded"),
                "set it to a text without `${`; { file: path } reads a secret unchanged".to_owned(),
            )),
            (Some(value), _) if filled.ends_with('$') && value.starts_with('{') => fault((
                format!("the value of the variable {name} makes a `${{` with the text before it"),
                "$${ is a `${` that is meant so; { file: path } takes a secret as it is".to_owned(),
            )),
            (Some(value), _) => {
                filled.push_str(value);
                ends_in_value = true;
            }
            // The depth is bounded by `parse`.
            (None, Otherwise::Default(default)) => {
                fill(default, environment, filled, fault);
                ends_in_value = true;
            }
            (None, Otherwise::Fail) => fault((
                format!("the variable {name} is not set"),
                "set it, or write ${NAME:-default}".to_owned(),
            )),
            (None, Otherwise::Message(message)) => {
                fault((format!("the variable {name} is not set"), (*message).to_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::variable_syntax::is_names_only;

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
                "1:4 unexpected text after the name of the variable SET; write ${NAME}, ${NAME:-default} or ${NAME:?message}"
            ]
        );
    }

    #[test]
    fn a_default_holds_variables_of_its_own() {
        assert_eq!(expanded("${UNSET:-${SET}}"), ("value".into(), vec![]));
        assert_eq!(
            expanded("${UNSET:-a${EMPTY:-${UNSET:-b}}${SET}}-c"),
            ("abvalue-c".into(), vec![])
        );
        assert_eq!(expanded("${SET:-${UNSET}}"), ("value".into(), vec![]));
        assert_eq!(
            expanded("${UNSET:-${GONE}}").1,
            ["1:4 the variable GONE is not set; set it, or write ${NAME:-default}"]
        );
        assert_eq!(
            expanded("${SET:-${SET}").1,
            [
                "1:4 a variable begins with `${` and has no `}`; write ${NAME}, or put the text in single quotes"
            ],
            "a default is read whether or not it is used"
        );
    }

    #[test]
    fn nested_braces_of_a_variable_are_matched() {
        assert_eq!(expanded(r#""${UNSET:-{\"a\":{}}}""#), (r#"{"a":{}}"#.into(), vec![]));
        assert_eq!(expanded("/{id}/${SET}/{rest}"), ("/{id}/value/{rest}".into(), vec![]));
        assert_eq!(
            expanded("${UNSET:?a message with {braces} and ${SET}}").1,
            ["1:4 the variable UNSET is not set; a message with {braces} and ${SET}"]
        );
        for stray in ["${SET:?message with } }", "${SET}}", "${UNSET:-a}b}"] {
            assert_eq!(
                expanded(stray).1,
                [
                    "1:4 a `}` after a variable has no `${` before it; remove it, or write $} for a literal one"
                ]
            );
        }
    }

    #[test]
    fn an_escaped_variable_is_not_expanded() {
        assert_eq!(expanded("$${SET}"), ("${SET}".into(), vec![]));
        assert_eq!(expanded("$${SET}-${SET}"), ("${SET}-value".into(), vec![]));
        assert_eq!(expanded("${UNSET:-$${SET}}"), ("${SET}".into(), vec![]));
        assert_eq!(expanded("${UNSET:-a$}b}$}"), ("a}b}".into(), vec![]));
        assert_eq!(expanded("a$$b$"), ("a$$b$".into(), vec![]));
    }

    #[test]
    fn variables_are_bounded_in_depth() {
        let nested = |depth: usize| format!("{}x{}", "${U:-".repeat(depth), "}".repeat(depth));

        assert_eq!(expanded(&nested(8)), ("x".into(), vec![]));
        assert_eq!(
            expanded(&nested(9)).1,
            ["1:4 variables are nested more than 8 levels deep; write fewer defaults"]
        );
        assert_eq!(expanded(&nested(100_000)).1.len(), 1);
    }

    #[test]
    fn a_value_is_never_expanded_and_refused_if_it_should_have_been() {
        for variable in ["${NESTED}", "a-${UNSET:-${NESTED}}"] {
            assert_eq!(
                expanded(variable).1,
                ["1:4 the value of the variable NESTED contains `${`, which is not expanded; \
                     set it to a text without `${`; { file: path } reads a secret unchanged"]
            );
        }
        assert_eq!(expanded("${STRUCTURE}"), ("a: [x]}".into(), vec![]));
    }

    #[test]
    fn values_that_make_an_opening_together_are_refused() {
        for made in [
            "${DOLLAR}{SET}",
            "\"${DOLLAR}${BRACE}\"",
            "a-${UNSET:-${DOLLAR}}{SET}",
            "${UNSET:-x${DOLLAR}}${UNSET:-{SET}}",
            "\"x${DOLLAR}${UNSET:-}${BRACE}\"",
        ] {
            let faults = expanded(made).1;
            assert!(faults.len() == 1 && faults[0].contains("makes a `${`"), "{made}: {faults:?}");
        }
        for fine in
            ["${DOLLAR}", "${BRACE}", "${DOLLAR}-${BRACE}", "${BRACE}${DOLLAR}", "$${x}${DOLLAR}"]
        {
            assert_eq!(expanded(fine).1, Vec::<String>::new(), "{fine}");
        }
    }

    #[test]
    fn nothing_is_filled_in_in_keys() {
        for (text, count) in [("${SET}: 1", 1), ("\"${SET}\": 1", 1), ("'${SET}': 1", 0)] {
            let mut faults = Vec::new();
            let mut node = crate::config::parse(text, &mut faults).expect("a tree");
            expand(&mut node, &environment(), &mut faults);

            let Kind::Mapping(entries) = node.kind else { panic!("a mapping") };
            assert_eq!(entries[0].key, "${SET}");
            assert_eq!(faults.len(), count, "{text}");
        }
    }

    #[test]
    fn a_text_of_names_alone_holds_no_secret() {
        for names in ["${A}", "${A}${B:?ask}", "${A:-${B}}"] {
            assert!(is_names_only(names), "{names}");
        }
        for text in ["x", "${A:-x}", "x${A}", "${A:-${B:-x}}", "${A", "$${A}"] {
            assert!(!is_names_only(text), "{text}");
        }
    }

    /// Generates a text with variables, and its expansion in an environment where only `SET` is set.
    fn written() -> impl Strategy<Value = (String, String)> {
        let text = "[a-z :/{]?[a-z\"#]{0,4}".prop_map(|text: String| {
            // Every opened brace is closed: an unclosed one would have no end.
            let closed = if text.contains('{') { format!("{text}}}") } else { text };
            (closed.clone(), closed)
        });
        let leaf = prop_oneof![
            text,
            Just(("${SET}".to_owned(), "value".to_owned())),
            Just(("$${SET}".to_owned(), "${SET}".to_owned())),
            Just(("$}".to_owned(), "}".to_owned())),
        ];
        leaf.prop_recursive(5, 24, 3, |inner| {
            let joined = prop::collection::vec(inner, 0..3).prop_map(|parts| {
                let (written, meant): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
                (written.concat(), meant.concat())
            });
            (joined, prop_oneof![Just("UNSET"), Just("EMPTY"), Just("SET"), Just("")]).prop_map(
                |((written, meant), name)| match name {
                    "" => (written, meant),
                    "SET" => (format!("${{SET:-{written}}}"), "value".to_owned()),
                    name => (format!("${{{name}:-{written}}}"), meant),
                },
            )
        })
    }

    proptest! {
        #[test]
        fn nested_variables_expand_from_the_inside_out((written, meant) in written()) {
            prop_assume!(written.contains("${"));

            prop_assert_eq!(filled(&written), Ok(meant));
        }

        #[test]
        fn no_variable_of_the_file_is_left(text in "([$]{0,2}[{]|[}]|:-|[:][?]|SET|UNSET|[a-z])*") {
            if let Ok(filled) = filled(&text) {
                prop_assert!(!filled.contains("${") || text.contains("$${"), "{filled}");
            }
        }
    }

    fn filled(text: &str) -> Result<String, Vec<Fault>> {
        let mut scalar = Scalar::new(text.into(), Style::Plain);
        let mut faults = Vec::new();
        expand_scalar(&mut scalar, Position::START, &environment(), &mut faults);
        if scalar.broken { Err(faults) } else { Ok(scalar.text) }
    }

    fn environment() -> Environment {
        [
            ("SET", "value"),
            ("EMPTY", ""),
            ("NESTED", "${SET}: [x]"),
            ("STRUCTURE", "a: [x]}"),
            ("DOLLAR", "x$"),
            ("BRACE", "{SET}"),
        ]
        .into_iter()
        .collect()
    }

    fn expanded(value: &str) -> (String, Vec<String>) {
        let mut faults = Vec::new();
        let mut node = crate::config::parse(&format!("k: {value}"), &mut faults).expect("a tree");
        expand(&mut node, &environment(), &mut faults);
        let Kind::Mapping(entries) = node.kind else { panic!("a mapping") };
        let Kind::Scalar(scalar) = &entries[0].value.kind else { panic!("a scalar") };
        let faults = faults
            .iter()
            .map(|f| format!("{}:{} {}; {}", f.position.line, f.position.column, f.message, f.help))
            .collect();
        (scalar.text.clone(), faults)
    }
}
