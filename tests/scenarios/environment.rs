//! 62 and 63: the AWS environment variables.

use std::path::Path;

use crate::support::cloud::{Cloud, Leasehold};

/// An invalid value is found before a message is received and reported with its variable's name; no
/// library panics at it.
#[tokio::test]
async fn s62_an_invalid_variable_is_refused_before_a_receive() {
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
        let exited = Leasehold::start(command).expect_exit(78).await;
        let output = format!("{}{}", exited.stdout, exited.stderr);
        assert!(
            output.contains(&name[..16.min(name.len())]) && !output.contains("panicked"),
            "{name}: {output}"
        );
    }
    assert_eq!(cloud.counts().await, (1, 0));
    let exited = cloud.run("", r#"test "$JOB_RECEIVE_COUNT" = 1"#).expect_exit(0).await;
    exited.record("message deleted");
}

/// An empty variable counts as unset, as for every AWS tool: charts write `value: ""`.
#[tokio::test]
async fn s62_an_empty_variable_is_unset() {
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
    Leasehold::start(command).expect_exit(0).await;
    let variables = std::fs::read_to_string(cloud.dir.path().join("variables")).unwrap();
    let has = |line: &str| variables.lines().any(|other| other == line);
    assert!(has("NOTHING=") && has("SOMETHING=x y") && has("AWS_REGION=us-east-1"), "{variables}");
    assert!(!variables.contains("AWS_PROFILE"), "{variables}");
}

/// To unset such a variable the program executes itself again. It must not have read from standard
/// input before, since job types may come through a pipe.
#[tokio::test]
async fn s62_standard_input_survives_the_restart() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let types =
        r#"{"job-types": [{"name": "all", "match": {"key": "**"}, "command": ["touch", "ran"]}]}"#;
    std::fs::write(cloud.dir.path().join("types.yaml"), types).unwrap();
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", "cat types.yaml | \"$@\"", "sh", env!("CARGO_BIN_EXE_leasehold"), "run"]);
    command
        .args(["--queue-url", &cloud.queue_url, "--job-types", "/dev/stdin"])
        .current_dir(cloud.dir.path());
    command
        .env("AWS_ENDPOINT_URL", &cloud.endpoint)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_PROFILE", "");
    command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    Leasehold::start(command).expect_exit(0).await.record("message deleted");
}

/// A profile may name a program that provides the credentials, as for IAM Roles Anywhere. It is not
/// mistaken for a process that a command left behind.
#[tokio::test]
async fn s63_a_program_may_provide_the_credentials() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let profile = cloud.dir.path().join("config");
    let run = async |name: &str, program: &str, code: i32| {
        std::fs::write(&profile, format!("[default]\ncredential_process = {program}\n")).unwrap();
        let mut command = cloud.command(&[], "--receive-give-up 1s", "exit 0");
        command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        command.env("AWS_PROFILE", name);
        command
            .env("AWS_CONFIG_FILE", &profile)
            .env("AWS_SHARED_CREDENTIALS_FILE", Path::new("/dev/null"));
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        Leasehold::start(command).expect_exit(code).await
    };
    let exited = run("default", "sh -c 'echo no key here >&2; exit 3'", 69).await;
    assert!(exited.stdout.contains("exit status: 3"), "{}", exited.stdout);
    // The output may contain a secret.
    assert!(!exited.stdout.contains("no key here"), "{}", exited.stdout);
    let exited = run("default", "/nonexistent/program", 78).await;
    assert!(exited.stdout.contains("exit status: 127"), "{}", exited.stdout);
    let keys = r#"{"Version":1,"AccessKeyId":"test","SecretAccessKey":"test"}"#;
    std::fs::write(cloud.dir.path().join("keys"), keys).unwrap();
    let exited = run("nonesuch", "true", 78).await;
    assert!(exited.stdout.contains("AWS_PROFILE is \\\"nonesuch\\\""), "{}", exited.stdout);
    let exited =
        run("default", &format!("cat {}", cloud.dir.path().join("keys").display()), 0).await;
    exited.record("message deleted");
}
