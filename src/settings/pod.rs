//! Settings that are the same for all job types, by subcommand: `run`, `check`, `sweep`, `local`,
//! `install`.

#[cfg(feature = "aws")]
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};

use super::environment::host_name;
use super::job_types::JobTypesFile;
use super::task::{STOP, TaskSettings, WORK};
use super::values::{
    BucketMount, BucketName, List, account, attribute, kms_key, listen, percent, profile, size,
    time,
};
#[cfg(feature = "aws")]
use crate::adapters::aws::s3::encryption::Algorithm;
use crate::adapters::local::rehearsal::Mishap;
#[cfg(feature = "aws")]
use crate::check::rules::{Explain, Rule};
use crate::job::event::EventFilter;
use crate::job::s3_location::S3Location;
use crate::job::verdict::OnStop;
use crate::telemetry::logs::LogFormat;
#[cfg(feature = "aws")]
use crate::telemetry::push::Credentials;

#[cfg(feature = "aws")]
#[derive(Debug, Args)]
#[command(after_help = super::AFTER_HELP)]
pub struct RunSettings {
    /// The URL of the SQS queue, standard or FIFO
    #[arg(long, value_name = "URL", required = true)]
    pub queue_url: Option<String>,

    #[command(flatten)]
    pub work: WorkSettings,

    #[command(flatten)]
    pub records: RecordSettings,

    /// The message attribute that holds the idempotency key [default: the FIFO queue's
    /// deduplication id unless it is a hash of the body, else the event]
    #[arg(long, value_name = "ATTRIBUTE", requires = "idempotency", value_parser = attribute, help_heading = WORK, hide_short_help = true)]
    pub idempotency_key: Option<String>,

    /// The profile of the shared AWS files whose credentials, endpoint and region S3 requests use;
    /// SQS requests keep the pod's own [default: the same for both]
    #[arg(long, value_name = "NAME", value_parser = profile, help_heading = WORK, hide_short_help = true)]
    pub s3_profile: Option<String>,

    /// The AWS account that must own all buckets, including those for results and records
    #[arg(long, value_name = "ACCOUNT", value_parser = account, help_heading = WORK, hide_short_help = true)]
    pub expected_bucket_owner: Option<String>,

    /// Pay for S3 requests to buckets whose requester pays, as their owner demands
    #[arg(long, value_parser = BoolishValueParser::new(), help_heading = WORK, hide_short_help = true)]
    pub request_payer: bool,

    /// How S3 encrypts the objects that leasehold writes: results, checkpoints and records [default:
    /// as the bucket is set up]
    #[arg(long, value_enum, value_name = "ALGORITHM", help_heading = WORK, hide_short_help = true)]
    pub output_sse: Option<Algorithm>,

    /// The KMS key for --output-sse, by its ARN [default: the bucket's key, else aws/s3]
    #[arg(long, value_name = "ARN", requires = "output_sse", value_parser = kms_key, help_heading = WORK, hide_short_help = true)]
    pub output_sse_kms_key: Option<String>,

    /// How long S3 may take to start or continue a response; after that, the request is retried.
    /// Uploads get a third of it, plus a second for each 64 KiB
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = time, help_heading = WORK, hide_short_help = true)]
    pub s3_timeout: Duration,

    /// How many messages to process at the same time; --max-messages limits the total
    #[arg(long, value_name = "N", default_value = "1", help_heading = RECEIVE)]
    pub concurrency: usize,

    /// Stop the command when the memory of the container, without the page cache, reaches this share of
    /// its limit [default: never]
    #[arg(long, value_name = "PERCENT", value_parser = percent, help_heading = WORK, hide_short_help = true)]
    pub memory_guard: Option<u8>,

    #[command(flatten)]
    pub pushgateway: PushgatewaySettings,

    #[command(flatten)]
    pub metrics: MetricsSettings,
}

/// Where leasehold's own records go in S3.
#[derive(Debug, Clone, Args)]
pub struct RecordSettings {
    /// Where to record finished work, so that a redelivered message is recognised and not processed
    /// again
    #[arg(long, value_name = "s3://BUCKET/PREFIX", help_heading = WORK)]
    pub idempotency: Option<S3Location>,

    /// Where to record failed and stopped attempts: PREFIX/MESSAGE_ID/RECEIVE_COUNT.json
    #[arg(long, value_name = "s3://BUCKET/PREFIX", help_heading = REPORT)]
    pub attempts: Option<S3Location>,
}

#[cfg(feature = "aws")]
#[derive(Debug, Clone, Args)]
pub struct MetricsSettings {
    /// How often to push the metrics to --pushgateway
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = time, help_heading = METRICS, hide_short_help = true)]
    pub push_interval: Duration,

    /// The namespace label of the metric group at --pushgateway [default: the pod's namespace]
    #[arg(long, value_name = "NAME", help_heading = METRICS, hide_short_help = true)]
    pub namespace: Option<String>,

    /// Serve /metrics, /healthz and /readyz at this address
    #[arg(long, value_name = "[IP]:PORT", value_parser = listen, help_heading = METRICS)]
    pub listen: Option<SocketAddr>,
}

