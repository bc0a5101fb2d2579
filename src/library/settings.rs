//! The settings that a program sets in its code.

use std::ffi::OsString;
use std::time::Duration;

use crate::job::on_success;

/// `2h 30m`, as flags read it.
pub(super) fn time(value: Duration) -> OsString {
    humantime::format_duration(value).to_string().into()
}

/// Adds a typed setter for each of the most useful settings to a type with `values_mut`. The
/// others are set by name. Values are checked like those of flags.
macro_rules! setters {
    () => {
        /// Any other setting, by the name of its flag without dashes, in the flag's format:
        /// `.setting("receive-give-up", "1h")`. docs/reference.md lists all of them.
        pub fn setting(mut self, flag: &'static str, value: impl Into<std::ffi::OsString>) -> Self {
            self.values_mut().push((flag, value.into()));
            self
        }

        /// How long the work on one message may take, from the receive; then the job is cancelled
        /// and the message retried. 10 minutes by default.
        pub fn max_duration(self, limit: std::time::Duration) -> Self {
            self.setting("max-duration", $crate::library::settings::time(limit))
        }

        /// The visibility timeout of the message, in whole seconds; it is extended each time a
        /// third of it has passed. 2 minutes by default.
        pub fn visibility_timeout(self, timeout: std::time::Duration) -> Self {
            self.setting("visibility-timeout", $crate::library::settings::time(timeout))
        }

        /// How long a handler may report no progress; then the job is cancelled and the message
        /// retried. Without a limit by default.
        pub fn stall_timeout(self, limit: std::time::Duration) -> Self {
            self.setting("stall-timeout", $crate::library::settings::time(limit))
        }

        /// How long the whole process has for a stop: the pod's `terminationGracePeriodSeconds`. 30
        /// seconds by default.
        pub fn termination_grace(self, grace: std::time::Duration) -> Self {
            self.setting("termination-grace", $crate::library::settings::time(grace))
        }

        /// How long a handler has to end after its job is cancelled; then it is dropped. By
        /// default the termination grace minus 10 seconds, or minus a third of it if that is less.
        pub fn stop_grace(self, grace: std::time::Duration) -> Self {
            self.setting("stop-grace", $crate::library::settings::time(grace))
        }

        /// The minimum and the maximum delay of a retry: it is random between the minimum and a limit
        /// that doubles with each receive.
        pub fn retry(self, shortest: std::time::Duration, longest: std::time::Duration) -> Self {
            self.setting("retry-min", $crate::library::settings::time(shortest))
                .setting("retry-max", $crate::library::settings::time(longest))
        }

        /// Downloads the object when the handler asks for it, and not before.
        pub fn fetch_on_demand(self) -> Self {
            self.setting("input", "none")
        }

        /// Also processes messages that are not S3 notifications: the body is the input.
        pub fn accept_raw(self) -> Self {
            self.setting("accept-raw", "true")
        }

        /// The buckets whose objects are work; a message about another one is kept, as a permanent
        /// failure. All buckets by default.
        pub fn buckets(self, names: impl IntoIterator<Item: Into<String>>) -> Self {
            let names: Vec<String> = names.into_iter().map(Into::into).collect();
            self.setting("buckets", names.join(","))
        }

        /// What happens to a message whose object was deleted or overwritten since the event; by
        /// default, a retry if deleted, a permanent failure if overwritten.
        pub fn missing_object(self, treatment: $crate::library::settings::MissingObject) -> Self {
            self.setting("missing-object", treatment.text())
        }

        /// What happens to the object after its work succeeded, before the message is deleted;
        /// nothing by default. If it is moved or deleted, a redelivery must be recognised: with
        /// `idempotency`, or with [`MissingObject::Ignore`](crate::MissingObject::Ignore) unless
        /// the object is fetched on demand.
        pub fn on_success(self, action: $crate::library::settings::OnSuccess) -> Self {
            self.setting("on-success", action.text())
        }

        /// Uploads the files of [`Job::output_dir`](crate::Job::output_dir) to this location:
        /// `s3://bucket/prefix`.
        pub fn output(self, location: impl Into<std::ffi::OsString>) -> Self {
            self.setting("output", location)
        }

        /// Saves the files of [`Job::checkpoint_dir`](crate::Job::checkpoint_dir) at this location
        /// if an attempt does not succeed, for the next one: `s3://bucket/prefix`.
        pub fn checkpoint(self, location: impl Into<std::ffi::OsString>) -> Self {
            self.setting("checkpoint", location)
        }

        /// Records finished work at this location, so that a redelivered message is recognised:
        /// `s3://bucket/prefix`.
        pub fn idempotency(self, location: impl Into<std::ffi::OsString>) -> Self {
            self.setting("idempotency", location)
        }

        /// The folder for files during processing; the system's temporary directory by default.
        pub fn work_dir(self, folder: impl Into<std::path::PathBuf>) -> Self {
            self.setting("work-dir", folder.into())
        }
    };
}
pub(super) use setters;

