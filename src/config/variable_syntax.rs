//! `${NAME}`, `${NAME:-default}`, `${NAME:?message}`: how a text with variables is written.

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
pub(super) enum Piece<'t> {
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
pub(super) enum Otherwise<'t> {
    Fail,
    Default(Vec<Piece<'t>>),
    /// A message, as written: its variables are not expanded, since their values must not be shown.
    Message(&'t str),
}

/// The reason why a text with variables is malformed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum MalformedVariable<'t> {
    Open,
    Stray,
    Nameless,
    Operator(&'t str),
    Deep,
}

impl MalformedVariable<'_> {
    /// Returns the problem and the fix; without any part of the text if it is `secret`.
    pub(super) fn describe(self, secret: bool) -> (String, String) {
        let (message, help) = match self {
            Self::Open => (
                "a variable begins with `${` and has no `}`".to_owned(),
                "write ${NAME}, or put the text in single quotes",
            ),
            Self::Stray => (
                "a `}` after a variable has no `${` before it".to_owned(),
                "remove it, or write $} for a literal one",
            ),
            Self::Nameless => (
                "a variable has no name".to_owned(),
                "write ${NAME}, or put the text in single quotes",
            ),
            Self::Operator(_) if secret => (
                "unexpected text after the name of a variable".to_owned(),
                "write ${NAME}, ${NAME:-default} or ${NAME:?message}; $${ stands for a literal `${`",
            ),
            Self::Operator(name) => (
                format!("unexpected text after the name of the variable {name}"),
                "write ${NAME}, ${NAME:-default} or ${NAME:?message}",
            ),
            Self::Deep => (
                format!("variables are nested more than {MAX_DEPTH} levels deep"),
                "write fewer defaults",
            ),
        };
        (message, help.to_owned())
    }
}

pub(super) fn parse(text: &str) -> Result<Vec<Piece<'_>>, MalformedVariable<'_>> {
    let mut rest = text;
    let pieces = pieces(&mut rest, 0)?;
    if rest.is_empty() { Ok(pieces) } else { Err(MalformedVariable::Stray) }
}

/// Parses pieces up to the `}` that ends a variable at `depth`, or to the end; leaves the remainder in `rest`.
fn pieces<'t>(rest: &mut &'t str, depth: usize) -> Result<Vec<Piece<'t>>, MalformedVariable<'t>> {
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
                return Err(MalformedVariable::Deep);
            }
            *rest = inside;
            pieces.push(variable(rest, depth + 1)?);
        } else if rest.starts_with('}') && open == 0 {
            return Ok(pieces);
        } else if rest.is_empty() {
            return if depth == 0 { Ok(pieces) } else { Err(MalformedVariable::Open) };
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
fn variable<'t>(rest: &mut &'t str, depth: usize) -> Result<Piece<'t>, MalformedVariable<'t>> {
    let (name, behind) = name_of(rest);
    if behind.is_empty() {
        return Err(MalformedVariable::Open);
    }
    if !is_name(name) {
        return Err(MalformedVariable::Nameless);
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
        return Err(MalformedVariable::Operator(name));
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
pub(super) const OPENING: &str = "${";

/// A literal `${`.
const ESCAPED_OPENING: &str = "$${";

/// A literal `}` that ends no variable.
const ESCAPED_CLOSING: &str = "$}";

/// The maximum nesting of variables in defaults.
pub(super) const MAX_DEPTH: usize = 8;
