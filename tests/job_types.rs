//! Job types: their file, which messages they match, and the effect of their settings.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use leasehold::job::lease::Strategy;
use leasehold::job::notification::{Object, Record};
use leasehold::job::route::{
    Checkpointing, CommandLine, Content, Input, JobType, Limits, Match, MissingObject, Task,
    job_type,
};
use leasehold::job::run_outcome::RunOutcome;
use leasehold::job::s3_location::Values;
use leasehold::job::verdict::Retry;
use leasehold::ports::Queue;
use leasehold::settings::Cli;
use leasehold::settings::JobTypesFile;
use leasehold::settings::resolve::RunConfig;
use serde_json::json;
use tokio::time::{Instant, sleep};
use walkdir::WalkDir;

use crate::scenarios::configured;
use crate::support::cloud::Cloud;
use crate::support::journey::{
    Does, FakeCommand, Journey, MINUTE, S, VISIBILITY, changes, deletes, exits, queue, queue_with,
    settings, task,
};
use crate::support::object_created;

const YAML: &str = "examples/job-types.yaml";
const TOML: &str = "examples/job-types.toml";

#[test]
fn the_schema_refuses_invalid_files() {
    let schema = serde_json::to_value(JobTypesFile::schema()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let sample: serde_json::Value = toml::from_str(&fs::read_to_string(TOML).unwrap()).unwrap();
    for (name, nonsense) in [
        ("visibilty", json!("fixed")),
        ("visibility", json!("never")),
        ("name", json!("a b")),
        ("command", json!([])),
    ] {
        let mut sample = sample.clone();
        sample["job-types"][0][name] = nonsense;
        assert!(!validator.is_valid(&sample), "{name}");
    }
    insta::assert_snapshot!("schema", serde_json::to_string_pretty(&schema).unwrap());
}

/// The job types samples in a document, or a whole job types file: each with its format, `yaml` or
/// `toml`.
fn samples(path: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(path).unwrap();
    let format = path.extension().unwrap().to_str().unwrap();
    if format != "md" {
        return vec![(format.to_owned(), text)];
    }
    // Every second piece is between fences, and begins with its format.
    let fenced = text.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    let samples = fenced
        .filter(|(format, text)| matches!(*format, "yaml" | "toml") && text.contains("job-types:"));
    samples.map(|(format, text)| (format.to_owned(), text.to_owned())).collect()
}

#[test]
fn each_documented_sample_passes_the_parser_and_the_schema() {
    let printed =
        Command::new(env!("CARGO_BIN_EXE_leasehold")).arg("schema").output().unwrap().stdout;
    let validator = jsonschema::validator_for(&serde_json::from_slice(&printed).unwrap()).unwrap();
    let room = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    let places = ["README.md", "deploy", "docs", "examples", "grafana"];
    for entry in places.into_iter().flat_map(WalkDir::new) {
        let path = entry.unwrap().into_path();
        let is_file_of_types = path.file_stem().is_some_and(|stem| stem == "job-types");
        if !is_file_of_types && path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        for (format, text) in samples(&path) {
            let file = room.path().join("types").with_extension(&format);
            fs::write(&file, &text).unwrap();
            configured(&format!("--job-types {}", file.display()))
                .unwrap_or_else(|why| panic!("{path:?}: {why}\n{text}"));
            let sample: serde_json::Value = match format.as_str() {
                "yaml" => serde_saphyr::from_str(&text).unwrap(),
                _ => toml::from_str(&text).unwrap(),
            };
            let complaints: Vec<_> =
                validator.iter_errors(&sample).map(|error| error.to_string()).collect();
            assert!(complaints.is_empty(), "{path:?}: {complaints:?}\n{text}");
            seen.push(path.display().to_string());
        }
    }
    seen.sort();
    let pages = ["docs/job-types.md", "docs/job-types.md", "docs/messages.md"];
    assert_eq!(
        seen,
        [&["deploy/kustomize/base/job-types.yaml"], &pages[..], &[TOML, YAML]].concat()
    );
}

#[test]
fn yaml_and_toml_have_the_same_meaning() {
    let config =
        |file| configured(&format!("--job-types {file}")).unwrap().work.settings.policy.job_types;
    let types = config(YAML);
    assert_eq!(types, config(TOML));
    let [videos, exports] = &types[..] else { panic!("{types:?}") };
    let Limits { strategy, visibility, max_duration, stop_grace, .. } = videos.limits;
    assert_eq!(
        (strategy, visibility, max_duration),
        (Strategy::Heartbeat, 5 * MINUTE, 20 * 60 * MINUTE)
    );
    assert_eq!((stop_grace, videos.task.stall_timeout), (20 * S, Some(10 * MINUTE)));
    assert_eq!(videos.limits.retry.permanent_exit_codes, [65, 66]);
    assert_eq!(videos.task.checkpoint.as_ref().and_then(|how| how.interval), Some(10 * MINUTE));
    assert_eq!(exports.task.checkpoint, None);
    // The stop needs fifteen seconds of it.
    assert_eq!(exports.limits.strategy, Strategy::Fixed(105 * S));
    assert_eq!((exports.limits.retry.retry, exports.limits.stop_grace), (Retry::Expire, 5 * S));
    let words = ["load.py".into(), "--fast".into()];
    let command = CommandLine::parse("python3".into(), &words).unwrap();
    assert_eq!((exports.task.input, &exports.task.command), (Input::Stdin, &command));
}

#[test]
fn with_job_types_the_command_is_optional() {
    let run = |flags: &str| {
        Cli::try_parse_from(
            ["leasehold", "run", "--queue-url", "q"].into_iter().chain(flags.split(' ')),
        )
    };
    assert!(run("--job-types examples/job-types.yaml").is_ok());
    assert!(run("--wait 1s").unwrap_err().to_string().contains("<COMMAND>"));
}

/// KEDA starts such a pod again at every poll: its error must name the line to change.
#[test]
fn a_missing_program_is_reported_with_its_job_type_and_file() {
    let room = tempfile::tempdir().unwrap();
    let (file, termination_log) =
        (room.path().join("types.yaml"), room.path().join("termination-log"));
    fs::write(&file, "job-types: [{name: csv, command: [no-such-python, x.py]}]").unwrap();
    let refused = |command: &[&str]| {
        let mut leasehold = Command::new(env!("CARGO_BIN_EXE_leasehold"));
        leasehold.args(["run", "--queue-url", "http://127.0.0.1:9/1/q", "--job-types"]).arg(&file);
        leasehold.arg("--termination-log").arg(&termination_log).args(command);
        let refused = leasehold.output().unwrap();
        assert_eq!(refused.status.code(), Some(78));
        let stderr = String::from_utf8(refused.stderr).unwrap();
        assert!(stderr.contains(": not found in PATH"), "{stderr}");
        let termination = fs::read_to_string(&termination_log).unwrap();
        (stderr, termination)
    };
    let expected = format!("job type csv of {}: no-such-python: not found in PATH", file.display());
    let (stderr, termination) = refused(&["--", "true"]);
    assert!(
        stderr.contains(&expected) && termination.contains(&expected),
        "{stderr} {termination}"
    );

    fs::write(&file, "job-types: [{name: csv, match: {bucket: b}, command: ['true']}]").unwrap();
    let (stderr, _) = refused(&["--", "no-such-ruby"]);
    assert!(stderr.contains("the command: no-such-ruby: not found in PATH"), "{stderr}");
}

/// The settings from a job types file and from `flags`.
fn read(name: &str, text: &str, flags: &str) -> Result<RunConfig, String> {
    let room = tempfile::tempdir().unwrap();
    let file = room.path().join(name);
    fs::write(&file, text).unwrap();
    configured(&format!("--job-types {} {flags}", file.display()))
}

/// The error for a job types file.
fn refused(name: &str, text: &str, flags: &str) -> String {
    read(name, text, flags).unwrap_err()
}

#[test]
fn an_invalid_file_is_refused_with_its_line_and_column() {
    for (line, place, complaint) in [
        (
            "visibilty: fixed",
            "line 3 column 5",
            "unknown field `visibilty`, expected one of name, match,",
        ),
        (
            "visibility: never",
            "line 3 column 17",
            "unknown variant `never`, expected one of heartbeat, fixed",
        ),
        ("max-duration: soon", "line 3 column 19", "write for example 90s, 10m or 2h30m"),
        ("match: { event: ObjectCreate:x }", "line 3 column 21", "did you mean ObjectCreated:*?"),
        ("match: { key: 'in/[.pdf' }", "line 3 column 19", "unclosed character class"),
        (
            "output: s3://results/{kee}",
            "line 3 column 13",
            "unknown placeholder {kee}; the placeholders are {key}",
        ),
        ("checkpoint: state/of", "line 3 column 17", "write for example s3://bucket/prefix"),
        ("checkpoint-interval: often", "line 3 column 26", "write for example 90s, 10m or 2h30m"),
        ("permanent-exit-codes: [256]", "line 3 column 28", "u8"),
        ("name: twice", "line 3 column 5", "duplicate"),
        ("command: python3", "line 3 column 14", "sequence"),
        ("command: [python3, x.py, '{imput}']", "line 3 column 14", "did you mean {input}?"),
    ] {
        let complained =
            refused("types.yaml", &format!("job-types:\n  - name: one\n    {line}\n"), "");
        assert!(
            complained.contains(place) && complained.contains(complaint),
            "{line}: {complained}"
        );
        assert!(
            complained.contains("types.yaml") && complained.contains("--job-types"),
            "{complained}"
        );
    }
    let complained = refused("types.yaml", "job-types:\n  - name: default\n", "");
    assert!(
        complained.contains("line 2 column 11") && complained.contains("no job type"),
        "{complained}"
    );
    let complained =
        refused("types.toml", "[[job-types]]\nname = \"one\"\nmax-duration = \"soon\"\n", "");
    assert!(
        complained.contains("line 3, column 16") && complained.contains("2h30m"),
        "{complained}"
    );
    assert!(refused("types.json", "{}", "").contains("job-types"));
    assert!(
        configured("--job-types /nonexistent/types.yaml").unwrap_err().contains("No such file")
    );
}

/// Files as ConfigMaps and editors on Windows write them.
#[test]
fn a_file_may_have_any_name_a_byte_order_mark_and_crlf() {
    let text = "job-types:\n- name: csv\n  match: { key: '**/*.csv' }\n  command: [a]\n";
    let json = r#"{"job-types":[{"name":"csv","match":{"key":"**/*.csv"},"command":["a"]}]}"#;
    for (name, text) in [
        ("types.yml", text.to_owned()),
        ("job-types", text.to_owned()),
        ("types.yaml", text.replace('\n', "\r\n")),
        ("types.yaml", format!("\u{feff}{text}")),
        ("types.json", json.to_owned()),
    ] {
        let policy = read(name, &text, "").unwrap().work.settings.policy;
        assert_eq!(policy.job_types[0].matches, by_key("csv", "**/*.csv").matches, "{name}");
    }
}

/// A removed object cannot be fetched.
#[test]
fn a_removal_is_processed_without_a_fetch_or_refused() {
    let removals = "--events ObjectCreated:*,ObjectRemoved:*";
    let complaint = "--events ObjectRemoved:* means that the object was deleted, so it cannot be downloaded: set --input none";
    let of = |matches: &str, input: &str| {
        format!(
            "job-types:\n- name: gone\n  match: {{ {matches} }}\n  input: {input}\n  command: [a]\n"
        )
    };
    let fetches = of("event: 'ObjectRemoved:*'", "file");
    let refusal = refused("a.yaml", &fetches, removals);
    assert!(
        refusal.contains("job type gone")
            && refusal.ends_with("it cannot be downloaded: set input none"),
        "{refusal}"
    );
    // The default command may get the events that the job type does not match.
    let narrow = of("event: 'ObjectRemoved:*', key: 'in/*'", "none");
    assert!(refused("a.yaml", &narrow, removals).ends_with(complaint));
    read("a.yaml", &narrow, &format!("{removals} --input none")).unwrap();
    read("a.yaml", &of("event: 'ObjectRemoved:*'", "none"), removals).unwrap();
}

#[test]
fn the_rules_for_flags_apply_to_each_job_type() {
    for (line, flags, complaint) in [
        (
            "visibility-timeout: 2s",
            "",
            "job type one: visibility-timeout 2s is too short for a heartbeat",
        ),
        (
            "visibility-timeout: 2500ms",
            "",
            "job type one: visibility-timeout 2.5s must be a whole number of seconds",
        ),
        ("max-duration: 12h", "", "job type one: max-duration 12h is over"),
        ("stop-grace: 29s", "", "job type one: stop-grace 29s is too long"),
        ("stall-timeout: 10m", "", "job type one: stall-timeout 10m has no effect"),
        ("retry-min: 1h", "--retry-max 1m", "job type one: retry-min 1h is over --retry-max 1m"),
        (
            "permanent-exit-codes: [75]",
            "",
            "job type one: permanent-exit-codes: 75 cannot be permanent",
        ),
        ("input: none", "--accept-raw", "job type one: --accept-raw passes"),
        ("command: []", "", "the command is empty"),
        (
            "match: { event: 'ObjectRemoved:*' }",
            "",
            "job type one: it matches ObjectRemoved:*, which --events ObjectCreated:*,ObjectRestore:Completed does not \
             include: messages about it are deleted",
        ),
    ] {
        let text = format!("job-types:\n  - name: one\n    {line}\n");
        let complained = refused("types.yaml", &text, flags);
        assert!(complained.contains(complaint), "{line}: {complained}");
    }
    let two = |second: &str| format!("job-types:\n  - name: one\n  - name: {second}\n");
    assert!(refused("types.yaml", &two("one"), "").contains("two job types have the name one"));
    assert!(refused("types.yaml", &two("two"), "").contains("job type two is never used: one"));
    // Another object-from finds the objects of other messages; the same one does not.
    let two = |second: &str| {
        format!("job-types:\n  - name: one\n    object-from: uri=/a\n  - name: two\n    {second}\n")
    };
    for (second, flags, is_used) in [
        ("object-from: uri=/b", "", true),
        ("object-from: uri=/a", "", false),
        ("retry: expire", "--object-from uri=/b", true),
        ("retry: expire", "--object-from uri=/a", false),
        ("retry: expire", "", false),
    ] {
        let complaint = read("types.yaml", &two(second), flags).err().unwrap_or_default();
        assert_eq!(
            !complaint.contains("two is never used"),
            is_used,
            "{second} {flags}: {complaint}"
        );
    }
    assert!(refused("types.yaml", "job-types: []\n", "").contains("the file has no job type"));
}

/// The position is that of the wrong setting, or of the job type if the conflict is with a flag.
#[test]
fn an_invalid_job_type_is_refused_with_its_line_and_column() {
    for (lines, flags, place, complaint) in [
        ("max-duration: 13h", "", "line 3 column 19", "longer work needs --checkpoint"),
        (
            "# A remark.\n\n    max-duration: 13h",
            "",
            "line 5 column 19",
            "max-duration 13h is over",
        ),
        (
            "checkpoint-interval: 1m",
            "",
            "line 3 column 26",
            "checkpoint-interval has no effect without --checkpoint",
        ),
        (
            "checkpoint: s3://state\n    checkpoint-interval: 0s",
            "",
            "line 4 column 26",
            "checkpoint-interval must be greater than zero",
        ),
        (
            "checkpoint: s3://state\n    visibility: fixed\n    max-duration: 13h",
            "",
            "line 5 column 19",
            "only visibility heartbeat",
        ),
        (
            "visibility: fixed",
            "--checkpoint s3://state --max-duration 13h",
            "line 3 column 17",
            "only visibility",
        ),
        (
            "checkpoint: 's3://state/{key}'",
            "--accept-raw",
            "line 3 column 17",
            "a message may have no object",
        ),
        (
            "output: 's3://results/{name}'",
            "--accept-raw",
            "line 3 column 13",
            "use {message_id} instead",
        ),
        (
            "retry: expire\n    retry-min: 1h",
            "--retry-max 1m",
            "line 4 column 16",
            "retry-min 1h is over",
        ),
    ] {
        let complained =
            refused("types.yaml", &format!("job-types:\n  - name: one\n    {lines}\n"), flags);
        let expected = format!("types.yaml, {place}: job type one: ");
        assert!(
            complained.contains(&expected) && complained.contains(complaint),
            "{lines}: {complained}"
        );
    }
    let toml = "[[job-types]]\nname = \"one\"\nmatch = { key = \"ü\" }\n\n[[job-types]]\nname = \"two\"\nmax-duration = \"13h\"\n";
    let complained = refused("types.toml", toml, "");
    assert!(
        complained.contains("types.toml, line 7 column 16: job type two: max-duration"),
        "{complained}"
    );
    let twice = "job-types:\n  - name: one\n    match: { key: x }\n  - name: one\n";
    assert!(
        refused("types.yaml", twice, "")
            .contains("types.yaml, line 4 column 11: two job types have the name one")
    );
}

#[test]
fn a_job_type_with_a_checkpoint_may_take_longer_than_12_hours() {
    let of = |config: RunConfig| {
        let [one] = &config.work.settings.policy.job_types[..] else { panic!("not one job type") };
        let Checkpointing { location, interval } =
            one.task.checkpoint.clone().expect("a checkpoint");
        let values = Values { key: Some("in/film.mp4"), message_id: "m", job_type: "one" };
        (one.limits.max_duration, location.fill(values).key("x"), interval)
    };
    let (day, minute) = (24 * 60 * MINUTE, Some(MINUTE));
    for (lines, flags, key, interval) in [
        ("checkpoint: 's3://own/{job_type}/{stem}'", "", "one/film/x", None),
        ("checkpoint: s3://own/of\n    checkpoint-interval: 1m", "", "of/x", minute),
        (
            "checkpoint: s3://own/of",
            "--checkpoint s3://all/{job_type} --checkpoint-interval 1m",
            "of/x",
            minute,
        ),
        ("checkpoint-interval: 1m", "--checkpoint s3://all/{job_type}", "one/x", minute),
        ("input: file", "--checkpoint s3://all/{job_type}", "one/x", None),
    ] {
        let text = format!("job-types:\n  - name: one\n    max-duration: 24h\n    {lines}\n");
        assert_eq!(
            of(read("types.yaml", &text, flags).unwrap()),
            (day, key.to_owned(), interval),
            "{lines} {flags}"
        );
    }
}

fn typed(name: &str, matches: Match) -> JobType {
    JobType {
        matches,
        object_from: None,
        task: Arc::new(Task { name: name.to_owned(), ..task() }),
        limits: settings().policy.limits,
    }
}

fn by_key(name: &str, glob: &str) -> JobType {
    typed(name, Match { key: Some(glob.parse().unwrap()), ..Match::default() })
}

fn record(bucket: &str, key: &str, event: &str) -> Record {
    let object = Object::named(bucket, key);
    Record { event: event.to_owned(), time: None, region: None, object, key_as_sent: None }
}

#[test]
fn the_first_matching_job_type_takes_the_message() {
    let types = [
        typed("b", Match { bucket: Some("b".to_owned()), ..Match::default() }),
        typed(
            "put",
            Match {
                event: Some("ObjectCreated:Put".parse().unwrap()),
                ..by_key("", "in/*").matches
            },
        ),
        by_key("csv", "**/*.{csv,tsv}"),
        by_key("flat", "in/?"),
    ];
    for (bucket, key, event, name) in [
        ("b", "in/x.csv", "ObjectCreated:Put", Some("b")),
        ("a", "in/x.csv", "ObjectCreated:Put", Some("put")),
        ("a", "in/x.csv", "ObjectCreated:Copy", Some("csv")),
        ("a", "in/deep/x.tsv", "ObjectCreated:Put", Some("csv")),
        ("a", "x.csv", "ObjectCreated:Copy", Some("csv")),
        ("a", "in/x", "ObjectCreated:Copy", Some("flat")),
        ("a", "in/xy", "ObjectCreated:Copy", None),
        ("a", "in/deep/x", "ObjectCreated:Put", None),
        ("B", "", "ObjectCreated:Put", None),
    ] {
        let content = Content::Objects(vec![record(bucket, key, event)]);
        let taken = job_type(&types, &content).unwrap();
        assert_eq!(taken.map(|it| it.task.name.as_str()), name, "{bucket} {key} {event}");
    }
}

#[test]
fn a_message_has_one_job_type_or_is_refused() {
    let types = [by_key("csv", "*.csv"), by_key("pdf", "*.pdf")];
    let of = |keys: &[&str]| {
        let records = keys.iter().map(|key| record("b", key, "ObjectCreated:Put")).collect();
        let taken = job_type(&types, &Content::Objects(records));
        taken.map(|it| it.map(|it| it.task.name.clone()))
    };
    assert_eq!(of(&["a.csv", "b.csv"]), Ok(Some("csv".to_owned())));
    assert_eq!(of(&["a", "b"]), Ok(None));
    let mixed =
        |a: &str, b: &str| Err(format!("its objects match different job types, {a} and {b}"));
    assert_eq!(of(&["a.csv", "b.csv", "c.pdf"]), mixed("csv", "pdf"));
    assert_eq!(of(&["a.csv", "b"]), mixed("csv", "default"));
    assert_eq!(of(&["a", "b.pdf"]), mixed("default", "pdf"));
}

#[test]
fn only_a_job_type_without_a_match_takes_a_body() {
    let (csv, rest) = (by_key("csv", "**"), typed("rest", Match::default()));
    assert_eq!(job_type(std::slice::from_ref(&csv), &Content::Body), Ok(None));
    assert_eq!(job_type(&[csv, rest.clone()], &Content::Body), Ok(Some(&rest)));
}

#[tokio::test(start_paused = true)]
async fn a_message_follows_the_settings_of_its_job_type() {
    let (queue, command) = (queue(), FakeCommand::new(Does::EndsOnTerm(MINUTE, 0)));
    let mut journey = Journey::new(&queue, &command);
    let mut job_type = by_key("keys", "k");
    job_type.task = Arc::new(Task {
        name: "keys".to_owned(),
        command: CommandLine::parse("special".into(), &["--fast".into()]).unwrap(),
        input: Input::None,
        ..task()
    });
    job_type.limits.max_duration = 3 * MINUTE;
    job_type.limits.stop_grace = 7 * S;
    job_type.limits.retry.retry = Retry::Backoff { min: 33 * S, max: 33 * S };
    journey.settings.policy.job_types = vec![job_type];
    let started = Instant::now();
    let result = journey.run().await;
    assert_eq!(result.outcomes(), ["timed_out"]);
    assert_eq!(
        command.ended() - started,
        3 * MINUTE + 7 * S,
        "its --max-duration and its --stop-grace"
    );
    assert_eq!(
        changes(&queue, started).last().map(|(_, delay)| *delay),
        Some(33 * S),
        "its --retry-min"
    );
    let ran = command.last().command;
    assert_eq!(
        (ran.program, ran.args, ran.stop_grace),
        ("special".into(), vec!["--fast".into()], 7 * S)
    );
    assert_eq!(
        (command.got("JOB_TYPE"), command.got("JOB_INPUT")),
        (vec!["keys".to_owned()], vec![])
    );
    assert_eq!(result.ended()[0].subject.job_type.as_deref(), Some("keys"));
}

#[tokio::test(start_paused = true)]
async fn a_job_type_sets_the_length_of_its_leases() {
    for visibility in [6 * S, 30 * MINUTE] {
        let (queue, command) = (queue(), FakeCommand::new(Does::Exits(9 * MINUTE, 0)));
        let mut journey = Journey::new(&queue, &command);
        let mut job_type = by_key("keys", "k");
        job_type.limits.visibility = visibility;
        journey.settings.policy.job_types = vec![job_type];
        let started = Instant::now();
        let rival = tokio::spawn({
            let queue = queue.clone();
            async move {
                sleep(S).await;
                while started.elapsed() < 9 * MINUTE {
                    assert_eq!(
                        queue.receive(20 * S, VISIBILITY).await,
                        Ok(None),
                        "{:?}",
                        started.elapsed()
                    );
                }
            }
        });
        assert_eq!(journey.run().await.outcomes(), ["succeeded"]);
        rival.await.expect("the rival gets no message");
        let changes = changes(&queue, started);
        assert_eq!(changes[0], (Duration::ZERO, visibility));
        let extensions = 9 * MINUTE.as_secs() / (visibility / 3).as_secs();
        assert!(
            changes.len() as u64 >= extensions && changes.iter().all(|(_, to)| *to == visibility),
            "{changes:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_command_a_message_of_no_job_type_is_a_permanent_failure() {
    let (queue, command) = (queue_with(&[&object_created("other")]), exits(0));
    let mut journey = Journey::new(&queue, &command);
    journey.settings.policy.job_types = vec![by_key("keys", "k")];
    journey.settings.policy.task = None;
    let result = journey.run().await;
    assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["no_job_type"], 65));
    assert!(matches!(result.outcome, RunOutcome::Kept(_)));
    assert_eq!((command.runs(), deletes(&queue), queue.counts().visible), (0, 0, 1));
    let ended = &result.ended()[0];
    assert_eq!(ended.subject.objects.len(), 1, "the report names the object");
    assert!(
        ended.error().is_some_and(|error| error.contains("no COMMAND is set for other messages"))
    );
}

#[tokio::test]
async fn each_job_type_has_its_own_command() {
    let cloud = Cloud::new(5).await;
    let types = cloud.dir.path().join("types.yaml");
    let text = r#"job-types:
  - name: numbers
    match: { key: "*.num" }
    command: [sh, -c, 'echo "$JOB_TYPE" > "$JOB_OUTPUT_DIR/numbers"']
    output: s3://BUCKET/{job_type}/{stem}
  - name: words
    match: { key: "in/**" }
    command: [sh, -c, '[ "$JOB_TYPE" = words ] && exit 66']
    permanent-exit-codes: [66]
"#;
    let text = text.replace("BUCKET", &cloud.bucket);
    fs::write(&types, text).unwrap();
    let flags = format!("--job-types {} --retry-min 1s", types.display());
    cloud.put("1.num", b"1").await;
    let exited = cloud.run(&flags, "exit 1").expect_exit(0).await;
    let result =
        cloud.s3.get_object().bucket(&cloud.bucket).key("numbers/1/numbers").send().await.unwrap();
    assert_eq!(result.body.collect().await.unwrap().into_bytes(), "numbers\n");
    assert_eq!(exited.record("message deleted")["job_type"], "numbers");

    // The result's bucket also sends events.
    cloud.remove_notification().await;
    cloud.put("in/a/word", b"w").await;
    let exited = cloud.run(&flags, "exit 1").expect_exit(65).await;
    let kept = exited.record("message kept");
    assert_eq!((&kept["outcome"], &kept["job_type"]), (&"permanent".into(), &"words".into()));

    cloud.remove_notification().await;
    cloud.put("other", b"o").await;
    let exited = cloud.run(&flags, "exit 0").expect_exit(0).await;
    assert_eq!(exited.record("message deleted")["job_type"], "default");
}

/// A job type's policy for missing objects overrides the flag.
#[test]
fn a_job_type_may_set_its_own_missing_object_policy() {
    let text = "job-types:\n- name: thumbnails\n  match: { key: '*.jpg' }\n  missing-object: ignore\n- name: others\n";
    let policy = read("a.yaml", text, "--missing-object fail").unwrap().work.settings.policy;
    let policies: Vec<_> = policy.tasks().map(|task| task.missing_object).collect();
    assert_eq!(
        policies,
        [MissingObject::Fail, MissingObject::Ignore, MissingObject::Fail].map(Some)
    );
}
