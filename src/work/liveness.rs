//! Liveness: is the command still active, and which progress does it report?

use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use tokio::time::sleep;
use tracing::info;

use super::result_file::ResultFile;
use crate::job::lifecycle::Event;
use crate::job::report::Progress;
use crate::ports::Activity;
use crate::ports::clock::Clock;

/// Receives events of running work: progress, or a stall.
pub type ReportEvent = dyn Fn(Event) + Send + Sync;

/// How often to check a command that reports progress or has a stall timeout, and every new one …
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// … and one that has not reported progress in its first seconds: most never do, and run for hours.
const SLOW_CHECK_INTERVAL: Duration = Duration::from_secs(15);
const STARTUP: Duration = Duration::from_secs(20);

/// The minimum interval between log records of progress; other reports are not limited.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Watches one command: reports each new progress, and once a stall.
pub struct Watch<'a> {
    pub clock: Clock,
    pub stall_timeout: Option<Duration>,
    /// `None` if the work is in this process and reports to `activity`.
    pub result_file: Option<&'a Path>,
    pub activity: Activity,
    /// The number of finished objects of the message, and of all.
    pub objects: (usize, usize),
    pub report_event: &'a ReportEvent,
}

/// The state of a watch.
#[derive(Default)]
struct Watched {
    /// The result file's inode, length and modification time.
    stamp: Option<(u64, u64, SystemTime)>,
    /// The number of reports in this process.
    reports: u64,
    progress: Option<Progress>,
    logged_at: Option<Duration>,
    is_logged: bool,
    active_at: Duration,
    stalled: bool,
    /// When the wait for its turn began, if it waits.
    waits_since: Option<Duration>,
}

impl Watch<'_> {
    /// Adds the time for which the command waits for its turn to `waited`.
    pub async fn watch<T>(&self, command: impl Future<Output = T>, waited: &mut Duration) -> T {
        let (mut command, mut waiting) = (pin!(command), self.activity.waiting());
        let began_at = self.clock.now();
        let mut watched = Watched { active_at: began_at, ..Watched::default() };
        loop {
            let is_new = self.clock.now().saturating_sub(began_at) < STARTUP;
            let is_watched = is_new || self.stall_timeout.is_some() || watched.progress.is_some();
            let interval = if is_watched { CHECK_INTERVAL } else { SLOW_CHECK_INTERVAL };
            tokio::select! {
                biased;
                ended = &mut command => {
                    *waited += self.turn(false, &mut watched);
                    self.check_progress(&mut watched);
                    return ended;
                }
                Ok(()) = waiting.changed() => {
                    let waits = *waiting.borrow_and_update();
                    *waited += self.turn(waits, &mut watched);
                }
                () = sleep(interval) => self.check(&mut watched),
            }
        }
    }

    /// Reports that a wait begins or ends; returns how long the wait was that ends.
    fn turn(&self, waits: bool, watched: &mut Watched) -> Duration {
        let now = self.clock.now();
        match (waits, watched.waits_since) {
            (true, None) => {
                watched.waits_since = Some(now);
                (self.report_event)(Event::WaitsForTurn);
                Duration::ZERO
            }
            (false, Some(since)) => {
                let this = now.saturating_sub(since);
                (watched.waits_since, watched.active_at) = (None, now);
                (self.report_event)(Event::HasTurn(this));
                this
            }
            (true, Some(_)) | (false, None) => Duration::ZERO,
        }
    }

    fn check(&self, watched: &mut Watched) {
        let now = self.clock.now();
        let progressed = self.check_progress(watched);
        if self.activity.take() || progressed || watched.waits_since.is_some() {
            watched.active_at = now;
        }
        if let (Some(progress), false) = (&watched.progress, watched.is_logged)
            && watched
                .logged_at
                .is_none_or(|logged_at| now.saturating_sub(logged_at) >= LOG_INTERVAL)
        {
            info!(progress = progress.share, text = progress.text, "progress");
            (watched.logged_at, watched.is_logged) = (Some(now), true);
        }
        let silent = now.saturating_sub(watched.active_at);
        if self.stall_timeout.is_some_and(|limit| silent >= limit) && !watched.stalled {
            watched.stalled = true;
            (self.report_event)(Event::Stalled);
        }
    }

    /// What the work has reported.
    pub fn result(&self) -> ResultFile {
        let Some(path) = self.result_file else {
            let (_, reports) = self.activity.reports_after(0).unwrap_or_default();
            return ResultFile::of(&reports);
        };
        ResultFile::read(path)
    }

    /// `None` if there is nothing new.
    fn new_result(&self, watched: &mut Watched) -> Option<ResultFile> {
        let Some(path) = self.result_file else {
            let (count, reports) = self.activity.reports_after(watched.reports)?;
            watched.reports = count;
            return Some(ResultFile::of(&reports));
        };
        let file = path.metadata().ok()?;
        let stamp = (file.ino(), file.len(), file.modified().ok()?);
        let is_new = watched.stamp.replace(stamp) != Some(stamp);
        is_new.then(|| ResultFile::read(path))
    }

    /// Reports new progress; returns whether there was any.
    fn check_progress(&self, watched: &mut Watched) -> bool {
        let Some(progress) = self.new_result(watched).and_then(|it| it.progress) else {
            return false;
        };
        #[expect(clippy::cast_precision_loss, reason = "a message has few objects")]
        let of_all = |share: f64| (self.objects.0 as f64 + share) / self.objects.1 as f64;
        let progress = Progress { share: progress.share.map(of_all), ..progress };
        if watched.progress.as_ref() == Some(&progress) {
            return false;
        }
        (self.report_event)(Event::Progressed(progress.clone()));
        (watched.progress, watched.is_logged) = (Some(progress), false);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_for_the_turn_is_reported_and_is_not_a_stall() {
        let events = Arc::<Mutex<Vec<Event>>>::default();
        let reported = events.clone();
        let report_event = move |event| reported.lock().unwrap().push(event);
        let activity = Activity::default();
        let watch = Watch {
            clock: Clock::start(),
            stall_timeout: Some(Duration::from_secs(30)),
            result_file: None,
            activity: activity.clone(),
            objects: (0, 1),
            report_event: &report_event,
        };
        let command = async {
            activity.set_waiting(true);
            sleep(Duration::from_secs(100)).await;
            activity.set_waiting(false);
            sleep(Duration::from_secs(20)).await;
            assert_eq!(events.lock().unwrap().len(), 2, "20 s are not yet a stall");
            sleep(Duration::from_secs(20)).await;
        };
        let mut waited = Duration::ZERO;
        watch.watch(command, &mut waited).await;
        let events = events.lock().unwrap();
        let [Event::WaitsForTurn, Event::HasTurn(this), Event::Stalled] = events[..] else {
            panic!("{events:?}")
        };
        assert_eq!((this.as_secs(), waited), (100, this));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_with_the_command() {
        let activity = Activity::default();
        let watch = Watch {
            clock: Clock::start(),
            stall_timeout: None,
            result_file: None,
            activity: activity.clone(),
            objects: (0, 1),
            report_event: &|_| {},
        };
        let mut waited = Duration::ZERO;
        let command = async {
            activity.set_waiting(true);
            sleep(Duration::from_secs(7)).await;
        };
        watch.watch(command, &mut waited).await;
        assert_eq!(waited.as_secs(), 7);
    }
}
