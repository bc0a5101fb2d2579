//! Settings that have been checked: against their own limits, against each other, and against what SQS and
//! the pod allow. Pure: what is wrong is found before anything is received.

mod error;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::adapters::aws::sqs::queue_url;
use crate::adapters::http;
use crate::cli::values::{InputArg, List, OnStopArg, RetryArg, VisibilityArg};
use crate::cli::{LocalArgs, MetricsArgs, PlaceArgs, PushgatewayArgs, RecordArgs, RunArgs, SweepArgs, WorkArgs};
use crate::job::event::EventFilter;
use crate::job::lease::{CEILING, Strategy};
use crate::job::lifecycle::Policy;
use crate::job::place::Template;
use crate::job::route::{Checkpointing, CommandLine, Input, JobType, Limits, Match, Selection, Task};
use crate::job::settings::{Polling, Settings};
use crate::job::stop::StopPlan;
use crate::job::verdict::{OnStop, Retry, RetryPolicy};
use crate::job_types::{Entry, MatchEntry, Time};
use crate::telemetry::logs::{Identity, LogFormat};
use crate::telemetry::push::Credentials;
use crate::telemetry::termination::TerminationLog;
use crate::work::fetch::FetchPolicy;
use crate::work::workspace::WorkDir;
pub use error::ConfigError;

/// `leasehold run`. Groups of flags that need no check beyond their own are as the command line has them.
#[derive(Debug, Clone)]
pub struct RunConfig {
    pub queue_url: String,
    pub concurrency: usize,
    /// An account's number.
    pub expected_bucket_owner: Option<String>,
    pub s3_timeout: Duration,
    pub records: RecordArgs,
    pub pushgateway: Option<PushgatewayConfig>,
    pub metrics: MetricsArgs,
    pub work: WorkConfig,
}

/// Where the metrics go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushgatewayConfig {
    pub url: String,
    pub job: String,
    pub credentials: Option<Credentials>,
}

/// `leasehold sweep`.
#[derive(Debug, Clone)]
pub struct SweepConfig {
    pub pushgateway: PushgatewayConfig,
    pub older_than: Duration,
    pub log_format: Option<LogFormat>,
}

/// `leasehold local`.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    pub inbox: PathBuf,
    pub outbox: Option<PathBuf>,
    pub concurrency: usize,
    pub verbosity: Verbosity,
    pub work: WorkConfig,
}

/// How much a person wants to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    Quiet,
    Normal,
    Verbose,
}

/// What both have.
#[derive(Debug, Clone)]
pub struct WorkConfig {
    pub settings: Settings,
    pub fetch: FetchPolicy,
    pub work_dir: WorkDir,
    /// Where the job types are.
    pub job_types_file: Option<String>,
    pub identity: Identity,
    pub log_format: Option<LogFormat>,
    pub termination_log: TerminationLog,
}

impl TryFrom<RunArgs> for RunConfig {
    type Error = ConfigError;

    fn try_from(args: RunArgs) -> Result<Self, ConfigError> {
        let RunArgs {
            queue_url,
            concurrency,
            expected_bucket_owner,
            s3_timeout,
            places,
            records,
            pushgateway: to,
            metrics,
            work,
        } = args;
        let queue_url = queue_url.ok_or(ConfigError::NoQueue)?;
        queue_url::check_queue_url(&queue_url).map_err(ConfigError::QueueUrl)?;
        if concurrency == 0 {
            return Err(ConfigError::Zero("concurrency"));
        }
        if usize::try_from(work.max_messages).is_ok_and(|max_messages| concurrency > max_messages) {
            return Err(ConfigError::Concurrency { concurrency, max_messages: work.max_messages });
        }
        if s3_timeout < SECOND {
            return Err(ConfigError::S3Timeout(s3_timeout));
        }
        if metrics.push_interval < SECOND {
            return Err(ConfigError::PushInterval(metrics.push_interval));
        }
        let pushgateway = pushgateway(to)?;
        let fifo = queue_url::is_fifo(&queue_url);
        let work = checked(work, places, IN_A_POD, fifo)?;
        Ok(Self { queue_url, concurrency, expected_bucket_owner, s3_timeout, records, pushgateway, metrics, work })
    }
}

