//! A whole program around a handler.

use std::ffi::OsStr;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;
use std::process::ExitCode;

use clap::{ArgMatches, Args, Command};
use tokio::runtime::Handle;

use super::handler::{AnyHandler, BatchHandler, Batches, Handler, OneJob};
use super::in_process::runner;
use super::settings::{batch_setters, queue_setters, setters};
use super::threads::Threads;
use crate::adapters::batching::Batching;
use crate::app::{self, Host, InProcess, Start};
use crate::settings::embedding::{Embedding, Parsed};
use crate::settings::given::Values;

/// Runs a whole program around `handler`: command line, environment, log, signals, exit code.
pub fn main(handler: impl Handler) -> ExitCode {
    Program::new(handler).main()
}

/// A program with leasehold's command line (`run`, `local`, `check` and the others) and its own
/// name, defaults, flags and subcommands.
///
/// ```no_run
/// use leasehold::{Error, Job, Program};
/// use std::time::Duration;
///
/// async fn resize(job: Job) -> Result<(), Error> {
///     let image = job.bytes().await?;
///     tracing::info!(bytes = image.len(), "resizing");
///     Ok(())
/// }
///
/// fn main() -> std::process::ExitCode {
///     Program::new(resize)
///         .name("resize")
///         .version(env!("CARGO_PKG_VERSION"))
///         .max_duration(Duration::from_hours(2))
///         .main()
/// }
/// ```
///
/// What the code sets is a default: `--max-duration` and `LEASEHOLD_MAX_DURATION` override it.
///
/// The handler runs on its own threads, so that a long computation delays no heartbeat. A program
/// that has a tokio runtime of its own uses a [`Worker`](crate::Worker).
#[must_use]
pub struct Program<K = OneJob> {
    embedding: Embedding,
    handler: MakeHandler,
    subcommands: Vec<Subcommand>,
    kind: PhantomData<fn() -> K>,
}

type MakeHandler = Box<dyn FnOnce(&ArgMatches) -> Result<AnyHandler, clap::Error> + Send>;

/// A subcommand of the program itself.
struct Subcommand {
    name: String,
    run: Box<dyn FnOnce(&ArgMatches) -> ExitCode + Send>,
}

impl Program {
    /// A program that does its work with `handler`.
    pub fn new(handler: impl Handler) -> Self {
        let handler = AnyHandler::new(handler);
        Self::with(None, Box::new(|_| Ok(handler)))
    }

    /// A program with its own flags, beside those of leasehold in `run` and `local`. `make` returns
    /// the handler.
    ///
    /// ```no_run
    /// use leasehold::{Error, Job, Program, clap};
    ///
    /// #[derive(clap::Args)]
    /// struct Flags {
    ///     /// The width of the images
    ///     #[arg(long, default_value = "640")]
    ///     width: u32,
    /// }
    ///
    /// fn main() -> std::process::ExitCode {
    ///     Program::with_flags(|Flags { width }| {
    ///         move |job: Job| async move {
    ///             let image = job.bytes().await?;
    ///             tracing::info!(width, bytes = image.len(), "resizing");
    ///             Ok::<_, Error>(())
    ///         }
    ///     })
    ///     .main()
    /// }
    /// ```
    pub fn with_flags<A: Args, H: Handler>(make: impl FnOnce(A) -> H + Send + 'static) -> Self {
        let make = |matches: &ArgMatches| {
            A::from_arg_matches(matches).map(|flags| AnyHandler::new(make(flags)))
        };
        Self::with(Some(A::augment_args), Box::new(make))
    }

    /// A program whose handler takes up to 10 jobs at once; see
    /// [`batch_size`](Program::batch_size). A run receives one batch, unless
    /// [`max_messages`](Program::max_messages) is set.
    ///
    /// ```no_run
    /// use leasehold::{Failure, Job, Program};
    /// use std::time::Duration;
    ///
    /// async fn import(jobs: Vec<Job>) -> Vec<Result<(), Failure>> {
    ///     let mut results = Vec::new();
    ///     for job in &jobs {
    ///         results.push(job.text().await.map(drop));
    ///     }
    ///     results
    /// }
    ///
    /// fn main() -> std::process::ExitCode {
    ///     Program::batch(import)
    ///         .batch_window(Duration::from_secs(1))
    ///         .max_messages(1000)
    ///         .main()
    /// }
    /// ```
    pub fn batch(handler: impl BatchHandler) -> Program<Batches> {
        let handler = AnyHandler::batch(handler);
        Program::with(None, Box::new(|_| Ok(handler))).with_batches()
    }

    /// [`batch`](Self::batch) with the program's own flags, like [`with_flags`](Self::with_flags).
    pub fn batch_with_flags<A: Args, H: BatchHandler>(
        make: impl FnOnce(A) -> H + Send + 'static,
    ) -> Program<Batches> {
        let make = |matches: &ArgMatches| {
            A::from_arg_matches(matches).map(|flags| AnyHandler::batch(make(flags)))
        };
        Program::with(Some(A::augment_args), Box::new(make)).with_batches()
    }
}

