//! Parses YAML text into a small tree that keeps the position of every node.
//!
//! Only the structure is decided here: mappings, lists, scalars and their text.
//! The target type decides how a scalar is parsed, so that `off`, `401` and
//! `1.3` need no quotes. The parser is `saphyr-parser`, which only this file
//! uses.
//!
//! Bounded: [`MAX_DEPTH`] levels and [`MAX_NODES`] nodes after aliases are
//! expanded, so that a small file cannot exhaust the memory.

use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError};

use super::de::field::quoted;
use super::fault::{self, Code, Fault, Position};
use crate::base::secret::HIDDEN;

/// A value and its position.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    /// Its first character.
    pub(crate) at: Position,
    /// The position after its last character, or after spaces that follow it; for scalars only.
    pub(crate) end: Position,
    /// The kind of node.
    pub(crate) kind: Kind,
}

/// The kinds of nodes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// One value, as text.
    Scalar(Scalar),
    /// A list.
    Sequence(Vec<Node>),
    /// Keys and values, in the order of the file.
    Mapping(Vec<Entry>),
}

/// One value, as text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scalar {
    /// Without quotes, escapes resolved, variables expanded.
    pub(crate) text: String,
    /// How it was written; determines whether variables are expanded.
    pub(crate) style: Style,
    /// The text before its variables were expanded, if it had any.
    pub(crate) raw: Option<String>,
    /// Whether a variable could not be expanded: the fault is recorded, and the text must not be used.
    pub(crate) broken: bool,
    /// Whether the key of a secret uses this text, directly or through an alias: then no message shows it.
    pub(crate) secret: bool,
}

impl Scalar {
    pub(super) const fn new(text: String, style: Style) -> Self {
        Self { text, style, raw: None, broken: false, secret: false }
    }
}

/// How a scalar is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Style {
    /// Without quotes.
    Plain,
    /// `"…"`.
    Double,
    /// `'…'`, or a block: taken literally.
    Verbatim,
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_at: Position,
    /// The position after the key's last character.
    pub(crate) key_end: Position,
    /// Whether the key's text is used as a secret elsewhere, like [`Scalar::secret`].
    pub(crate) key_secret: bool,
    /// How the key was written.
    pub(crate) key_style: Style,
    /// Whether the same key precedes it: the fault is recorded, and the first one counts.
    pub(crate) again: bool,
    pub(crate) value: Node,
}

/// Parses one document.
///
/// Faults that do not stop the parser, such as a duplicate key, are added
/// to `faults`. `None` if there is no tree at all; then the reason is added too.
pub(crate) fn parse(text: &str, faults: &mut Vec<Fault>) -> Option<Node> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder { open: Vec::new(), root: None, anchors: HashMap::new(), nodes: 0 };
    for event in Parser::new_from_str(text) {
        let step = match event {
            Ok((event, span)) => builder.take(event, span.start, span.end),
            Err(error) => Err(malformed(text, &error)),
        };
        if let Err(fault) = step {
            faults.push(fault);
            return None;
        }
    }
    let Some(root) = builder.root else {
        faults.push(
            Fault::new(Code::C108, Position::START, "the file is empty")
                .help("begin with `version: 1`; the repository's gateway.yaml is a whole example"),
        );
        return None;
    };
    Some(root)
}

/// Records duplicate keys, after it is known which of them are secrets.
pub(super) fn twice(node: &Node, faults: &mut Vec<Fault>) {
    match &node.kind {
        Kind::Scalar(_) => {}
        Kind::Sequence(items) => items.iter().for_each(|item| twice(item, faults)),
        Kind::Mapping(entries) => {
            for entry in entries {
                if entry.again {
                    let key = if entry.key_secret { HIDDEN } else { &entry.key };
                    let message = format!("{} is written twice here", quoted(key));
                    let fault = Fault::new(Code::C111, entry.key_at, message);
                    faults.push(fault.help("keep one of them"));
                }
                twice(&entry.value, faults);
            }
        }
    }
}

/// The maximum nesting of lists and mappings.
const MAX_DEPTH: usize = 64;

/// The maximum number of values in one file, counting those of aliases each time.
const MAX_NODES: usize = 250_000;

struct Builder {
    /// Lists and mappings that have begun and not ended.
    open: Vec<Open>,
    root: Option<Node>,
    /// Finished values with an anchor, and the number of their nodes.
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
}

struct Open {
    at: Position,
    anchor: usize,
    nodes_before: usize,
    kind: OpenKind,
}

struct Key {
    text: String,
    at: Position,
    end: Position,
    style: Style,
}

