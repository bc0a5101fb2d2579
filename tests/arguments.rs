//! Placeholders in the arguments of a command.

use std::sync::Arc;

use aws_sdk_sqs::types::MessageAttributeValue;
use clap::Parser;
use leasehold::job::route::{CommandLine, Input, Task};
use leasehold::settings::resolve::RunConfig;
use leasehold::settings::{Action, Cli};

use crate::support::cloud::Cloud;
use crate::support::journey::{Journey, deletes, exits, queue_with, task};
use crate::support::object_created;

/// The error of `leasehold run` with these flags and this command.
fn refused(flags: &str, words: &[&str]) -> Option<String> {
    let start = ["leasehold", "run", "--queue-url", "http://localhost:4566/000000000000/q"];
    let words = start
        .into_iter()
        .chain(flags.split_whitespace())
        .chain(["--"])
        .chain(words.iter().copied());
    let Action::Run(args) = Cli::parse_from(words).action else { panic!("not a run") };
    RunConfig::try_from(*args).err().map(|error| error.to_string())
}

#[test]
fn a_placeholder_that_can_have_no_value_is_refused_at_start() {
    let error = |flags, words: &[&str]| refused(flags, words).expect("it is refused");
    assert!(
        error("", &["tool", "{inptu}"])
            .contains("the command: unknown placeholder {inptu} (did you mean {input}?)")
    );
    assert!(
        error("--input none", &["tool", "--in={input}"]).contains("--input none passes no input")
    );
    assert_eq!(refused("--input none", &["tool", "{uri}"]), None);
    assert_eq!(refused("", &["{program}", "x"]), None, "the program has no placeholders");
    assert_eq!(refused("", &["awk", "{print}", "{input}"]), None);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_no_argument_can_hold_is_a_permanent_failure() {
    for (key, words, outcome) in [
        ("a%00b", &["{key}"][..], "unreadable"),
        ("a%00b", &["{message_id}"], "succeeded"),
        ("-rf", &["{key}"], "unreadable"),
        ("-rf", &["--", "{key}"], "succeeded"),
    ] {
        let (queue, command) = (queue_with(&[&object_created(key)]), exits(0));
        let mut journey = Journey::new(&queue, &command);
        let words: Vec<_> = words.iter().map(Into::into).collect();
        let command_line = CommandLine::parse("rm".into(), &words).unwrap();
        journey.settings.policy.task = Some(Arc::new(Task { command: command_line, ..task() }));
        let result = journey.run().await;
        assert_eq!(result.outcomes(), [outcome], "{key} {words:?}");
        let is_run = outcome == "succeeded";
        assert_eq!((command.runs(), deletes(&queue)), (is_run.into(), is_run.into()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_without_an_object_leaves_the_values_of_its_object_empty() {
    let (queue, command) = (queue_with(&["hello"]), exits(0));
    let mut journey = Journey::new(&queue, &command);
    journey.settings.policy.accept_raw = true;
    let words = ["[{uri}{key}{version_id}{attributes.tenant}]".into(), "{input}".into()];
    let command_line = CommandLine::parse("tool".into(), &words).unwrap();
    journey.settings.policy.task =
        Some(Arc::new(Task { command: command_line, input: Input::File, ..task() }));
    assert_eq!(journey.run().await.outcomes(), ["succeeded"]);
    let input = command.last().command.job.input.expect("the body is a file");
    assert_eq!(command.last().command.args, ["[]".into(), input.into_os_string()]);
}

#[tokio::test]
async fn the_binary_passes_values_of_the_message_without_a_shell() {
    let cloud = Cloud::new(5).await;
    let body = serde_json::json!({ "Records": [{
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventName": "ObjectCreated:Put",
        "s3": { "bucket": { "name": cloud.bucket }, "object": { "key": "in/a+%22%24%28exit+9%29%22.csv" } },
    }] });
    let tenant = MessageAttributeValue::builder().data_type("String").string_value("acme & co");
    let priority = MessageAttributeValue::builder().data_type("Number").string_value("7");
    let send = cloud.sqs.send_message().queue_url(&cloud.queue_url).message_body(body.to_string());
    let send = send.message_attributes("tenant", tenant.build().unwrap());
    send.message_attributes("priority", priority.build().unwrap()).send().await.unwrap();

    let script = r#"printf '%s\n' "$@" > arguments; echo end >> arguments"#;
    let mut command = cloud.command(&[], "--input none", script);
    command.args(["sh", "--uri={uri}", "{stem}", "{attributes.tenant}", "{attributes.priority}"]);
    command.args(["{receive_count}", "[{version_id}]", "{{key}}"]);
    crate::support::cloud::Leasehold::start(command).expect_exit(0).await;
    let arguments = std::fs::read_to_string(cloud.dir.path().join("arguments")).unwrap();
    let uri = format!("--uri=s3://{}/in/a \"$(exit 9)\".csv", cloud.bucket);
    let expected = [&uri, "a \"$(exit 9)\"", "acme & co", "7", "1", "[]", "{key}", "end"];
    assert_eq!(arguments.lines().collect::<Vec<_>>(), expected);
}