impl Program<Batches> {
    fn with_batches(mut self) -> Self {
        self.embedding = self.embedding.with_batches();
        self
    }

    batch_setters!();
}

impl<K> Program<K> {
    fn with(flags: Option<fn(Command) -> Command>, handler: MakeHandler) -> Self {
        let started = std::env::args_os().next().unwrap_or_default();
        let name = Path::new(&started).file_name().and_then(OsStr::to_str).unwrap_or("worker");
        let embedding = Embedding { flags, ..Embedding::new(name) };
        Self { embedding, handler, subcommands: Vec::new(), kind: PhantomData }
    }

    /// The program's name; by default the name of its file.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.embedding.name = name.into();
        self
    }

    /// What `--version` prints; use `env!("CARGO_PKG_VERSION")`.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.embedding.version = Some(version.into());
        self
    }

    /// One sentence for the help.
    pub fn about(mut self, about: impl Into<String>) -> Self {
        self.embedding.about = Some(about.into());
        self
    }

    /// Adds a subcommand that has nothing to do with leasehold. It gets its own arguments.
    pub fn subcommand(
        mut self,
        command: Command,
        run: impl FnOnce(&ArgMatches) -> ExitCode + Send + 'static,
    ) -> Self {
        let name = command.get_name().to_owned();
        self.subcommands.push(Subcommand { name, run: Box::new(run) });
        self.embedding.actions.push(command);
        self
    }

    fn values_mut(&mut self) -> &mut Values {
        &mut self.embedding.defaults
    }

    setters!();
    queue_setters!();

    /// How many messages a run processes, one after another or at the same time. By default, as many
    /// as it takes at the same time: `concurrency` calls of the handler (1) with a message or a batch
    /// each, and `prefetch` (0).
    pub fn max_messages(self, messages: u32) -> Self {
        self.setting("max-messages", messages.to_string())
    }

    /// Runs the program to its end. Return the exit code from your `main`: the pod's restarts
    /// depend on it.
    ///
    /// Within a tokio runtime, such as `#[tokio::main]`, it runs on another thread, and blocks the
    /// current one.
    pub fn main(self) -> ExitCode {
        let Self { embedding, handler, subcommands, kind: _ } = self;
        let start = || start(embedding, handler, subcommands);
        if Handle::try_current().is_err() {
            return start();
        }
        let started = std::thread::Builder::new().name("leasehold".to_owned());
        let ended = started.spawn(start).map(std::thread::JoinHandle::join);
        match ended {
            Ok(Ok(code)) => code,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(error) => app::refuse("leasehold", &format!("no thread could be started: {error}")),
        }
    }
}

impl<K> fmt::Debug for Program<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("name", &self.embedding.name).finish_non_exhaustive()
    }
}

fn start(embedding: Embedding, handler: MakeHandler, subcommands: Vec<Subcommand>) -> ExitCode {
    let signals = app::signals::block();
    let name = embedding.name.clone();
    app::main(signals, &name.clone(), move || {
        match embedding.parse(std::env::args_os().collect())? {
            Parsed::Subcommand(action, matches) => {
                let it = subcommands.into_iter().find(|it| it.name == action);
                let it = it.expect("each subcommand of the program has a function");
                Ok(Start::Subcommand(Box::new(move || (it.run)(&matches))))
            }
            Parsed::Action(action, matches) => {
                let is_work = action.does_work();
                let handler = is_work.then(|| handler(&matches)).transpose()?;
                let in_process = handler.map(|handler| -> InProcess {
                    Box::new(|batching: Batching| {
                        runner(handler, Threads::dedicated(batching.calls), batching)
                    })
                });
                let command = move || embedding.command().expect("it was parsed");
                let host = Host { name, command: Box::new(command), is_embedded: true, in_process };
                Ok(Start::Perform(*action, host))
            }
        }
    })
}

#[cfg(all(test, feature = "aws"))]
mod tests {
    use super::*;
    use crate::settings::Action;
    use crate::settings::resolve::RunConfig;
    use crate::{Error, Job};

    async fn succeed(_: Job) -> Result<(), Error> {
        Ok(())
    }

    #[test]
    fn the_setters_of_a_program_are_defaults_of_run() {
        let program = Program::new(succeed)
            .queue_url("https://sqs.us-east-1.amazonaws.com/1/q")
            .concurrency(2)
            .prefetch(3)
            .max_messages(7)
            .attempts("s3://bucket/attempts");
        assert!(format!("{program:?}").starts_with("Program"));
        let words = ["program", "run"].map(Into::into).into();
        let Parsed::Action(action, _) = program.embedding.parse(words).unwrap() else {
            panic!("it is an action")
        };
        let Action::Run(settings) = *action else { panic!("it is run") };
        let config = RunConfig::try_from(*settings).unwrap();
        assert_eq!((config.concurrency, config.prefetch), (2, 3));
        assert_eq!(config.work.settings.policy.max_messages, 7);
        assert!(config.records.attempts.is_some());
    }
}
