//! Expands `${NAME}`, `${NAME:-default}` and `${NAME:?message}` after parsing.
//!
//! A value can never add structure to the file, and never appears in a message:
//! each scalar keeps its text as written beside the expanded one.
//!
//! A text is parsed whole before expansion, so that a default may hold variables of its own, braces
//! are counted, and a mistake in a default is found whether or not that default is used. The value of a variable
//! is data: it is never expanded, and refused if it looks as though it should have been.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::fault::{Code, Fault, Position};
use super::yaml::{Kind, Node, Scalar, Style};

/// The variables that the configuration may refer to.
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
                        Fault::new(Code::C103, entry.key_at, "no variable is filled in in a key")
                            .help(
                                "write the key out, or put it in single quotes if it is meant so",
                            ),
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
    for piece in pieces {
        let (name, otherwise) = match piece {
            Piece::Text(text) => {
                filled.push_str(text);
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
                format!("the value of the variable {name} holds `${{`, and is not filled in"),
                "set it to the text that is meant; { file: path } takes a secret as it is"
                    .to_owned(),
            )),
            (Some(value), _) => filled.push_str(value),
            // The depth is bounded by `parse`.
            (None, Otherwise::Default(default)) => fill(default, environment, filled, fault),
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

/// Whether `text` consists of variable names and messages only, without literal text or defaults.
pub(crate) fn is_names_only(text: &str) -> bool {
    parse(text).is_ok_and(|pieces| pieces.iter().all(Piece::is_name))
}

/// Whether `text` holds what looks like an unexpanded variable: `${NAME}`, `${NAME:…`.
pub(crate) fn holds_a_variable(text: &str) -> bool {
    text.match_indices(OPENING).any(|(at, _)| {
        let (name, behind) = name_of(&text[at + OPENING.len()..]);
        is_name(name) && behind.starts_with(['}', ':', '-', '?'])
    })
}

/// A part of a text with variables.
#[derive(Debug, PartialEq)]
enum Piece<'t> {
    Text(&'t str),
    Variable { name: &'t str, otherwise: Otherwise<'t> },
}

impl Piece<'_> {
    fn is_name(&self) -> bool {
        match self {
            Self::Text(_) => false,
            Self::Variable { otherwise: Otherwise::Default(default), .. } => {
                default.iter().all(Self::is_name)
            }
            Self::Variable { .. } => true,
        }
    }
}

/// The alternative for a variable that is not set.
#[derive(Debug, PartialEq)]
enum Otherwise<'t> {
    Fail,
    Default(Vec<Piece<'t>>),
    /// A message, as written: its variables are not expanded, since their values must not be shown.
    Message(&'t str),
}

/// The reason why a text with variables is malformed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Malformed<'t> {
    Open,
    Stray,
    Nameless,
    Operator(&'t str),
    Deep,
}

impl Malformed<'_> {
    /// Returns the problem and the fix; without any part of the text if it is `secret`.
    fn describe(self, secret: bool) -> (String, String) {
        let (message, help) = match self {
            Self::Open => (
                "a variable begins with `${` and has no `}`".to_owned(),
                "write ${NAME}, or put the text in single quotes",
            ),
            Self::Stray => (
                "a `}` stands behind a variable and closes nothing".to_owned(),
                "take it out, or write $} if it is meant so",
            ),
            Self::Nameless => (
                "a variable has no name".to_owned(),
                "write ${NAME}, or put the text in single quotes",
            ),
            Self::Operator(_) if secret => (
                "behind a variable's name stands something else".to_owned(),
                "write ${NAME}, ${NAME:-default} or ${NAME:?message}; $${ is a `${` that is meant so",
            ),
            Self::Operator(name) => (
                format!("behind the variable's name {name} stands something else"),
                "write ${NAME}, ${NAME:-default} or ${NAME:?message}",
            ),
            Self::Deep => (
                format!("variables stand more than {MAX_DEPTH} levels deep in one another"),
                "write fewer defaults",
            ),
        };
        (message, help.to_owned())
    }
}

fn parse(text: &str) -> Result<Vec<Piece<'_>>, Malformed<'_>> {
    let mut rest = text;
    let pieces = pieces(&mut rest, 0)?;
    if rest.is_empty() { Ok(pieces) } else { Err(Malformed::Stray) }
}

