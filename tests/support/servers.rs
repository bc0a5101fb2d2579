//! Real servers for tests, on 127.0.0.1; they end with the test process, however it ends.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::{NamedTempFile, TempDir};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};

/// How long a server may take until it listens; generous, since the machine may be busy.
const READY: Duration = Duration::from_mins(1);

/// A server in its own process group; dropping it kills the group.
pub struct Server {
    shell: Child,
    pub port: u16,
}

impl Server {
    /// Starts a server with `command` and waits until it listens on `port`.
    pub async fn start(command: &Command, port: u16) -> Self {
        // The shell reads from a pipe that this process holds, so it ends with this process, even
        // after a KILL. It also ends with the server.
        const UNDER_A_SHELL: &str = r#"{ "$@"; kill -KILL 0; } & read -r _; kill -KILL 0"#;
        let mut log = tempfile::tempfile().unwrap();
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", UNDER_A_SHELL, "sh"]).arg(command.get_program()).args(command.get_args());
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.process_group(0).stdin(Stdio::piped());
        shell.stdout(log.try_clone().unwrap()).stderr(log.try_clone().unwrap());
        let mut server = Self { shell: shell.spawn().unwrap(), port };

        let limit = Instant::now() + READY;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
            let ended = server.shell.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < limit,
                "{} does not listen on port {port}; its log:\n{}",
                command.get_program().display(),
                read(&mut log)
            );
            sleep(Duration::from_millis(20)).await;
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // This is quick: the shell kills its group, and itself with it.
        let _ = self.shell.wait();
    }
}

/// A free port.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn read(log: &mut File) -> String {
    let mut text = String::new();
    log.rewind().unwrap();
    log.read_to_string(&mut text).unwrap();
    text
}

/// A program that tests/run has installed for `server`.
pub fn installed(server: &str, program: &str) -> Command {
    let program =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv").join(server).join("bin").join(program);
    assert!(
        program.exists(),
        "{} is missing: run the tests by tests/run, which installs it",
        program.display()
    );
    Command::new(program)
}

/// The binary that tests/run has built with deploy/build-static.
pub fn static_binary() -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_leasehold")).with_file_name("leasehold-static");
    assert!(
        binary.exists(),
        "{} is missing: run the tests by tests/run, which builds it",
        binary.display()
    );
    binary
}

/// SQS, S3 and STS (PyPI, `ministack`).
pub struct Ministack(Server);

impl Ministack {
    /// A separate server, for a test that stops it.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A server that enforces policies.
    pub async fn strict() -> Self {
        Self::with(&[("AUTH", "true")]).await
    }

    async fn with(settings: &[(&str, &str)]) -> Self {
        let port = free_port();
        let mut command = installed("ministack", "ministack");
        command
            .env("BIND_HOST", "127.0.0.1")
            .env("GATEWAY_PORT", port.to_string())
            .envs(settings.iter().copied());
        Self(Server::start(&command, port).await)
    }

    /// The server that the tests of this process share; each test creates queues and buckets with
    /// unique names.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Ministack> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.port)
    }
}

/// Another implementation of SQS and S3, with IAM and CloudFormation (PyPI, `moto`); slow, so only
/// for features that ministack lacks.
pub struct Moto(Server);

impl Moto {
    /// A separate server, for a test that makes it refuse.
    pub async fn start() -> Self {
        let port = free_port();
        let mut command = installed("moto", "moto_server");
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        Self(Server::start(&command, port).await)
    }

    /// The server that the tests of this process share; each test creates queues with unique names.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Moto> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.port)
    }
}

/// A fault-injecting proxy for the AWS protocols (PyPI, `microburst`).
pub struct Microburst(Server);

impl Microburst {
    /// Starts the proxy in front of `upstream`; the first matching rule applies to a request.
    pub async fn start(upstream: &str, rules: &[serde_json::Value]) -> Self {
        let mut config = NamedTempFile::new().unwrap();
        // JSON is YAML.
        write!(config, "{}", serde_json::json!({ "rules": rules })).unwrap();
        let port = free_port();
        let mut command = installed("microburst", "microburst");
        command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--upstream", upstream]);
        command.arg("--config").arg(config.path());
        Self(Server::start(&command, port).await)
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.port)
    }
}

/// Debian's `prometheus-pushgateway`.
pub struct Pushgateway(Server);

impl Pushgateway {
    /// `web_config` sets TLS and passwords.
    pub async fn start(web_config: Option<&Path>) -> Self {
        let port = free_port();
        let mut command = Command::new("prometheus-pushgateway");
        // By default Debian's stores its metrics in a system-wide file.
        command.args([&format!("--web.listen-address=127.0.0.1:{port}"), "--persistence.file="]);
        command.args(web_config.map(|path| format!("--web.config.file={}", path.display())));
        Self(Server::start(&command, port).await)
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.port)
    }
}

/// Debian's `prometheus`, which scrapes every second.
pub struct Prometheus {
    server: Server,
    _folder: TempDir,
}

impl Prometheus {
    /// `targets` are scrape jobs, each a name and a `host:port`.
    pub async fn start(targets: &[(&str, &str)], rules: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let targets = targets.iter().map(|(job, address)| {
            serde_json::json!({ "job_name": job, "honor_labels": true, "static_configs": [{ "targets": [address] }] })
        });
        let config = serde_json::json!({
            "global": { "scrape_interval": "1s", "scrape_timeout": "1s" },
            "rule_files": [rules],
            "scrape_configs": targets.collect::<Vec<_>>(),
        });
        // JSON is YAML.
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config.to_string()).unwrap();
        let port = free_port();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        Self { server: Server::start(&command, port).await, _folder: folder }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.server.port)
    }
}
