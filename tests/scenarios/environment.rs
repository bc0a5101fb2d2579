//! 62 and 63: what the environment says to AWS's tools.

use std::path::Path;

use crate::support::cloud::{Cloud, Leasehold};

/// What cannot be used is found out before a message is received, by its variable's name, and no
/// library panics at it.
#[tokio::test]
async fn s62_a_variable_that_cannot_be_used_costs_no_receive() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    for (name, value) in [
        ("AWS_REGION", "us-east-1\n"),
        ("AWS_RETRY_MODE", "legacy"),
        ("AWS_MAX_ATTEMPTS", "0"),
        ("AWS_SECRET_ACCESS_KEY", "test\n"),
        ("AWS_SESSION_TOKEN", "a\u{1}b"),
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:99999999"),
    ] {
        let mut command = cloud.command(&[], "", "exit 0");
        command.env(name, value);
        let left = Leasehold::start(command).run_to(78).await;
        let said = format!("{}{}", left.stdout, left.stderr);
        assert!(
            said.contains(&name[..16.min(name.len())]) && !said.contains("panicked"),
            "{name}: {said}"
        );
    }
    assert_eq!(cloud.counts().await, (1, 0));
    let left = cloud.run("", r#"test "$JOB_RECEIVE_COUNT" = 1"#).run_to(0).await;
    left.record("message deleted");
}

/// A variable that is set to nothing is one that is not set, as for every AWS tool: charts write
/// `value: ""`.
#[tokio::test]
async fn s62_a_variable_that_is_set_to_nothing_is_not_set() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let mut command = cloud.command(&[], "", "env > variables");
    let empty = [
        "AWS_DEFAULT_REGION",
        "AWS_PROFILE",
        "AWS_SESSION_TOKEN",
        "AWS_CONFIG_FILE",
        "AWS_ROLE_ARN",
    ];
    let more = [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL_SQS",
        "AWS_CA_BUNDLE",
    ];
    for name in empty.into_iter().chain(more) {
        command.env(name, "");
    }
    command.env("NOTHING", "").env("SOMETHING", "x y");
    Leasehold::start(command).run_to(0).await;
    let variables = std::fs::read_to_string(cloud.notes.path().join("variables")).unwrap();
    let has = |line: &str| variables.lines().any(|other| other == line);
    assert!(has("NOTHING=") && has("SOMETHING=x y") && has("AWS_REGION=us-east-1"), "{variables}");
    assert!(!variables.contains("AWS_PROFILE"), "{variables}");
}

/// To unset such a variable the program starts again, and then finds all that it has not read yet:
/// job types may come through a pipe.
#[tokio::test]
async fn s62_what_comes_through_standard_input_is_still_there_after_a_variable_was_unset() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let types =
        r#"{"job-types": [{"name": "all", "match": {"key": "**"}, "command": ["touch", "ran"]}]}"#;
    std::fs::write(cloud.notes.path().join("types.yaml"), types).unwrap();
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", "cat types.yaml | \"$@\"", "sh", env!("CARGO_BIN_EXE_leasehold"), "run"]);
    command
        .args(["--queue-url", &cloud.queue_url, "--job-types", "/dev/stdin"])
        .current_dir(cloud.notes.path());
    command
        .env("AWS_ENDPOINT_URL", &cloud.endpoint)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_PROFILE", "");
    command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    Leasehold::start(command).run_to(0).await.record("message deleted");
}

/// A profile may name a program that knows the credentials, as IAM Roles Anywhere does. It is not
/// taken for something that a command left behind.
#[tokio::test]
async fn s63_credentials_may_come_from_a_program() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let profile = cloud.notes.path().join("config");
    let run = async |name: &str, program: &str, code: i32| {
        std::fs::write(&profile, format!("[default]\ncredential_process = {program}\n")).unwrap();
        let mut command = cloud.command(&[], "--receive-give-up 1s", "exit 0");
        command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        command.env("AWS_PROFILE", name);
        command
            .env("AWS_CONFIG_FILE", &profile)
            .env("AWS_SHARED_CREDENTIALS_FILE", Path::new("/dev/null"));
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        Leasehold::start(command).run_to(code).await
    };
    let left = run("default", "sh -c 'echo no key here >&2; exit 3'", 69).await;
    assert!(left.stdout.contains("exit status: 3"), "{}", left.stdout);
    // It may be a secret.
    assert!(!left.stdout.contains("no key here"), "{}", left.stdout);
    let left = run("default", "/nonexistent/program", 78).await;
    assert!(left.stdout.contains("exit status: 127"), "{}", left.stdout);
    let keys = r#"{"Version":1,"AccessKeyId":"test","SecretAccessKey":"test"}"#;
    std::fs::write(cloud.notes.path().join("keys"), keys).unwrap();
    let left = run("nonesuch", "true", 78).await;
    assert!(left.stdout.contains("AWS_PROFILE is \\\"nonesuch\\\""), "{}", left.stdout);
    let left =
        run("default", &format!("cat {}", cloud.notes.path().join("keys").display()), 0).await;
    left.record("message deleted");
}
