//! A `Worker` and a `TestWorker` accept each setting, or refuse it with what to use instead: the
//! snapshots show which.

use std::fmt::Write;

use clap::Arg;
use clap::builder::PossibleValue;
use leasehold::settings::command_line::command;
use leasehold::settings::in_code::{as_code, local_settings};
use leasehold::settings::resolve::LocalConfig;
use leasehold::{Error, Job, Worker};

/// Texts of every form that a setting has; a choice has its own.
const TEXTS: [&str; 18] = [
    "1",
    "5s",
    "1h",
    "500Mi",
    "80%",
    "true",
    "requester",
    "name",
    "a=b",
    "tag=a:b",
    "ObjectCreated:*",
    ":9464",
    "/opt/input",
    "s3://bucket/prefix",
    "s3://bucket/prefix=/mnt",
    "uri=/s3Uri",
    "123456789012",
    QUEUE,
];

const QUEUE: &str = "https://sqs.eu-west-1.amazonaws.com/123456789012/uploads";

const JOB_TYPES: &str =
    "job-types:\n- name: short\n  match: { key: '*.txt' }\n  max-duration: 5m\n";

/// Settings that have an effect only with another one.
const TOGETHER: [(&str, (&str, &str)); 9] = [
    ("checkpoint-interval", ("checkpoint", "s3://bucket/prefix")),
    ("idempotency-key", ("idempotency", "s3://bucket/prefix")),
    ("input-at", ("batch-size", "1")),
    ("mount", ("input", "mount")),
    ("output-acl", ("output", "s3://bucket/prefix")),
    ("output-at", ("batch-size", "1")),
    ("output-sse-kms-key", ("output-sse", "aws:kms")),
    ("output-storage-class", ("output", "s3://bucket/prefix")),
    ("output-tags", ("output", "s3://bucket/prefix")),
];

/// A line for each flag of a subcommand: `read` gets it with one value after another.
fn settings(
    action: &str,
    read: impl Fn(&[(&'static str, &str)]) -> Result<(), String>,
) -> Vec<String> {
    let action = command().find_subcommand(action).unwrap().clone();
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), JOB_TYPES).unwrap();
    let job_types = file.path().to_str().unwrap();
    let line = |arg: &Arg| {
        let flag: &'static str = arg.get_long().filter(|it| *it != "help")?.to_owned().leak();
        let others = TOGETHER.into_iter().filter(|(of, _)| *of == flag).map(|(_, other)| other);
        let others: Vec<_> = others.collect();
        let choices = arg.get_possible_values();
        let choices = choices.iter().map(PossibleValue::get_name);
        let mut refused = String::new();
        for text in choices.chain(TEXTS).chain([job_types]) {
            match read(&[&others[..], &[(flag, text)]].concat()) {
                Ok(()) => return Some(format!("{flag}: accepted")),
                Err(why) if why.contains("has no effect here") => {
                    return Some(format!("{flag}: refused: {why}"));
                }
                Err(why) => writeln!(refused, "{text}: {why}").unwrap(),
            }
        }
        panic!("no text for {flag}:\n{refused}")
    };
    action.get_arguments().filter_map(line).collect()
}

async fn in_batches(jobs: Vec<Job>) -> Vec<Result<(), Error>> {
    jobs.iter().map(|_| Ok(())).collect()
}

#[test]
fn each_setting_of_a_worker_is_accepted_or_refused_with_a_reason() {
    let lines = settings("run", |values| {
        let worker = Worker::batch(in_batches).queue_url(QUEUE);
        let worker = values.iter().fold(worker, |it, (flag, text)| it.setting(flag, *text));
        worker.check().map_err(|error| error.to_string())
    });
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn each_setting_of_a_test_worker_is_accepted_or_refused_with_a_reason() {
    let lines = settings("local", |values| {
        let values = values.iter().map(|(flag, text)| (*flag, (*text).into())).collect();
        let settings = local_settings(&values, true).map_err(|why| as_code(&why.text))?;
        LocalConfig::try_from(settings).map(drop).map_err(|error| as_code(&error.to_string()))
    });
    insta::assert_snapshot!(lines.join("\n"));
}
