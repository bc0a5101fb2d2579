//! Alive: does the command still give signs of life, and how far does it say that it is?

use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use tokio::time::timeout;
use tracing::info;

use super::result_file::ResultFile;
use crate::job::lifecycle::Event;
use crate::job::report::Progress;
use crate::ports::Activity;
use crate::ports::clock::Clock;

/// Hears what happens while the work goes on: progress, or a stall.
pub type Tell = dyn Fn(Event) + Send + Sync;

/// How often to look at a command that reports progress or has a stall timeout, and at every new
/// one …
const LOOK: Duration = Duration::from_secs(1);

/// … and at one that has reported none in its first seconds: most never do, and run for hours.
const SLOW_LOOK: Duration = Duration::from_secs(5);
const FIRST_SECONDS: Duration = Duration::from_secs(20);

/// Progress goes into the log no more often than this; everybody else gets all of it.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// Watches one command: tells each new progress, and once that it has stalled.
pub struct Watch<'a> {
    pub clock: Clock,
    pub stall_timeout: Option<Duration>,
    pub result_file: &'a Path,
    pub activity: Activity,
    /// How many objects of the message were done before, and how many it has.
    pub objects: (usize, usize),
    pub tell: &'a Tell,
}

/// What was seen so far.
#[derive(Default)]
struct Seen {
    /// Of the result file: which one it is, its length and when it was written.
    stamp: Option<(u64, u64, SystemTime)>,
    progress: Option<Progress>,
    logged_at: Option<Duration>,
    is_logged: bool,
    sign_at: Duration,
    stalled: bool,
}

impl Watch<'_> {
    pub async fn over<T>(&self, command: impl Future<Output = T>) -> T {
        let mut command = pin!(command);
        let began_at = self.clock.now();
        let mut seen = Seen { sign_at: began_at, ..Seen::default() };
        loop {
            let is_new = self.clock.now().saturating_sub(began_at) < FIRST_SECONDS;
            let is_watched = is_new || self.stall_timeout.is_some() || seen.progress.is_some();
            match timeout(if is_watched { LOOK } else { SLOW_LOOK }, &mut command).await {
                Ok(ended) => {
                    self.look_at_progress(&mut seen);
                    return ended;
                }
                Err(_) => self.look(&mut seen),
            }
        }
    }

    fn look(&self, seen: &mut Seen) {
        let now = self.clock.now();
        let progressed = self.look_at_progress(seen);
        if self.activity.take() || progressed {
            seen.sign_at = now;
        }
        if let (Some(progress), false) = (&seen.progress, seen.is_logged)
            && seen.logged_at.is_none_or(|logged_at| now.saturating_sub(logged_at) >= LOG_PAUSE)
        {
            info!(progress = progress.share, text = progress.text, "progress");
            (seen.logged_at, seen.is_logged) = (Some(now), true);
        }
        let silent = now.saturating_sub(seen.sign_at);
        if self.stall_timeout.is_some_and(|limit| silent >= limit) && !seen.stalled {
            seen.stalled = true;
            (self.tell)(Event::Stalled);
        }
    }

    /// Is there something new?
    fn look_at_progress(&self, seen: &mut Seen) -> bool {
        let Ok(file) = self.result_file.metadata() else { return false };
        let Ok(written) = file.modified() else { return false };
        let stamp = (file.ino(), file.len(), written);
        if seen.stamp.replace(stamp) == Some(stamp) {
            return false;
        }
        let Some(progress) = ResultFile::read(self.result_file).progress else { return false };
        #[expect(clippy::cast_precision_loss, reason = "a message has few objects")]
        let of_all = |share: f64| (self.objects.0 as f64 + share) / self.objects.1 as f64;
        let progress = Progress { share: progress.share.map(of_all), ..progress };
        if seen.progress.as_ref() == Some(&progress) {
            return false;
        }
        (self.tell)(Event::Progressed(progress.clone()));
        (seen.progress, seen.is_logged) = (Some(progress), false);
        true
    }
}