enum OpenKind {
    Sequence(Vec<Node>),
    Mapping { entries: Vec<Entry>, keys: HashSet<String>, key: Option<Key> },
}

impl Builder {
    fn take(&mut self, event: Event<'_>, start: Marker, end: Marker) -> Result<(), Fault> {
        let at = position(start);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                refuse_tag(tag.is_some(), at)?;
                let style = match style {
                    ScalarStyle::Plain => Style::Plain,
                    ScalarStyle::DoubleQuoted => Style::Double,
                    _ => Style::Verbatim,
                };
                let scalar = Scalar::new(text.into_owned(), style);
                let node = Node { at, end: position(end), kind: Kind::Scalar(scalar) };
                self.count(1, at)?;
                self.finished(node, anchor, 1)
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_tag(tag.is_some(), at)?;
                self.begin(at, anchor, OpenKind::Sequence(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                refuse_tag(tag.is_some(), at)?;
                let kind =
                    OpenKind::Mapping { entries: Vec::new(), keys: HashSet::new(), key: None };
                self.begin(at, anchor, kind)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else { return Ok(()) };
                let kind = match open.kind {
                    OpenKind::Sequence(items) => Kind::Sequence(items),
                    OpenKind::Mapping { entries, .. } => Kind::Mapping(entries),
                };
                let nodes = self.nodes - open.nodes_before;
                self.finished(Node { at: open.at, end: open.at, kind }, open.anchor, nodes)
            }
            Event::Alias(anchor) => {
                let Some((node, nodes)) = self.anchors.get(&anchor).cloned() else {
                    return Err(Fault::new(
                        Code::C108,
                        at,
                        "this alias refers to a node that contains it",
                    )
                    .help("write the value out"));
                };
                if self.open.len() + depth(&node) > MAX_DEPTH {
                    return Err(too_deep(at));
                }
                self.count(nodes, at)?;
                self.finished(node, 0, nodes)
            }
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(Fault::new(Code::C108, at, "a second document begins here")
                    .help("one file holds one configuration; remove `---`"))
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, at: Position, anchor: usize, kind: OpenKind) -> Result<(), Fault> {
        if self.open.len() >= MAX_DEPTH {
            return Err(too_deep(at));
        }
        let nodes_before = self.nodes;
        self.count(1, at)?;
        self.open.push(Open { at, anchor, nodes_before, kind });
        Ok(())
    }

    fn count(&mut self, nodes: usize, at: Position) -> Result<(), Fault> {
        self.nodes += nodes;
        if self.nodes <= MAX_NODES {
            return Ok(());
        }
        Err(Fault::new(Code::C108, at, format!("the file holds more than {MAX_NODES} values"))
            .help("aliases count each time they are used"))
    }

    /// Adds a finished value to its parent.
    fn finished(&mut self, node: Node, anchor: usize, nodes: usize) -> Result<(), Fault> {
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), nodes));
        }
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => self.root = Some(node),
            Some(OpenKind::Sequence(items)) => items.push(node),
            Some(OpenKind::Mapping { entries, keys, key }) => match key.take() {
                None => *key = Some(as_key(node)?),
                Some(Key { text: key, at: key_at, end: key_end, style: key_style }) => {
                    let again = !keys.insert(key.clone());
                    entries.push(Entry {
                        key,
                        key_at,
                        key_end,
                        key_secret: false,
                        key_style,
                        again,
                        value: node,
                    });
                }
            },
        }
        Ok(())
    }
}

fn as_key(node: Node) -> Result<Key, Fault> {
    match node.kind {
        Kind::Scalar(scalar) if scalar.text == "<<" && scalar.style == Style::Plain => {
            Err(Fault::new(Code::C108, node.at, "merge keys are not read")
                .help("what several routes share belongs into `defaults` or `policies`"))
        }
        Kind::Scalar(scalar) => {
            Ok(Key { text: scalar.text, at: node.at, end: node.end, style: scalar.style })
        }
        _ => Err(Fault::new(Code::C108, node.at, "a key must be one word")
            .help("a `{` or `[` that begins a value may need quotes")),
    }
}

fn refuse_tag(tagged: bool, at: Position) -> Result<(), Fault> {
    if tagged {
        return Err(Fault::new(Code::C108, at, "YAML tags are not read")
            .help("remove the word that begins with `!`, or put the text in quotes"));
    }
    Ok(())
}

fn too_deep(at: Position) -> Fault {
    Fault::new(Code::C108, at, format!("values are nested more than {MAX_DEPTH} levels deep"))
}