/// Parses pieces up to the `}` that ends a variable at `depth`, or to the end; leaves the remainder in `rest`.
fn pieces<'t>(rest: &mut &'t str, depth: usize) -> Result<Vec<Piece<'t>>, Malformed<'t>> {
    let mut pieces = Vec::new();
    // Literal braces: a `}` that closes one of them ends no variable.
    let mut open = 0_usize;
    loop {
        let plain = rest.find(['$', '{', '}']).unwrap_or(rest.len());
        take(plain, rest, &mut pieces);
        if rest.starts_with(ESCAPED_OPENING) {
            *rest = &rest[1..];
            take(OPENING.len(), rest, &mut pieces);
            open += 1;
        } else if rest.starts_with(ESCAPED_CLOSING) {
            *rest = &rest[1..];
            take(1, rest, &mut pieces);
        } else if let Some(inside) = rest.strip_prefix(OPENING) {
            if depth == MAX_DEPTH {
                return Err(Malformed::Deep);
            }
            *rest = inside;
            pieces.push(variable(rest, depth + 1)?);
        } else if rest.starts_with('}') && open == 0 {
            return Ok(pieces);
        } else if rest.is_empty() {
            return if depth == 0 { Ok(pieces) } else { Err(Malformed::Open) };
        } else {
            match rest.as_bytes()[0] {
                b'{' => open += 1,
                b'}' => open -= 1,
                _ => {}
            }
            take(1, rest, &mut pieces);
        }
    }
}

/// Parses one variable after its `${`.
fn variable<'t>(rest: &mut &'t str, depth: usize) -> Result<Piece<'t>, Malformed<'t>> {
    let (name, behind) = name_of(rest);
    if behind.is_empty() {
        return Err(Malformed::Open);
    }
    if !is_name(name) {
        return Err(Malformed::Nameless);
    }
    let otherwise = if behind.starts_with('}') {
        *rest = behind;
        Otherwise::Fail
    } else if let Some(default) = behind.strip_prefix(":-") {
        *rest = default;
        Otherwise::Default(pieces(rest, depth)?)
    } else if let Some(message) = behind.strip_prefix(":?") {
        *rest = message;
        pieces(rest, depth)?;
        Otherwise::Message(&message[..message.len() - rest.len()])
    } else {
        return Err(Malformed::Operator(name));
    };
    *rest = &rest[1..];
    Ok(Piece::Variable { name, otherwise })
}

/// Moves `length` bytes of `rest` to the pieces.
fn take<'t>(length: usize, rest: &mut &'t str, pieces: &mut Vec<Piece<'t>>) {
    let (text, behind) = rest.split_at(length);
    if !text.is_empty() {
        pieces.push(Piece::Text(text));
    }
    *rest = behind;
}

/// Splits `text` after its leading name.
fn name_of(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    text.split_at(end)
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// The beginning of a variable.
const OPENING: &str = "${";

/// A literal `${`.
const ESCAPED_OPENING: &str = "$${";

/// A literal `}` that ends no variable.
const ESCAPED_CLOSING: &str = "$}";

/// The maximum nesting of variables in defaults.
const MAX_DEPTH: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
    fn braces_are_counted() {
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
                    "1:4 a `}` stands behind a variable and closes nothing; take it out, or write $} if it is meant so"
                ]
            );
        }
    }

    #[test]
    fn what_is_escaped_is_meant_so() {
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
            ["1:4 variables stand more than 8 levels deep in one another; write fewer defaults"]
        );
        assert_eq!(expanded(&nested(100_000)).1.len(), 1);
    }

    #[test]
    fn a_value_is_never_expanded_and_refused_if_it_should_have_been() {
        for variable in ["${NESTED}", "a-${UNSET:-${NESTED}}"] {
            assert_eq!(
                expanded(variable).1,
                ["1:4 the value of the variable NESTED holds `${`, and is not filled in; \
                     set it to the text that is meant; { file: path } takes a secret as it is"]
            );
        }
        assert_eq!(expanded("${STRUCTURE}"), ("a: [x]}".into(), vec![]));
    }

    #[test]
    fn nothing_is_filled_in_in_keys() {
        for (text, count) in [("${SET}: 1", 1), ("\"${SET}\": 1", 1), ("'${SET}': 1", 0)] {
            let mut faults = Vec::new();
            let mut node = yaml::parse(text, &mut faults).expect("a tree");
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
        [("SET", "value"), ("EMPTY", ""), ("NESTED", "${SET}: [x]"), ("STRUCTURE", "a: [x]}")]
            .into_iter()
            .collect()
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