impl TryFrom<SweepArgs> for SweepConfig {
    type Error = ConfigError;

    fn try_from(args: SweepArgs) -> Result<Self, ConfigError> {
        let SweepArgs { pushgateway: of, older_than, log_format } = args;
        let pushgateway = pushgateway(of)?.ok_or(ConfigError::NoPushgateway)?;
        Ok(Self { pushgateway, older_than, log_format })
    }
}

fn pushgateway(args: PushgatewayArgs) -> Result<Option<PushgatewayConfig>, ConfigError> {
    let Some(url) = args.pushgateway else { return Ok(None) };
    if http::has_userinfo(&url) {
        return Err(ConfigError::PushgatewayUserinfo(url));
    }
    if url.contains(['?', '#']) {
        return Err(ConfigError::PushgatewayQuery);
    }
    if !http::is_url(&url) {
        return Err(ConfigError::Pushgateway(url));
    }
    let basic = args.pushgateway_basic_auth_file.map(|path| ("basic-auth-file", Credentials::Basic(path)));
    let bearer = args.pushgateway_bearer_token_file.map(|path| ("bearer-token-file", Credentials::Bearer(path)));
    let credentials = basic.or(bearer);
    if let Some((flag, credentials)) = &credentials {
        credentials.read().map_err(|why| {
            let (Credentials::Basic(path) | Credentials::Bearer(path)) = credentials;
            ConfigError::PushgatewaySecret { flag, path: path.clone(), why }
        })?;
    }
    Ok(Some(PushgatewayConfig { url, job: args.pushgateway_job, credentials: credentials.map(|(_, it)| it) }))
}

impl TryFrom<LocalArgs> for LocalConfig {
    type Error = ConfigError;

    fn try_from(args: LocalArgs) -> Result<Self, ConfigError> {
        let LocalArgs { inbox, outbox, concurrency, verbose, quiet, work } = args;
        if concurrency == 0 {
            return Err(ConfigError::Zero("concurrency"));
        }
        let work = checked(work, PlaceArgs::default(), ON_A_LAPTOP, false)?;
        let verbosity = match (verbose, quiet) {
            (true, _) => Verbosity::Verbose,
            (false, true) => Verbosity::Quiet,
            (false, false) => Verbosity::Normal,
        };
        Ok(Self { inbox, outbox, concurrency, verbosity, work })
    }
}

