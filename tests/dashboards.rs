//! The dashboards and alerts, checked without Grafana and without Prometheus.
//!
//! Whether each query returns data is checked by `tests/real`, with a real
//! Prometheus. Here: what every dashboard owes its reader, and that dashboards,
//! alerts and exported metrics speak of the same things.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};

use northgate::observe::metrics::{FAMILIES, Kind, Metrics};
use regex::Regex;
use serde_json::{Value, json};

#[test]
fn every_dashboard_is_sound() {
    for (file, board) in dashboards() {
        let faults = faults(&board);
        assert!(faults.is_empty(), "{file}:\n{}\n", faults.join("\n"));
    }
}

#[test]
fn no_two_dashboards_have_the_same_uid() {
    let uids: Vec<_> = dashboards().iter().map(|(_, board)| board["uid"].to_string()).collect();
    assert_eq!(uids.iter().collect::<BTreeSet<_>>().len(), uids.len(), "{uids:?}");
}

#[test]
fn every_family_is_on_a_dashboard() {
    let shown: BTreeSet<_> = dashboards().iter().flat_map(|(_, board)| named(board)).collect();
    let missing: Vec<_> = exported().iter().filter(|(name, _)| !shown.contains(name)).collect();
    assert!(missing.is_empty(), "exported, but on no dashboard: {missing:?}");
}

#[test]
fn alerts_speak_of_metrics_that_exist() {
    let rules = read("dashboards/rules.yml");
    let faults: Vec<_> = rules
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(metric_faults)
        .collect();
    assert!(rules.contains("northgate_http_requests_total"));
    assert!(faults.is_empty(), "{}\n", faults.join("\n"));
}

#[test]
fn every_alert_says_how_urgent_it_is_and_is_tested() {
    // One alert may do without a test of its own: its twin's expression has one.
    let (rules, tests) = (read("dashboards/rules.yml"), read("dashboards/rules.test.yml"));
    let alerts: Vec<_> = rules.split("- alert: ").skip(1).collect();
    assert!(!alerts.is_empty());
    for alert in alerts {
        let name = alert.lines().next().unwrap_or_default();
        let urgent = ["severity: page", "severity: ticket"].iter().any(|word| alert.contains(word));
        assert!(urgent, "{name}");
        assert!(alert.contains("summary: ") && alert.contains("description: "), "{name}");
        let tested = tests.contains(&format!("alertname: {name}\n"))
            || tests.contains(&format!("alertname: {name},"));
        assert!(tested || name == "NorthgateFailedLogins", "{name} has no test");
    }
}

// The checks themselves are worth nothing if they cannot fail.

#[test]
fn every_planted_fault_is_found() {
    let faulty: &[(&str, Value, &str)] = &[
        ("/schemaVersion", json!(36), "schemaVersion"),
        ("/editable", json!(true), "editable"),
        ("/tags", json!(["gateway"]), "tag"),
        ("/links", json!([]), "link"),
        ("/panels/1/title", json!(""), "title"),
        ("/panels/1/description", json!(" "), "description"),
        ("/panels/1/type", json!("piechart"), "piechart"),
        ("/panels/1/id", json!(1), "id"),
        ("/panels/1/gridPos/w", json!(25), "wide"),
        ("/panels/1/gridPos/w", json!("12"), "number"),
        ("/panels/1/gridPos/x", json!(1), "overlaps"),
        ("/panels/1/datasource/uid", json!("prometheus"), "datasource"),
        ("/panels/1/targets/0/datasource", json!({"uid": "x"}), "datasource"),
        ("/panels/1/fieldConfig/defaults", json!({}), "unit"),
        ("/panels/1/targets", json!([]), "no query"),
        ("/panels/1/targets/0/expr", json!(""), "no query"),
        ("/panels/1/targets/0/expr", json!("northgate_ready"), "$job"),
        ("/panels/1/targets/0/expr", json!(query("northgate_ready", "[5m]")), "window"),
        ("/panels/1/targets/0/expr", json!(query("northgate_nonsense", "")), "not exported:"),
        ("/panels/1/targets/0/expr", json!(query("northgate_http_requests_total", "")), "rate"),
        (
            "/panels/1/targets/0/expr",
            json!(format!("rate({})", query("northgate_ready", RATE))),
            "rate",
        ),
        (
            "/panels/1/targets/0/expr",
            json!("sum by (user) (northgate_ready{job=~\"$job\",instance=~\"$instance\"})"),
            "label user",
        ),
        (
            "/panels/1/targets/0/expr",
            json!("northgate_ready{job=~\"$job\",instance=~\"$instance\",user=\"x\"}"),
            "label user",
        ),
        (
            "/panels/1/targets/0/expr",
            json!("northgate_ready{job=~\"$job\",instance=~\"$instance\",job=\"$other\"}"),
            "$other",
        ),
        ("/templating/list/0/type", json!("query"), "datasource"),
    ];
    let sound = dashboards().remove(0).1;
    for (at, value, word) in faulty {
        let mut board = sound.clone();
        *board.pointer_mut(at).unwrap_or_else(|| panic!("no {at}")) = value.clone();

        let found = faults(&board);

        assert!(found.iter().any(|fault| fault.contains(word)), "{at} {value}: {found:?}");
    }
}

