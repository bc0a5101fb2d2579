//! `grafana/`: the dashboard and the rules.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn grafana(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("grafana").join(file)
}

fn dashboard() -> Value {
    serde_json::from_str(&std::fs::read_to_string(grafana("dashboard.json")).unwrap()).unwrap()
}

/// All but the rows' headings.
fn panels(dashboard: &Value) -> Vec<&Value> {
    dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row").collect()
}

/// Runs a program, which must succeed.
fn run(program: &str, args: &[&Path]) -> String {
    let ran = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8([ran.stdout, ran.stderr].concat()).unwrap();
    assert!(ran.status.success(), "{program} {args:?}: {said}");
    said
}

#[test]
fn the_dashboard_is_what_its_script_writes() {
    let elsewhere = tempfile::tempdir().unwrap();
    let script = elsewhere.path().join("dashboard.py");
    std::fs::copy(grafana("dashboard.py"), &script).unwrap();
    run("python3", &[&script]);
    let written = std::fs::read_to_string(elsewhere.path().join("dashboard.json")).unwrap();
    let is = std::fs::read_to_string(grafana("dashboard.json")).unwrap();
    assert!(written == is, "run: python3 grafana/dashboard.py");
}

#[test]
fn every_panel_says_what_to_do_when_it_looks_bad() {
    let dashboard = dashboard();
    let panels = panels(&dashboard);
    assert!(panels.len() > 30, "{} panels", panels.len());
    for panel in panels {
        let description = panel["description"].as_str().unwrap_or_default();
        assert!(description.contains("Bad: "), "{}: {description}", panel["title"]);
    }
}

/// Grafana refuses none of this, it only shows something else.
#[test]
fn panels_have_ids_of_their_own_and_places_of_their_own() {
    let dashboard = dashboard();
    let (mut taken, mut ids) = (HashSet::new(), HashSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}", panel["title"]);
        let of = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        assert!(of("x") + of("w") <= 24, "{}", panel["title"]);
        for (x, y) in (of("x")..of("x") + of("w")).flat_map(|x| (of("y")..of("y") + of("h")).map(move |y| (x, y))) {
            assert!(taken.insert((x, y)), "{} overlaps another panel at {x}, {y}", panel["title"]);
        }
    }
}

#[test]
fn the_rules_are_valid_and_fire_when_they_should_and_only_then() {
    run("promtool", &[Path::new("check"), Path::new("rules"), &grafana("rules.yml")]);
    for file in ["counts.yml", "alerts.yml"] {
        run("promtool", &[Path::new("test"), Path::new("rules"), &grafana("tests").join(file)]);
    }
}
