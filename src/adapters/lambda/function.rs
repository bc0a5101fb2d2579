//! What a function finds in its environment and its context.

use std::ffi::OsString;

use crate::job::s3_event::partition;
use crate::ports::Command;

/// The queue of the messages, as a function sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub queue_arn: String,
    pub region: String,
}

impl Source {
    /// The queue with this URL; without one, the folder of `leasehold local`.
    pub fn new(queue_url: Option<&str>, region: Option<&str>) -> Self {
        let region = region.unwrap_or("us-east-1");
        let partition = partition(region);
        let mut parts = queue_url.unwrap_or("inbox").rsplit('/');
        let name = parts.next().unwrap_or_default();
        let is_account = |it: &&str| it.len() == 12 && it.bytes().all(|c| c.is_ascii_digit());
        let account = parts.next().filter(is_account).unwrap_or("000000000000");
        Self {
            queue_arn: format!("arn:{partition}:sqs:{region}:{account}:{name}"),
            region: region.to_owned(),
        }
    }

    /// The queue's name, as far as a function's name may have its characters.
    fn function_name(&self) -> String {
        let name = self.queue_arn.rsplit(':').next().unwrap_or_default();
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        name.chars().map(|c| if allowed(c) { c } else { '-' }).take(64).collect()
    }

    pub(super) fn function_arn(&self) -> String {
        let name = self.function_name();
        self.queue_arn
            .rsplit_once(':')
            .map(|(queue, _)| format!("{}:function:{name}", queue.replacen(":sqs:", ":lambda:", 1)))
            .unwrap_or_default()
    }
}

/// The most that a function can have on Lambda; for a container without a limit.
const MOST_MEBIBYTES: u64 = 10_240;

/// The variables of a function that listens to the API at `api` (host and port), except those that
/// the image sets itself.
pub(super) fn variables(
    command: &Command,
    source: &Source,
    memory_limit: Option<u64>,
    api: &str,
    is_set: fn(&str) -> bool,
) -> Vec<(OsString, OsString)> {
    let name = source.function_name();
    // The last word is the handler for the clients of all languages, and for AWS's base images,
    // whose entrypoint exports it itself.
    let handler = command.args.last().unwrap_or(&command.program).clone();
    let folder =
        std::env::current_dir().map_or_else(|_| "/".into(), std::path::PathBuf::into_os_string);
    let mebibytes = memory_limit.map_or(MOST_MEBIBYTES, |limit| limit >> 20).max(1);
    let defaults: [(&str, OsString); 8] = [
        ("_HANDLER", handler),
        ("LAMBDA_TASK_ROOT", folder),
        ("AWS_LAMBDA_FUNCTION_NAME", name.clone().into()),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST".into()),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", mebibytes.to_string().into()),
        ("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{name}").into()),
        ("AWS_LAMBDA_LOG_STREAM_NAME", command.job.id.clone().into()),
        // With this value, Python's client waits for events in a thread, so that the function's own
        // signal handlers run. The other clients do not read it.
        ("AWS_EXECUTION_ENV", "AWS_Lambda_python3.12".into()),
    ];
    let defaults = defaults.into_iter().filter(|(name, _)| !is_set(name));
    let api = ("AWS_LAMBDA_RUNTIME_API", api.into());
    [api].into_iter().chain(defaults).map(|(name, value)| (name.into(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::command;
    use super::*;

    #[test]
    fn a_queue_url_becomes_the_arns_of_queue_and_function() {
        let arns = |url: Option<&str>, region: Option<&str>| {
            let source = Source::new(url, region);
            (source.queue_arn.clone(), source.function_arn())
        };
        let (queue, function) = arns(
            Some("https://sqs.cn-north-1.amazonaws.com.cn/123456789012/a.fifo"),
            Some("cn-north-1"),
        );
        assert_eq!(queue, "arn:aws-cn:sqs:cn-north-1:123456789012:a.fifo");
        assert_eq!(function, "arn:aws-cn:lambda:cn-north-1:123456789012:function:a-fifo");
        let (queue, function) = arns(Some("http://sqs:9324/queue/q"), None);
        assert_eq!(queue, "arn:aws:sqs:us-east-1:000000000000:q");
        assert_eq!(function, "arn:aws:lambda:us-east-1:000000000000:function:q");
        assert_eq!(arns(None, None).0, "arn:aws:sqs:us-east-1:000000000000:inbox");
    }

    #[test]
    fn the_image_may_set_every_variable_but_the_address() {
        let all = |is_set| {
            let variables =
                variables(&command("m"), &Source::new(None, None), Some(512 << 20), "a:1", is_set);
            variables
                .into_iter()
                .map(|(name, value)| format!("{}={}", name.display(), value.display()))
                .collect::<Vec<_>>()
        };
        let defaults = all(|_| false);
        for expected in [
            "AWS_LAMBDA_RUNTIME_API=a:1",
            "_HANDLER=app.handler",
            "AWS_LAMBDA_FUNCTION_NAME=inbox",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=512",
        ] {
            assert!(defaults.iter().any(|it| it == expected), "{expected} {defaults:?}");
        }
        assert_eq!(all(|_| true), ["AWS_LAMBDA_RUNTIME_API=a:1"]);
    }
}
