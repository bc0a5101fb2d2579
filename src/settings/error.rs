//! What can be wrong with the settings.

use std::time::Duration;

use crate::adapters::http::without_userinfo;
use crate::job::route::EventFilter;

/// A setting that cannot work. Its text names the flags and the numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    #[error("--queue-url is required")]
    NoQueue,
    #[error("--queue-url: {0}")]
    QueueUrl(String),
    #[error("--visibility-timeout {} is under 3s: no extension could come in time", show(.0))]
    VisibilityTooShort(Duration),
    #[error("--visibility-timeout {} is over the 12h for which SQS hides a message", show(.0))]
    VisibilityTooLong(Duration),
    #[error("{flag} {} has a fraction of a second, and SQS counts whole seconds", show(.value))]
    Fraction { flag: &'static str, value: Duration },
    #[error("--{0} must be greater than zero")]
    Zero(&'static str),
    #[error(
        "--max-duration {} is over {}: SQS hides a message for {} at most, and {} of them are kept for the stop; only with --checkpoint may it be more",
        show(.max_duration), show(.most), show(.ceiling), show(&.ceiling.saturating_sub(*.most))
    )]
    MaxDuration { max_duration: Duration, most: Duration, ceiling: Duration },
    #[error(
        "--stop-grace {} does not fit: with the {} that leasehold needs to release the message and report, it is over --termination-grace {}",
        show(.stop_grace), show(.reserve), show(.termination_grace)
    )]
    StopGrace { stop_grace: Duration, reserve: Duration, termination_grace: Duration },
    #[error(
        "--wait {} does not fit: a request for a message is awaited in a stop, and with the {} that leasehold needs after it that is over --termination-grace {}",
        show(.wait), show(.reserve), show(.termination_grace)
    )]
    Wait { wait: Duration, reserve: Duration, termination_grace: Duration },
    #[error(
        "--stall-timeout {} has no effect: by then the work is over --max-duration {}",
        show(.stall_timeout), show(.max_duration)
    )]
    StallTimeout { stall_timeout: Duration, max_duration: Duration },
    #[error("--accept-raw gives the command the message's body, and --input none gives it nothing")]
    NoInput,
    #[error("--checkpoint-interval has no effect: there is no --checkpoint")]
    NoCheckpoint,
    #[error(
        "{0} has {{key}}, {{name}} or {{stem}} in it, and with --accept-raw there are messages without an object: {{message_id}} is always there"
    )]
    NoObject(&'static str),
    #[error("--concurrency {concurrency} has no effect: no more than --max-messages {max_messages} are received")]
    Concurrency { concurrency: usize, max_messages: u32 },
    #[error(
        "--max-duration {} is over {}, which takes several deliveries: with --checkpoint each goes on from the one before, but only with --visibility heartbeat",
        show(.max_duration), show(.most)
    )]
    FixedOverDeliveries { max_duration: Duration, most: Duration },
    #[error("--retry-min {} is over --retry-max {}", show(.min), show(.max))]
    RetryRange { min: Duration, max: Duration },
    #[error("--retry-max {} is over the 12h for which SQS hides a message", show(.0))]
    RetryTooLong(Duration),
    #[error("--job-types {at}: job type {name}: {why}")]
    JobType { name: String, at: String, why: String },
    #[error("--job-types: the file has no job type")]
    NoJobTypes,
    #[error("--job-types {at}: {name} is the name of two job types")]
    SameName { name: String, at: String },
    #[error("--job-types {at}: {name} is never reached: {other}, which is before it, takes every message")]
    NeverReached { name: String, at: String, other: String },
    #[error("it has no command, and COMMAND is not given for all")]
    NoCommand,
    #[error("it matches {event}, which --events {events} does not ask for: messages about it are deleted")]
    EventIsNoWork { event: &'static str, events: EventFilter },
    #[error("--events {0} means that the object is gone, and --input fetches it: add --input none")]
    Removal(&'static str),
    #[error("--permanent-exit-codes: {0} cannot be permanent, it means {1}")]
    PermanentExitCode(i32, &'static str),
    #[error("--pushgateway {:?} is not the URL of a server; it looks like http://pushgateway.monitoring:9091", without_userinfo(.0))]
    Pushgateway(String),
    #[error(
        "--pushgateway {:?} has a user and a password in it: write user:password into a file, and name it with --pushgateway-basic-auth-file",
        without_userinfo(.0)
    )]
    PushgatewayUserinfo(String),
    #[error(
        "--pushgateway has a query in it, behind which no path fits: leave it out (a token belongs in a file that --pushgateway-bearer-token-file names)"
    )]
    PushgatewayQuery,
    #[error("--pushgateway is required")]
    NoPushgateway,
    #[error("--ceiling {} does not fit: it must be over --visibility-timeout, and at most 12h", show(.0))]
    Ceiling(Duration),
    #[error("--push-interval {} is under 1s", show(.0))]
    PushInterval(Duration),
    #[error("--s3-timeout {} is under 1s", show(.0))]
    S3Timeout(Duration),
}

/// Rounded: nobody sets a millionth of a second.
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
