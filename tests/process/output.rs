//! The output of the command.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use leasehold::adapters::process::Processes;
use leasehold::job::outcome::Exit;
use leasehold::ports::{Activity, Runner};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::logs::{Logs, capture};

use super::{S, SOON, exit_of, in_own_process, in_room, in_time, is_running, peak_memory, run, sh};

/// By default Python buffers its output to a pipe.
#[tokio::test]
async fn python_output_is_unbuffered() {
    in_own_process(
        "output::python_output_is_unbuffered",
        &["env", "-u", "PYTHONUNBUFFERED"],
        async {
            assert_eq!(run("[ $PYTHONUNBUFFERED = 1 ]").await, Exit::Code(0));
        },
    )
    .await;
}

#[tokio::test]
async fn an_existing_python_setting_is_kept() {
    in_own_process(
        "output::an_existing_python_setting_is_kept",
        &["env", "PYTHONUNBUFFERED="],
        async {
            assert_eq!(run("[ \"${PYTHONUNBUFFERED-unset}\" = '' ]").await, Exit::Code(0));
        },
    )
    .await;
}

#[tokio::test]
async fn output_becomes_log_lines_in_the_span_of_the_caller() {
    use tracing::Instrument;
    let logs = Logs::default();
    let _logging = logs.capture();
    let span = tracing::info_span!("work", message_id = "m-1");
    let script = r"echo one; echo two >&2; echo; printf 'four\377\000 \033[31m and no newline'";
    assert_eq!(run(script).instrument(span).await, Exit::Code(0));
    assert_eq!(logs.lines("stdout"), ["one", "", "four\u{fffd}\0 \u{1b}[31m and no newline"]);
    assert_eq!(logs.lines("stderr"), ["two"]);
    for event in logs.events().iter().filter(|event| event["target"] == "command") {
        assert_eq!(event["level"], "INFO");
        assert_eq!(event["span"]["message_id"], "m-1");
    }
}

#[tokio::test]
async fn a_long_line_is_truncated_and_the_next_one_is_complete() {
    let logs = Logs::default();
    let _logging = logs.capture();
    assert_eq!(run("head -c 1000000 /dev/zero | tr '\\0' x; echo; echo next").await, Exit::Code(0));
    let lines = logs.lines("stdout");
    assert_eq!(
        lines[0],
        format!("{} [truncated: {} more bytes]", "x".repeat(8192), 1_000_000 - 8192)
    );
    assert_eq!(lines[1..], ["next"]);
}

#[tokio::test]
async fn binary_output_is_accepted() {
    let logs = Logs::default();
    let _logging = logs.capture();
    assert_eq!(
        run("head -c 300000 /dev/urandom; head -c 300000 /dev/urandom >&2; exit 3").await,
        Exit::Code(3)
    );
    assert!(!logs.lines("stdout").is_empty());
}

#[tokio::test]
async fn any_output_is_a_sign_of_life() {
    for (script, is_sign) in [("printf .", true), ("echo oops >&2", true), ("exit 0", false)] {
        let (processes, activity) = (Processes::new(), Activity::default());
        in_time(processes.run(sh(script), CancellationToken::new(), activity.clone()))
            .await
            .unwrap();
        assert_eq!(activity.take(), is_sign, "{script}");
        assert!(!activity.take(), "only new output counts");
    }
}

#[tokio::test]
async fn a_command_may_close_its_output() {
    assert_eq!(run("exec >&- 2>&-; sleep 0.1; exit 4").await, Exit::Code(4));
}

/// The command may run as another user by then.
#[tokio::test]
async fn a_command_may_open_its_output_by_name() {
    let logs = Logs::default();
    let _logging = logs.capture();
    let is_open = |fd: u8| format!("[ $(stat -Lc %a /proc/$$/fd/{fd}) = 666 ]");
    let script = format!(
        "{} && {} && echo out > /dev/stdout && echo err > /dev/stderr",
        is_open(1),
        is_open(2)
    );
    assert_eq!(run(&script).await, Exit::Code(0));
    assert_eq!(
        (logs.lines("stdout"), logs.lines("stderr")),
        (vec!["out".to_owned()], vec!["err".to_owned()])
    );
}

#[tokio::test]
async fn a_flood_of_output_neither_blocks_nor_uses_memory() {
    in_own_process("output::a_flood_of_output_neither_blocks_nor_uses_memory", &[], async {
        assert_eq!(run("echo warm up").await, Exit::Code(0));
        let before = peak_memory();
        assert_eq!(run("yes $(printf %0999d 0) | head -c 200000000").await, Exit::Code(0));
        assert_eq!(run("head -c 200000000 /dev/zero >&2").await, Exit::Code(0));
        let grown = peak_memory() - before;
        assert!(grown < 8 << 20, "grew by {grown} bytes");
    })
    .await;
}

#[tokio::test]
async fn a_flood_of_output_does_not_starve_other_tasks() {
    let (logged, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = logged.clone();
    let _logging = capture(move || {
        count.fetch_add(1, Ordering::Relaxed);
        io::sink()
    });
    let highest = most.clone();
    let other = tokio::spawn(async move {
        loop {
            highest.fetch_max(logged.swap(0, Ordering::Relaxed), Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(run("yes | head -c 400000; yes | head -c 400000 >&2").await, Exit::Code(0));
    other.abort();
    let most = most.load(Ordering::Relaxed);
    assert!((1..1000).contains(&most), "{most} lines were logged while a ready task waited");
}

#[tokio::test]
async fn the_wait_for_a_grandchild_that_holds_the_output_is_limited() {
    let room = tempfile::tempdir().unwrap();
    let logs = Logs::default();
    let _logging = logs.capture();
    let started = Instant::now();
    let script = "sleep 600 & echo $! > child; printf 'the last word'";
    assert_eq!(exit_of(in_room(room.path(), script)).await, Exit::Code(0));
    let took = started.elapsed();
    assert!((2 * S..SOON).contains(&took), "{took:?}");
    assert!(!is_running(room.path(), "child"));
    assert_eq!(logs.lines("stdout"), ["the last word"]);
    assert_eq!(logs.warnings(), 1, "the leak is logged");
}

#[tokio::test]
async fn output_written_just_before_the_end_is_not_lost() {
    let logs = Logs::default();
    let _logging = logs.capture();
    assert_eq!(run("seq 1 10000; exit 0").await, Exit::Code(0));
    assert_eq!(logs.lines("stdout").len(), 10000);
    assert_eq!(logs.warnings(), 0);
}