fn query(metric: &str, window: &str) -> String {
    format!("{metric}{{job=~\"$job\",instance=~\"$instance\"}}{window}")
}

/// All that is wrong with a dashboard.
fn faults(board: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let mut must = |holds: bool, fault: String| {
        if !holds {
            faults.push(fault);
        }
    };
    must(board["schemaVersion"] == 39, "schemaVersion is not 39".into());
    must(board["editable"] == false, "editable: the repository has the truth".into());
    let tags = strings(&board["tags"]);
    must(
        tags.contains(&"gateway".into()) && tags.contains(&"northgate".into()),
        "a tag lacks".into(),
    );
    must(board["links"][0]["tags"] == json!(["northgate"]), "no link to the others".into());
    for text in ["title", "description", "uid"] {
        must(is_said(&board[text]), format!("the dashboard has no {text}"));
    }
    let variables: Vec<_> = list(&board["templating"]["list"]);
    let names: Vec<_> = variables.iter().map(|variable| text(&variable["name"])).collect();
    must(
        names.starts_with(&["datasource".into(), "job".into(), "instance".into()]),
        format!("variables are {names:?}"),
    );
    must(variables[0]["type"] == "datasource", "the variable datasource is none".into());

    let panels = list(&board["panels"]);
    let mut ids = BTreeSet::new();
    for panel in &panels {
        must(ids.insert(panel["id"].to_string()), format!("panel id {} twice", panel["id"]));
    }
    for (at, panel) in panels.iter().enumerate() {
        faults.extend(layout_faults(panel, &panels[..at]));
        if panel["type"] != "row" {
            faults.extend(panel_faults(panel, &names));
        }
    }
    let queries = variables.iter().map(|variable| text(&variable["query"]["query"]));
    let annotations = list(&board["annotations"]["list"]);
    let notes = annotations.iter().map(|note| text(&note["expr"]));
    faults.extend(queries.chain(notes).flat_map(|query| metric_faults(&query)));
    let whole = board.to_string();
    for name in names {
        let used = whole.contains(&format!("${name}")) || whole.contains(&format!("${{{name}}}"));
        if !used {
            faults.push(format!("nothing asks for ${name}"));
        }
    }
    faults
}

