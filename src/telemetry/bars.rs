//! Progress bars for a person at a terminal: one for each file in progress, and one for all files.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use console::Term;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

use super::plain::{Plain, shortened};
use crate::job::report::{Ended, Progressed, Subject};
use crate::job::verdict::Settlement;

/// The steps of a bar, which shows at most a hundred of them.
const STEPS: u32 = 1000;

/// Bars below the log, on the standard error.
pub struct Bars {
    screen: MultiProgress,
    all: ProgressBar,
    /// By message id.
    files: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    /// Draws nothing without a terminal.
    pub fn new(screen: MultiProgress, files: usize) -> Self {
        // Added before its style changes: a change would be drawn outside the screen.
        let all = screen.add(ProgressBar::new(files as u64));
        all.set_style(style("{bar:10} {pos} of {len} files"));
        all.tick();
        Self { screen, all, files: Mutex::default() }
    }

    pub fn started(&self, subject: &Subject) {
        let key = subject.objects.first().map_or("", |object| &object.key);
        let bar = self.screen.insert_before(&self.all, ProgressBar::new(STEPS.into()));
        bar.set_style(style("{bar:10} {percent:>3}% {prefix} {elapsed} {wide_msg}"));
        bar.set_prefix(shortened(
            &Plain(key).to_string(),
            usize::from(Term::stderr().size().1 / 3),
        ));
        bar.enable_steady_tick(Duration::from_millis(500));
        self.files().insert(subject.message_id.to_string(), bar);
    }

    pub fn progressed(&self, Progressed { subject, progress }: &Progressed) {
        let files = self.files();
        let Some(bar) = files.get(subject.message_id.as_str()) else { return };
        if let Some(share) = progress.share {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it is from 0 to 1"
            )]
            bar.set_position((share * f64::from(STEPS)) as u64);
        }
        bar.set_message(Plain(progress.text.as_deref().unwrap_or_default()).to_string());
    }

    pub fn ended(&self, ended: &Ended) {
        if let Some(bar) = self.files().remove(ended.subject.message_id.as_str()) {
            self.screen.remove(&bar);
        }
        if let Settlement::Deleted(_) = ended.settlement {
            self.all.inc(1);
        }
        self.all.tick();
    }

    /// Removes all bars from the screen, and draws no more.
    pub fn clear(&self) {
        for (_, bar) in self.files().drain() {
            self.screen.remove(&bar);
        }
        self.screen.remove(&self.all);
        // An error means that the terminal is gone.
        let _ = self.screen.clear();
    }

    fn files(&self) -> MutexGuard<'_, HashMap<String, ProgressBar>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The screen for the bars, if `wanted`, and a writer for lines above them.
pub fn screen(wanted: bool) -> (MultiProgress, impl Write + Send + 'static) {
    let terminal = || ProgressDrawTarget::term_like(Box::new(Terminal(Term::buffered_stderr())));
    let screen = MultiProgress::with_draw_target(if wanted {
        terminal()
    } else {
        ProgressDrawTarget::hidden()
    });
    (screen.clone(), Above(screen))
}

/// A terminal with room for the `^C` that it prints at Ctrl-C: a `^C` on a new line would move the
/// bars from their place. Errors are ignored, since indicatif would panic when the terminal is
/// gone.
#[derive(Debug)]
struct Terminal(Term);

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        self.0.size().1.saturating_sub(2)
    }

    fn height(&self) -> u16 {
        self.0.size().0
    }

    fn move_cursor_up(&self, lines: usize) -> io::Result<()> {
        self.0.move_cursor_up(lines).or(Ok(()))
    }

    fn move_cursor_down(&self, lines: usize) -> io::Result<()> {
        self.0.move_cursor_down(lines).or(Ok(()))
    }

    fn move_cursor_right(&self, columns: usize) -> io::Result<()> {
        self.0.move_cursor_right(columns).or(Ok(()))
    }

    fn move_cursor_left(&self, columns: usize) -> io::Result<()> {
        self.0.move_cursor_left(columns).or(Ok(()))
    }

    fn write_line(&self, line: &str) -> io::Result<()> {
        self.0.write_line(line).or(Ok(()))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.0.write_str(text).or(Ok(()))
    }

    fn clear_line(&self) -> io::Result<()> {
        self.0.clear_line().or(Ok(()))
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush().or(Ok(()))
    }
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
    ProgressStyle::with_template(template).expect("the template is valid").progress_chars("=> ")
}
