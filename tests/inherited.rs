//! What a process inherits from its parent: a limit of processes, blocked signals.

use std::fs::{Permissions, copy, set_permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::support::cloud::{Cloud, Leasehold};

/// It counts threads, too. One that is too low is found before the message is received; the lowest one that is enough
/// suffices for the whole job.
#[tokio::test]
async fn a_limit_of_processes_is_checked_before_the_first_receive() {
    let cloud = Cloud::new(5).await;
    if cloud.dir.path().metadata().unwrap().uid() != 0 {
        eprintln!("not tested: only root can become a user without other processes");
        return;
    }
    cloud.put("file", b"data").await;
    // The user can neither read root's folders nor write to the test's.
    let program = cloud.dir.path().join("leasehold");
    copy(env!("CARGO_BIN_EXE_leasehold"), &program).unwrap();
    set_permissions(cloud.dir.path(), Permissions::from_mode(0o777)).unwrap();
    let pod = |limit: u32| {
        let limit = format!("--nproc={limit}");
        let user = ["setpriv", "--reuid=54391", "--regid=54391", "--clear-groups"];
        // The copy, in place of the program that follows.
        let instead = ["sh", "-c", r#"shift; exec "$0" "$@""#, program.to_str().unwrap()];
        let through = [&["prlimit", &limit][..], &user, &instead].concat();
        Leasehold::start(cloud.command(&through, "--wait 20s", "test -s $JOB_INPUT"))
    };
    for threads in 1..6 {
        let refused = pod(1 + threads).expect_exit(78).await;
        let why = format!("only {threads} of 6 threads can be started");
        assert!(refused.stderr.contains(&why), "{}", refused.stderr);
    }
    let ended = pod(1 + 6).expect_exit(0).await;
    assert_eq!(ended.record("message deleted")["receive_count"], 1);
    assert_eq!(cloud.counts().await, (0, 0));
}

/// Its parent may be a program that waits for its own children with sigwait(3).
#[tokio::test]
async fn the_end_of_a_command_is_noticed_although_the_parent_has_blocked_sigchld() {
    let cloud = Cloud::new(5).await;
    cloud.put("file", b"data").await;
    let block = "import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
os.execv(sys.argv[1], sys.argv[1:])";
    let pod = cloud.command(&["python3", "-c", block], "--wait 20s", "exit 0");
    let ended = Leasehold::start(pod).expect_exit(0).await;
    let took = ended.record("message deleted")["command_s"].as_f64().unwrap();
    assert!(took < 50.0, "{took} s: found by the look of each minute");
}
