//! Settings of the subcommands that need AWS: `run`, `check`, `sweep`. Those of `run` that `local`
//! has, too, are in [`super::pod`].

#[cfg(feature = "listen")]
use std::net::SocketAddr;
#[cfg(feature = "check")]
use std::path::PathBuf;
use std::time::Duration;

#[cfg(feature = "cli")]
use clap::ArgAction;
#[cfg(feature = "check")]
use clap::builder::BoolishValueParser;

use super::given::Settings;
use super::pod::{CHECK, METRICS, RECEIVE, RecordSettings, WorkSettings};
use super::task::WORK;
use super::values::{account, attribute, is_requester, kms_key, listen, percent, profile, time};
use crate::adapters::aws::s3::encryption::Algorithm;
#[cfg(feature = "check")]
use crate::check::rules::{Explain, Rule};
#[cfg(feature = "pushgateway")]
use crate::telemetry::LogFormat;
#[cfg(feature = "pushgateway")]
use crate::telemetry::push::Credentials;

#[derive(Debug, Settings)]
#[cfg_attr(feature = "cli", derive(clap::Args), command(after_help = super::AFTER_HELP))]
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
    #[arg(long, value_name = "requester", num_args = 0..=1, default_missing_value = "requester", action = ArgAction::Set, default_value = "false", hide_default_value = true, value_parser = is_requester, help_heading = WORK, hide_short_help = true)]
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

    /// How many further messages to receive and download while the others are processed
    #[arg(long, value_name = "N", default_value = "0", help_heading = RECEIVE, hide_short_help = true)]
    pub prefetch: usize,

    /// Stop the command when the memory of the container, without the page cache, reaches this share of
    /// its limit [default: never]
    #[arg(long, value_name = "PERCENT", value_parser = percent, help_heading = WORK, hide_short_help = true)]
    pub memory_guard: Option<u8>,

    #[cfg(feature = "pushgateway")]
    #[command(flatten)]
    pub pushgateway: PushgatewaySettings,

    #[command(flatten)]
    pub metrics: MetricsSettings,
}

#[derive(Debug, Clone, Settings)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct MetricsSettings {
    /// How often to push the metrics to --pushgateway
    #[cfg(feature = "pushgateway")]
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = time, help_heading = METRICS, hide_short_help = true)]
    pub push_interval: Duration,

    /// The namespace label of the metric group at --pushgateway [default: the pod's namespace]
    #[cfg(feature = "pushgateway")]
    #[arg(long, value_name = "NAME", help_heading = METRICS, hide_short_help = true)]
    pub namespace: Option<String>,

    /// Serve /metrics, /healthz and /readyz at this address
    #[cfg(feature = "listen")]
    #[arg(long, value_name = "[IP]:PORT", value_parser = listen, help_heading = METRICS)]
    pub listen: Option<SocketAddr>,
}

/// `check` takes the flags of `run`, too: it checks them.
#[cfg(feature = "check")]
#[derive(Debug, clap::Args)]
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

#[cfg(feature = "check")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CheckFormat {
    /// Two lines for each finding
    Text,
    /// One JSON object
    Json,
    /// A SARIF 2.1.0 log, which code hosts show beside the manifest's lines
    Sarif,
}

#[cfg(feature = "pushgateway")]
#[derive(Debug, Settings, clap::Args)]
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

#[cfg(feature = "pushgateway")]
#[derive(Debug, clap::Args)]
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
