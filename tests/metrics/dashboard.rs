//! `grafana/`: the dashboard and the rules.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::iter;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

pub fn grafana(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("grafana").join(file)
}

/// A query of a panel.
pub struct Query {
    pub panel: String,
    pub legend: String,
    /// With Grafana's variables.
    expr: String,
}

impl Query {
    /// The query with all variables at "All", and this many seconds as the range and the interval.
    pub fn of(&self, seconds: u32) -> String {
        let variables = [
            ("$__interval_ms", format!("{seconds}000")),
            ("$__range_s", seconds.to_string()),
            ("$__interval", format!("{seconds}s")),
            ("$__rate_interval", format!("{seconds}s")),
            ("$__range", format!("{seconds}s")),
            ("${queue:pipe}", ".*".to_owned()),
            ("$namespace", ".*".to_owned()),
            ("$queue", ".*".to_owned()),
            ("$job_type", ".*".to_owned()),
        ];
        variables.iter().fold(self.expr.clone(), |expr, (name, value)| expr.replace(name, value))
    }

    /// Whether the query is about the time of one bar.
    pub fn is_per_bar(&self) -> bool {
        self.expr.contains("$__interval")
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The queries of all panels; a column of a table is a legend too.
pub fn queries() -> Vec<Query> {
    let of_panel = |panel: &Value| -> Vec<Query> {
        let targets = panel["targets"].as_array().unwrap();
        let columns = &panel["transformations"][1]["options"]["renameByName"];
        let legend = |target: &Value| {
            let value = if targets.len() == 1 {
                "Value".to_owned()
            } else {
                format!("Value #{}", text(&target["refId"]))
            };
            match columns[value].as_str() {
                Some(column) => format!("{column}: {{{{queue}}}} {{{{instance}}}}"),
                None => text(&target["legendFormat"]),
            }
        };
        let query = |target: &Value| Query {
            panel: text(&panel["title"]),
            legend: legend(target),
            expr: text(&target["expr"]),
        };
        targets.iter().map(query).collect()
    };
    panels(&dashboard()).into_iter().flat_map(of_panel).collect()
}

/// The other queries of the dashboard: of its variables and annotations.
pub fn other_queries() -> Vec<Query> {
    let dashboard = dashboard();
    let annotations = dashboard["annotations"]["list"].as_array().unwrap().iter();
    let annotations = annotations.map(|annotation| Query {
        panel: text(&annotation["name"]),
        legend: text(&annotation["textFormat"]),
        expr: text(&annotation["expr"]),
    });
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter();
    let variables = variables.filter(|variable| variable["type"] == "query").map(|variable| {
        let asked = text(&variable["query"]["query"]);
        let asked =
            asked.strip_prefix("label_values(").and_then(|asked| asked.strip_suffix(')')).unwrap();
        let (series, label) = asked.rsplit_once(", ").unwrap();
        Query {
            panel: text(&variable["name"]),
            legend: format!("{{{{{label}}}}}"),
            expr: format!("group by ({label}) ({series})"),
        }
    });
    annotations.chain(variables).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&std::fs::read_to_string(grafana("dashboard.json")).unwrap()).unwrap()
}

/// The headings of rows, and the panels of open and of collapsed rows.
fn all_panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    let outer = dashboard["panels"].as_array().unwrap().iter();
    outer
        .flat_map(|panel| iter::once(panel).chain(panel["panels"].as_array().into_iter().flatten()))
}

/// All panels except row headings.
fn panels(dashboard: &Value) -> Vec<&Value> {
    all_panels(dashboard).filter(|panel| panel["type"] != "row").collect()
}

/// Runs a program and asserts its success.
fn run(program: &str, args: &[&Path]) -> String {
    let ran = Command::new(program).args(args).output().unwrap();
    let output = String::from_utf8([ran.stdout, ran.stderr].concat()).unwrap();
    assert!(ran.status.success(), "{program} {args:?}: {output}");
    output
}

#[test]
fn the_dashboard_is_up_to_date() {
    let elsewhere = tempfile::tempdir().unwrap();
    let script = elsewhere.path().join("dashboard.py");
    std::fs::copy(grafana("dashboard.py"), &script).unwrap();
    run("python3", &[&script]);
    let written = std::fs::read_to_string(elsewhere.path().join("dashboard.json")).unwrap();
    let is = std::fs::read_to_string(grafana("dashboard.json")).unwrap();
    assert!(written == is, "run: python3 grafana/dashboard.py");
}

#[test]
fn every_panel_explains_bad_values() {
    let dashboard = dashboard();
    let panels = panels(&dashboard);
    assert!(panels.len() > 30, "{} panels", panels.len());
    for panel in panels {
        let description = panel["description"].as_str().unwrap_or_default();
        assert!(description.contains("Bad: "), "{}: {description}", panel["title"]);
    }
}

/// Grafana does not refuse overlaps and duplicate ids, but shows wrong panels.
#[test]
fn panels_have_unique_ids_and_do_not_overlap() {
    let dashboard = dashboard();
    let mut ids = HashSet::new();
    for panel in all_panels(&dashboard) {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}", panel["title"]);
    }
    let rows = dashboard["panels"].as_array().unwrap();
    check_positions(rows);
    rows.iter()
        .filter_map(|row| row["panels"].as_array())
        .for_each(|inside| check_positions(inside));
}

