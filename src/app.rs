//! The program. Wiring only: arguments → configuration → ports → supervisor → signals → exit code.

pub mod signals;

use std::future::Future;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::actors::supervisor::{self, World};
use crate::check::{self, Finding, Findings, Severity, StopTimeline};
use crate::cli::{Action, CheckArgs, CheckFormat, Cli, environment};
use crate::config::{LocalConfig, PushgatewayConfig, RunConfig, SweepConfig, WorkConfig};
use crate::install::install;
use crate::job::route::Task;
use crate::job::stop::StopPlan;
use crate::job_types::JobTypesFile;
use crate::local;
use crate::ports::clock::Clock;
use crate::ports::health::Health;
use crate::ports::http::Http;
use crate::ports::process::{Processes, find_program};
use crate::ports::s3::S3;
use crate::ports::sqs::{self, Sqs};
use crate::ports::{Runner, aws};
use crate::telemetry::PodTelemetry;
use crate::telemetry::attempts::AttemptHistory;
use crate::telemetry::bars;
use crate::telemetry::listen::{self, Pages, Readiness};
use crate::telemetry::logs::{self, Identity, LogFormat};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::plain::PlainLines;
use crate::telemetry::push::{self, Pusher, Pushgateway, Swept};
use crate::telemetry::termination::{TerminationLog, TerminationMessage};
use crate::work::CommandWorker;
use crate::work::checkpoint::{Checkpoints, Forgetting};
use crate::work::idempotency::Idempotency;
use crate::work::publish::S3Outbox;
use signals::{Inherited, since_stop, stop_requested};
use tokio::runtime::Builder;
use tracing::{error, info};

/// EX_UNAVAILABLE and EX_CONFIG of sysexits(3).
const UNAVAILABLE: u8 = 69;
const MISCONFIGURED: u8 = 78;

