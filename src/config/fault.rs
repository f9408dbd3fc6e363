//! A fault: a mistake in the file, with its position, the problem and the fix.

use core::fmt::{self, Write as _};

use crate::base::secret::HIDDEN;

/// A position in the file.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Position {
    /// The line, from 1.
    pub line: u32,
    /// The character within it, from 1.
    pub column: u32,
}

impl Position {
    /// The first character of the file.
    pub const START: Self = Self { line: 1, column: 1 };

    /// Returns the given line and character, both from 1.
    pub const fn new(line: usize, column: usize) -> Self {
        Self { line: line as u32, column: column as u32 }
    }

    /// Returns the position after a beginning of a file.
    pub(crate) fn behind(text: &str) -> Self {
        let last = text.rsplit('\n').next().unwrap_or_default();
        Self::new(text.matches('\n').count() + 1, last.chars().count() + 1)
    }
}

/// The kinds of faults. The numbers are stable: scripts depend on them.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Code {
    /// An unknown key.
    C101,
    /// A value of the wrong type.
    C102,
    /// An invalid value.
    C103,
    /// A name that is not defined.
    C104,
    /// A missing key.
    C105,
    /// Two keys that exclude each other.
    C106,
    /// A secret in the file itself. A warning.
    C107,
    /// A file that cannot be read.
    C108,
    /// An unsafe combination.
    C109,
    /// Advice. A warning.
    C110,
    /// A duplicate.
    C111,
    /// Two routes that match the same requests.
    C112,
}

impl Code {
    /// Whether the fault leaves the configuration usable.
    pub const fn is_warning(self) -> bool {
        matches!(self, Self::C107 | Self::C110)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One fault. Its texts never hold a secret or the value of a variable.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// The kind of fault.
    pub code: Code,
    /// The position in the file.
    pub position: Position,
    /// The problem.
    pub message: String,
    /// The fix; may be empty.
    pub help: String,
}

impl Fault {
    pub(crate) fn new(code: Code, position: Position, message: impl Into<String>) -> Self {
        Self { code, position, message: message.into(), help: String::new() }
    }

    #[must_use]
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = help.into();
        self
    }
}

/// The output formats of faults.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Format {
    /// For terminals: position, text, the line, the fix.
    #[default]
    Text,
    /// One JSON array of objects.
    Json,
    /// GitHub's workflow commands, one per line.
    Github,
}

/// All faults of one file, in the order of its lines.
#[derive(Clone, Debug)]
pub struct Faults {
    file: String,
    lines: Vec<Line>,
    all: Vec<Fault>,
}

/// A line of the file, as an excerpt shows it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Line {
    text: String,
    /// The columns of the written line that `MASK` replaces, first and last, in order.
    hidden: Vec<(usize, usize)>,
}

impl Line {
    /// Returns a line shown as written.
    pub(crate) fn whole(line: &str) -> Self {
        Self { text: printable(line), hidden: Vec::new() }
    }

    /// Returns a line without the text in `secrets`, each from the first index to before the second; the result does not
    /// reveal their lengths.
    pub(crate) fn without(line: &[char], mut secrets: Vec<(usize, usize)>) -> Self {
        secrets.sort_unstable();
        let mut hidden: Vec<(usize, usize)> = Vec::new();
        for (start, end) in secrets {
            let end = end.min(line.len());
            match hidden.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ if start < end => hidden.push((start, end)),
                _ => {}
            }
        }
        let (mut text, mut from) = (String::new(), 0);
        for (start, end) in &hidden {
            text.extend(&line[from..*start]);
            text.push_str(HIDDEN);
            from = *end;
        }
        text.extend(&line[from..]);
        Self { text: printable(&text), hidden }
    }

    #[cfg(test)]
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Returns the shown column of the written line's `column`th character.
    fn column(&self, column: usize) -> usize {
        let (index, mut from, mut shown) = (column.saturating_sub(1), 0, 1);
        for (start, end) in &self.hidden {
            if index < *end {
                return shown + (*start).min(index) - from;
            }
            shown += start - from + HIDDEN.len();
            from = *end;
        }
        shown + index - from
    }
}

/// Splits a file into lines as YAML does: a carriage return ends one too.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = &str> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    text.split('\n').flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
}

impl Faults {
    /// Creates the faults of `file`, with excerpts from `lines`, in which secrets are already replaced.
    pub(crate) fn new(file: String, lines: Vec<Line>, mut faults: Vec<Fault>) -> Self {
        faults.sort_by(|a, b| {
            (a.position, a.code, &a.message).cmp(&(b.position, b.code, &b.message))
        });
        // An alias repeats the same mistake for every use.
        faults.dedup();
        Self { file, lines, all: faults }
    }

