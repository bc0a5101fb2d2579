//! The settings that a job type may override, and their checks.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "check")]
use schemars::JsonSchema;
use serde::Deserialize;

use super::error::SettingError;
use super::given::Settings;
use super::job_types::{Match, Name, SourceMap};
use super::values::{self, AbsolutePath, Handler, List, time};
use crate::job::arguments::{Argument, Placeholder};
use crate::job::event::EventFilter;
use crate::job::lease::{CEILING, Strategy};
use crate::job::object_attributes::{CannedAcl, ObjectAttributes, StorageClass, Tags};
use crate::job::object_from::ObjectFrom;
use crate::job::on_success::OnSuccess;
use crate::job::route::{
    self, Checkpointing, CommandLine, Input, JobType, LambdaEvent, Limits, MissingObject, Task,
};
use crate::job::s3_location::LocationTemplate;
use crate::job::stop::StopPlan;
use crate::job::verdict::{OnStop, Retry, RetryPolicy};

/// A job type. A setting that is not set here has the value of the flag of the same name. The flags
/// apply to all messages that match no job type.
#[derive(Debug, Clone, Default, Settings, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
#[cfg_attr(feature = "check", derive(JsonSchema))]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(rename = "JobType")]
pub struct TaskSettings {
    #[arg(skip)]
    pub name: Name,

    #[arg(skip)]
    #[serde(default)]
    pub r#match: Match,