fn checked(mut args: WorkArgs, places: PlaceArgs, defaults: Defaults, fifo: bool) -> Result<WorkConfig, ConfigError> {
    let (entries, job_types_file) = args.job_types.take().map(|file| (file.job_types, file.path)).unzip();
    let wait = args.wait.unwrap_or(defaults.wait);
    if wait.subsec_nanos() > 0 {
        return Err(ConfigError::Fraction { flag: "--wait", value: wait });
    }
    if args.max_messages == 0 {
        return Err(ConfigError::Zero("max-messages"));
    }
    if args.termination_grace.is_zero() {
        return Err(ConfigError::Zero("termination-grace"));
    }
    let stop = StopPlan::new(args.termination_grace);
    // The lease counts from before the request: a request no longer than a third of it leaves time to work.
    let longest_poll = Duration::from_secs(wait.min(LONGEST_POLL).min(args.visibility_timeout / 3).as_secs());
    let flags = Flags { args, places, defaults, stop, longest_poll };
    let limits = flags.limits()?;
    let Flags { args, .. } = &flags;
    if stop.total(longest_poll) > args.termination_grace {
        let (wait, reserve) = (longest_poll, stop.reserve);
        return Err(ConfigError::Wait { wait, reserve, termination_grace: args.termination_grace });
    }
    let job_types = entries.map_or(Ok(Vec::new()), |entries| flags.job_types(entries))?;
    let task = flags.task(Task::DEFAULT.to_owned(), true)?;
    if let Some(task) = &task {
        check_removals(&flags.args.events, task, &job_types)?;
    }
    let Flags { args, .. } = flags;

    Ok(WorkConfig {
        settings: Settings {
            policy: Policy {
                selection: Selection { events: args.events, folders: args.accept_folders },
                accept_raw: args.accept_raw,
                job_types,
                task: task.map(Arc::new),
                limits,
                max_messages: args.max_messages,
                fifo,
            },
            polling: Polling { wait, longest_poll, give_up: args.receive_give_up },
            stop,
        },
        fetch: FetchPolicy {
            missing: args.missing_object,
            buckets: args.buckets.into_iter().flat_map(|list| list.0).map(|bucket| bucket.0).collect(),
            ..FetchPolicy::default()
        },
        work_dir: WorkDir { path: args.work_dir, limit: args.work_dir_limit.map(|limit| limit.as_u64()) },
        job_types_file: job_types_file.flatten(),
        identity: Identity { job_id: args.job_id, pod_name: args.pod_name },
        log_format: args.log_format,
        termination_log: args.termination_log.map_or(TerminationLog::Kubernetes, TerminationLog::At),
    })
}

/// What is different on a laptop, where nobody wants to wait.
#[derive(Clone, Copy)]
struct Defaults {
    wait: Duration,
    retry_min: Duration,
    retry_max: Duration,
}

const IN_A_POD: Defaults =
    Defaults { wait: Duration::from_secs(10), retry_min: Duration::from_secs(10), retry_max: Duration::from_mins(15) };
const ON_A_LAPTOP: Defaults = Defaults { wait: Duration::ZERO, retry_min: SECOND, retry_max: Duration::from_secs(5) };

/// What the work on a message depends on. A job type's are the flags, less what it says otherwise: so the same holds for
/// it as for them.
#[derive(Clone)]
struct Flags {
    args: WorkArgs,
    places: PlaceArgs,
    defaults: Defaults,
    stop: StopPlan,
    longest_poll: Duration,
}

impl Flags {
    fn job_types(&self, entries: Vec<Entry>) -> Result<Vec<JobType>, ConfigError> {
        let mut job_types: Vec<JobType> = Vec::new();
        for entry in entries {
            let (name, said_at) = (entry.name.0.clone(), entry.said_at.clone());
            let at = said_at.name();
            if job_types.iter().any(|other| other.task.name == name) {
                return Err(ConfigError::SameName { name, at });
            }
            if let Some(other) = job_types.iter().find(|other| other.matches.takes_all()) {
                return Err(ConfigError::NeverReached { name, at, other: other.task.name.clone() });
            }
            let refused = |why: ConfigError| {
                let at = said_at.what(&why.to_string());
                ConfigError::JobType { name, at, why: Box::new(why) }
            };
            let job_type = self.clone().job_type(entry).and_then(|it| {
                let events = it.matches.event.as_ref().unwrap_or(&self.args.events);
                check_removals(events, &it.task, &job_types).map(|()| it)
            });
            job_types.push(job_type.map_err(refused)?);
        }
        if job_types.is_empty() { Err(ConfigError::NoJobTypes) } else { Ok(job_types) }
    }