/// `check` takes the flags of `run`, too: it checks them.
#[cfg(feature = "aws")]
#[derive(Debug, Args)]
#[command(
    after_help = "All flags of `leasehold run` are accepted, too: see `leasehold run --help`."
)]
#[command(mut_arg("queue_url", |arg| arg.required(false).required_unless_present_any(["manifest", "explain"])))]
#[command(mut_arg("command", |arg| arg.required_unless_present_any(["manifest", "queue_url", "explain"])))]
pub struct CheckSettings {
    /// Check the ScaledJobs in this file of Kubernetes objects, such as the output of `kubectl
    /// kustomize`; - is standard input. Without --queue-url, only the file is checked
    #[arg(long, value_name = "FILE", help_heading = CHECK)]
    pub manifest: Option<PathBuf>,

    /// Check the fields of --manifest against your KEDA's CustomResourceDefinition, the output of
    /// `kubectl get crd scaledjobs.keda.sh -o yaml`
    #[arg(long, value_name = "FILE", requires = "manifest", help_heading = CHECK)]
    pub crd: Option<PathBuf>,

    /// Findings to leave out, by id or name: LH222 or rollout-immediate
    #[arg(long, value_name = "RULES", value_delimiter = ',', help_heading = CHECK)]
    pub ignore: Vec<Rule>,

    /// Explain a finding (an id or name) or `all`, without checking anything
    #[arg(long, value_name = "RULE", help_heading = CHECK)]
    pub explain: Option<Explain>,

    /// How to print the findings
    #[arg(long, value_enum, default_value = "text", help_heading = CHECK)]
    pub format: CheckFormat,

    /// Exit with code 1 if there are warnings
    #[arg(long, value_parser = BoolishValueParser::new(), help_heading = CHECK)]
    pub strict: bool,

    #[command(flatten)]
    pub run: RunSettings,
}

#[cfg(feature = "aws")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CheckFormat {
    /// Two lines for each finding
    Text,
    /// One JSON object
    Json,
    /// A SARIF 2.1.0 log, which code hosts show beside the manifest's lines
    Sarif,
}

#[cfg(feature = "aws")]
#[derive(Debug, Args)]
pub struct PushgatewaySettings {
    /// The URL of the Prometheus Pushgateway
    #[arg(long, value_name = "URL", help_heading = METRICS)]
    pub pushgateway: Option<String>,

    /// The job label of the metric group at --pushgateway
    #[arg(long, value_name = "NAME", default_value = "leasehold", help_heading = METRICS, hide_short_help = true)]
    pub pushgateway_job: String,

    /// A file that holds user:password for --pushgateway
    #[arg(long, value_name = "FILE", value_parser = Credentials::basic, help_heading = METRICS, hide_short_help = true)]
    pub pushgateway_basic_auth_file: Option<Credentials>,

    /// A file that holds the bearer token for --pushgateway
    #[arg(long, value_name = "FILE", value_parser = Credentials::bearer, conflicts_with = "pushgateway_basic_auth_file", help_heading = METRICS, hide_short_help = true)]
    pub pushgateway_bearer_token_file: Option<Credentials>,
}

#[cfg(feature = "aws")]
#[derive(Debug, Args)]
pub struct SweepSettings {
    #[command(flatten)]
    pub pushgateway: PushgatewaySettings,

    /// Delete the groups of pods that finished or stopped pushing longer ago than this; use several
    /// scrape intervals of Prometheus
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time)]
    pub older_than: Duration,

    /// The format of the log [default: text on a terminal, else json]
    #[arg(long, value_enum)]
    pub log_format: Option<LogFormat>,
}

#[derive(Debug, Args)]
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
    #[arg(long, value_enum, value_name = "MISHAP")]
    pub rehearse: Option<Mishap>,

    /// The longest total time that a message can stay hidden; shorten it to test a hand-over
    /// [default: SQS's 12h]
    #[arg(long, value_name = "TIME", value_parser = time, hide_short_help = true)]
    pub ceiling: Option<Duration>,

    #[command(flatten)]
    pub records: RecordSettings,

    #[command(flatten)]
    pub work: WorkSettings,
}

#[derive(Debug, Args)]
pub struct InstallSettings {
    /// The folder for the file `leasehold`: a volume that both containers mount
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

#[derive(Debug, Clone, Args)]
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

    /// How long to retry failing receive requests before the run ends with exit code 69
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = time, help_heading = RECEIVE, hide_short_help = true)]
    pub receive_give_up: Duration,

    /// The folder for files during processing [default: the system's temporary directory]
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir(), hide_default_value = true, help_heading = WORK)]
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

const RECEIVE: &str = "Receive";
const REPORT: &str = "Report";
const METRICS: &str = "Metrics and probes";
pub(super) const CHECK: &str = "Check";
