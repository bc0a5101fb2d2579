//! Runs a program like a pod does, and prints its cost: `pod PROGRAM ARG…`
//!
//! The program is PID 1 of its own namespace, with its own /proc, so that leasehold needs no guard
//! process. This needs root; without it, the program is an ordinary child, which costs leasehold a
//! second process. Two lines: the pid and the time of the exec in nanoseconds since 1970; then, at
//! the end, the exit status, and from the exec on: wall time and CPU time in µs, page faults,
//! voluntary context switches, and the peak memory in KiB.

use std::ffi::{CString, c_char, c_int, c_long, c_ulong};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::null;
use std::time::{SystemTime, UNIX_EPOCH};

/// struct rusage of getrusage(2), on 64-bit Linux.
#[repr(C)]
#[derive(Default)]
struct Usage {
    user: [c_long; 2],
    system: [c_long; 2],
    max_rss: c_long,
    unused: [c_long; 3],
    minor_faults: c_long,
    major_faults: c_long,
    more: [c_long; 6],
    voluntary_switches: c_long,
    involuntary_switches: c_long,
}

unsafe extern "C" {
    fn unshare(flags: c_int) -> c_int;
    fn mount(source: *const c_char, target: *const c_char, kind: *const c_char, flags: c_ulong, data: *const c_char) -> c_int;
    fn fork() -> c_int;
    fn pipe2(ends: *mut c_int, flags: c_int) -> c_int;
    fn dup2(from: c_int, to: c_int) -> c_int;
    fn execvp(program: *const c_char, arguments: *const *const c_char) -> c_int;
    fn wait4(pid: c_int, status: *mut c_int, options: c_int, usage: *mut Usage) -> c_int;
    fn getrusage(who: c_int, usage: *mut Usage) -> c_int;
}

const NEW_MOUNTS: c_int = 0x20000;
const NEW_PIDS: c_int = 0x2000_0000;
const PRIVATE_RECURSIVELY: c_ulong = 0x44000;
const CLOSE_ON_EXEC: c_int = 0x80000;

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).map(|it| CString::new(it).expect("no NUL")).collect();
    let mut ends = [0; 2];
    let is_pod = unsafe {
        assert_eq!(pipe2(ends.as_mut_ptr(), CLOSE_ON_EXEC), 0);
        unshare(NEW_MOUNTS | NEW_PIDS) == 0
    };
    let pid = unsafe { fork() };
    assert!(pid >= 0, "fork failed");
    let (mut at_exec, mut to_parent) = unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) };
    if pid == 0 {
        become_program(&arguments, is_pod, &mut to_parent);
    }
    drop(to_parent);
    let mut written = String::new();
    at_exec.read_to_string(&mut written).expect("the child's numbers");
    let before: Vec<i64> = written.split(' ').map(|it| it.parse().expect("a number")).collect();
    println!("{pid} {}", before[0]);
    let (mut status, mut usage) = (0, Usage::default());
    assert_eq!(unsafe { wait4(pid, &mut status, 0, &mut usage) }, pid);
    let wall = (now() - before[0]) / 1000;
    println!(
        "{status} {wall} {} {} {} {}",
        cpu(&usage) - before[1],
        usage.minor_faults + usage.major_faults - before[2],
        usage.voluntary_switches - before[3],
        usage.max_rss
    );
}

fn become_program(arguments: &[CString], is_pod: bool, to_parent: &mut File) -> ! {
    let null_device = OpenOptions::new().read(true).write(true).open("/dev/null").expect("/dev/null");
    let mut pointers: Vec<_> = arguments.iter().map(|it| it.as_ptr()).collect();
    pointers.push(null());
    let mut usage = Usage::default();
    unsafe {
        if is_pod {
            mount(c"none".as_ptr(), c"/".as_ptr(), null(), PRIVATE_RECURSIVELY, null());
            mount(c"proc".as_ptr(), c"/proc".as_ptr(), c"proc".as_ptr(), 0, null());
        }
        for descriptor in 0..3 {
            dup2(null_device.as_raw_fd(), descriptor);
        }
        getrusage(0, &mut usage);
        let (faults, switches) = (usage.minor_faults + usage.major_faults, usage.voluntary_switches);
        write!(to_parent, "{} {} {faults} {switches}", now(), cpu(&usage)).expect("the parent reads");
        execvp(pointers[0], pointers.as_ptr());
    }
    std::process::exit(127)
}

fn cpu(usage: &Usage) -> i64 {
    let micros = |[seconds, micros]: [c_long; 2]| seconds * 1_000_000 + micros;
    micros(usage.user) + micros(usage.system)
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    i64::try_from(since.as_nanos()).expect("a time before 2262")
}
