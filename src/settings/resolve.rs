//! Checked settings: each within its own limits, consistent with each other, and within the limits
//! of SQS and of the pod. The checks do no I/O, so a mistake is found before a message is received.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "aws")]
use super::cluster::{MetricsSettings, RunSettings};
#[cfg(feature = "pushgateway")]
use super::cluster::{PushgatewaySettings, SweepSettings};
use super::error::SettingError;
use super::handler::HttpConfig;
use super::job_types::JobTypesFile;
use super::pod::{LocalSettings, RecordSettings, WorkSettings};
use super::task::{PodRules, TaskSettings};
use super::values::{BucketMount, BucketName, Handler, List};
#[cfg(feature = "aws")]
use crate::adapters::aws::s3::encryption::{Algorithm, Encryption};
#[cfg(feature = "aws")]
use crate::adapters::aws::{s3, sqs::queue_url};
use crate::adapters::batching::Batching;
use crate::adapters::local::rehearsal::Fault;
#[cfg(feature = "pushgateway")]
use crate::adapters::url;
use crate::job::event::EventFilter;
use crate::job::lease::{CEILING, Strategy};
use crate::job::mount::Mount;
use crate::job::policy::Policy;
use crate::job::route::{Input, JobType, LambdaEvent, Limits, Match, Selection, Task};
use crate::job::settings::{Polling, Settings};
use crate::job::stop::StopPlan;
#[cfg(feature = "pushgateway")]
use crate::telemetry::push::Credentials;
use crate::telemetry::termination::TerminationLog;
use crate::telemetry::{Identity, LogFormat};
use crate::work::fetch::FetchPolicy;
use crate::work::workspace::WorkDir;

/// `leasehold run`. Groups of flags that need no further check have the types of the command line.
#[cfg(feature = "aws")]
#[derive(Debug, Clone)]
pub struct RunConfig {
    pub queue_url: String,
    pub concurrency: usize,
    /// How many messages are downloaded while the others are processed.
    pub prefetch: usize,
    /// The profile of S3 requests, if another than that of SQS requests.
    pub s3_profile: Option<String>,
    pub s3: s3::Options,
    pub records: RecordSettings,
    /// The message attribute that holds the idempotency key.
    pub idempotency_key: Option<String>,
    /// In percent.
    pub memory_guard: Option<u8>,
    #[cfg(feature = "pushgateway")]
    pub pushgateway: Option<PushgatewayConfig>,
    pub metrics: MetricsSettings,
    pub work: WorkConfig,
}

/// Where metrics are pushed.
#[cfg(feature = "pushgateway")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushgatewayConfig {
    pub url: String,
    pub job: String,
    pub credentials: Option<Credentials>,
}

/// `leasehold sweep`.
#[cfg(feature = "pushgateway")]
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
    /// The folder that stands in for S3; created when the first object is stored.
    pub state: PathBuf,
    pub max_receive_count: u32,
    pub fault: Option<Fault>,
    /// The longest total time for which a message can be hidden.
    pub ceiling: Duration,
    pub records: RecordSettings,
    pub work: WorkConfig,
}

/// How much `local` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    Quiet,
    Normal,
    Verbose,
}

/// The settings that `run` and `local` share.
#[derive(Debug, Clone)]
pub struct WorkConfig {
    pub settings: Settings,
    pub handler: Handler,
    pub batch: Batch,
    pub http: HttpConfig,
    pub fetch: FetchPolicy,
    pub work_dir: WorkDir,
    /// The path of the file of job types.
    pub job_types_file: Option<String>,
    pub identity: Identity,
    pub log_format: Option<LogFormat>,
    pub termination_log: TerminationLog,
}

/// How many messages share an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    pub size: usize,
    pub window: Duration,
}

impl Batch {
    /// For so many calls at the same time.
    pub fn sharing(self, calls: usize) -> Batching {
        Batching { size: self.size, window: self.window, calls }
    }
}

#[cfg(feature = "aws")]
impl TryFrom<RunSettings> for RunConfig {
    type Error = SettingError;

