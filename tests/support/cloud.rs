//! A bucket whose notifications go to a queue with a dead-letter queue, on a real server; and the
//! real binary.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aws_sdk_s3::types::{Event, NotificationConfiguration, QueueConfiguration};
use aws_sdk_sqs::types::QueueAttributeName;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::aws;
use super::servers::Ministack;

/// The limit for every wait: only a hang takes longer.
pub const LIMIT: Duration = Duration::from_mins(1);

/// A command that uses more memory than leasehold: a lower peak cannot be measured.
pub const GREEDY: &str = "dd if=/dev/zero of=/dev/null bs=256M count=1 2>/dev/null";

pub struct Cloud {
    pub endpoint: String,
    pub sqs: aws_sdk_sqs::Client,
    pub s3: aws_sdk_s3::Client,
    pub bucket: String,
    pub queue_url: String,
    pub dead_letter_queue_url: String,
    /// The current directory of the commands.
    pub dir: TempDir,
}

impl Cloud {
    pub async fn new(max_receive_count: u32) -> Self {
        Self::at(Ministack::shared().await.endpoint(), max_receive_count).await
    }

    pub async fn at(endpoint: String, max_receive_count: u32) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let config = aws::config(&endpoint);
        let sqs = aws_sdk_sqs::Client::new(&config);
        let s3 = aws_sdk_s3::config::Builder::from(&config).force_path_style(true).build();
        let s3 = aws_sdk_s3::Client::from_conf(s3);
        let name = format!("e2e-{}", COUNT.fetch_add(1, Ordering::Relaxed));

        let dead_letter_queue_url = create_queue(&sqs, &format!("{name}-dlq")).await;
        let dead_letter_arn = arn(&sqs, &dead_letter_queue_url).await;
        let queue_url = create_queue(&sqs, &name).await;
        let redrive = serde_json::json!({ "deadLetterTargetArn": dead_letter_arn, "maxReceiveCount": max_receive_count });
        let queue_arn = arn(&sqs, &queue_url).await;
        let policy = serde_json::json!({ "Version": "2012-10-17", "Statement": [{
            "Effect": "Allow",
            "Principal": { "Service": "s3.amazonaws.com" },
            "Action": "sqs:SendMessage",
            "Resource": queue_arn,
            "Condition": { "ArnEquals": { "aws:SourceArn": format!("arn:aws:s3:::{name}") } },
        }] });
        let set = sqs.set_queue_attributes().queue_url(&queue_url);
        set.attributes(QueueAttributeName::RedrivePolicy, redrive.to_string())
            .attributes(QueueAttributeName::Policy, policy.to_string())
            .send()
            .await
            .expect("the attributes are set");

        s3.create_bucket().bucket(&name).send().await.expect("the bucket is created");
        let to_queue = QueueConfiguration::builder().queue_arn(queue_arn);
        let to_queue =
            to_queue.events(Event::S3ObjectCreated).build().expect("a complete configuration");
        let notifications =
            NotificationConfiguration::builder().queue_configurations(to_queue).build();
        let put = s3.put_bucket_notification_configuration().bucket(&name);
        put.notification_configuration(notifications)
            .send()
            .await
            .expect("the notifications are set");
        // This removes the test event from S3.
        sqs.purge_queue().queue_url(&queue_url).send().await.expect("the queue is purged");