/// The setters of a program or a worker with a queue in SQS.
macro_rules! queue_setters {
    () => {
        /// The URL of the SQS queue, standard or FIFO.
        pub fn queue_url(self, url: impl Into<std::ffi::OsString>) -> Self {
            self.setting("queue-url", url)
        }

        /// How many messages, or batches of them, to process at the same time; 1 by default. At most
        /// `max_messages`, if that is set.
        pub fn concurrency(self, calls: usize) -> Self {
            self.setting("concurrency", calls.to_string())
        }

        /// How many further messages to receive and download while the others are processed, up to
        /// 10; none by default. Not with `checkpoint` or `fetch_on_demand`.
        pub fn prefetch(self, messages: usize) -> Self {
            self.setting("prefetch", messages.to_string())
        }

        /// Writes a record of each attempt that does not succeed to this location, for the next one:
        /// `s3://bucket/prefix`.
        pub fn attempts(self, location: impl Into<std::ffi::OsString>) -> Self {
            self.setting("attempts", location)
        }
    };
}
pub(super) use queue_setters;

/// The setters of a batch handler.
macro_rules! batch_setters {
    () => {
        /// How many jobs the handler takes at once, up to 10, which is the default. It gets those
        /// that are there when it is free, or after the window. Each of them is received, downloaded
        /// and held for itself.
        pub fn batch_size(self, jobs: usize) -> Self {
            self.setting("batch-size", jobs.to_string())
        }

        /// How long a batch waits for more jobs while the handler is free. No time by default.
        pub fn batch_window(self, time: std::time::Duration) -> Self {
            self.setting("batch-window", $crate::library::settings::time(time))
        }
    };
}
pub(super) use batch_setters;

/// What happens to a message whose object was deleted or overwritten since the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MissingObject {
    /// It is retried: the object may come back.
    Retry,
    /// It is a permanent failure, and goes to the dead-letter queue soon.
    Fail,
    /// It is deleted: there is nothing to do.
    Ignore,
}

impl MissingObject {
    /// As the flag has it.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Fail => "fail",
            Self::Ignore => "ignore",
        }
    }
}

/// What happens to the object after its work succeeded. An object that was overwritten meanwhile is
/// not touched.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnSuccess {
    /// It gets a tag, beside those that it has.
    Tag {
        /// The tag's key.
        key: String,
        /// The tag's value.
        value: String,
    },
    /// It is moved below this location: `s3://bucket/prefix`.
    Move(String),
    /// It is deleted.
    Delete,
}

impl OnSuccess {
    /// As the flag has it.
    pub(super) fn text(self) -> String {
        match self {
            Self::Tag { key, value } => on_success::OnSuccess::Tag { key, value }.to_string(),
            Self::Move(location) => format!("move={location}"),
            Self::Delete => "delete".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::on_success::OnSuccess as Action;

    #[test]
    fn what_happens_to_an_object_is_read_as_it_was_set() {
        let tag = |key: &str, value: &str| {
            let (key, value) = (key.to_owned(), value.to_owned());
            (OnSuccess::Tag { key: key.clone(), value: value.clone() }, Action::Tag { key, value })
        };
        let to = "s3://bucket/done";
        for (set, read) in [
            tag("state", "done"),
            tag("team:state", "done: yes "),
            (OnSuccess::Move(to.to_owned()), Action::Move(to.parse().unwrap())),
            (OnSuccess::Delete, Action::Delete),
        ] {
            assert_eq!(set.text().parse(), Ok(read));
        }
        let wrong = OnSuccess::Tag { key: "rate".to_owned(), value: "7%".to_owned() };
        assert!(wrong.text().parse::<Action>().unwrap_err().contains("a tag has only"));
    }
}