fn panel_faults(panel: &Value, variables: &[String]) -> Vec<String> {
    let title = text(&panel["title"]);
    let mut faults = Vec::new();
    let mut must = |holds: bool, fault: &str| {
        if !holds {
            faults.push(format!("{title}: {fault}"));
        }
    };
    must(is_said(&panel["title"]), "a panel has no title");
    must(is_said(&panel["description"]), "no description");
    must(panel["type"] != "piechart", "a piechart compares nothing");
    must(panel["datasource"]["uid"] == "${datasource}", "the datasource is not the variable");
    must(is_said(&panel["fieldConfig"]["defaults"]["unit"]), "no unit");
    let targets = list(&panel["targets"]);
    must(!targets.is_empty(), "no query");
    let refs: BTreeSet<_> = targets.iter().map(|target| target["refId"].to_string()).collect();
    must(refs.len() == targets.len(), "two queries with one refId");
    for target in &targets {
        must(is_said(&target["expr"]), "no query");
        must(
            target["datasource"]["uid"] == "${datasource}",
            "a query's datasource is not the variable",
        );
    }
    for target in &targets {
        let expr = text(&target["expr"]);
        let in_query = metric_faults(&expr).into_iter().chain(window_faults(&expr, panel, target));
        let in_query = in_query.chain(variable_faults(&expr, variables));
        faults.extend(in_query.map(|fault| format!("{title}: {fault}")));
    }
    faults
}

/// Rates are taken over what Grafana finds fitting, except where the windows are the point.
fn window_faults(expr: &str, panel: &Value, target: &Value) -> Vec<String> {
    let burn = text(&panel["title"]) == "Burn rate";
    let windows = matches(r"\[([^\]]*)\]", expr);
    let allowed = |window: &String| {
        window == "$__rate_interval" || burn || (window == "$__range" && target["instant"] == true)
    };
    windows.iter().filter(|window| !allowed(window)).map(|w| format!("the window [{w}]")).collect()
}

fn variable_faults(expr: &str, variables: &[String]) -> Vec<String> {
    let used = matches(r"\$\{?(\w+)", expr);
    let unknown = used.iter().filter(|name| !variables.contains(name) && !name.starts_with("__"));
    let mut faults: Vec<_> = unknown.map(|name| format!("${name} is no variable")).collect();
    for needed in ["$job", "$instance"] {
        if !expr.contains(needed) {
            faults.push(format!("does not ask for {needed}"));
        }
    }
    faults
}

/// What is wrong with the metrics and labels that a query speaks of.
fn metric_faults(query: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let word = regex(r"\b(?:northgate|process)_[a-z0-9_]+");
    let mut labels: BTreeSet<String> = ["job", "instance", "le"].map(str::to_owned).into();
    for found in word.find_iter(query) {
        let name = found.as_str();
        let Some((family, kind)) = family_of(name) else {
            faults.push(format!("not exported: {name}"));
            continue;
        };
        labels.extend(labels_of(&family));
        let before = &query[..found.start()];
        let rated = before.ends_with("rate(") || before.ends_with("increase(");
        let variable = before.ends_with("label_values(");
        if rated == (kind == Kind::Gauge) && !variable {
            faults
                .push(format!("{name} is a {kind:?}: rate() or increase() does not fit, or lacks"));
        }
        let selector = query[found.end()..].strip_prefix('{').and_then(|rest| rest.split_once('}'));
        for label in
            matches(r#"(\w+)\s*(?:=~|!~|!=|=)\s*""#, selector.map_or("", |(inside, _)| inside))
        {
            if !labels.contains(&label) || !has_label(&family, &label) {
                faults.push(format!("{name} has no label {label}"));
            }
        }
    }
    for group in matches(r"\b(?:by|on|group_left)\s*\(([^)]*)\)", query) {
        for label in group.split(',').map(str::trim).filter(|label| !label.is_empty()) {
            if !labels.is_empty() && !labels.contains(label) && word.is_match(query) {
                faults.push(format!("no metric here has the label {label}"));
            }
        }
    }
    faults
}

/// Panels stand within 24 columns, and not on each other.
fn layout_faults(panel: &Value, before: &[Value]) -> Vec<String> {
    let title = text(&panel["title"]);
    let Some(own) = place(panel) else { return vec![format!("{title}: its place is no number")] };
    let mut faults = Vec::new();
    if own[0] + own[2] > 24 || own[2] == 0 || own[3] == 0 {
        faults.push(format!("{title}: too wide, or of no size"));
    }
    for other in before {
        let Some(place) = place(other) else { continue };
        let apart = |axis: usize| {
            own[axis] + own[axis + 2] <= place[axis] || place[axis] + place[axis + 2] <= own[axis]
        };
        if !apart(0) && !apart(1) {
            faults.push(format!("{title} overlaps {}", text(&other["title"])));
        }
    }
    faults
}

fn place(panel: &Value) -> Option<[u64; 4]> {
    let at = |name: &str| panel["gridPos"][name].as_u64();
    Some([at("x")?, at("y")?, at("w")?, at("h")?])
}

/// The families that a dashboard's panels speak of.
fn named(board: &Value) -> Vec<String> {
    let panels = list(&board["panels"]);
    let targets = panels.iter().flat_map(|panel| list(&panel["targets"]));
    let words = targets.flat_map(|target| {
        matches(r"\b((?:northgate|process)_[a-z0-9_]+)", &text(&target["expr"]))
    });
    words.filter_map(|word| family_of(&word).map(|(name, _)| name)).collect()
}

/// The family that the series `name` belongs to.
fn family_of(name: &str) -> Option<(String, Kind)> {
    let find = |name: &str| exported().iter().find(|(have, _)| have == name).cloned();
    find(name).filter(|(_, kind)| *kind != Kind::Histogram).or_else(|| {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end))?;
        find(base).filter(|(_, kind)| *kind == Kind::Histogram)
    })
}