        let dir = tempfile::tempdir().expect("a temporary directory");
        Self { endpoint, sqs, s3, bucket: name, queue_url, dead_letter_queue_url, dir }
    }

    pub async fn put(&self, key: &str, bytes: &[u8]) {
        let put = self.s3.put_object().bucket(&self.bucket).key(key).body(bytes.to_vec().into());
        put.send().await.expect("the object is put");
    }

    /// Removes S3's notification about an object that was put. It may arrive late, so a purge can miss it.
    pub async fn remove_notification(&self) {
        let removed = async {
            loop {
                let receive = self.sqs.receive_message().queue_url(&self.queue_url);
                let received = receive.wait_time_seconds(20).send().await.expect("a receive");
                for message in received.messages.unwrap_or_default() {
                    let delete = self.sqs.delete_message().queue_url(&self.queue_url);
                    let delete = delete.set_receipt_handle(message.receipt_handle);
                    delete.send().await.expect("the message is deleted");
                    if message.body.is_some_and(|body| body.contains("ObjectCreated")) {
                        return;
                    }
                }
            }
        };
        timeout(LIMIT, removed).await.expect("S3 notifies the queue");
    }

    pub async fn queue_arn(&self) -> String {
        arn(&self.sqs, &self.queue_url).await
    }

    /// The numbers of visible messages and of messages in flight.
    pub async fn counts(&self) -> (u32, u32) {
        counts(&self.sqs, &self.queue_url).await
    }

    pub async fn dead_letters(&self) -> (u32, u32) {
        counts(&self.sqs, &self.dead_letter_queue_url).await
    }

    pub async fn send(&self, body: String) {
        let send = self.sqs.send_message().queue_url(&self.queue_url).message_body(body);
        send.send().await.expect("the message is sent");
    }

    /// Waits for the end of a run, while another consumer polls the queue and receives nothing.
    pub async fn wait_while_another_polls(&self, run: Leasehold) -> ExitedRun {
        let rival = async {
            loop {
                let asked =
                    self.sqs.receive_message().queue_url(&self.queue_url).wait_time_seconds(1);
                let got = asked.send().await.expect("an answer").messages.unwrap_or_default();
                assert!(got.is_empty(), "another consumer received it");
            }
        };
        tokio::select! {
            exited = run.wait() => exited,
            () = rival => unreachable!("it polls forever"),
        }
    }

    /// Starts `leasehold run` on the queue, with `script` for a shell; spaces separate `flags`.
    pub fn run(&self, flags: &str, script: &str) -> Leasehold {
        Leasehold::start(self.command(&[], flags, script))
    }

    /// The same as a command for further changes; `through` is a program that starts it, if not
    /// empty.
    pub fn command(&self, through: &[&str], flags: &str, script: &str) -> Command {
        self.command_with(through, flags, self.dir.path(), script)
    }

    /// The same with another work directory.
    pub fn command_with(
        &self,
        through: &[&str],
        flags: &str,
        work_dir: &Path,
        script: &str,
    ) -> Command {
        let program = [through, &[env!("CARGO_BIN_EXE_leasehold")]].concat();
        let mut command = Command::new(program[0]);
        command.args(&program[1..]);
        command.arg("run").args(["--queue-url", &self.queue_url]).args(flags.split_whitespace());
        command.arg("--termination-log").arg(self.dir.path().join("termination-log"));
        command.arg("--work-dir").arg(work_dir);
        command.args(["--", "sh", "-c", script]).current_dir(self.dir.path());
        command.envs(self.environment());
        command
    }

    /// The variables of a process that uses this cloud.
    pub fn environment(&self) -> [(&str, &str); 4] {
        [
            ("AWS_ENDPOINT_URL", &self.endpoint),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ]
    }

    /// Creates a file for the command.
    pub fn touch(&self, name: &str) {
        std::fs::write(self.dir.path().join(name), "").expect("writable");
    }

    /// Waits for a file that the command writes, and returns its content.
    pub async fn file(&self, name: &str) -> String {
        eventually(&format!("the command writes {name}"), async || {
            let text = std::fs::read_to_string(self.dir.path().join(name)).ok()?;
            text.ends_with('\n').then(|| text.trim_end().to_owned())
        })
        .await
    }
}

async fn create_queue(sqs: &aws_sdk_sqs::Client, name: &str) -> String {
    let queue = sqs.create_queue().queue_name(name).send().await.expect("the queue is created");
    queue.queue_url.expect("a URL")
}

async fn attribute(sqs: &aws_sdk_sqs::Client, queue_url: &str, name: QueueAttributeName) -> String {
    let asked = sqs.get_queue_attributes().queue_url(queue_url).attribute_names(name.clone());
    let attributes = asked.send().await.expect("an answer").attributes.expect("attributes");
    attributes[&name].clone()
}

async fn arn(sqs: &aws_sdk_sqs::Client, queue_url: &str) -> String {
    attribute(sqs, queue_url, QueueAttributeName::QueueArn).await
}

/// Both in one request: between two, a message could become visible and be in neither.
async fn counts(sqs: &aws_sdk_sqs::Client, queue_url: &str) -> (u32, u32) {
    use QueueAttributeName::{ApproximateNumberOfMessages, ApproximateNumberOfMessagesNotVisible};

    let asked = sqs.get_queue_attributes().queue_url(queue_url);
    let asked = asked.attribute_names(ApproximateNumberOfMessages);
    let asked = asked.attribute_names(ApproximateNumberOfMessagesNotVisible);
    let attributes = asked.send().await.expect("an answer").attributes.expect("attributes");
    let count = |name| attributes[&name].parse().expect("a number");
    (count(ApproximateNumberOfMessages), count(ApproximateNumberOfMessagesNotVisible))
}

