//! No file uses another one that uses it in turn, at whatever distance.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Source, code, is_word, sources};

#[test]
fn no_files_use_each_other_in_a_circle() {
    let circles = Uses::of(&sources("src")).circles();
    assert!(circles.is_empty(), "\n{}\n", circles.join("\n"));
}

#[test]
fn a_planted_circle_is_found() {
    let planted: [(&[(&str, &str)], &str); 6] = [
        (
            &[
                ("src/a/mod.rs", "mod b; mod c;"),
                ("src/a/b.rs", "use super::c::C;"),
                ("src/a/c.rs", "use super::{b::{self, B}};"),
            ],
            "src/a/b.rs -> src/a/c.rs -> src/a/b.rs",
        ),
        (
            &[
                ("src/a/mod.rs", "mod b; use self::b::B; pub struct A(B);"),
                ("src/a/b.rs", "fn f(a: &crate::a::A) {}"),
            ],
            "src/a/mod.rs -> src/a/b.rs -> src/a/mod.rs",
        ),
        (
            &[("src/a/mod.rs", "mod b; use b::g;"), ("src/a/b.rs", "use super::A as Above;")],
            "src/a/mod.rs -> src/a/b.rs -> src/a/mod.rs",
        ),
        (
            &[
                ("src/a/mod.rs", "mod b; pub struct A; fn f() { b::g() }"),
                ("src/a/b.rs", "use super::A; pub fn g() {}"),
            ],
            "src/a/mod.rs -> src/a/b.rs -> src/a/mod.rs",
        ),
        (
            &[
                ("src/a/mod.rs", "mod b; mod c; pub use self::b::B; pub(crate) use c::*;"),
                ("src/a/b.rs", "use crate::a::c;"),
                ("src/a/c.rs", "use crate::a::B;"),
            ],
            "src/a/b.rs -> src/a/c.rs -> src/a/b.rs",
        ),
        (
            &[
                ("src/a/mod.rs", "mod b; mod c; mod d;"),
                ("src/a/b.rs", "use super::c::C;"),
                ("src/a/c.rs", "use super::d::D;"),
                ("src/a/d.rs", "use crate::a::b::{B};"),
            ],
            "src/a/b.rs -> src/a/c.rs -> src/a/d.rs -> src/a/b.rs",
        ),
    ];
    for (files, circle) in planted {
        assert_eq!(Uses::of(&planted_sources(files)).circles(), [circle]);
    }
}

#[test]
fn re_exports_and_tests_close_no_circle() {
    let files = [
        ("src/a/mod.rs", "mod b; mod c; pub use b::{B, c}; #[cfg(test)] mod tests;"),
        ("src/a/b.rs", "use super::c::C; #[cfg(test)] mod tests { use super::*; }"),
        (
            "src/a/c.rs",
            "#[cfg(test)]\nmod tests { use super::super::b::B; } pub(in crate::a) fn f() {}",
        ),
        ("src/a/tests.rs", "use super::b::B;"),
    ];
    assert_eq!(Uses::of(&planted_sources(&files)).circles(), Vec::<String>::new());
}

/// A module by the names that lead to it from the crate's root.
type Module = Vec<String>;

/// Which file uses which.
struct Uses {
    paths: BTreeMap<Module, String>,
    uses: BTreeMap<Module, BTreeSet<Module>>,
}