fn depth(node: &Node) -> usize {
    match &node.kind {
        Kind::Scalar(_) => 0,
        Kind::Sequence(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Kind::Mapping(entries) => 1 + entries.iter().map(|e| depth(&e.value)).max().unwrap_or(0),
    }
}

fn malformed(text: &str, error: &ScanError) -> Fault {
    let at = position(*error.marker());
    let line = fault::lines(text).nth(at.line as usize - 1).unwrap_or_default();
    let fault = Fault::new(Code::C108, at, format!("this is not YAML: {}", error.info()));
    if line.trim_start_matches(' ').starts_with('\t') {
        fault.help("indent with spaces; YAML refuses tabs")
    } else if line.contains("${") {
        fault.help("between brackets and braces a variable needs quotes: \"${NAME}\"")
    } else if line.contains('`') || line.contains(": @") || line.contains(": %") {
        fault.help("put the value in quotes")
    } else {
        fault.help("check the indentation, the brackets and the quotes up to here")
    }
}

fn position(marker: Marker) -> Position {
    Position::new(marker.line().max(1), marker.col() + 1)
}

#[cfg(test)]
mod tests {
    use core::fmt::Write as _;

    use super::*;

    #[test]
    fn every_node_has_its_position() {
        let root = tree("a: 1\nb:\n  - { c: 'x' }\n");

        let Kind::Mapping(entries) = root.kind else { panic!("a mapping") };
        assert_eq!(entries[1].key_at, Position::new(2, 1));
        let Kind::Sequence(items) = &entries[1].value.kind else { panic!("a list") };
        let Kind::Mapping(inner) = &items[0].kind else { panic!("a mapping") };
        assert_eq!(inner[0].value.at, Position::new(3, 10));
        assert!(inner[0].value.end >= Position::new(3, 13));
    }

    #[test]
    fn an_alias_has_the_value_of_its_anchor() {
        let Kind::Mapping(entries) = tree("a: &x [1, 2]\nb: *x\n").kind else {
            panic!("a mapping")
        };

        assert_eq!(entries[0].value.kind, entries[1].value.kind);
    }

    #[test]
    fn an_alias_bomb_is_refused_before_it_grows() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for n in 1..12 {
            let list = vec![format!("*a{}", n - 1); 10].join(", ");
            writeln!(text, "a{n}: &a{n} [{list}]").unwrap();
        }

        assert!(refusal(&text).starts_with("the file holds more than 250000 values"));
    }

    #[test]
    fn an_alias_inside_itself_is_refused() {
        assert_eq!(refusal("a: &a [*a]"), "this alias refers to a node that contains it");
    }

    #[test]
    fn deep_nesting_is_refused() {
        let deep = format!("a: {}{}", "[".repeat(100), "]".repeat(100));
        assert_eq!(refusal(&deep), "values are nested more than 64 levels deep");

        let mut aliased = String::from("a0: &a0 [x]\n");
        for n in 1..80 {
            writeln!(aliased, "a{n}: &a{n} [*a{}]", n - 1).unwrap();
        }
        assert_eq!(refusal(&aliased), "values are nested more than 64 levels deep");
    }

    #[test]
    fn unsupported_yaml_is_refused() {
        assert_eq!(refusal("a: !reset [b]"), "YAML tags are not read");
        assert_eq!(refusal("a: 1\n---\nb: 2"), "a second document begins here");
        assert_eq!(refusal("? [a, b]\n: c"), "a key must be one word");
        assert_eq!(refusal("a: &a { b: 1 }\nc: { <<: *a }"), "merge keys are not read");
        assert_eq!(refusal("# nothing"), "the file is empty");
    }

    #[test]
    fn a_key_twice_is_a_fault_and_the_first_one_counts() {
        let mut faults = Vec::new();
        let root = crate::config::parse("a: 1\na: 2\n", &mut faults).expect("a tree");

        assert_eq!(faults.len(), 1);
        assert_eq!((faults[0].code, faults[0].position), (Code::C111, Position::new(2, 1)));
        let Kind::Mapping(entries) = root.kind else { panic!("a mapping") };
        assert_eq!((entries[0].again, entries[1].again), (false, true));
    }

    fn tree(text: &str) -> Node {
        let mut faults = Vec::new();
        let root = parse(text, &mut faults);
        assert!(faults.is_empty(), "{faults:?}");
        root.expect("a tree")
    }

    fn refusal(text: &str) -> String {
        let mut faults = Vec::new();
        assert!(parse(text, &mut faults).is_none());
        faults.pop().expect("a reason").message
    }
}
