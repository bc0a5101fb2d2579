//! Errors in settings.

use std::time::Duration;

use crate::adapters::url::without_userinfo;
use crate::job::arguments::UnknownPlaceholder;
use crate::job::on_success::OnSuccess;
use crate::job::route::EventFilter;

/// A setting that cannot work. The text names the flags, the one to change first, and the limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    #[error("--queue-url is required")]
    NoQueue,
    #[error("{setting} has no effect here: {instead}")]
    NoEffect { setting: String, instead: &'static str },
    #[error("--queue-url: {0}")]
    QueueUrl(String),
    #[error("--visibility-timeout {} is too short for a heartbeat: it must be at least 3s", show(.0))]
    VisibilityTooShort(Duration),
    #[error("--visibility-timeout {} is over SQS's maximum of 12h", show(.0))]
    VisibilityTooLong(Duration),
    #[error("{flag} {} must be a whole number of seconds", show(.value))]
    Fraction { flag: &'static str, value: Duration },
    #[error("--{0} must be greater than zero")]
    Zero(&'static str),
    #[error(
        "--max-duration {} is over {}: SQS hides a message for at most {}, and {} of that is reserved for the receive request and the shutdown; longer work needs --checkpoint",
        show(.max_duration), show(.most), show(.ceiling), show(&.ceiling.saturating_sub(*.most))
    )]
    MaxDuration { max_duration: Duration, most: Duration, ceiling: Duration },
    #[error(
        "--stop-grace {} is too long: with the {} that leasehold needs to release the message and to report, it exceeds --termination-grace {}",
        show(.stop_grace), show(.reserve), show(.termination_grace)
    )]
    StopGrace { stop_grace: Duration, reserve: Duration, termination_grace: Duration },
    #[error(
        "--wait {} is too long: a shutdown waits for the receive request, and with the {} that leasehold needs afterwards it exceeds --termination-grace {}",
        show(.wait), show(.reserve), show(.termination_grace)
    )]
    Wait { wait: Duration, reserve: Duration, termination_grace: Duration },
    #[error(
        "--stall-timeout {} has no effect: it must be less than --max-duration {}",
        show(.stall_timeout), show(.max_duration)
    )]
    StallTimeout { stall_timeout: Duration, max_duration: Duration },
    #[error(
        "--accept-raw passes the message's body to the command as its input, and --input none passes no input: remove one of them"
    )]
    NoInput,
    #[error("the command: {0}")]
    Placeholder(#[from] UnknownPlaceholder),
    #[error(
        "the command contains a placeholder, but --handler starts it once for many messages: remove the placeholder; each event or request has the values"
    )]
    WarmPlaceholder,
    #[error("--batch-size {0} is over 10, the most that SQS has in a batch")]
    BatchSize(usize),
    #[error(
        "{0} has an effect only with --handler lambda (in a Rust program, with a batch handler): set that, or remove {0}"
    )]
    NoBatches(&'static str),
    #[error("{0} has an effect only with --handler lambda: set --handler lambda, or remove it")]
    NoLambda(&'static str),
    #[error(
        "--lambda-event s3 is an event about one object, and --batch-size {0} puts several messages into an event: set --batch-size 1, or --lambda-event sqs"
    )]
    BatchOfS3(usize),
    #[error(
        "--lambda-event s3 is an event about an object, and with --accept-raw a message may have none: remove one of them"
    )]
    EventOfNoObject,
    #[error("--batch-window has no effect with --batch-size 1: set --batch-size to 2 or more")]
    WindowOfOne,
    #[error(
        "--batch-window {} is too long: SQS hides a message for at most {}, and only {} of that remain beside --max-duration and the shutdown; shorten the window or --max-duration",
        show(.window), show(.ceiling), show(.most)
    )]
    BatchWindow { window: Duration, most: Duration, ceiling: Duration },
    #[error(
        "--batch-size does not work with --visibility fixed, because a message may wait for a busy function: set --visibility heartbeat, or --batch-size 1"
    )]
    BatchOfFixed,
    #[error(
        "--batch-size {batch_size} times --concurrency {concurrency} must not be greater than --max-messages {max_messages}"
    )]
    BatchMessages { batch_size: usize, concurrency: usize, max_messages: u32 },
    #[error("the command contains {{input}}, and --input none passes no input: remove one of them")]
    NoInputArgument,
    #[error(
        "--input-at is the path of the input, and --input none passes no input: remove one of them"
    )]
    NoInputAt,
    #[error(
        "--input-at and --output-at must not be the same path, and neither may be in the other"
    )]
    FixedPathsOverlap,
    #[error(
        "--concurrency and --batch-size process {0} messages at the same time, and {1} is one path: set both to 1, or remove the path"
    )]
    FixedPathShared(usize, &'static str),
    #[error("--prefetch {0} is too much: it must be at most {1}")]
    Prefetch(usize, usize),
    #[error(
        "--prefetch {prefetch} and --concurrency {concurrency} together must not be greater than --max-messages {max_messages}: a pod receives no more messages than that"
    )]
    PrefetchMessages { concurrency: usize, prefetch: usize, max_messages: u32 },
    #[error(
        "--prefetch has no effect: leasehold downloads no object with --input none or mount; remove it"
    )]
    PrefetchNothing,
    #[error("--prefetch does not work with {0}: remove one of them")]
    PrefetchConflict(&'static str),
    #[error("--input mount needs --mount: write for example --mount s3://bucket=/mnt/bucket")]
    NoMount,
    #[error("--mount has no effect without --input mount")]
    UnusedMount,
    #[error("--mount has the location of {0} twice: remove one of them")]
    SameMount(String),
    #[error("{0} has no effect without --handler http://127.0.0.1:PORT/PATH")]
    NoHttpHandler(&'static str),
    #[error(
        "a COMMAND after -- is required, unless --handler is the address of a server in another container of the pod"
    )]
    NoCommandToStart,
    #[error(
        "--input stdin needs a command that is started for each object: with --handler lambda or http://, set --input file"
    )]
    StdinOfWarmWorker,
    #[error(
        "--permanent-exit-codes has no effect with --handler lambda or http://, whose process ends only when it fails: remove it; a server can report a permanent failure with --permanent-http-codes"
    )]
    ExitCodesOfWarmWorker,
    #[error(
        "--command has no effect in a job type with --handler http://: one server gets the work of all job types, and JOB_TYPE is in each request as type"
    )]
    CommandOfServer,
    #[error(
        "--memory-guard has no effect on a server in another container: remove it, or start the server with a COMMAND after --"
    )]
    GuardOfNothing,
    #[error("--checkpoint-interval has no effect without --checkpoint")]
    NoCheckpoint,
    #[error("{0} has no effect without --output")]
    NoOutput(&'static str),
    #[error(
        "{0} contains {{key}}, {{name}} or {{stem}}, but with --accept-raw a message may have no object: use {{message_id}} instead"
    )]
    NoObject(&'static str),
    #[error(
        "--on-success {0} removes the object, so a redelivery of the message must be recognised without it: set --idempotency, or --missing-object ignore unless --input is none"
    )]
    RedeliveryNotRecognised(OnSuccess),
    #[error("--concurrency {concurrency} must not be greater than --max-messages {max_messages}")]
    Concurrency { concurrency: usize, max_messages: u32 },
    #[error(
        "--max-duration {} is over {}, so the work needs several deliveries, which only --visibility heartbeat supports",
        show(.max_duration), show(.most)
    )]
    FixedOverDeliveries { max_duration: Duration, most: Duration },
    #[error("--retry-min {} is over --retry-max {}", show(.min), show(.max))]
    RetryRange { min: Duration, max: Duration },
    #[error("--retry-max {} is over SQS's maximum of 12h", show(.0))]
    RetryTooLong(Duration),
    #[error("--job-types {at}: job type {name}: {why}")]
    JobType { name: String, at: String, why: String },
    #[error("--job-types: the file has no job type")]
    NoJobTypes,
    #[error("--job-types {at}: two job types have the name {name}")]
    SameName { name: String, at: String },
    #[error(
        "--job-types {at}: job type {name} is never used: {other}, which comes before it, matches every message"
    )]
    NeverReached { name: String, at: String, other: String },
    #[error("it has no command, and no COMMAND follows --")]
    NoCommand,
    #[error(
        "it matches {event}, which --events {events} does not include: messages about it are deleted"
    )]
    EventIsNoWork { event: &'static str, events: EventFilter },
    #[error(
        "--events {0} means that the object was deleted, so it cannot be downloaded: set --input none"
    )]
    Removal(&'static str),
    #[error("--permanent-exit-codes: {0} cannot be permanent, it means {1}")]
    PermanentExitCode(i32, &'static str),
    #[error("--pushgateway {:?} is not the URL of a server; write for example http://pushgateway.monitoring:9091", without_userinfo(.0))]
    Pushgateway(String),
    #[error(
        "--pushgateway {:?} contains a user and a password: put user:password into a file, and set --pushgateway-basic-auth-file to its path",
        without_userinfo(.0)
    )]
    PushgatewayUserinfo(String),
    #[error(
        "--pushgateway must not contain a query: remove it (put a token into a file, and set --pushgateway-bearer-token-file to its path)"
    )]
    PushgatewayQuery,
    #[error("--pushgateway is required")]
    NoPushgateway,
    #[error("--ceiling {} must be greater than --visibility-timeout and at most 12h", show(.0))]
    Ceiling(Duration),
    #[error("--push-interval {} must be at least 1s", show(.0))]
    PushInterval(Duration),
    #[error(
        "--output-sse-kms-key has no effect with --output-sse AES256: set aws:kms or aws:kms:dsse"
    )]
    KmsKey,
    #[error("--s3-timeout {} must be at least 1s", show(.0))]
    S3Timeout(Duration),
}