    /// The program to run for each object, and its arguments; with --job-types, for objects that
    /// match no job type.
    ///
    /// The arguments may contain {input}, {uri}, {bucket}, {key}, {name}, {stem}, {version_id},
    /// {output_dir}, {message_id}, {receive_count}, {job_type} and {attributes.NAME}.
    #[arg(last = true, required_unless_present_any = ["job_types", "handler"], value_name = "COMMAND")]
    #[serde(default, deserialize_with = "values::words")]
    #[schemars(
        with = "Option<Vec<String>>",
        length(min = 1),
        description = "The program to run for each object of this job type, and its arguments, with the same placeholders as the COMMAND of the command line [default: that COMMAND]"
    )]
    pub command: Vec<OsString>,

    /// How the command gets the object [default: file; none with --handler lambda]
    #[arg(long, value_enum, help_heading = WORK)]
    pub input: Option<Input>,

    /// The event that the function of --handler lambda gets [default: sqs]
    #[arg(long, value_enum, value_name = "EVENT", help_heading = WORK, hide_short_help = true)]
    pub lambda_event: Option<LambdaEvent>,

    /// Where a message that is not an S3 notification names its object, as JSON Pointers
    ///
    /// For example bucket=/detail/bucket,key=/detail/key or uri=/s3Uri (s3://bucket/key). A bucket
    /// without a slash is a constant. version, etag and size are optional. With list, a pointer to
    /// an array, each entry names an object, and the other pointers begin at the entry.
    #[arg(long, value_name = "FIELD=POINTER,...", help_heading = WORK, hide_short_help = true)]
    #[serde(default, deserialize_with = "values::text")]
    #[schemars(with = "Option<String>")]
    pub object_from: Option<ObjectFrom>,

    /// A path at which the command finds its input, too: a link that exists while the command runs
    #[arg(long, value_name = "PATH", help_heading = WORK, hide_short_help = true)]
    #[serde(default, deserialize_with = "values::text")]
    #[schemars(with = "Option<String>")]
    pub input_at: Option<AbsolutePath>,

    /// A path at which the command finds JOB_OUTPUT_DIR, too: a link that exists while the command
    /// runs
    #[arg(long, value_name = "PATH", help_heading = WORK, hide_short_help = true)]
    #[serde(default, deserialize_with = "values::text")]
    #[schemars(with = "Option<String>")]
    pub output_at: Option<AbsolutePath>,

    /// Where to upload the results: the files that the command wrote into JOB_OUTPUT_DIR.
    ///
    /// PREFIX may contain {key}, {name} (the last part of the key), {stem} (the name without its
    /// extension), {message_id} and {job_type}.
    #[arg(long, value_name = "s3://BUCKET/PREFIX", help_heading = WORK)]
    #[serde(default, deserialize_with = "values::text")]
    #[schemars(with = "Option<String>")]
    pub output: Option<LocationTemplate>,

    /// The storage class of the results [default: STANDARD]
    #[arg(long, value_enum, value_name = "CLASS", help_heading = WORK, hide_short_help = true)]
    pub output_storage_class: Option<StorageClass>,

    /// The tags of the results
    #[arg(long, value_name = "KEY=VALUE,...", help_heading = WORK, hide_short_help = true)]
    #[serde(default, deserialize_with = "values::text")]
    #[schemars(with = "Option<String>")]
    pub output_tags: Option<Tags>,

    /// The canned ACL of the results, for buckets with ACLs [default: private]
    #[arg(long, value_enum, value_name = "ACL", help_heading = WORK, hide_short_help = true)]
    pub output_acl: Option<CannedAcl>,

    /// Where to save checkpoints: the files that the command wrote into JOB_CHECKPOINT_DIR are
    /// restored for the next attempt.
    ///
    /// PREFIX may contain the same placeholders as for --output. With checkpoints, --max-duration
    /// limits all attempts together and may be over 12 hours.
    #[arg(long, value_name = "s3://BUCKET/PREFIX", help_heading = WORK)]
    #[serde(default, deserialize_with = "values::text")]
    #[schemars(with = "Option<String>")]
    pub checkpoint: Option<LocationTemplate>,

    /// What to do with the object after its work succeeded: tag=KEY:VALUE adds a tag,
    /// move=s3://BUCKET/PREFIX moves it there, delete deletes it [default: nothing]
    ///
    /// In KEY, write %3A for a colon.
    #[arg(long, value_name = "ACTION", help_heading = WORK, hide_short_help = true)]
    #[serde(default, deserialize_with = "values::text")]
    #[schemars(with = "Option<String>")]
    pub on_success: Option<OnSuccess>,

    /// How often to save a checkpoint while the command runs [default: only when the command fails
    /// or is stopped]
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = WORK, hide_short_help = true)]
    #[serde(default, deserialize_with = "values::duration")]
    #[schemars(with = "Option<String>")]
    pub checkpoint_interval: Option<Duration>,

    /// Exit codes with which the command reports a permanent failure, which a retry cannot fix
    #[arg(long, value_name = "CODE,...", default_value = "65", help_heading = WORK)]
    #[serde(default, deserialize_with = "values::codes")]
    #[schemars(with = "Option<Vec<u8>>")]
    pub permanent_exit_codes: Vec<List<u8>>,

    /// How to treat an object that was deleted or overwritten since the event [default: retry if
    /// deleted, fail if overwritten]
    #[arg(long, value_enum, help_heading = WORK)]
    pub missing_object: Option<MissingObject>,

    /// How to keep the message hidden from other consumers while the work runs
    #[arg(long, value_enum, default_value = "heartbeat", help_heading = LEASE)]
    pub visibility: Option<Visibility>,

    /// The visibility timeout of the message; with --visibility heartbeat, it is extended each time
    /// a third of it has passed
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = time, help_heading = LEASE)]
    #[serde(default, deserialize_with = "values::duration")]
    #[schemars(with = "Option<String>")]
    pub visibility_timeout: Option<Duration>,

    /// How long the work on one message may take, from the receive; then the work is stopped and the
    /// message retried
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time, help_heading = LEASE)]
    #[serde(default, deserialize_with = "values::duration")]
    #[schemars(with = "Option<String>")]
    pub max_duration: Option<Duration>,

    /// How long the command may print nothing and report no progress; then it is stopped and the
    /// message retried [default: no limit]
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = LEASE)]
    #[serde(default, deserialize_with = "values::duration")]
    #[schemars(with = "Option<String>")]
    pub stall_timeout: Option<Duration>,

    /// How long the command has between SIGTERM and SIGKILL [default: --termination-grace minus
    /// 10s, or minus a third of it if that is less]
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = STOP)]
    #[serde(default, deserialize_with = "values::duration")]
    #[schemars(with = "Option<String>")]
    pub stop_grace: Option<Duration>,

    /// After a failure, make the message visible after a delay that grows, or let its visibility
    /// timeout run out
    #[arg(long, value_enum, default_value = "backoff", help_heading = RETRY)]
    pub retry: Option<RetryMode>,

    /// The shortest delay of a retry [default: 10s; local: 1s]
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = RETRY)]
    #[serde(default, deserialize_with = "values::duration")]
    #[schemars(with = "Option<String>")]
    pub retry_min: Option<Duration>,

    /// The longest delay of a retry [default: 15m; local: 5s]
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = RETRY)]
    #[serde(default, deserialize_with = "values::duration")]
    #[schemars(with = "Option<String>")]
    pub retry_max: Option<Duration>,

    #[arg(skip)]
    #[serde(skip)]
    pub source: SourceMap,
}

