//! What a process inherits from its parent: a user, a limit of processes, blocked signals.

use std::fs::{Permissions, copy, read_dir, set_permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::support::cloud::{Cloud, Leasehold};

/// Starts a program as a user who has no other processes and can use the cloud's folder.
fn other_user(cloud: &Cloud) -> Option<Vec<String>> {
    let folder = cloud.dir.path();
    if folder.metadata().unwrap().uid() != 0 {
        eprintln!("not tested: only root can become another user");
        return None;
    }
    set_permissions(folder, Permissions::from_mode(0o777)).unwrap();
    // The user cannot read root's folders.
    let program = folder.join("leasehold");
    copy(env!("CARGO_BIN_EXE_leasehold"), &program).unwrap();
    // The limit counts all processes of a user, and two test processes may run.
    let id = 100_000 + 16 * std::process::id() + USERS.fetch_add(1, Ordering::Relaxed);
    let user = format!("setpriv --reuid={id} --regid={id} --clear-groups");
    // The copy, in place of the program that follows.
    let instead = ["sh", "-c", r#"shift; exec "$0" "$@""#, program.to_str().unwrap()];
    Some(user.split(' ').chain(instead).map(str::to_owned).collect())
}

static USERS: AtomicU32 = AtomicU32::new(0);

/// It counts threads, too. One that is too low is found before the message is received; the lowest one
/// that is enough suffices for the whole job.
#[tokio::test]
async fn a_limit_of_processes_is_checked_before_the_first_receive() {
    let cloud = Cloud::new(5).await;
    let Some(user) = other_user(&cloud) else { return };
    cloud.put("file", b"data").await;
    let pod = |limit: u32| {
        let limit = ["prlimit".to_owned(), format!("--nproc={limit}")];
        let through: Vec<_> = limit.iter().chain(&user).map(String::as_str).collect();
        Leasehold::start(cloud.command(&through, "--wait 20s", "test -s $JOB_INPUT"))
    };
    for threads in 1..7 {
        let refused = pod(1 + threads).expect_exit(78).await;
        let why = format!("only {threads} of 7 threads can be started");
        assert!(refused.stderr.contains(&why), "{}", refused.stderr);
    }
    let ended = pod(1 + 7).expect_exit(0).await;
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

/// Root could remove it anyway.
#[tokio::test]
async fn what_a_command_leaves_unreadable_is_removed() {
    let cloud = Cloud::new(5).await;
    let Some(user) = other_user(&cloud) else { return };
    let user: Vec<_> = user.iter().map(String::as_str).collect();
    for mode in ["0", "333", "444"] {
        cloud.put("file", b"data").await;
        let script = format!(
            "mkdir -p $TMPDIR/a/b/c; echo >$TMPDIR/a/b/c/x; cd $TMPDIR; chmod {mode} a/b/c a/b a"
        );
        Leasehold::start(cloud.command(&user, "--wait 20s", &script)).expect_exit(0).await;
        let entries = read_dir(cloud.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> =
            entries.filter(|it| it.to_string_lossy().starts_with("leasehold-")).collect();
        assert!(left.is_empty(), "{mode}: {left:?}");
    }
}