    fn try_from(args: RunSettings) -> Result<Self, SettingError> {
        let RunSettings {
            queue_url,
            concurrency,
            prefetch,
            s3_profile,
            expected_bucket_owner: expected_owner,
            request_payer,
            output_sse,
            output_sse_kms_key: kms_key,
            s3_timeout: timeout,
            records,
            idempotency_key,
            memory_guard,
            #[cfg(feature = "pushgateway")]
                pushgateway: to,
            metrics,
            work,
        } = args;
        let queue_url = queue_url.ok_or(SettingError::NoQueue)?;
        queue_url::check_queue_url(&queue_url).map_err(SettingError::QueueUrl)?;
        if concurrency == 0 {
            return Err(SettingError::Zero("concurrency"));
        }
        if usize::try_from(work.max_messages).is_ok_and(|max_messages| concurrency > max_messages) {
            return Err(SettingError::Concurrency { concurrency, max_messages: work.max_messages });
        }
        let batch_size = work.batch_size;
        let most = usize::try_from(work.max_messages).unwrap_or(usize::MAX);
        if concurrency.saturating_mul(batch_size) > most {
            let max_messages = work.max_messages;
            return Err(SettingError::BatchMessages { batch_size, concurrency, max_messages });
        }
        if timeout < SECOND {
            return Err(SettingError::S3Timeout(timeout));
        }
        if output_sse == Some(Algorithm::Aes256) && kms_key.is_some() {
            return Err(SettingError::KmsKey);
        }
        let encryption = output_sse.map(|algorithm| Encryption { algorithm, kms_key });
        #[cfg(feature = "pushgateway")]
        if metrics.push_interval < SECOND {
            return Err(SettingError::PushInterval(metrics.push_interval));
        }
        let fifo = queue_url::is_fifo(&queue_url);
        let has_records = records.idempotency.is_some();
        let work = resolve(work, Defaults { has_records, ..IN_A_POD }, fifo)?;
        if memory_guard.is_some() && work.handler.is_http() && !work.http.has_command {
            return Err(SettingError::GuardOfNothing);
        }
        let lanes = concurrency * work.batch.size;
        check_shared_paths(&work.settings.policy, lanes)?;
        check_prefetch(&work.settings.policy, lanes, prefetch)?;
        Ok(Self {
            queue_url,
            concurrency,
            prefetch,
            s3_profile,
            s3: s3::Options { expected_owner, request_payer, encryption, timeout },
            records,
            idempotency_key,
            memory_guard,
            #[cfg(feature = "pushgateway")]
            pushgateway: pushgateway(to)?,
            metrics,
            work,
        })
    }
}

#[cfg(feature = "pushgateway")]
impl TryFrom<SweepSettings> for SweepConfig {
    type Error = SettingError;

    fn try_from(args: SweepSettings) -> Result<Self, SettingError> {
        let SweepSettings { pushgateway: of, older_than, log_format } = args;
        let pushgateway = pushgateway(of)?.ok_or(SettingError::NoPushgateway)?;
        Ok(Self { pushgateway, older_than, log_format })
    }
}

#[cfg(feature = "pushgateway")]
fn pushgateway(args: PushgatewaySettings) -> Result<Option<PushgatewayConfig>, SettingError> {
    let Some(url) = args.pushgateway else { return Ok(None) };
    if url::has_userinfo(&url) {
        return Err(SettingError::PushgatewayUserinfo(url));
    }
    if url.contains(['?', '#']) {
        return Err(SettingError::PushgatewayQuery);
    }
    if !url::is_url(&url) {
        return Err(SettingError::Pushgateway(url));
    }
    let credentials = args.pushgateway_basic_auth_file.or(args.pushgateway_bearer_token_file);
    Ok(Some(PushgatewayConfig { url, job: args.pushgateway_job, credentials }))
}

impl TryFrom<LocalSettings> for LocalConfig {
    type Error = SettingError;

    fn try_from(args: LocalSettings) -> Result<Self, SettingError> {
        let LocalSettings { inbox, outbox, concurrency, verbose, quiet, .. } = args;
        let LocalSettings {
            state, max_receive_count, rehearse: fault, ceiling, records, work, ..
        } = args;
        if concurrency == 0 {
            return Err(SettingError::Zero("concurrency"));
        }
        if max_receive_count == 0 {
            return Err(SettingError::Zero("max-receive-count"));
        }
        let ceiling = ceiling.unwrap_or(CEILING);
        if ceiling > CEILING || ceiling <= work.task.visibility_timeout.unwrap_or_default() {
            return Err(SettingError::Ceiling(ceiling));
        }
        let has_records = records.idempotency.is_some();
        let defaults = Defaults { ceiling, has_records, ..ON_A_LAPTOP };
        let work = resolve(work, defaults, false)?;
        check_shared_paths(&work.settings.policy, concurrency * work.batch.size)?;
        let state = state.unwrap_or_else(|| beside(outbox.as_deref().unwrap_or(&inbox)));
        let verbosity = match (verbose, quiet) {
            (true, _) => Verbosity::Verbose,
            (false, true) => Verbosity::Quiet,
            (false, false) => Verbosity::Normal,
        };
        Ok(Self {
            inbox,
            outbox,
            concurrency,
            verbosity,
            state,
            max_receive_count,
            fault,
            ceiling,
            records,
            work,
        })
    }
}

