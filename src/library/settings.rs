//! The settings that a program sets in its code.

use std::ffi::OsString;
use std::time::Duration;

/// `2h 30m`, as flags read it.
pub(super) fn time(value: Duration) -> OsString {
    humantime::format_duration(value).to_string().into()
}

/// Adds a typed setter for each of the most useful settings to a type with a field `values`. The
/// others are set by name. Values are checked like those of flags.
macro_rules! setters {
    () => {
        /// Any other setting, by the name of its flag without dashes, in the flag's format:
        /// `.setting("missing-object", "ignore")`. docs/reference.md lists all of them.
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
        /// default the termination grace minus 10 seconds.
        pub fn stop_grace(self, grace: std::time::Duration) -> Self {
            self.setting("stop-grace", $crate::library::settings::time(grace))
        }

        /// The minimum and the maximum delay of a retry: it is random between the minimum and a limit
        /// that doubles with each receive.
        pub fn retry(self, shortest: std::time::Duration, longest: std::time::Duration) -> Self {
            self.setting("retry-min", $crate::library::settings::time(shortest))
                .setting("retry-max", $crate::library::settings::time(longest))
        }

        /// How many jobs a batch handler takes at once, up to 10, which is the default. It gets
        /// those that are there when it is free, or after the window. Each of them is received,
        /// downloaded and held for itself.
        pub fn batch_size(self, jobs: usize) -> Self {
            self.setting("batch-size", jobs.to_string())
        }

        /// How long a batch waits for more jobs while the handler is free. No time by default.
        pub fn batch_window(self, time: std::time::Duration) -> Self {
            self.setting("batch-window", $crate::library::settings::time(time))
        }

        /// Downloads the object when the handler asks for it, and not before.
        pub fn fetch_on_demand(self) -> Self {
            self.setting("input", "none")
        }

        /// Also processes messages that are not S3 notifications: the body is the input.
        pub fn accept_raw(self) -> Self {
            self.setting("accept-raw", "true")
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