    fn job_type(mut self, entry: Entry) -> Result<JobType, ConfigError> {
        // Destructured, so that no field can be forgotten.
        let Entry {
            name,
            r#match: MatchEntry { bucket, key, event },
            command,
            input,
            visibility,
            visibility_timeout,
            max_duration,
            stall_timeout,
            stop_grace,
            output,
            checkpoint,
            checkpoint_interval,
            retry,
            retry_min,
            retry_max,
            permanent_exit_codes,
            said_at: _,
        } = entry;
        let matches = Match { bucket, key: key.map(|key| key.0), event: event.map(|events| events.0) };
        let Self { args, places, .. } = &mut self;
        if let Some(event) = matches.event.as_ref().and_then(|events| args.events.first_not_covered(events)) {
            return Err(ConfigError::EventIsNoWork { event, events: args.events.clone() });
        }
        let time = |time: Option<Time>| time.map(|time| time.0);
        if let Some(words) = command {
            args.command = words.into_iter().map(OsString::from).collect();
        }
        args.input = input.unwrap_or(args.input);
        args.visibility = visibility.unwrap_or(args.visibility);
        args.visibility_timeout = time(visibility_timeout).unwrap_or(args.visibility_timeout);
        args.max_duration = time(max_duration).unwrap_or(args.max_duration);
        // That of the flags need not fit a type whose work is short.
        let inherited = args.stall_timeout.filter(|inherited| *inherited < args.max_duration);
        args.stall_timeout = time(stall_timeout).or(inherited);
        args.stop_grace = time(stop_grace).or(args.stop_grace);
        places.output = output.map(|place| place.0).or(places.output.take());
        places.checkpoint = checkpoint.map(|place| place.0).or(places.checkpoint.take());
        places.checkpoint_interval = time(checkpoint_interval).or(places.checkpoint_interval);
        args.retry = retry.unwrap_or(args.retry);
        args.retry_min = time(retry_min).or(args.retry_min);
        args.retry_max = time(retry_max).or(args.retry_max);
        if let Some(codes) = permanent_exit_codes {
            args.permanent_exit_codes = vec![List(codes)];
        }
        let limits = self.limits()?;
        let task = self.task(name.0, matches.takes_all())?.ok_or(ConfigError::NoCommand)?;
        Ok(JobType { matches, task: Arc::new(task), limits })
    }

    /// What is run; `None` without a command.
    fn task(&self, name: String, may_get_bodies: bool) -> Result<Option<Task>, ConfigError> {
        let Self { args, places, .. } = self;
        let Some((program, words)) = args.command.split_first() else { return Ok(None) };
        if args.accept_raw && may_get_bodies && args.input == InputArg::None {
            return Err(ConfigError::NoInput);
        }
        if places.checkpoint_interval.is_some_and(|interval| interval.is_zero()) {
            return Err(ConfigError::Zero("checkpoint-interval"));
        }
        if places.checkpoint_interval.is_some() && places.checkpoint.is_none() {
            return Err(ConfigError::NoCheckpoint);
        }
        for (flag, place) in [("--output", &places.output), ("--checkpoint", &places.checkpoint)] {
            if args.accept_raw && may_get_bodies && place.as_ref().is_some_and(Template::needs_object) {
                return Err(ConfigError::NoObject(flag));
            }
        }
        Ok(Some(Task {
            name,
            command: CommandLine { program: program.clone(), args: words.to_vec() },
            input: match args.input {
                InputArg::File => Input::File,
                InputArg::Stdin => Input::Stdin,
                InputArg::None => Input::None,
            },
            stall_timeout: args.stall_timeout,
            output: places.output.clone(),
            checkpoint: places
                .checkpoint
                .clone()
                .map(|place| Checkpointing { place, interval: places.checkpoint_interval }),
        }))
    }