/// Checks the rules across settings. Files have been read already.
fn resolve(args: WorkSettings, defaults: Defaults, fifo: bool) -> Result<WorkConfig, SettingError> {
    let wait = args.wait.unwrap_or(defaults.wait);
    let pod = pod_rules(&args, defaults, wait)?;
    let PodRules { stop, longest_poll, .. } = pod;
    let has_command = !args.task.command.is_empty();
    if !has_command && args.job_types.is_none() && !args.handler.is_http() {
        return Err(SettingError::NoCommandToStart);
    }
    let http = args.http.check(&args.handler, has_command)?;
    let limits = args.task.limits(&pod)?;
    if stop.total(longest_poll) > stop.termination_grace {
        let (reserve, termination_grace) = (stop.reserve, stop.termination_grace);
        return Err(SettingError::Wait { wait: longest_poll, reserve, termination_grace });
    }
    let (job_types, job_types_file) = match args.job_types {
        Some(file) => {
            let path = file.path.clone();
            (resolve_job_types(file, &args.task, &args.events, &pod)?, path)
        }
        None => (Vec::new(), None),
    };
    let task = args.task.task(true, &pod)?;
    if let Some(task) = &task {
        check_removals(&args.events, task, &job_types)?;
    }
    let batch = Batch { size: args.batch_size, window: args.batch_window };
    check_batch(batch, &args.handler, job_types.iter().map(|it| &it.limits).chain([&limits]))?;
    check_lambda_event(batch, job_types.iter().map(|it| &*it.task).chain(&task))?;
    let mounts = mounts(args.mount, job_types.iter().map(|it| &*it.task).chain(&task))?;
    Ok(WorkConfig {
        settings: Settings {
            policy: Policy {
                selection: Selection { events: args.events, folders: args.accept_folders },
                accept_raw: args.accept_raw,
                object_from: args.task.object_from,
                job_types,
                task: task.map(Arc::new),
                limits,
                max_messages: args.max_messages,
                fifo,
            },
            polling: Polling { wait, longest_poll, give_up: args.receive_give_up },
            stop,
        },
        handler: args.handler,
        batch,
        http,
        fetch: FetchPolicy { buckets: names(args.buckets), mounts, ..FetchPolicy::default() },
        work_dir: WorkDir {
            path: args.work_dir,
            limit: args.work_dir_limit.map(|limit| limit.as_u64()),
        },
        job_types_file,
        identity: Identity { job_id: args.job_id, pod_name: args.pod_name },
        log_format: args.log_format,
        termination_log: args
            .termination_log
            .map_or(TerminationLog::Kubernetes, TerminationLog::At),
    })
}

/// Checks the settings that are the same for all job types.
fn pod_rules(
    args: &WorkSettings,
    defaults: Defaults,
    wait: Duration,
) -> Result<PodRules, SettingError> {
    if wait.subsec_nanos() > 0 {
        return Err(SettingError::Fraction { flag: "--wait", value: wait });
    }
    if args.max_messages == 0 {
        return Err(SettingError::Zero("max-messages"));
    }
    let termination_grace = args.termination_grace;
    if termination_grace.is_zero() {
        return Err(SettingError::Zero("termination-grace"));
    }
    let stop = StopPlan::new(termination_grace);
    // The lease counts from before the request, so a poll takes at most a third of it.
    let third = args.task.visibility_timeout.unwrap_or_default() / 3;
    let longest_poll = Duration::from_secs(wait.min(LONGEST_POLL).min(third).as_secs());
    let Defaults { ceiling, has_records, retry_min, retry_max, .. } = defaults;
    Ok(PodRules {
        stop,
        longest_poll,
        ceiling,
        on_stop: args.on_stop,
        accept_raw: args.accept_raw,
        handler: args.handler.clone(),
        batch_window: args.batch_window,
        has_records,
        retry_min,
        retry_max,
    })
}