pub(super) const WORK: &str = "Work";
pub(super) const LEASE: &str = "Lease";
pub(super) const STOP: &str = "Stop";
pub(super) const RETRY: &str = "Retry";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[cfg_attr(feature = "check", derive(JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Visibility {
    /// Extend a short visibility timeout each time a third of it has passed
    Heartbeat,
    /// Extend once, right after the receive, to --max-duration plus the time for a shutdown
    Fixed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[cfg_attr(feature = "check", derive(JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum RetryMode {
    /// Make the message visible after a random delay between --retry-min and a limit that doubles with
    /// each receive, at most --retry-max
    Backoff,
    /// Let its visibility timeout run out
    Expire,
}

/// Settings that are the same for all job types of a pod.
#[derive(Debug, Clone)]
pub(super) struct PodRules {
    pub(super) stop: StopPlan,
    pub(super) longest_poll: Duration,
    /// The longest total time for which the queue hides a message.
    pub(super) ceiling: Duration,
    pub(super) on_stop: OnStop,
    pub(super) accept_raw: bool,
    pub(super) handler: Handler,
    pub(super) batch_window: Duration,
    /// Whether a record shows which work is done (`--idempotency`).
    pub(super) has_records: bool,
    /// The default if neither the job type nor a flag sets it.
    pub(super) retry_min: Duration,
    pub(super) retry_max: Duration,
}

impl TaskSettings {
    /// Fills in missing settings from `other`. Destructured, so that no field can be forgotten.
    pub(super) fn or(self, other: &Self) -> Self {
        let Self {
            name,
            r#match,
            command,
            input,
            lambda_event,
            input_at,
            output_at,
            object_from,
            output,
            output_storage_class,
            output_tags,
            output_acl,
            checkpoint,
            checkpoint_interval,
            on_success,
            permanent_exit_codes,
            missing_object,
            visibility,
            visibility_timeout,
            max_duration,
            stall_timeout,
            stop_grace,
            retry,
            retry_min,
            retry_max,
            source,
        } = self;
        let other = other.clone();
        let either = |own: Vec<_>, other| if own.is_empty() { other } else { own };
        let max_duration = max_duration.or(other.max_duration);
        // The flag's stall timeout is dropped if it does not fit a job type with a short duration.
        let inherited = other
            .stall_timeout
            .filter(|inherited| max_duration.is_none_or(|longest| *inherited < longest));
        Self {
            name,
            r#match,
            command: if command.is_empty() { other.command } else { command },
            input: input.or(other.input),
            lambda_event: lambda_event.or(other.lambda_event),
            input_at: input_at.or(other.input_at),
            output_at: output_at.or(other.output_at),
            object_from: object_from.or(other.object_from),
            output: output.or(other.output),
            output_storage_class: output_storage_class.or(other.output_storage_class),
            output_tags: output_tags.or(other.output_tags),
            output_acl: output_acl.or(other.output_acl),
            checkpoint: checkpoint.or(other.checkpoint),
            checkpoint_interval: checkpoint_interval.or(other.checkpoint_interval),
            on_success: on_success.or(other.on_success),
            permanent_exit_codes: either(permanent_exit_codes, other.permanent_exit_codes),
            missing_object: missing_object.or(other.missing_object),
            visibility: visibility.or(other.visibility),
            visibility_timeout: visibility_timeout.or(other.visibility_timeout),
            max_duration,
            stall_timeout: stall_timeout.or(inherited),
            stop_grace: stop_grace.or(other.stop_grace),
            retry: retry.or(other.retry),
            retry_min: retry_min.or(other.retry_min),
            retry_max: retry_max.or(other.retry_max),
            source,
        }
    }

    /// The checked job type: missing settings come from the flags.
    pub(super) fn job_type(
        self,
        flags: &Self,
        events: &EventFilter,
        pod: &PodRules,
    ) -> Result<JobType, SettingError> {
        let settings = self.or(flags);
        let Match { bucket, key, event } = settings.r#match.clone();
        let matches = route::Match { bucket, key, event };
        if let Some(event) =
            matches.event.as_ref().and_then(|asked| events.first_not_covered(asked))
        {
            return Err(SettingError::EventIsNoWork { event, events: events.clone() });
        }
        let limits = settings.limits(pod)?;
        let task = settings.task(matches.matches_all(), pod)?.ok_or(SettingError::NoCommand)?;
        Ok(JobType { matches, object_from: settings.object_from, task: Arc::new(task), limits })
    }

    /// The checked task; `None` without a command.
    pub(super) fn task(
        &self,
        may_get_bodies: bool,
        pod: &PodRules,
    ) -> Result<Option<Task>, SettingError> {
        let default = if pod.handler == Handler::Lambda { Input::None } else { Input::File };
        let input = self.input.unwrap_or(default);
        let command = match (&*self.command, &pod.handler) {
            ([program, words @ ..], _) => CommandLine::parse(program.clone(), words)?,
            // Another container starts the server.
            ([], Handler::Http(address)) => {
                CommandLine { program: address.to_string().into(), args: Vec::new() }
            }
            ([], Handler::Command | Handler::Lambda | Handler::Batches) => return Ok(None),
        };
        if pod.handler.is_warm() {
            self.check_for_warm_worker(input)?;
        }
        let gets_bodies = pod.accept_raw && may_get_bodies;
        self.check_input(input, gets_bodies, &pod.handler)?;
        self.check_locations(gets_bodies)?;
        check_arguments(&command, input, &pod.handler)?;
        let path = |of: &Option<AbsolutePath>| of.as_ref().map(|path| path.0.clone());
        let (input_at, output_at) = (path(&self.input_at), path(&self.output_at));
        check_fixed_paths(input, input_at.as_deref(), output_at.as_deref())?;
        self.check_removal(input, pod)?;
        let interval = self.checkpoint_interval;
        Ok(Some(Task {
            name: self.name.0.clone(),
            command,
            input,
            lambda_event: self.lambda_event.unwrap_or_default(),
            input_at,
            output_at,
            missing_object: self.missing_object,
            stall_timeout: self.stall_timeout,
            output: self.output.clone(),
            on_success: self.on_success.clone(),
            output_attributes: ObjectAttributes {
                storage_class: self.output_storage_class,
                tags: self.output_tags.clone(),
                acl: self.output_acl,
            },
            checkpoint: self
                .checkpoint
                .clone()
                .map(|location| Checkpointing { location, interval }),
        }))
    }

    fn check_input(
        &self,
        input: Input,
        gets_bodies: bool,
        handler: &Handler,
    ) -> Result<(), SettingError> {
        if self.lambda_event.is_some() && *handler != Handler::Lambda {
            return Err(SettingError::NoLambda("--lambda-event"));
        }
        if gets_bodies && self.lambda_event == Some(LambdaEvent::S3) {
            return Err(SettingError::EventOfNoObject);
        }
        // A function gets the body in its event.
        if gets_bodies && input == Input::None && *handler != Handler::Lambda {
            return Err(SettingError::NoInput);
        }
        Ok(())
    }

    /// Checks the locations of results and checkpoints, and what needs them.
    fn check_locations(&self, gets_bodies: bool) -> Result<(), SettingError> {
        if self.checkpoint_interval.is_some_and(|interval| interval.is_zero()) {
            return Err(SettingError::Zero("checkpoint-interval"));
        }
        if self.checkpoint_interval.is_some() && self.checkpoint.is_none() {
            return Err(SettingError::NoCheckpoint);
        }
        for (flag, is_set) in [
            ("--output-storage-class", self.output_storage_class.is_some()),
            ("--output-tags", self.output_tags.is_some()),
            ("--output-acl", self.output_acl.is_some()),
        ] {
            if is_set && self.output.is_none() {
                return Err(SettingError::NoOutput(flag));
            }
        }
        for (flag, place) in [("--output", &self.output), ("--checkpoint", &self.checkpoint)] {
            if gets_bodies && place.as_ref().is_some_and(LocationTemplate::needs_object) {
                return Err(SettingError::NoObject(flag));
            }
        }
        Ok(())
    }

    /// A redelivery must be recognised although the object is gone.
    fn check_removal(&self, input: Input, pod: &PodRules) -> Result<(), SettingError> {
        let ignores_missing =
            self.missing_object == Some(MissingObject::Ignore) && input != Input::None;
        let removes = self.on_success.as_ref().filter(|action| action.removes());
        if let Some(action) = removes
            && !pod.has_records
            && !ignores_missing
        {
            return Err(SettingError::RedeliveryNotRecognised(action.clone()));
        }
        Ok(())
    }

    /// What a warm worker cannot have.
    fn check_for_warm_worker(&self, input: Input) -> Result<(), SettingError> {
        if input == Input::Stdin {
            return Err(SettingError::StdinOfWarmWorker);
        }
        let codes: Vec<_> = self.permanent_exit_codes.iter().flat_map(|list| &list.0).collect();
        if codes != [&65] {
            return Err(SettingError::ExitCodesOfWarmWorker);
        }
        Ok(())
    }

    /// The checked limits: every path of a stop must fit into the pod's grace and SQS's 12 hours.
    pub(super) fn limits(&self, pod: &PodRules) -> Result<Limits, SettingError> {
        let PodRules { stop, longest_poll, ceiling, batch_window: window, .. } = *pod;
        let visibility = self.visibility_timeout.expect(DEFAULT);
        if visibility.subsec_nanos() > 0 {
            return Err(SettingError::Fraction { flag: "--visibility-timeout", value: visibility });
        }
        if visibility < SHORTEST_VISIBILITY {
            return Err(SettingError::VisibilityTooShort(visibility));
        }
        if visibility > CEILING {
            return Err(SettingError::VisibilityTooLong(visibility));
        }
        let max_duration = self.max_duration.expect(DEFAULT);
        if max_duration.is_zero() {
            return Err(SettingError::Zero("max-duration"));
        }
        match self.stall_timeout {
            Some(Duration::ZERO) => return Err(SettingError::Zero("stall-timeout")),
            Some(stall_timeout) if stall_timeout >= max_duration => {
                return Err(SettingError::StallTimeout { stall_timeout, max_duration });
            }
            Some(_) | None => {}
        }
        let termination_grace = stop.termination_grace;
        let stop_grace = self.stop_grace.unwrap_or(termination_grace.saturating_sub(stop.reserve));
        if stop.total(stop_grace) > termination_grace {
            return Err(SettingError::StopGrace {
                stop_grace,
                reserve: stop.reserve,
                termination_grace,
            });
        }
        let is_fixed = self.visibility == Some(Visibility::Fixed);
        let most = ceiling.saturating_sub(stop.total(stop_grace) + longest_poll + SECOND);
        if max_duration > most && self.checkpoint.is_none() {
            return Err(SettingError::MaxDuration { max_duration, most, ceiling });
        }
        if max_duration > most && is_fixed {
            return Err(SettingError::FixedOverDeliveries { max_duration, most });
        }
        // With checkpoints, the work may take several deliveries.
        let in_one_delivery = if self.checkpoint.is_none() { max_duration } else { SECOND };
        let most = most.saturating_sub(in_one_delivery);
        if window > most {
            return Err(SettingError::BatchWindow { window, most, ceiling });
        }
        let strategy = if is_fixed {
            Strategy::Fixed(whole_seconds(max_duration + stop.total(stop_grace)))
        } else {
            Strategy::Heartbeat
        };
        Ok(Limits {
            strategy,
            visibility,
            ceiling,
            max_duration,
            stop_grace,
            retry: self.retry_policy(pod)?,
        })
    }

    fn retry_policy(&self, pod: &PodRules) -> Result<RetryPolicy, SettingError> {
        let min =
            self.retry_min.unwrap_or(pod.retry_min.min(self.retry_max.unwrap_or(pod.retry_min)));
        let max = self.retry_max.unwrap_or(pod.retry_max.max(min));
        if min > max {
            return Err(SettingError::RetryRange { min, max });
        }
        if max > CEILING {
            return Err(SettingError::RetryTooLong(max));
        }
        let codes = self.permanent_exit_codes.iter().flat_map(|list| &list.0);
        let permanent_exit_codes: Vec<i32> = codes.copied().map(i32::from).collect();
        for (code, meaning) in [(0, "success"), (75, "temporary")] {
            if permanent_exit_codes.contains(&code) {
                return Err(SettingError::PermanentExitCode(code, meaning));
            }
        }
        let retry = match self.retry {
            Some(RetryMode::Expire) => Retry::Expire,
            Some(RetryMode::Backoff) | None => Retry::Backoff { min, max },
        };
        Ok(RetryPolicy { retry, on_stop: pod.on_stop, permanent_exit_codes })
    }
}

fn check_arguments(
    command: &CommandLine,
    input: Input,
    handler: &Handler,
) -> Result<(), SettingError> {
    if handler.is_warm() && command.args.iter().any(Argument::has_placeholders) {
        return Err(SettingError::WarmPlaceholder);
    }
    if input == Input::None && command.args.iter().any(|it| it.contains(&Placeholder::Input)) {
        return Err(SettingError::NoInputArgument);
    }
    Ok(())
}

fn check_fixed_paths(
    input: Input,
    input_at: Option<&Path>,
    output_at: Option<&Path>,
) -> Result<(), SettingError> {
    if input_at.is_some() && input == Input::None {
        return Err(SettingError::NoInputAt);
    }
    match input_at.zip(output_at) {
        Some((input, output)) if input.starts_with(output) || output.starts_with(input) => {
            Err(SettingError::FixedPathsOverlap)
        }
        Some(_) | None => Ok(()),
    }
}

const DEFAULT: &str = "the flag has a default";

fn whole_seconds(duration: Duration) -> Duration {
    Duration::from_secs(duration.as_secs() + u64::from(duration.subsec_nanos() > 0))
}

const SECOND: Duration = Duration::from_secs(1);

/// A third of it is one second, the smallest unit of SQS.
const SHORTEST_VISIBILITY: Duration = Duration::from_secs(3);