impl Uses {
    fn of(sources: &[Source]) -> Self {
        let mut texts = BTreeMap::new();
        let mut tests = BTreeSet::new();
        let mut paths = BTreeMap::new();
        // The binary is a crate of its own.
        for source in sources.iter().filter(|source| source.path != "src/main.rs") {
            let module = module(&source.path);
            let (text, only_tests) = without_tests(&code(&source.text));
            tests.extend(only_tests.into_iter().map(|name| below(&module, &[name])));
            paths.insert(module.clone(), source.path.clone());
            texts.insert(module, text);
        }
        let is_test = |module: &Module| (1..=module.len()).any(|n| tests.contains(&module[..n]));
        texts.retain(|module, _| !is_test(module));
        paths.retain(|module, _| !is_test(module));
        let mut re_exports = BTreeMap::new();
        let mut found = Vec::new();
        for (module, text) in &texts {
            let (exported, used) = paths_in(text, module, &texts);
            for path in exported {
                let name = path.alias.or(path.target.last().cloned()).unwrap_or_default();
                re_exports.insert(below(module, &[name]), path.target);
            }
            found.extend(used.into_iter().map(|path| (module.clone(), path)));
        }
        let mut uses: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
        for (module, mut target) in found {
            // A name that is only passed on is the file's that it comes from.
            for _ in 0..5 {
                let Some(end) = (1..=target.len()).find(|n| re_exports.contains_key(&target[..*n]))
                else {
                    break;
                };
                target = below(&re_exports[&target[..end]], &target[end..]);
            }
            let owner = (1..=target.len()).rev().find(|n| texts.contains_key(&target[..*n]));
            if let Some(owner) = owner.map(|n| target[..n].to_vec()).filter(|own| *own != module) {
                uses.entry(module).or_default().insert(owner);
            }
        }
        Self { paths, uses }
    }

    /// The shortest circle through the first file of each knot.
    fn circles(&self) -> Vec<String> {
        let mut told: BTreeSet<&Module> = BTreeSet::new();
        let mut circles = Vec::new();
        for module in self.uses.keys() {
            let Some(circle) = self.circle(module) else { continue };
            if circle.iter().any(|file| told.contains(file)) {
                continue;
            }
            circles.push(circle.iter().map(|file| &*self.paths[*file]).collect::<Vec<_>>());
            told.extend(circle);
        }
        circles.into_iter().map(|circle| circle.join(" -> ")).collect()
    }

    fn circle<'m>(&'m self, start: &'m Module) -> Option<Vec<&'m Module>> {
        let mut before: BTreeMap<&Module, &Module> = BTreeMap::new();
        let mut open = VecDeque::from([start]);
        while let Some(at) = open.pop_front() {
            for next in self.uses.get(at).into_iter().flatten() {
                if next == start {
                    let mut circle = vec![start, at];
                    while circle[circle.len() - 1] != start {
                        circle.push(before[circle[circle.len() - 1]]);
                    }
                    circle.reverse();
                    return Some(circle);
                }
                if !before.contains_key(next) {
                    before.insert(next, at);
                    open.push_back(next);
                }
            }
        }
        None
    }
}

/// A path in a file, from the crate's root.
struct Used {
    target: Module,
    /// What follows `as`.
    alias: Option<String>,
}

/// What `module` passes on under its own name, and what it uses, as paths from the crate's root.
fn paths_in(
    text: &str,
    module: &Module,
    modules: &BTreeMap<Module, String>,
) -> (Vec<Used>, Vec<Module>) {
    let (mut exported, mut used) = (Vec::new(), Vec::new());
    // Who may see an item is no use of anything.
    let mut rest = text.replace("pub(in crate", "pub(in_crate");
    for (at, _) in text.match_indices("use ") {
        let begins = text[..at].chars().next_back().is_none_or(|c| !is_word(c));
        let Some(length) = text[at..].find(';').filter(|_| begins) else { continue };
        rest.replace_range(at..at + length, &" ".repeat(length));
        let line = text[..at].rsplit([';', '}', '{', ']']).next().unwrap_or_default();
        let is_public = line.trim_start().starts_with("pub");
        for (names, alias) in branches(&text[at + 4..at + length]) {
            let Some(target) = resolve(&names, module, modules) else { continue };
            if is_public {
                exported.push(Used { target, alias });
            } else {
                used.push(target);
            }
        }
    }
    // A path that begins with the name of a child needs no `use`; other first names are imported, or of the file itself.
    for names in rest.split(|c: char| !is_word(c) && c != ':').filter(|path| path.contains("::")) {
        let names: Vec<_> = names.split("::").map(str::to_owned).collect();
        used.extend(resolve(&names, module, modules));
    }
    (exported, used)
}