fn check_positions(panels: &[Value]) {
    let mut taken = HashSet::new();
    for panel in panels {
        let of = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        assert!(of("x") + of("w") <= 24, "{}", panel["title"]);
        for (x, y) in (of("x")..of("x") + of("w"))
            .flat_map(|x| (of("y")..of("y") + of("h")).map(move |y| (x, y)))
        {
            assert!(taken.insert((x, y)), "{} overlaps another panel at {x}, {y}", panel["title"]);
        }
    }
}

/// Grafana sends no queries for a collapsed row.
#[test]
fn only_the_first_two_rows_are_open() {
    let dashboard = dashboard();
    let rows: Vec<_> = all_panels(&dashboard).filter(|panel| panel["type"] == "row").collect();
    assert!(rows.len() > 5, "{} rows", rows.len());
    for (number, row) in rows.iter().enumerate() {
        let inside = row["panels"].as_array().unwrap().len();
        assert_eq!(row["collapsed"], number >= 2, "{}", row["title"]);
        assert_eq!(inside > 0, number >= 2, "{}", row["title"]);
    }
}

#[test]
fn the_rules_are_valid_and_fire_correctly() {
    run("promtool", &[Path::new("check"), Path::new("rules"), &grafana("rules.yml")]);
    for file in ["counts.yml", "alerts.yml"] {
        run("promtool", &[Path::new("test"), Path::new("rules"), &grafana("tests").join(file)]);
    }
}

/// The metrics by name, with the expected row in README.md: type, labels, meaning.
fn metrics() -> BTreeMap<&'static str, (&'static str, BTreeSet<&'static str>, &'static str)> {
    let exposed = include_str!(
        "snapshots/all__metrics__counts__names_types_and_help_texts_do_not_change.snap"
    );
    let metric = |text: &'static str| {
        let (name, rest) = text.split_once(' ').unwrap();
        let (help, rest) = rest.split_once('\n').unwrap();
        let kind = rest.lines().next().unwrap().rsplit(' ').next().unwrap();
        let labels = rest.split("=\"").filter_map(|before| before.rsplit(['{', ',']).next());
        let labels = labels
            .filter(|label| label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
        let labels = labels.filter(|label| !["queue", "le"].contains(label)).collect();
        (name, (kind, labels, help))
    };
    exposed.split("# HELP ").skip(1).map(metric).collect()
}

#[test]
fn the_table_has_every_metric_and_a_panel_for_it() {
    let readme = std::fs::read_to_string(grafana("README.md")).unwrap();
    let queries = queries();
    let mut rows = readme.lines().filter(|line| line.starts_with("| `leasehold_"));
    for (name, (kind, labels, help)) in metrics() {
        let row = rows.next().unwrap_or_else(|| panic!("{name} is missing"));
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!((cells[0], cells[1], cells[3]), (&*format!("`{name}`"), kind, help));
        assert_eq!(
            cells[2]
                .split([' ', ',', '`'])
                .filter(|label| !label.is_empty())
                .collect::<BTreeSet<_>>(),
            labels,
            "{name}"
        );
        for panel in cells[4].split("; ") {
            let shows = |query: &Query| query.panel == panel && query.expr.contains(name);
            assert!(queries.iter().any(shows), "{panel:?} does not show {name}");
        }
    }
    assert_eq!(rows.next(), None);
}

#[test]
fn every_queried_metric_exists() {
    let metrics = metrics();
    for file in ["dashboard.json", "rules.yml", "README.md"] {
        let text = std::fs::read_to_string(grafana(file)).unwrap().replace("\\\"", "\"");
        for asked in text.split("leasehold_").skip(1) {
            let end = asked
                .find(|character: char| !character.is_ascii_lowercase() && character != '_')
                .unwrap();
            let name = format!("leasehold_{}", asked[..end].trim_end_matches("_bucket"));
            let (_, labels, _) =
                metrics.get(&*name).unwrap_or_else(|| panic!("{file}: unknown metric {name}"));
            let Some(matchers) = asked[end..].strip_prefix('{') else { continue };
            for matcher in matchers.split_once('}').unwrap().0.split(", ") {
                let label = matcher.split(['=', '!']).next().unwrap();
                let is_there = ["namespace", "queue"].contains(&label) || labels.contains(label);
                assert!(is_there, "{file}: {name} has no label {label}");
            }
        }
    }
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let rules = std::fs::read_to_string(grafana("rules.yml")).unwrap();
    let named = |prefix: &str, text: &str| -> Vec<String> {
        text.lines().filter_map(|line| Some(line.trim().strip_prefix(prefix)?.to_owned())).collect()
    };
    let alerts = named("- alert: ", &rules);
    let runbooks: Vec<_> =
        alerts.iter().map(|alert| format!("README.md#{}", alert.to_lowercase())).collect();
    assert_eq!(named("runbook_url: ", &rules), runbooks);
    let readme = std::fs::read_to_string(grafana("README.md")).unwrap();
    assert_eq!(
        named("### ", &readme).into_iter().collect::<BTreeSet<_>>(),
        alerts.into_iter().collect()
    );
}
