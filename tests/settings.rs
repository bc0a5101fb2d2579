//! The command line: help, reference, accepted spellings of values, and error messages.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use leasehold::app::reference::reference;
use leasehold::job::report::keep_reasons;
use leasehold::ports::job_facts::JobFacts;
use leasehold::settings::RunSettings;
use leasehold::settings::command_line::{command, container_args};
use leasehold::settings::resolve::RunConfig;
use leasehold::telemetry::attempts::{DIED, STARTED};
use leasehold::telemetry::metrics::Metrics;
use leasehold::telemetry::records::FIELDS;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

const QUEUE_URL: &str = "https://sqs.eu-west-1.amazonaws.com/123456789012/jobs";

fn leasehold(words: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    program
        .args(words)
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn printed(words: &[&str]) -> String {
    let output = leasehold(words, &[("COLUMNS", "100")]);
    assert!(output.status.success(), "{words:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_reference_page_is_up_to_date() {
    let page = include_str!("../docs/reference.md");
    assert_eq!(page, reference(), "cargo run -- reference > docs/reference.md");
}

/// Names in users' dashboards, alerts, log queries and scripts. docs/stability.md lists which may
/// change.
#[test]
fn names_that_users_rely_on_do_not_change_unnoticed() {
    let mut names: Vec<String> = Vec::new();
    names.extend(FIELDS.iter().map(|(field, _)| format!("log field {field}")));
    names.extend(Metrics::described().iter().map(|(metric, kind)| {
        let labels = metric.variable_labels.join(",");
        format!("metric {} {kind} {{{labels}}}", metric.fq_name)
    }));
    names.extend(
        keep_reasons()
            .iter()
            .map(|why| format!("outcome {} exits {}", why.label(), why.exit_code())),
    );
    names.extend([STARTED, DIED].map(|outcome| format!("outcome {outcome} of an attempt record")));
    let all = JobFacts::complete_example();
    names.extend(all.environment().iter().map(|(name, _)| format!("variable {}", name.display())));
    names.push(format!("variable {}", JobFacts::PROGRESS_URL));
    for action in command().get_subcommands() {
        let flags = action.get_arguments().filter_map(|arg| arg.get_long());
        names.extend(flags.map(|flag| format!("flag {} --{flag}", action.get_name())));
    }
    insta::assert_snapshot!(names.join("\n"));
}

#[test]
fn the_short_help_fits_two_screens() {
    let help = printed(&["run", "-h"]);
    assert!(help.lines().count() <= 100, "{help}");
    let headings: Vec<_> =
        help.lines().filter(|line| !line.starts_with(' ') && line.ends_with(':')).collect();
    let expected = [
        "Arguments:",
        "Options:",
        "Work:",
        "Lease:",
        "Stop:",
        "Retry:",
        "Receive:",
        "Report:",
        "Metrics and probes:",
    ];
    assert_eq!(headings[..expected.len()], expected);
    for word in ["Examples:", "Exit codes:", "RUST_LOG", "AWS_REGION", "LEASEHOLD_QUEUE_URL"] {
        assert!(help.contains(word), "{word}");
    }
    assert!(
        printed(&["check", "--help"]).lines().count() < 60,
        "the flags of run are not repeated"
    );
    assert!(printed(&["run", "--help"]).lines().count() > help.lines().count());
}

#[test]
fn the_version_has_commit_and_target() {
    let version = printed(&["--version"]);
    let expected = concat!("leasehold ", env!("CARGO_PKG_VERSION"), " (");
    assert!(
        version.starts_with(expected) && version.trim_end().ends_with("linux-gnu)"),
        "{version}"
    );
}

#[test]
fn completions_and_the_manual_page_are_well_formed() {
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    let script = printed(&["completions", "bash"]);
    assert!(script.contains("--visibility-timeout"));
    bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(bash.wait().unwrap().success());
    for shell in ["zsh", "fish"] {
        assert!(printed(&["completions", shell]).contains("visibility-timeout"));
    }
    let page = printed(&["man"]);
    assert!(
        page.contains(".TH leasehold 1") && page.contains("EXAMPLES") | page.contains("Examples"),
        "{page}"
    );
}

/// The settings from the environment of a container.
fn config(variables: &[(&str, &str)]) -> Result<RunConfig, String> {
    let mut all: BTreeMap<String, String> =
        [("LEASEHOLD_QUEUE_URL".to_owned(), QUEUE_URL.to_owned())].into();
    all.extend(
        variables.iter().map(|(name, value)| (format!("LEASEHOLD_{name}"), (*value).to_owned())),
    );
    let settings: RunSettings = container_args(&all, &["--".to_owned(), "true".to_owned()])?;
    RunConfig::try_from(settings).map_err(|error| error.to_string())
}

#[test]
fn common_spellings_of_values_are_accepted() {
    for (yes, no) in [("1", "0"), ("yes", "no"), ("True", "False"), ("on", "off"), ("TRUE", "n")] {
        let accepts =
            |value| config(&[("ACCEPT_RAW", value)]).unwrap().work.settings.policy.accept_raw;
        assert!(accepts(yes) && !accepts(no), "{yes} {no}");
    }
    let config = config(&[
        ("ACCEPT_RAW", ""),
        ("MAX_DURATION", ""),
        ("BUCKETS", "one, two,"),
        ("PERMANENT_EXIT_CODES", " 65 , 66,"),
        ("LISTEN", ":9464"),
    ])
    .unwrap();
    let policy = config.work.settings.policy;
    assert!(!policy.accept_raw, "empty is unset");
    assert_eq!(policy.limits.max_duration, Duration::from_mins(10), "empty is unset");
    assert_eq!(policy.limits.retry.permanent_exit_codes, [65, 66]);
    assert_eq!(config.work.fetch.buckets.len(), 2);
    assert_eq!(config.metrics.listen.unwrap().to_string(), "0.0.0.0:9464");
}

/// The error quotes the value and the flag or variable that set it.
#[test]
fn errors_name_the_flag_or_variable_that_was_set() {
    let queue = ("LEASEHOLD_QUEUE_URL", QUEUE_URL);
    for (words, variables, complaint) in [
        (
            &["run", "--", "true"][..],
            &[queue, ("LEASEHOLD_WAIT", "90")][..],
            "'90' for 'LEASEHOLD_WAIT <TIME>'",
        ),
        (
            &["run", "--wait", "80", "--", "true"],
            &[queue, ("LEASEHOLD_WAIT", "90")],
            "'80' for '--wait <TIME>'",
        ),
        (
            &["run", "--", "true"],
            &[queue, ("LEASEHOLD_STOP_GRACE", "29s"), ("LEASEHOLD_TERMINATION_GRACE", "31s")],
            "LEASEHOLD_STOP_GRACE 29s is too long: with the 10s that leasehold needs to release the message and to report, \
             it exceeds LEASEHOLD_TERMINATION_GRACE 31s",
        ),
        (
            &["run", "--termination-grace", "5s", "--", "true"],
            &[queue, ("LEASEHOLD_STOP_GRACE", "29s")],
            "LEASEHOLD_STOP_GRACE 29s is too long: with the 1.7s that leasehold needs to release the message and to report, \
             it exceeds --termination-grace 5s",
        ),
        (
            &["run", "--", "true"],
            &[queue, ("LEASEHOLD_ACCEPT_RAW", "perhaps")],
            "'perhaps' for 'LEASEHOLD_ACCEPT_RAW'",
        ),
        (
            &["run", "--request-payer", "owner", "--", "true"],
            &[queue],
            "'owner' for '--request-payer",
        ),
        (
            &["check", "--request-payer=owner", "--", "true"],
            &[queue],
            "write requester, or leave the value out",
        ),
        (
            &["run", "--", "true"],
            &[queue, ("LEASEHOLD_REQUEST_PAYER", "owner")],
            "'owner' for 'LEASEHOLD_REQUEST_PAYER",
        ),
        (
            &["run", "--", "true"],
            &[queue, ("LEASEHOLD_WIAT", "1s")],
            "did you mean 'LEASEHOLD_WAIT'?",
        ),
    ] {
        let output = leasehold(words, variables);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(complaint) && output.status.code() == Some(78), "{words:?}: {text}");
    }
}

#[test]
fn a_variable_that_is_not_utf8_is_named() {
    let mut run = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    run.env_clear().args(["run", "--queue-url", QUEUE_URL, "--", "true"]);
    let output = run.env("LEASEHOLD_JOB_ID", OsStr::from_bytes(b"\xff")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("LEASEHOLD_JOB_ID is not UTF-8"), "{text}");
    assert_eq!(output.status.code(), Some(78));
}

#[test]
fn an_empty_tmpdir_is_unset() {
    let inbox = tempfile::tempdir().unwrap();
    let words = ["local", inbox.path().to_str().unwrap(), "--", "true"];
    let output = leasehold(&words, &[("TMPDIR", ""), ("PATH", "/usr/bin:/bin")]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Signals are blocked meanwhile, so no reading may last.
#[test]
fn job_types_that_have_no_end_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let pipe = home.path().join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    for (file, why) in
        [("/dev/zero", "longer than"), (pipe.to_str().unwrap(), "could not be read within")]
    {
        let mut program = Command::new("timeout");
        program.args(["60", env!("CARGO_BIN_EXE_leasehold"), "local"]).arg(home.path());
        let output = program.args(["--job-types", file, "--", "true"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(why) && output.status.code() == Some(78), "{file}: {text}");
    }
}

/// Otherwise the next run would process the state.
#[test]
fn a_state_in_the_inbox_is_refused() {
    let inbox = tempfile::tempdir().unwrap();
    let (folder, inside) = (inbox.path().to_str().unwrap(), inbox.path().join("state"));
    let words = ["local", folder, "--state", inside.to_str().unwrap(), "--idempotency", "s3://b/x"];
    let output = leasehold(&[&words[..], &["--", "sh"]].concat(), &[("PATH", "/usr/bin:/bin")]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("it is inside the inbox"), "{text}");
    assert_eq!((output.status.code(), inside.exists()), (Some(78), false));
}
