//! Settings of `run` and `local` that are the same for all job types, and those of `local` and
//! `install`.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
#[cfg(feature = "cli")]
use clap::builder::BoolishValueParser;

use super::environment::{host_name, temp_dir};
use super::given::Settings;
use super::handler::HttpFlags;
use super::job_types::JobTypesFile;
use super::task::{STOP, TaskSettings, WORK};
use super::values::{BucketMount, BucketName, Handler, List, size, time};
use crate::adapters::local::rehearsal::Fault;
use crate::job::event::EventFilter;
use crate::job::s3_location::S3Location;
use crate::job::verdict::OnStop;
use crate::telemetry::LogFormat;

/// Where leasehold's own records go in S3.
#[derive(Debug, Clone, Settings)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct RecordSettings {
    /// Where to record finished work, so that a redelivered message is recognised and not processed
    /// again
    #[arg(long, value_name = "s3://BUCKET/PREFIX", help_heading = WORK)]
    pub idempotency: Option<S3Location>,

    /// Where to record failed and stopped attempts, and those whose pod died:
    /// PREFIX/MESSAGE_ID/RECEIVE_COUNT.json
    #[arg(long, value_name = "s3://BUCKET/PREFIX", help_heading = REPORT)]
    pub attempts: Option<S3Location>,
}

#[derive(Debug, Settings)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct LocalSettings {
    /// The folder with the files to process, or one file
    pub inbox: PathBuf,

    /// The folder for results: the files that the command wrote into JOB_OUTPUT_DIR, below a folder
    /// named after the input file
    #[arg(long, value_name = "DIR")]
    pub outbox: Option<PathBuf>,

    /// How many files to process at the same time, each like a pod
    #[arg(long, value_name = "N", default_value = "1")]
    pub concurrency: usize,

    /// Log every step, and list all files at the end, including those that succeeded
    #[arg(long, short, value_parser = BoolishValueParser::new(), conflicts_with = "quiet")]
    pub verbose: bool,

    /// Log only errors, and print only the totals
    #[arg(long, short, value_parser = BoolishValueParser::new())]
    pub quiet: bool,

    /// The folder that stands in for S3: s3://BUCKET/KEY of --checkpoint, --idempotency, --attempts
    /// and --output is the file BUCKET/KEY in it [default: OUTBOX.state, or INBOX.state]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,

    /// How many times to try a file before it becomes a dead letter, like a queue's maxReceiveCount
    #[arg(long, value_name = "N", default_value = "3")]
    pub max_receive_count: u32,

    /// Simulate this fault once for each file, to test how your command handles it
    #[arg(long, value_enum, value_name = "FAULT")]
    pub rehearse: Option<Fault>,

    /// The longest total time that a message can stay hidden; shorten it to test a hand-over
    /// [default: SQS's 12h]
    #[arg(long, value_name = "TIME", value_parser = time, hide_short_help = true)]
    pub ceiling: Option<Duration>,

    #[command(flatten)]
    pub records: RecordSettings,

    #[command(flatten)]
    pub work: WorkSettings,
}

#[cfg(feature = "cli")]
#[derive(Debug, clap::Args)]
pub struct InstallSettings {
    /// The folder for the file `leasehold`: a volume that both containers mount
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

#[derive(Debug, Clone, Settings)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct WorkSettings {
    #[command(flatten)]
    pub task: TaskSettings,