/// Every family the gateway exports: its own, and those of the process as the crate names them.
fn exported() -> &'static [(String, Kind)] {
    static EXPORTED: LazyLock<Vec<(String, Kind)>> = LazyLock::new(read_exported);
    &EXPORTED
}

fn read_exported() -> Vec<(String, Kind)> {
    let ours = FAMILIES.iter().map(|family| (family.name.to_owned(), family.kind));
    let text = Metrics::default().render();
    let theirs = matches(r"# TYPE (process_\w+) ", &text).into_iter().map(|name| {
        let kind = if name.ends_with("_total") { Kind::Counter } else { Kind::Gauge };
        (name, kind)
    });
    ours.chain(theirs).collect()
}

fn labels_of(family: &str) -> Vec<String> {
    let family = FAMILIES.iter().find(|have| have.name == family);
    family.map_or(&[][..], |family| family.labels).iter().map(|label| (*label).to_owned()).collect()
}

fn has_label(family: &str, label: &str) -> bool {
    ["job", "instance", "le"].contains(&label) || labels_of(family).iter().any(|have| have == label)
}

/// Every dashboard, with its file's name.
fn dashboards() -> Vec<(String, Value)> {
    let files = ["overview", "tokens-and-sessions", "upstreams", "limits-and-capacity"];
    let board = |name: &str| {
        let file = format!("dashboards/{name}.json");
        let board = serde_json::from_str(&read(&file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        (file, board)
    };
    let boards: Vec<_> = files.map(board).into();
    let folder = fs::read_dir(Path::new(ROOT).join("dashboards")).expect("a folder");
    let json = folder.filter(|entry| {
        let path = entry.as_ref().expect("a file").path();
        path.extension().is_some_and(|extension| extension == "json")
    });
    assert_eq!(json.count(), boards.len(), "a dashboard that this test does not know");
    boards
}

fn read(path: &str) -> String {
    let path = Path::new(ROOT).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The first group of every match.
fn matches(pattern: &'static str, text: &str) -> Vec<String> {
    regex(pattern).captures_iter(text).map(|found| found[1].to_owned()).collect()
}

/// The pattern, compiled once: there are some ten thousand uses.
fn regex(pattern: &'static str) -> Regex {
    static COMPILED: LazyLock<Mutex<HashMap<&str, Regex>>> = LazyLock::new(Mutex::default);
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    compiled.entry(pattern).or_insert_with(|| Regex::new(pattern).expect("a pattern")).clone()
}

fn is_said(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.trim().is_empty())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn strings(value: &Value) -> Vec<String> {
    list(value).iter().map(text).collect()
}

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

const RATE: &str = "[$__rate_interval]";