/// All of the program. Without `own`, the user's command is run; else that. `signals` is what [`signals::block`] returned on
/// the first line of `main`; `parse` reads the command line, and the files that it names.
pub fn main(
    signals: Inherited,
    parse: impl FnOnce() -> Result<Cli, clap::Error>,
    own: Option<Arc<dyn Runner>>,
) -> ExitCode {
    // Only these two hold messages.
    if !std::env::args_os().nth(1).is_some_and(|action| action == "run" || action == "local") {
        signals.restore();
    }
    // The program may start again here: nothing may have been read from its standard input.
    if let Err(why) = environment::without_empty_aws_variables() {
        TerminationLog::Kubernetes.write(&misconfigured(&why));
        return refuse(&why);
    }
    let Cli { action } = match parse() {
        Ok(cli) => cli,
        Err(answer) => {
            // A reader of `--help` that is gone is no error of ours.
            let _ = answer.print();
            return if answer.use_stderr() {
                TerminationLog::Kubernetes.write(&misconfigured(&answer.to_string()));
                ExitCode::from(MISCONFIGURED)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match action {
        Action::Run(args) => {
            let termination_log = args.work.termination_log.clone();
            RunConfig::try_from(*args)
                .map_err(|error| error.to_string())
                .and_then(|config| run(config, own))
                .unwrap_or_else(|why| {
                    let termination_log = termination_log.map_or(TerminationLog::Kubernetes, TerminationLog::At);
                    termination_log.write(&misconfigured(&why));
                    refuse(&why)
                })
        }
        Action::Check(args) => check(*args, own.is_none()).unwrap_or_else(|why| refuse(&why)),
        Action::Schema => {
            let schema = serde_json::to_string_pretty(&JobTypesFile::schema()).expect("a schema is JSON");
            say(std::io::stdout(), &schema);
            ExitCode::SUCCESS
        }
        Action::Local(args) => LocalConfig::try_from(*args)
            .map_err(|error| error.to_string())
            .and_then(|config| run_local(config, own))
            .unwrap_or_else(|why| refuse(&why)),
        Action::Install(args) => match install(&args.folder) {
            Ok(place) => {
                say(std::io::stdout(), &format!("installed {}", place.display()));
                ExitCode::SUCCESS
            }
            Err(error) => refuse(&format!("cannot install into {}: {error}", args.folder.display())),
        },
        Action::Sweep(args) => SweepConfig::try_from(args)
            .map_err(|error| error.to_string())
            .and_then(sweep)
            .unwrap_or_else(|why| refuse(&why)),
    }
}

/// Prints what is wrong; the exit code says how bad the worst is.
fn check(args: CheckArgs, runs_commands: bool) -> Result<ExitCode, String> {
    check_threads()?;
    let CheckArgs { manifest, format, strict, mut run } = args;
    let mut findings = Findings::default();
    if let Some(path) = manifest {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(&path).map_err(|error| format!("--manifest {file}: {error}"))?;
        let objects = check::manifest::parse(&text).map_err(|error| format!("--manifest {file}: {error}"))?;
        findings.add(check::manifest::findings(&file, &objects));
    }
    // What would be done with the messages can be looked at without what it is done by.
    let has_command = runs_commands && (!run.work.command.is_empty() || run.work.job_types.is_some());
    if !has_command {
        run.work.command.push("command".into());
    }
    if run.queue_url.is_some() {
        match RunConfig::try_from(run) {
            Ok(config) => {
                let mut found = check::settings::findings("the flags", &config);
                found.extend(
                    check_machine(&config.work, has_command)
                        .err()
                        .map(|why| Finding::error("this machine", why, "correct it")),
                );
                let variables = environment::aws();
                let live = check::live::findings(&config, environment::ca_bundle(), &variables);
                found.extend(block_on(live, Duration::ZERO)?);
                findings.add(Findings { findings: found, stops: vec![StopTimeline::of("the stop", &config)] });
            }
            Err(error) => findings.add(vec![Finding::error("the flags", error.to_string(), "correct it")].into()),
        }
    }
    match format {
        CheckFormat::Text => say(std::io::stdout(), &findings.to_string()),
        CheckFormat::Json => say(std::io::stdout(), &serde_json::to_string(&findings).expect("findings are JSON")),
    }
    Ok(ExitCode::from(if findings.count(Severity::Error) > 0 {
        MISCONFIGURED
    } else {
        u8::from(strict && findings.count(Severity::Warning) > 0)
    }))
}

/// A line for the person who asked. That nobody reads it any more (`leasehold … | head`) changes nothing else.
fn say(mut to: impl Write, line: &str) {
    let _ = writeln!(to, "{line}");
}

fn misconfigured(why: &str) -> TerminationMessage {
    TerminationMessage::new("misconfigured", MISCONFIGURED, why)
}

fn refuse(why: &str) -> ExitCode {
    say(std::io::stderr(), &format!("leasehold: {}", PlainLines(why)));
    ExitCode::from(MISCONFIGURED)
}

fn run(config: RunConfig, own: Option<Arc<dyn Runner>>) -> Result<ExitCode, String> {
    check_threads()?;
    check_machine(&config.work, own.is_none())?;
    let RunConfig { queue_url, records, work, .. } = config;
    let format = work.log_format.unwrap_or(default_format(&std::io::stdout()));
    let logs = logs::start(
        format,
        &work.identity,
        &environment::log_filter(),
        std::io::stdout(),
        flush_limit(work.settings.stop),
    );
    let plan = work.settings.stop;
    let run = async {
        let metrics = Arc::new(Metrics::new(sqs::queue_name(&queue_url), logs.dropped(), SystemTime::now()));
        let stop = stop_requested(Some(&metrics))?;
        let readiness = Arc::new(Readiness::new(stop.clone()));
        let health = Health::default();
        let pages = Pages {
            metrics: config.pushgateway.is_none().then(|| metrics.clone()),
            readiness: readiness.clone(),
            health: health.clone(),
        };
        let _listening = match config.metrics.listen {
            Some(address) => {
                Some(listen::serve(address, pages).await.map_err(|error| format!("--listen {address}: {error}"))?)
            }
            None => None,
        };
        let aws = aws::load(&queue_url, environment::ca_bundle(), &environment::aws())
            .await
            .map_err(|error| error.to_string())?;
        let s3 = Arc::new(S3::new(&aws, config.expected_bucket_owner).with_timeout(config.s3_timeout));
        let attempts = records.attempts.map(|place| AttemptHistory {
            writer: s3.clone(),
            place,
            identity: work.identity.clone(),
            limit: Box::new(move || plan.attempt_record(since_stop().is_some())),
        });
        let clock = Clock::start();
        let idempotency = records.idempotency.map(|place| Idempotency {
            records: s3.clone(),
            place,
            queue: queue_url.clone(),
            owner: work.identity.pod_name.clone(),
            clock,
        });
        let checkpoints = Checkpoints { storage: s3.clone(), clock };
        let worker = CommandWorker {
            checkpoints: Some(checkpoints.clone()),
            idempotency,
            store: s3.clone(),
            runner: own.map_or_else(runner, Ok)?,
            fetch: work.fetch,
            outbox: Some(Arc::new(S3Outbox { writer: s3.clone() })),
            work_dir: work.work_dir,
            job_id: work.identity.job_id,
            clock,
        };
        let telemetry = Arc::new(PodTelemetry::new(work.termination_log, attempts, metrics.clone(), readiness));
        let tasks = work.settings.policy.tasks().cloned().collect();
        let world = World {
            queue: Arc::new(Sqs::new(&aws, queue_url).with_key_attribute(records.idempotency_key)),
            worker: Arc::new(worker),
            telemetry: Arc::new(Forgetting { checkpoints, tasks, telemetry: telemetry.clone() }),
            clock,
            health,
        };
        let namespace = config.metrics.namespace.or_else(pods_namespace);
        let pusher = config.pushgateway.map(|gateway| {
            Pusher::start(
                pushgateway(gateway),
                metrics.clone(),
                namespace,
                work.identity.pod_name,
                config.metrics.push_interval,
                work.settings.stop.push(),
            )
        });
        let outcome = supervisor::run_side_by_side(world, work.settings, config.concurrency, stop).await;
        telemetry.left(&outcome);
        metrics.finished(outcome.exit_code(), SystemTime::now());
        if let Some(pusher) = pusher {
            pusher.finish().await;
        }
        Ok(ExitCode::from(outcome.exit_code()))
    };
    block_on(run, plan.tidy())?
}

/// Kubernetes tells a pod its namespace in a file.
fn pods_namespace() -> Option<String> {
    let namespace = std::fs::read_to_string("/var/run/secrets/kubernetes.io/serviceaccount/namespace").ok()?;
    Some(namespace.trim().to_owned()).filter(|namespace| !namespace.is_empty())
}

fn pushgateway(config: PushgatewayConfig) -> Pushgateway {
    let PushgatewayConfig { url, job, credentials } = config;
    Pushgateway::new(Http::new(environment::ca_bundle()), &url, job, credentials)
}

fn sweep(config: SweepConfig) -> Result<ExitCode, String> {
    check_threads()?;
    let SweepConfig { pushgateway: gateway, older_than, log_format } = config;
    let identity = Identity { job_id: environment::host_name(), pod_name: environment::host_name() };
    let format = log_format.unwrap_or(default_format(&std::io::stdout()));
    let _logs =
        logs::start(format, &identity, &environment::log_filter(), std::io::stdout(), || Duration::from_secs(1));
    let sweep = async {
        match push::sweep(&pushgateway(gateway), older_than, SystemTime::now()).await {
            Ok(Swept { found, deleted, failed }) => {
                info!(found, deleted, failed, "swept");
                Ok(ExitCode::from(u8::from(failed > 0)))
            }
            Err(error) => {
                error!(error, "nothing could be swept");
                Ok(ExitCode::from(UNAVAILABLE))
            }
        }
    };
    block_on(sweep, Duration::ZERO)?
}

fn run_local(config: LocalConfig, own: Option<Arc<dyn Runner>>) -> Result<ExitCode, String> {
    check_threads()?;
    check_machine(&config.work, own.is_none())?;
    let format = config.work.log_format.unwrap_or(default_format(&std::io::stderr()));
    let (screen, above) = bars::screen(format == LogFormat::Text);
    let stop = config.work.settings.stop;
    let _logs = logs::start(format, &config.work.identity, &environment::log_filter(), above, flush_limit(stop));
    let run = async {
        let stopped = stop_requested(None)?;
        let runner = own.map_or_else(runner, Ok)?;
        let summary = local::run(config, runner, screen, stopped).await.map_err(|error| error.to_string())?;
        say(std::io::stdout(), &summary.to_string());
        Ok(ExitCode::from(u8::from(!summary.all_succeeded())))
    };
    block_on(run, stop.tidy())?
}

/// What can be seen to be wrong before a message is received costs no message an attempt.
fn check_machine(work: &WorkConfig, runs_commands: bool) -> Result<(), String> {
    for task in work.settings.policy.tasks().filter(|_| runs_commands) {
        find_program(&task.command.program).map_err(|why| match &work.job_types_file {
            Some(file) if task.name != Task::DEFAULT => {
                let name = &task.name;
                format!("job type {name} of {file}: {why}: this image does not have it, or {file} should name another command")
            }
            Some(_) | None => format!("the command: {why}"),
        })?;
    }
    check_work_dir(&work.work_dir.path).map_err(|error| work.work_dir.failed(&error))
}

/// A limit of processes (`ulimit -u`, the pod's pids) is one of threads too, and what cannot be started later would hang or
/// panic in the midst of the work. So all are started once, at the same time.
fn check_threads() -> Result<(), String> {
    let mut started = Vec::new();
    let refused = loop {
        match std::thread::Builder::new().stack_size(64 << 10).spawn(std::thread::park) {
            Ok(thread) => started.push(thread),
            Err(error) => break Some(error),
        }
        if started.len() == THREADS {
            break None;
        }
    };
    let count = started.len();
    for thread in started {
        thread.thread().unpark();
        let _ = thread.join();
    }
    match refused {
        None => Ok(()),
        Some(error) => Err(format!(
            "only {count} of {THREADS} threads can be started here ({error}): raise the limit of processes (ulimit -u, or the \
             pod's pids limit)"
        )),
    }
}

/// Two for the runtime, one for the log, two for what blocks (files, names to look up), and the command's process.
const THREADS: usize = 6;

/// Only making something there proves that it can be done: some file systems say that they may be written, and take nothing.
fn check_work_dir(path: &Path) -> std::io::Result<()> {
    tempfile::Builder::new().prefix("leasehold-").tempdir_in(path)?.close()
}

/// What the log may take at the end depends on when that is.
fn flush_limit(stop: StopPlan) -> impl Fn() -> Duration + 'static {
    move || stop.log(since_stop())
}

fn default_format(out: &impl IsTerminal) -> LogFormat {
    if out.is_terminal() { LogFormat::Text } else { LogFormat::Json }
}

/// Runs it to its end. A thread that is still busy for it then (removing files, asking a name server that does not answer)
/// has so much time, and is left behind.
///
/// Two threads, so that what is busy for a moment in one does not delay a beat in the other. It is no licence to block:
/// tokio does not promise that the other one takes over.
fn block_on<T>(work: impl Future<Output = T>, patience: Duration) -> Result<T, String> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| format!("the runtime could not be started: {error}"))?;
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(patience);
    Ok(done)
}

fn runner() -> Result<Arc<dyn Runner>, String> {
    let processes = Processes::guarded().map_err(|error| format!("orphans could not be adopted: {error}"))?;
    Ok(Arc::new(processes))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_thread_that_is_stuck_does_not_hold_up_the_exit() {
        let (stuck, until_let_go) = mpsc::channel::<()>();
        let (done, is_done) = mpsc::channel();
        std::thread::spawn(move || {
            let work = async {
                tokio::task::spawn_blocking(move || until_let_go.recv());
                7
            };
            let _ = done.send(block_on(work, Duration::from_millis(50)));
        });
        assert_eq!(is_done.recv_timeout(Duration::from_secs(20)), Ok(Ok(7)));
        drop(stuck);
    }
}