    /// Returns the faults in order.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.all.iter()
    }

    /// Whether any fault makes the file unusable.
    pub fn any_error(&self) -> bool {
        self.all.iter().any(|fault| !fault.code.is_warning())
    }

    /// Whether there are no faults.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Renders all faults in `format`, each line ended.
    pub fn render(&self, format: Format) -> String {
        let mut out = String::new();
        match format {
            Format::Text => self.all.iter().for_each(|fault| self.text(fault, &mut out)),
            Format::Github => self.all.iter().for_each(|fault| self.github(fault, &mut out)),
            Format::Json => {
                let all: Vec<_> = self.all.iter().map(|fault| self.json(fault)).collect();
                out = serde_json::Value::Array(all).to_string();
                out.push('\n');
            }
        }
        out
    }

    fn text(&self, fault: &Fault, out: &mut String) {
        let Fault { code, position: Position { line, column }, message, help } = fault;
        let warning = if code.is_warning() { "warning: " } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}:{line}:{column}: [{code}] {warning}{message}", self.file);
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        let excerpt =
            self.lines.get(*line as usize - 1).filter(|line| !line.text.trim().is_empty());
        if let Some(excerpt) = excerpt {
            let (shown, column) = window(&excerpt.text, excerpt.column(*column as usize));
            let caret = " ".repeat(column - 1);
            let help = if help.is_empty() { String::new() } else { format!(" {help}") };
            let _ = writeln!(out, "{margin} |\n{number} | {shown}\n{margin} | {caret}^{help}");
        } else if !help.is_empty() {
            let _ = writeln!(out, "{margin} = {help}");
        }
    }

    fn json(&self, fault: &Fault) -> serde_json::Value {
        serde_json::json!({
            "file": self.file,
            "line": fault.position.line,
            "column": fault.position.column,
            "code": fault.code.to_string(),
            "severity": if fault.code.is_warning() { "warning" } else { "error" },
            "message": fault.message,
            "help": fault.help,
        })
    }

    fn github(&self, fault: &Fault, out: &mut String) {
        let Fault { code, position: Position { line, column }, message, help } = fault;
        let level = if code.is_warning() { "warning" } else { "error" };
        let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
        let file = data(&self.file).replace(':', "%3A").replace(',', "%2C");
        let text = if help.is_empty() { message.clone() } else { format!("{message}: {help}") };
        let _ = writeln!(
            out,
            "::{level} file={file},line={line},col={column},title={code}::{}",
            data(&text)
        );
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(Format::Text))
    }
}

impl core::error::Error for Faults {}

/// Replaces characters that would move the caret or control a terminal.
fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Returns the part of a long line around `column`, and the column within that part.
fn window(line: &str, column: usize) -> (String, usize) {
    let length = line.chars().count();
    let column = column.clamp(1, length + 1);
    if length <= WIDTH {
        return (line.to_owned(), column);
    }
    let start = column.saturating_sub(WIDTH / 2).min(length - WIDTH);
    let part: String = line.chars().skip(start).take(WIDTH).collect();
    let cut = if start > 0 { "…" } else { "" };
    let more = if start + WIDTH < length { "…" } else { "" };
    (format!("{cut}{part}{more}"), column - start + cut.chars().count())
}

/// The characters of a line that an excerpt shows.
const WIDTH: usize = 120;

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "version: 1\nroutes:\n  - { id: app, upstream: shpo }\n";

    #[test]
    fn text_shows_the_line_and_what_to_write() {
        assert_eq!(
            faults(FILE).render(Format::Text),
            "gateway.yaml:1:1: [C110] warning: think\n\
             \u{20} |\n\
             1 | version: 1\n\
             \u{20} | ^\n\
             gateway.yaml:3:24: [C104] no such upstream\n\
             \u{20} |\n\
             3 |   - { id: app, upstream: shpo }\n\
             \u{20} |                        ^ did you mean `shop`?\n"
        );
    }

    #[test]
    fn json_is_for_programs() {
        assert_eq!(
            faults(FILE).render(Format::Json),
            "[{\"code\":\"C110\",\"column\":1,\"file\":\"gateway.yaml\",\"help\":\"\",\"line\":1,\"message\":\"think\",\"severity\":\"warning\"},\
             {\"code\":\"C104\",\"column\":24,\"file\":\"gateway.yaml\",\"help\":\"did you mean `shop`?\",\"line\":3,\"message\":\"no such upstream\",\"severity\":\"error\"}]\n"
        );
    }

    #[test]
    fn github_gets_one_command_per_fault() {
        assert_eq!(
            faults(FILE).render(Format::Github),
            "::warning file=gateway.yaml,line=1,col=1,title=C110::think\n\
             ::error file=gateway.yaml,line=3,col=24,title=C104::no such upstream: did you mean `shop`?\n"
        );
    }

    #[test]
    fn a_long_line_is_cut_around_the_mistake() {
        let line = format!("{}HERE{}", "a".repeat(300), "b".repeat(300));
        let (shown, column) = window(&line, 301);

        assert_eq!(shown.chars().nth(column - 1), Some('H'));
        assert_eq!(shown.chars().count(), WIDTH + 2);
    }

    #[test]
    fn one_mistake_behind_two_aliases_is_told_once() {
        let fault = Fault::new(Code::C103, Position::START, "bad");
        let faults = Faults::new("f".into(), vec![Line::whole("a")], vec![fault.clone(), fault]);

        assert_eq!(faults.iter().count(), 1);
    }

    fn faults(text: &str) -> Faults {
        let upstream = Fault::new(Code::C104, Position::new(3, 24), "no such upstream")
            .help("did you mean `shop`?");
        let warning = Fault::new(Code::C110, Position::new(1, 1), "think");
        let lines = lines(text).map(Line::whole).collect();
        Faults::new("gateway.yaml".into(), lines, vec![upstream, warning])
    }
}
