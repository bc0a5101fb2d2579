//! The image, as far as it can be built without a registry: a root folder with the files of the
//! Dockerfile's last stage and the mounts of a kubelet, in which the static binary runs as PID 1 of
//! an unprivileged user. Names are resolved by DNS, and SQS and S3 are behind TLS under their real
//! names. With the variable IMAGE_BUILDER the whole Dockerfile is built, and the tests run its
//! image.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, LazyLock};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::process::Command;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_util::task::AbortOnDropHandle;
use walkdir::WalkDir;

use crate::support::cloud::{Cloud, Leasehold, eventually};
use crate::support::servers::static_binary;

/// The real host names of AWS.
const SQS: &str = "sqs.us-east-1.amazonaws.com";
const S3: &str = "s3.us-east-1.amazonaws.com";

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The commit of the built image.
const COMMIT: &str = "0123abc 2026-11-29";

/// The files of the image that IMAGE_BUILDER builds, if it is set: for example `docker build` or
/// `buildah build`.
#[expect(clippy::disallowed_methods, reason = "a variable of the tests")]
static BUILT: LazyLock<Option<TempDir>> = LazyLock::new(|| {
    let builder = std::env::var("IMAGE_BUILDER").ok()?;
    let root = tempfile::tempdir().unwrap();
    let output = format!("type=local,dest={}", root.path().display());
    let mut words = builder.split_whitespace();
    let mut build = std::process::Command::new(words.next().expect("a program"));
    build.current_dir(repository()).args(words).args([
        "--file",
        "deploy/Dockerfile",
        "--output",
        &output,
    ]);
    let built = build.arg(format!("--build-arg=BUILD_COMMIT={COMMIT}")).arg(".").status().unwrap();
    assert!(built.success(), "{builder}: {built}");
    Some(root)
});

/// The binary of the image.
fn binary() -> PathBuf {
    BUILT.as_ref().map_or_else(static_binary, |built| built.path().join("leasehold"))
}

/// The instructions of the Dockerfile's last stage.
fn last_stage() -> Vec<String> {
    let dockerfile = std::fs::read_to_string(repository().join("deploy/Dockerfile"))
        .unwrap()
        .replace("\\\n", " ");
    let (_, stage) = dockerfile.rsplit_once("FROM ").unwrap();
    stage.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

/// The network of a pod: a DNS server, and AWS behind TLS.
struct Aws {
    address: Ipv4Addr,
    certificate: String,
    _serving: [AbortOnDropHandle<()>; 2],
}

impl Aws {
    /// Starts in front of the server at `upstream`.
    async fn start(upstream: &str) -> Self {
        // An own address, since the ports are fixed.
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 83, high, low);
        let made = rcgen::generate_simple_self_signed([SQS, S3].map(str::to_owned)).unwrap();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let tls =
            tls.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let privileged = "only root may listen on ports 53 and 443";
        let https = TcpListener::bind((address, 443)).await.expect(privileged);
        let dns = UdpSocket::bind((address, 53)).await.expect(privileged);
        let upstream = upstream.trim_start_matches("http://").to_owned();
        let serving = [
            tokio::spawn(forward(https, TlsAcceptor::from(Arc::new(tls)), upstream)),
            tokio::spawn(answer(dns, address)),
        ];
        Self {
            address,
            certificate: made.cert.pem(),
            _serving: serving.map(AbortOnDropHandle::new),
        }
    }
}

async fn forward(listener: TcpListener, tls: TlsAcceptor, upstream: String) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let (tls, upstream) = (tls.clone(), upstream.clone());
        tokio::spawn(async move {
            let mut server = TcpStream::connect(upstream).await?;
            copy_bidirectional(&mut tls.accept(client).await?, &mut server).await
        });
    }
}

/// Answers every name with this address.
async fn answer(socket: UdpSocket, address: Ipv4Addr) {
    const HEAD: usize = 12;
    const TYPE_A: [u8; 2] = [0, 1];
    let mut buffer = [0; 512];
    loop {
        let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
        let labels = buffer[HEAD..length].iter().position(|byte| *byte == 0).unwrap();
        let question = &buffer[HEAD..HEAD + labels + 5];
        let answers = u8::from(question[labels + 1..labels + 3] == TYPE_A);
        let id = &buffer[..2];
        // A response, with recursion; one question, and the number of answers.
        let mut packet = [id, &[0x81, 0x80, 0, 1, 0, answers, 0, 0, 0, 0], question].concat();
        if answers > 0 {
            // The name of the question; A, IN, 60 s, four bytes.
            packet.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            packet.extend(address.octets());
        }
        let _ = socket.send_to(&packet, client).await;
    }
}

/// The files of the image, and those of the kubelet.
struct Container {
    root: TempDir,
}