/// Polls until there is an answer, for [`LIMIT`] at most.
pub async fn eventually<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < LIMIT, "timed out after {LIMIT:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The real binary as a running process.
pub struct Leasehold {
    child: Child,
    /// The part of its log that was read so far.
    read: Vec<u8>,
}

/// The exit status and the output of the real binary.
pub struct ExitedRun {
    pub status: ExitStatus,
    /// The log, a JSON object a line.
    pub log: Vec<serde_json::Value>,
    pub stdout: String,
    pub stderr: String,
}

impl Leasehold {
    pub fn start(mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        // A developer's shell variables must not affect the tests.
        for name in ["AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "RUST_LOG"] {
            if !command.as_std().get_envs().any(|(of_test, _)| of_test == name) {
                command.env_remove(name);
            }
        }
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        Self { child: command.spawn().expect("the binary starts"), read: Vec::new() }
    }

    pub fn pid(&self) -> i32 {
        let id = self.child.id().expect("a running process");
        i32::try_from(id).expect("a pid")
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal)
            .expect("a running process");
    }

    pub async fn wait(self) -> ExitedRun {
        let ended = timeout(LIMIT, self.child.wait_with_output())
            .await
            .expect("the process exits within the limit")
            .expect("an exit status");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        let (stdout, stderr) = (text([self.read, ended.stdout].concat()), text(ended.stderr));
        // The last line of a process that was KILLed may be incomplete.
        let lines = stdout
            .split_inclusive('\n')
            .filter(|line| line.starts_with('{') && line.ends_with('\n'));
        let log = lines.map(|line| serde_json::from_str(line).expect("JSON")).collect();
        ExitedRun { status: ended.status, log, stdout, stderr }
    }
}

impl Leasehold {
    /// Reads this many lines of its log, and not the rest.
    pub async fn read_lines(&mut self, lines: usize) {
        let stdout = self.child.stdout.as_mut().expect("a pipe");
        let reading = async {
            let mut remaining = lines;
            while remaining > 0 {
                let start = self.read.len();
                assert!(
                    stdout.read_buf(&mut self.read).await.expect("readable") > 0,
                    "the log ended"
                );
                remaining = remaining
                    .saturating_sub(self.read[start..].split(|byte| *byte == b'\n').count() - 1);
            }
        };
        timeout(LIMIT, reading).await.expect("enough lines within the limit");
    }

    /// Reads its log until the text so far is enough, and not the rest.
    pub async fn read_until(&mut self, is_enough: impl Fn(&str) -> bool) {
        let stdout = self.child.stdout.as_mut().expect("a pipe");
        let reading = async {
            while !is_enough(&String::from_utf8_lossy(&self.read)) {
                let read = stdout.read_buf(&mut self.read).await.expect("readable");
                assert!(read > 0, "the log ended");
            }
        };
        timeout(LIMIT, reading).await.expect("enough text within the limit");
    }

    /// Waits for its exit code without reading its output.
    pub async fn wait_without_reading(mut self) -> Option<i32> {
        timeout(LIMIT, self.child.wait())
            .await
            .expect("the process exits within the limit")
            .expect("an exit status")
            .code()
    }

    /// Waits for its end and asserts its exit code.
    pub async fn expect_exit(self, code: i32) -> ExitedRun {
        let exited = self.wait().await;
        assert_eq!(exited.code(), code, "{}{}", exited.stdout, exited.stderr);
        exited
    }
}

impl ExitedRun {
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| panic!("{}\n{}{}", self.status, self.stdout, self.stderr))
    }

    /// The only record with this text.
    pub fn record(&self, message: &str) -> &serde_json::Value {
        let mut found = self.log.iter().filter(|record| record["message"] == message);
        let first =
            found.next().unwrap_or_else(|| panic!("no record '{message}' in\n{}", self.stdout));
        assert!(found.next().is_none(), "several records '{message}' in\n{}", self.stdout);
        first
    }
}

/// Whether the process exists and is not a zombie.
pub fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_ok_and(|stat| {
        !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
    })
}