    /// How long to wait for a message before the queue counts as empty [default: 10s; local: 0s]
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = RECEIVE)]
    pub wait: Option<Duration>,

    /// How many messages to process before the run ends
    #[arg(long, value_name = "N", default_value = "1", help_heading = RECEIVE)]
    pub max_messages: u32,

    /// The S3 events to process; messages about other events are deleted
    #[arg(long, value_name = "EVENT,...", default_value_t, help_heading = RECEIVE)]
    pub events: EventFilter,

    /// Accept messages that are not S3 notifications: the command gets the body as its input
    #[arg(long, value_parser = BoolishValueParser::new(), help_heading = RECEIVE)]
    pub accept_raw: bool,

    /// Process empty objects whose keys end in /, which S3 consoles create for folders
    #[arg(long, value_parser = BoolishValueParser::new(), help_heading = RECEIVE, hide_short_help = true)]
    pub accept_folders: bool,

    /// What works on the messages: command starts COMMAND for each object; lambda starts it once, as
    /// a Lambda function, and passes it the messages as events; http://127.0.0.1:PORT/PATH sends each
    /// object to a server in this pod, which COMMAND starts once
    #[arg(long, value_name = "HANDLER", default_value = "command", help_heading = WORK, hide_short_help = true)]
    pub handler: Handler,

    /// The most messages in one event of --handler lambda, up to 10
    #[arg(long, value_name = "N", default_value = "1", help_heading = WORK, hide_short_help = true)]
    pub batch_size: usize,

    /// How long an event of --handler lambda waits for more messages, up to --batch-size
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = time, help_heading = WORK, hide_short_help = true)]
    pub batch_window: Duration,

    #[command(flatten)]
    pub http: HttpFlags,

    /// How long to retry failing receive requests before the run ends with exit code 69
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = time, help_heading = RECEIVE, hide_short_help = true)]
    pub receive_give_up: Duration,

    /// The folder for files during processing [default: the system's temporary directory]
    #[arg(long, value_name = "DIR", default_value_os_t = temp_dir(), hide_default_value = true, help_heading = WORK)]
    pub work_dir: PathBuf,

    /// The size limit of --work-dir: the sizeLimit of its emptyDir. An object that does not fit is
    /// not downloaded [default: the free space]
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = WORK, hide_short_help = true)]
    pub work_dir_limit: Option<ByteSize>,

    /// A YAML, JSON or TOML file of job types: commands and settings for some of the messages
    #[arg(long, value_name = "FILE", value_parser = JobTypesFile::load, help_heading = WORK)]
    pub job_types: Option<JobTypesFile>,

    /// The buckets to read from; an object in another bucket is a permanent failure [default: any]
    #[arg(long, value_name = "BUCKET,...", help_heading = WORK)]
    pub buckets: Vec<List<BucketName>>,

    /// Where buckets are mounted, for --input mount; with a prefix, the directory has the objects
    /// below it
    #[arg(long, value_name = "s3://BUCKET/PREFIX=DIR,...", help_heading = WORK, hide_short_help = true)]
    pub mount: Vec<List<BucketMount>>,

    /// The pod's terminationGracePeriodSeconds; the shutdown fits into it
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time, help_heading = STOP)]
    pub termination_grace: Duration,

    /// After SIGTERM, make the message visible at once, or let its visibility timeout run out
    #[arg(long, value_enum, default_value = "release", help_heading = STOP)]
    pub on_stop: OnStop,

    /// The job's id in every log record [default: the host name]
    #[arg(long, value_name = "ID", default_value_t = host_name(), hide_default_value = true, help_heading = REPORT, hide_short_help = true)]
    pub job_id: String,

    /// The pod's name in every log record [default: the host name]
    #[arg(long, value_name = "NAME", default_value_t = host_name(), hide_default_value = true, help_heading = REPORT, hide_short_help = true)]
    pub pod_name: String,

    /// The format of the log [default: text on a terminal, else json]
    #[arg(long, value_enum, help_heading = REPORT)]
    pub log_format: Option<LogFormat>,

    /// The file for the final report, which is also in the log [default: /dev/termination-log, if
    /// it exists]
    #[arg(long, value_name = "FILE", help_heading = REPORT, hide_short_help = true)]
    pub termination_log: Option<PathBuf>,
}

pub(super) const RECEIVE: &str = "Receive";
pub(super) const REPORT: &str = "Report";
pub(super) const METRICS: &str = "Metrics and probes";
pub(super) const CHECK: &str = "Check";