impl Container {
    fn new(aws: Option<&Aws>) -> Self {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path.trim_start_matches('/'));
        for line in last_stage().iter().filter(|line| line.starts_with("COPY ")) {
            let (_, to) = line.rsplit_once(' ').unwrap();
            std::fs::create_dir_all(at(to).parent().unwrap()).unwrap();
            match to {
                "/leasehold" => drop(std::fs::copy(binary(), at(to)).unwrap()),
                "/etc/ssl/certs/ca-certificates.crt" => {
                    std::fs::write(at(to), aws.map_or("", |aws| &aws.certificate)).unwrap();
                }
                _ => panic!("unknown file {to}"),
            }
        }
        if let Some(aws) = aws {
            std::fs::write(at("/etc/resolv.conf"), format!("nameserver {}\n", aws.address))
                .unwrap();
        }
        for folder in ["/proc", "/dev", "/work"] {
            std::fs::create_dir(at(folder)).unwrap();
        }
        std::os::unix::fs::chown(at("/work"), Some(65532), Some(65532))
            .expect("only root may change the owner");
        Self { root }
    }

    /// `leasehold ARGUMENTS` as PID 1, as the user of the Dockerfile.
    fn command(&self, arguments: &[&str]) -> Command {
        const MOUNT_AND_CHANGE: &str = r#"mount -t proc proc "$1/proc" && : > "$1/dev/null" && mount --bind /dev/null "$1/dev/null" &&
            root=$1 && shift && exec chroot --userspec=65532:65532 "$root" /leasehold "$@""#;
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--fork",
            "--pid",
            "--kill-child=KILL",
            "--",
            "sh",
            "-c",
            MOUNT_AND_CHANGE,
            "sh",
        ]);
        command.arg(self.root.path()).args(arguments);
        command
    }

    /// `leasehold run` on the queue, as in a pod.
    fn run(&self, cloud: &Cloud, arguments: &[&str]) -> Leasehold {
        let queue = format!("https://{SQS}/000000000000/{}", cloud.bucket);
        let mut command =
            self.command(&["run", "--queue-url", &queue, "--work-dir", "/work", "--wait", "1s"]);
        command.arg("--").args(arguments);
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        // A custom endpoint with the real name gives path-style buckets, since the certificate is
        // for one host.
        command.env("AWS_ENDPOINT_URL_S3", format!("https://{S3}"));
        Leasehold::start(command)
    }
}

#[test]
fn the_last_stage_is_two_files_labels_a_user_and_an_entrypoint() {
    let stage = last_stage();
    let (copied, rest): (Vec<_>, Vec<_>) = stage.iter().partition(|line| line.starts_with("COPY "));
    assert_eq!(copied.len(), 2);
    let (labels, rest): (Vec<_>, Vec<_>) =
        rest.into_iter().partition(|line| line.starts_with("LABEL "));
    assert_eq!(rest, ["scratch", "USER 65532:65532", r#"ENTRYPOINT ["/leasehold"]"#]);
    for label in ["title", "description", "licenses"] {
        assert_eq!(
            labels[0].matches(&format!("org.opencontainers.image.{label}=")).count(),
            1,
            "{label}"
        );
    }
}

#[test]
fn a_built_image_has_two_files_and_its_commit() {
    let Some(built) = BUILT.as_ref() else { return };
    let files = WalkDir::new(built.path()).sort_by_file_name().into_iter().map(Result::unwrap);
    let files: Vec<_> = files
        .filter(|entry| entry.file_type().is_file())
        .map(walkdir::DirEntry::into_path)
        .collect();
    let expected =
        ["etc/ssl/certs/ca-certificates.crt", "leasehold"].map(|path| built.path().join(path));
    assert_eq!(files, expected);
    let version = std::process::Command::new(binary()).arg("--version").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    assert!(version.contains(COMMIT) && version.contains("-unknown-linux-gnu"), "{version}");
}

#[test]
fn the_build_context_has_only_the_sources() {
    let dockerfile = std::fs::read_to_string(repository().join("deploy/Dockerfile")).unwrap();
    let copies = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|it| !it.starts_with("--from"));
    let sources: BTreeSet<_> =
        copies.flat_map(|words| words.rsplit_once(' ').unwrap().0.split(' ')).collect();
    let ignore = std::fs::read_to_string(repository().join(".dockerignore")).unwrap();
    let sent: BTreeSet<_> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert_eq!(sources, sent);
    assert!(sent.iter().all(|path| repository().join(path).exists()));
    assert!(ignore.lines().any(|line| line == "*"));
}

#[tokio::test]
async fn dns_tls_sqs_and_s3_work_in_an_empty_root() {
    let cloud = Cloud::new(5).await;
    let aws = Aws::start(&cloud.endpoint).await;
    let container = Container::new(Some(&aws));
    cloud.put("k", b"some bytes").await;
    // The image has no other program.
    let exited = container.run(&cloud, &["/leasehold", "--version"]).expect_exit(0).await;
    assert_eq!(exited.record("message deleted")["size"], 10);
    let line =
        exited.log.iter().find(|record| record["stream"] == "stdout").expect("the command ran");
    assert!(line["line"].as_str().unwrap().starts_with("leasehold "));
    assert_eq!(cloud.counts().await, (0, 0));

    // As PID 1 it handles TERM, and forwards it.
    cloud.put("k", b"x").await;
    let idle = format!("https://{SQS}/000000000000/{}-dlq", cloud.bucket);
    let command = [
        "/leasehold",
        "run",
        "--queue-url",
        &idle,
        "--wait",
        "1h",
        "--work-dir",
        "/work",
        "--",
        "/leasehold",
    ];
    let run = container.run(&cloud, &command);
    eventually("the message is in flight", async || (cloud.counts().await == (0, 1)).then_some(()))
        .await;
    let started = eventually("PID 1 runs", async || {
        let children = format!("/proc/{0}/task/{0}/children", run.pid());
        std::fs::read_to_string(children).ok()?.trim().parse::<i32>().ok()
    })
    .await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(started), Signal::SIGTERM).unwrap();
    let exited = run.expect_exit(143).await;
    assert_eq!(exited.record("message kept")["outcome"], "stopped");
    assert_eq!(cloud.counts().await, (1, 0));
}

#[tokio::test]
async fn the_binary_installs_itself_from_an_empty_root() {
    let container = Container::new(None);
    let installed: Output = container.command(&["install", "/work"]).output().await.unwrap();
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    let copy = container.root.path().join("work/leasehold");
    assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(binary()).unwrap());
    let version = std::process::Command::new(copy).arg("--version").output().unwrap();
    assert!(version.status.success());
}