fn resolve_job_types(
    file: JobTypesFile,
    flags: &TaskSettings,
    events: &EventFilter,
    pod: &PodRules,
) -> Result<Vec<JobType>, SettingError> {
    let path = file.path.unwrap_or_default();
    let mut job_types: Vec<JobType> = Vec::new();
    for settings in file.job_types {
        let (name, source) = (settings.name.0.clone(), settings.source.clone());
        let refused = |why: SettingError| {
            let why = why.to_string();
            let at = source.position(&why).in_file(&path);
            SettingError::JobType { name: name.clone(), at, why: source.with_field_names(&why) }
        };
        let at = source.name().in_file(&path);
        if job_types.iter().any(|other| other.task.name == name) {
            return Err(SettingError::SameName { name, at });
        }
        // A message that is not an S3 notification may have its object elsewhere.
        let finds_more = |other: &JobType| {
            let from = settings.object_from.as_ref().or(flags.object_from.as_ref());
            from.is_some() && from != other.object_from.as_ref()
        };
        let takes_all = |other: &&JobType| other.matches.matches_all() && !finds_more(other);
        if let Some(other) = job_types.iter().find(takes_all) {
            return Err(SettingError::NeverReached { name, at, other: other.task.name.clone() });
        }
        let has_command = !settings.command.is_empty();
        let job_type = settings.job_type(flags, events, pod).and_then(|it| {
            if pod.handler.is_http() && has_command {
                return Err(SettingError::CommandOfServer);
            }
            let events = it.matches.event.as_ref().unwrap_or(events);
            check_removals(events, &it.task, &job_types).map(|()| it)
        });
        job_types.push(job_type.map_err(refused)?);
    }
    if job_types.is_empty() { Err(SettingError::NoJobTypes) } else { Ok(job_types) }
}

fn check_batch<'a>(
    Batch { size, window }: Batch,
    handler: &Handler,
    mut limits: impl Iterator<Item = &'a Limits>,
) -> Result<(), SettingError> {
    let has_batches = matches!(handler, Handler::Lambda | Handler::Batches);
    match size {
        0 => return Err(SettingError::Zero("batch-size")),
        1 if !window.is_zero() && has_batches => return Err(SettingError::WindowOfOne),
        1 => {}
        _ if !has_batches => return Err(SettingError::NoBatches("--batch-size")),
        2..=MOST_IN_A_BATCH => {}
        _ => return Err(SettingError::BatchSize(size)),
    }
    if !window.is_zero() && !has_batches {
        return Err(SettingError::NoBatches("--batch-window"));
    }
    // One visibility timeout would have to cover the wait for a busy function, too.
    if size > 1 && limits.any(|limits| matches!(limits.strategy, Strategy::Fixed(_))) {
        return Err(SettingError::BatchOfFixed);
    }
    Ok(())
}

/// As of SQS's batch requests.
const MOST_IN_A_BATCH: usize = 10;

/// An event of S3 has one object.
fn check_lambda_event<'a>(
    Batch { size, .. }: Batch,
    mut tasks: impl Iterator<Item = &'a Task>,
) -> Result<(), SettingError> {
    if size > 1 && tasks.any(|task| task.lambda_event == LambdaEvent::S3) {
        return Err(SettingError::BatchOfS3(size));
    }
    Ok(())
}

fn names(lists: Vec<List<BucketName>>) -> Vec<String> {
    lists.into_iter().flat_map(|list| list.0).map(|bucket| bucket.0).collect()
}

/// The mounts of the flags, which the tasks use.
fn mounts<'a>(
    lists: Vec<List<BucketMount>>,
    mut tasks: impl Iterator<Item = &'a Task>,
) -> Result<Vec<Mount>, SettingError> {
    let mounts: Vec<_> = lists.into_iter().flat_map(|list| list.0).map(|mount| mount.0).collect();
    let is_used = tasks.any(|task| task.input == Input::Mount);
    match mounts.is_empty() {
        true if is_used => return Err(SettingError::NoMount),
        false if !is_used => return Err(SettingError::UnusedMount),
        true | false => {}
    }
    for (number, mount) in mounts.iter().enumerate() {
        if mounts[..number].iter().any(|other| other.location == mount.location) {
            return Err(SettingError::SameMount(mount.to_string()));
        }
    }
    Ok(mounts)
}

