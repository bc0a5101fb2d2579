//! Bars for a person at a terminal: one for each file in work, and one for all of them.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::plain::Plain;
use crate::job::report::{Ended, Progressed, Subject};
use crate::job::verdict::Settlement;

/// A bar's steps: it is drawn in a hundred at most.
const STEPS: u32 = 1000;

/// Bars below the log, on the standard error.
pub struct Bars {
    screen: MultiProgress,
    all: ProgressBar,
    /// By message.
    files: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    /// For so many files. Draws nothing where there is no terminal.
    pub fn new(screen: MultiProgress, files: usize) -> Self {
        let all = screen.add(ProgressBar::new(files as u64).with_style(style("{bar:20} {pos} of {len} files")));
        all.tick();
        Self { screen, all, files: Mutex::default() }
    }

    pub fn started(&self, subject: &Subject) {
        let bar = ProgressBar::new(STEPS.into()).with_style(style("{bar:20} {percent:>3}% {prefix} {elapsed} {msg}"));
        let key = subject.objects.first().map(|object| object.key.clone());
        bar.set_prefix(Plain(&key.unwrap_or_default()).to_string());
        let bar = self.screen.insert_before(&self.all, bar);
        bar.enable_steady_tick(Duration::from_millis(500));
        self.files().insert(subject.message_id.to_string(), bar);
    }

    pub fn progressed(&self, Progressed { subject, progress }: &Progressed) {
        let files = self.files();
        let Some(bar) = files.get(subject.message_id.as_str()) else { return };
        if let Some(share) = progress.share {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is from 0 to 1")]
            bar.set_position((share * f64::from(STEPS)) as u64);
        }
        bar.set_message(Plain(progress.text.as_deref().unwrap_or_default()).to_string());
    }

    pub fn ended(&self, ended: &Ended) {
        if let Some(bar) = self.files().remove(ended.subject.message_id.as_str()) {
            bar.finish_and_clear();
        }
        if let Settlement::Deleted(_) = ended.settlement {
            self.all.inc(1);
        }
    }

    fn files(&self) -> MutexGuard<'_, HashMap<String, ProgressBar>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        // What is left would stand in the way of the summary; an error says that nobody sees it.
        let _ = self.screen.clear();
    }
}

/// Where bars are drawn, if `wanted`, and a way to write above them.
pub fn screen(wanted: bool) -> (MultiProgress, impl Write + Send + 'static) {
    let target = if wanted { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let screen = MultiProgress::with_draw_target(target);
    (screen.clone(), Above(screen))
}

struct Above(MultiProgress);

impl Write for Above {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is ours").progress_chars("=> ")
}