    /// Every stop path fits the pod's grace and SQS's ceiling, or the run is not begun.
    fn limits(&self) -> Result<Limits, ConfigError> {
        let Self { ref args, ref places, stop, longest_poll, .. } = *self;
        let WorkArgs { max_duration, termination_grace, .. } = *args;
        let visibility = args.visibility_timeout;
        if visibility.subsec_nanos() > 0 {
            return Err(ConfigError::Fraction { flag: "--visibility-timeout", value: visibility });
        }
        if visibility < SHORTEST_VISIBILITY {
            return Err(ConfigError::VisibilityTooShort(visibility));
        }
        if visibility > CEILING {
            return Err(ConfigError::VisibilityTooLong(visibility));
        }
        if max_duration.is_zero() {
            return Err(ConfigError::Zero("max-duration"));
        }
        if let Some(stall_timeout) = args.stall_timeout {
            if stall_timeout.is_zero() {
                return Err(ConfigError::Zero("stall-timeout"));
            }
            if stall_timeout >= max_duration {
                return Err(ConfigError::StallTimeout { stall_timeout, max_duration });
            }
        }
        let stop_grace = args.stop_grace.unwrap_or(termination_grace.saturating_sub(stop.reserve));
        if stop.total(stop_grace) > termination_grace {
            let reserve = stop.reserve;
            return Err(ConfigError::StopGrace { stop_grace, reserve, termination_grace });
        }
        let most = CEILING.saturating_sub(stop.total(stop_grace) + longest_poll + SECOND);
        if max_duration > most {
            match (places.checkpoint.is_some(), args.visibility) {
                (false, _) => return Err(ConfigError::MaxDuration { max_duration, most }),
                (true, VisibilityArg::Fixed) => return Err(ConfigError::FixedOverDeliveries { max_duration, most }),
                (true, VisibilityArg::Heartbeat) => {}
            }
        }
        let strategy = match args.visibility {
            VisibilityArg::Heartbeat => Strategy::Heartbeat,
            VisibilityArg::Fixed => Strategy::Fixed(whole_seconds(max_duration + stop.total(stop_grace))),
        };
        Ok(Limits { strategy, visibility, max_duration, stop_grace, retry: self.retry_policy()? })
    }

    fn retry_policy(&self) -> Result<RetryPolicy, ConfigError> {
        let Self { args, defaults, .. } = self;
        let min = args.retry_min.unwrap_or(defaults.retry_min.min(args.retry_max.unwrap_or(defaults.retry_min)));
        let max = args.retry_max.unwrap_or(defaults.retry_max.max(min));
        if min > max {
            return Err(ConfigError::RetryRange { min, max });
        }
        if max > CEILING {
            return Err(ConfigError::RetryTooLong(max));
        }
        let permanent_exit_codes: Vec<i32> =
            args.permanent_exit_codes.iter().flat_map(|list| list.0.iter().copied().map(i32::from)).collect();
        for (code, meaning) in [(0, "success"), (75, "temporary")] {
            if permanent_exit_codes.contains(&code) {
                return Err(ConfigError::PermanentExitCode(code, meaning));
            }
        }
        Ok(RetryPolicy {
            retry: match args.retry {
                RetryArg::Backoff => Retry::Backoff { min, max },
                RetryArg::Expire => Retry::Expire,
            },
            on_stop: match args.on_stop {
                OnStopArg::Release => OnStop::Release,
                OnStopArg::Expire => OnStop::Expire,
            },
            permanent_exit_codes,
        })
    }
}

/// What was removed cannot be fetched. A task that fetches may be asked for such events only if job types before it take them all.
fn check_removals(events: &EventFilter, task: &Task, before: &[JobType]) -> Result<(), ConfigError> {
    if task.input == Input::None {
        return Ok(());
    }
    let takes_all = |Match { bucket, key, event: events }: &Match, event: &str| {
        bucket.is_none() && key.is_none() && events.as_ref().is_none_or(|events| events.is_work(event))
    };
    match events.removals().find(|event| !before.iter().any(|it| takes_all(&it.matches, event))) {
        Some(event) => Err(ConfigError::Removal(event)),
        None => Ok(()),
    }
}

fn whole_seconds(duration: Duration) -> Duration {
    Duration::from_secs(duration.as_secs() + u64::from(duration.subsec_nanos() > 0))
}

const SECOND: Duration = Duration::from_secs(1);

/// A third of it is a second, the least that SQS counts.
const SHORTEST_VISIBILITY: Duration = Duration::from_secs(3);

/// SQS answers a long poll within 20 s (`WaitTimeSeconds`).
const LONGEST_POLL: Duration = Duration::from_secs(20);