/// A fixed path is that of one message at a time.
fn check_shared_paths(policy: &Policy, concurrency: usize) -> Result<(), SettingError> {
    let flag = |task: &Arc<Task>| match (&task.input_at, &task.output_at) {
        (Some(_), _) => Some("--input-at"),
        (None, Some(_)) => Some("--output-at"),
        (None, None) => None,
    };
    match policy.tasks().find_map(flag) {
        Some(flag) if concurrency > 1 => Err(SettingError::FixedPathShared(concurrency, flag)),
        Some(_) | None => Ok(()),
    }
}

/// A message that is received in advance needs an object to download, files of its own, and a whole
/// lease for its work.
#[cfg(feature = "aws")]
fn check_prefetch(
    policy: &Policy,
    concurrency: usize,
    prefetch: usize,
) -> Result<(), SettingError> {
    if prefetch == 0 {
        return Ok(());
    }
    if prefetch > MOST_PREFETCHED {
        return Err(SettingError::Prefetch(prefetch, MOST_PREFETCHED));
    }
    let max_messages = policy.max_messages;
    if usize::try_from(max_messages).is_ok_and(|most| concurrency.saturating_add(prefetch) > most) {
        return Err(SettingError::PrefetchMessages { concurrency, prefetch, max_messages });
    }
    if !policy.tasks().any(|task| matches!(task.input, Input::File | Input::Stdin)) {
        return Err(SettingError::PrefetchNothing);
    }
    let conflict = |task: &Arc<Task>| match (&task.input_at, &task.output_at, &task.checkpoint) {
        (Some(_), _, _) => Some("--input-at"),
        (None, Some(_), _) => Some("--output-at"),
        (None, None, Some(_)) => Some("--checkpoint"),
        (None, None, None) => None,
    };
    let mut limits = policy.job_types.iter().map(|it| &it.limits).chain([&policy.limits]);
    // One visibility timeout would have to cover the wait, too.
    let is_fixed = limits.any(|limits| matches!(limits.strategy, Strategy::Fixed(_)));
    let fixed = is_fixed.then_some("--visibility fixed");
    match policy.tasks().find_map(conflict).or(fixed) {
        Some(flag) => Err(SettingError::PrefetchConflict(flag)),
        None => Ok(()),
    }
}

/// More would hold messages that other pods could process.
#[cfg(feature = "aws")]
const MOST_PREFETCHED: usize = 10;

/// The default of `--state`: `results.state` for the folder `results`.
fn beside(folder: &Path) -> PathBuf {
    let mut name = folder.file_name().unwrap_or("leasehold".as_ref()).to_owned();
    name.push(".state");
    folder.with_file_name(name)
}

/// Defaults that differ between `run` and `local`, where waiting has no purpose.
#[derive(Clone, Copy)]
struct Defaults {
    ceiling: Duration,
    /// `--idempotency`
    has_records: bool,
    wait: Duration,
    retry_min: Duration,
    retry_max: Duration,
}

const IN_A_POD: Defaults = Defaults {
    ceiling: CEILING,
    has_records: false,
    wait: Duration::from_secs(10),
    retry_min: Duration::from_secs(10),
    retry_max: Duration::from_mins(15),
};
const ON_A_LAPTOP: Defaults = Defaults {
    ceiling: CEILING,
    has_records: false,
    wait: Duration::ZERO,
    retry_min: SECOND,
    retry_max: Duration::from_secs(5),
};

/// A removed object cannot be downloaded. A task that downloads may include removal events only if
/// earlier job types match all of them.
fn check_removals(
    events: &EventFilter,
    task: &Task,
    before: &[JobType],
) -> Result<(), SettingError> {
    if task.input == Input::None {
        return Ok(());
    }
    let matches_all = |Match { bucket, key, event: events }: &Match, event: &str| {
        bucket.is_none()
            && key.is_none()
            && events.as_ref().is_none_or(|events| events.is_work(event))
    };
    match events.removals().find(|event| !before.iter().any(|it| matches_all(&it.matches, event))) {
        Some(event) => Err(SettingError::Removal(event)),
        None => Ok(()),
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// SQS answers a long poll within 20 s (`WaitTimeSeconds`).
const LONGEST_POLL: Duration = Duration::from_secs(20);