/// The path that `names` mean in `module`; `None` if they lead out of the crate or to a name that was imported.
fn resolve(
    names: &[String],
    module: &Module,
    modules: &BTreeMap<Module, String>,
) -> Option<Module> {
    let (first, rest) = names.split_first()?;
    match &**first {
        "crate" => Some(rest.to_vec()),
        "self" => Some(below(module, rest)),
        "super" => {
            let climbs = names.iter().take_while(|name| *name == "super").count();
            Some(below(&module[..module.len().checked_sub(climbs)?], &names[climbs..]))
        }
        _ => Some(below(module, names))
            .filter(|path| modules.contains_key(&path[..=module.len()]) && !module.is_empty()),
    }
}

/// `a::{b, c::{self, d as e}}` as paths, with what follows `as`.
fn branches(tree: &str) -> Vec<(Vec<String>, Option<String>)> {
    let tree = tree.trim();
    let words = |text: &str| -> Vec<String> {
        text.split("::").map(str::trim).filter(|n| !n.is_empty()).map(str::to_owned).collect()
    };
    let Some((head, group)) = tree.split_once('{') else {
        let (path, alias) = match tree.split_once(" as ") {
            Some((path, alias)) => (path, Some(alias.trim().to_owned())),
            None => (tree, None),
        };
        let mut path = words(path);
        // `b::{self}` is `b`.
        if path.len() > 1 && path.last().is_some_and(|name| name == "self") {
            path.pop();
        }
        return vec![(path, alias)];
    };
    let group = group.strip_suffix('}').unwrap_or(group);
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if c == ',' && depth == 0 {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    let full = |part: &String| branches(&format!("{}{}", head, part.trim_start()));
    parts.iter().filter(|part| !part.trim().is_empty()).flat_map(full).collect()
}

/// The code that is built for users, with blanks in place of what is built for tests; and the modules of other
/// files that are built for tests alone.
pub(super) fn without_tests(code: &str) -> (String, Vec<String>) {
    let (mut left, mut modules) = (code.to_owned(), Vec::new());
    for attribute in ["#[cfg(test)]", "#[cfg(any(fuzzing, test))]"] {
        for (at, _) in code.match_indices(attribute) {
            let (mut depth, mut end) = (0_i32, code.len());
            for (index, c) in code[at..].char_indices() {
                match c {
                    '(' | '[' | '{' => depth += 1,
                    ')' | ']' | '}' => depth -= 1,
                    _ => {}
                }
                if depth < 0 || (depth == 0 && matches!(c, ';' | '}')) {
                    end = at + index + usize::from(depth >= 0);
                    break;
                }
            }
            let item = code[at + attribute.len()..end].trim();
            if let Some((_, name)) = item.strip_suffix(';').and_then(|it| it.split_once("mod ")) {
                modules.push(name.trim().to_owned());
            }
            let blank = |c: char| if c == '\n' { '\n' } else { ' ' };
            let blanks: String = code[at..end].bytes().map(|b| blank(char::from(b))).collect();
            left.replace_range(at..end, &blanks);
        }
    }
    (left, modules)
}

fn module(path: &str) -> Module {
    let path = path.strip_prefix("src/").unwrap_or(path);
    let path = path.strip_suffix(".rs").unwrap_or(path);
    let names = path.split('/').filter(|name| !matches!(*name, "mod" | "lib" | "main"));
    names.map(str::to_owned).collect()
}

fn below(module: &[String], names: &[String]) -> Module {
    [module, names].concat()
}

/// Sources of these paths and texts.
pub(super) fn planted_sources(files: &[(&str, &str)]) -> Vec<Source> {
    let source =
        |(path, text): &(&str, &str)| Source { path: (*path).to_owned(), text: (*text).to_owned() };
    files.iter().map(source).collect()
}