impl SettingError {
    /// The first flag that the text names, without dashes.
    pub fn setting(&self) -> Option<String> {
        let text = self.to_string();
        let flag = text.split("--").nth(1)?;
        let end = end_of_flag(flag);
        Some(flag[..end].to_owned()).filter(|flag| !flag.is_empty())
    }
}

/// Rounded, since derived limits may have fractions of a second.
fn show(duration: &Duration) -> String {
    if duration.subsec_nanos() == 0 {
        return humantime::format_duration(*duration).to_string();
    }
    if duration.as_secs() == 0 {
        return format!("{}ms", duration.as_millis());
    }
    let tenths = (duration.as_millis() + 50) / 100;
    if tenths < 600 {
        return format!("{}.{}s", tenths / 10, tenths % 10);
    }
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

/// Replaces the flags for which `name` returns another name. `name` gets them without dashes. A flag
/// begins a word, after a blank or one of `openings`: `/srv/jobs--wait` has none.
pub(super) fn rename_flags(
    text: &str,
    openings: &[char],
    name: impl Fn(&str) -> Option<String>,
) -> String {
    let mut parts = text.split("--");
    let mut renamed = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let begins_word = renamed.ends_with(|c: char| c.is_whitespace() || openings.contains(&c));
        let (flag, rest) = part.split_at(end_of_flag(part));
        match name(flag).filter(|_| begins_word || renamed.is_empty()) {
            Some(name) => renamed.push_str(&name),
            None => renamed.extend(["--", flag]),
        }
        renamed.push_str(rest);
    }
    renamed
}

/// Where the name at the beginning of this text ends.
fn end_of_flag(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(text.len())
}
