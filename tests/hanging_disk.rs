//! A work directory on a file system that hangs, as NFS does without its server.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use leasehold::{CancellationToken, Error, Job, Worker};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::support::cloud::{Cloud, LIMIT, Leasehold, eventually};

/// A file system in a file. While it is frozen, each change of it waits in the kernel.
struct Disk {
    home: TempDir,
}

impl Disk {
    /// `None` if this machine does not allow it: only root may mount, and not in each container.
    fn mounted() -> Option<Self> {
        let home = tempfile::tempdir().unwrap();
        let image = home.path().join("image");
        File::create(&image).and_then(|file| file.set_len(16 << 20)).unwrap();
        let disk = Self { home };
        std::fs::create_dir(disk.folder()).unwrap();
        let (image, folder) = (image.to_str().unwrap(), disk.folder());
        let is_mounted = run(&["mkfs.ext4", "-q", "-F", image])
            && run(&["mount", "-o", "loop", image, folder.to_str().unwrap()]);
        is_mounted.then_some(disk)
    }

    fn folder(&self) -> PathBuf {
        self.home.path().join("disk")
    }

    fn freeze(&self) {
        assert!(run(&["fsfreeze", "--freeze", self.folder().to_str().unwrap()]));
    }

    fn thaw(&self) -> bool {
        run(&["fsfreeze", "--unfreeze", self.folder().to_str().unwrap()])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It is thawed unless the test failed.
        self.thaw();
        run(&["umount", "--lazy", self.folder().to_str().unwrap()]);
    }
}

fn run(words: &[&str]) -> bool {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

const VISIBILITY: Duration = Duration::from_secs(12);

/// The first message's command runs, and the second one's folders cannot be made: both keep their
/// lease.
#[tokio::test]
async fn a_disk_that_hangs_delays_no_heartbeat() {
    let Some(disk) = Disk::mounted() else {
        eprintln!("not tested: a file system cannot be mounted here");
        return;
    };
    let cloud = Cloud::new(5).await;
    cloud.put("first", b"data").await;
    let flags = format!(
        "--concurrency 2 --max-messages 2 --wait 20s --visibility-timeout {}s",
        VISIBILITY.as_secs()
    );
    let script = "echo > $JOB_KEY; until [ -e continue ]; do sleep 0.1; done";
    let pod = Leasehold::start(cloud.command_with(&[], &flags, &disk.folder(), script));
    cloud.file("first").await;

    disk.freeze();
    cloud.put("second", b"data").await;
    eventually("both are in flight", async || (cloud.counts().await == (0, 2)).then_some(())).await;
    let polled_until = Instant::now() + 2 * VISIBILITY + VISIBILITY / 2;
    while Instant::now() < polled_until {
        let receive = cloud.sqs.receive_message().queue_url(&cloud.queue_url);
        let received = receive.wait_time_seconds(1).send().await.unwrap();
        assert_eq!(received.messages(), [], "its lease ended");
    }
    assert!(!cloud.dir.path().join("second").exists(), "its command runs without its folders");

    cloud.touch("continue");
    assert!(disk.thaw());
    let ended = pod.expect_exit(0).await;
    let deleted = ended.log.iter().filter(|record| record["message"] == "message deleted");
    let counts: Vec<_> = deleted.map(|record| record["receive_count"].as_u64()).collect();
    assert_eq!(counts, [Some(1), Some(1)]);
    assert_eq!(cloud.counts().await, (0, 0));
}

/// One handler waits for a folder, and is dropped at its deadline. The other one gets its own
/// deadline and its stop in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_handler_that_waits_for_the_disk_delays_no_other() {
    let Some(disk) = Disk::mounted() else {
        eprintln!("not tested: a file system cannot be mounted here");
        return;
    };
    let cloud = Cloud::new(5).await;
    let stop = CancellationToken::new();
    let (sender, mut began) = mpsc::unbounded_channel();
    let handler = move |job: Job| {
        let sender = sender.clone();
        async move {
            let key = job.key.clone().unwrap();
            let _ = sender.send((key.clone(), job.receive_count));
            match &*key {
                "ready" => return Ok(()),
                "hangs" => drop(job.output_dir().await?),
                _ => {}
            }
            job.cancelled().await;
            Err::<(), Error>("not finished".into())
        }
    };
    let worker = Worker::new(handler)
        .queue_url(&cloud.queue_url)
        .sdk_config(&crate::support::aws::config(&cloud.endpoint))
        .work_dir(disk.folder())
        .fetch_on_demand()
        .concurrency(2)
        .max_duration(Duration::from_secs(4))
        .stop_grace(Duration::from_secs(1))
        .retry(Duration::from_secs(1), Duration::from_secs(1))
        .stop_when(stop.clone().cancelled_owned());
    let running = tokio::spawn(worker.run());
    cloud.put("ready", b"data").await;
    let mut next = async || timeout(LIMIT, began.recv()).await.expect("in time").unwrap();
    assert_eq!(next().await, ("ready".to_owned(), 1));
    disk.freeze();
    cloud.put("hangs", b"data").await;
    assert_eq!(next().await, ("hangs".to_owned(), 1));
    cloud.put("other", b"data").await;
    // It is begun, halted at its deadline, released and begun again, after the deadline of the one
    // that hangs.
    while next().await != ("other".to_owned(), 2) {}
    stop.cancel();
    let summary = timeout(LIMIT, running).await.expect("a stop ends in time").unwrap().unwrap();
    assert_eq!(summary.succeeded, 1);
    assert!(summary.kept >= 3, "{summary:?}");
    assert!(disk.thaw());
}
