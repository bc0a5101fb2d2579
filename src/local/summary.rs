//! The results of all files, as a table for a person.

use comfy_table::{Cell, Color, ColumnConstraint, ContentArrangement, Table, presets};
use std::collections::HashMap;
use std::time::Duration;

use crate::job::delivery::MessageId;
use crate::job::keep_reason::KeepReason;
use crate::job::report::Ended;
use crate::job::verdict::{Completion, Settlement};
use crate::settings::resolve::Verbosity;
use crate::telemetry::plain::{Plain, shortened};

/// A file, which has one message.
#[derive(Debug, Clone)]
pub(super) struct File {
    pub key: String,
    pub fate: Fate,
    /// The outcome of its last attempt.
    outcome: &'static str,
    is_dead: bool,
    attempts: u32,
    /// The total time of all attempts.
    worked: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    NotStarted,
    Succeeded,
    /// The message had no work.
    Ignored,
    Stopped,
    Failed,
}

impl File {
    pub fn new(key: String) -> Self {
        Self {
            key,
            fate: Fate::NotStarted,
            outcome: "not started",
            is_dead: false,
            attempts: 0,
            worked: Duration::ZERO,
        }
    }

    pub fn ended(&mut self, ended: &Ended) {
        self.fate = match &ended.settlement {
            Settlement::Deleted(Completion::NothingToDo(_)) => Fate::Ignored,
            Settlement::Deleted(Completion::Succeeded | Completion::AlreadyDone) => Fate::Succeeded,
            Settlement::Kept(KeepReason::Stopped, _) => Fate::Stopped,
            Settlement::Kept(_, _) => Fate::Failed,
        };
        self.outcome = ended.outcome();
        self.attempts = ended.subject.receive_count;
        self.worked += ended.work.timings.total;
    }

    fn outcome(&self) -> String {
        if self.is_dead {
            format!("dead letter: {}", self.outcome)
        } else {
            self.outcome.to_owned()
        }
    }
}

/// The results of all files.
#[derive(Debug)]
pub struct Summary {
    pub(super) files: HashMap<MessageId, File>,
    pub(super) skipped: usize,
}

/// The screen or the file to which the summary is written.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// `None` if lines may have any length.
    pub columns: Option<u16>,
    pub is_coloured: bool,
}

impl Summary {
    pub fn all_succeeded(&self) -> bool {
        self.files.values().all(|file| matches!(file.fate, Fate::Succeeded | Fate::Ignored))
    }

    pub(super) fn mark_dead(&mut self, message_id: &MessageId) {
        if let Some(file) = self.files.get_mut(message_id) {
            file.is_dead = true;
        }
    }

    /// A row for each relevant file, and the totals.
    pub fn text(&self, verbosity: Verbosity, page: Page) -> String {
        let is_shown = |file: &&File| match verbosity {
            Verbosity::Quiet => false,
            Verbosity::Normal => matches!(file.fate, Fate::Failed | Fate::Stopped),
            Verbosity::Verbose => true,
        };
        let mut files: Vec<&File> = self.files.values().filter(is_shown).collect();
        files.sort_by(|a, b| a.key.cmp(&b.key));
        if files.is_empty() {
            self.totals()
        } else {
            format!("{}\n\n{}", table(&files, page), self.totals())
        }
    }

    /// The lines are short enough for a narrow terminal.
    fn totals(&self) -> String {
        let count = |fate| self.files.values().filter(|file| file.fate == fate).count();
        let others = [
            (count(Fate::Failed), "failed"),
            (count(Fate::Stopped), "stopped"),
            (count(Fate::NotStarted), "not started"),
            (count(Fate::Ignored), "ignored"),
        ];
        let others = others
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"));
        let others = others.collect::<Vec<_>>().join(", ");
        let skipped = if self.skipped > 0 {
            format!("{} skipped: hidden files, links and pipes", self.skipped)
        } else {
            String::new()
        };
        let succeeded =
            format!("{} of {} files succeeded", count(Fate::Succeeded), self.files.len());
        [succeeded, others, skipped]
            .into_iter()
            .filter(|line| !line.is_empty())
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// No line is wider than the page: long names lose their middle.
fn table(files: &[&File], page: Page) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["FILE", "OUTCOME", "TRIES", "TIME"]);
    if page.is_coloured {
        table.enforce_styling();
    }
    let outcome = files.iter().map(|file| file.outcome().len()).max().unwrap_or_default();
    let name = page.columns.map(|columns| {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(columns);
        let columns = usize::from(columns);
        // The other columns, with a blank to the left and to the right of each.
        columns
            .saturating_sub(2 + outcome + 2 + "TRIES".len() + 2 + "100.0 s".len() + 2)
            .max(columns / 4)
    });
    for file in files {
        let key = Plain(&file.key).to_string();
        let colour = match file.fate {
            Fate::Succeeded => Color::Green,
            Fate::Failed => Color::Red,
            Fate::Stopped | Fate::NotStarted | Fate::Ignored => Color::Yellow,
        };
        let outcome = Cell::new(file.outcome());
        table.add_row([
            Cell::new(name.map_or(key.clone(), |columns| shortened(&key, columns))),
            if page.is_coloured { outcome.fg(colour) } else { outcome },
            Cell::new(file.attempts),
            Cell::new(format!("{:.1} s", file.worked.as_secs_f64())),
        ]);
    }
    for column in [0, 2, 3] {
        table
            .column_mut(column)
            .expect("the table has four columns")
            .set_constraint(ColumnConstraint::ContentWidth);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(key: &str, fate: Fate, outcome: &'static str) -> File {
        File {
            fate,
            outcome,
            is_dead: fate == Fate::Failed,
            attempts: 3,
            ..File::new(key.to_owned())
        }
    }

    fn summary() -> Summary {
        let files = [
            file("a/rather/long/name/of/a/file.csv", Fate::Failed, "command_failed"),
            file("done.csv", Fate::Succeeded, "succeeded"),
            file("\u{1b}[2J", Fate::Stopped, "stopped"),
            file("\u{65e5}\u{672c}.csv", Fate::Ignored, "ignored"),
            File::new("late.csv".to_owned()),
        ];
        let files = files
            .into_iter()
            .enumerate()
            .map(|(n, file)| (MessageId::new(n.to_string()), file))
            .collect();
        Summary { files, skipped: 2 }
    }

    #[test]
    fn the_verbosity_determines_the_rows() {
        let page = Page { columns: Some(80), is_coloured: false };
        let totals = "1 of 5 files succeeded\n1 failed, 1 stopped, 1 not started, 1 ignored\n\
                      2 skipped: hidden files, links and pipes";
        assert_eq!(summary().text(Verbosity::Quiet, page), totals);
        for (verbosity, rows) in [(Verbosity::Normal, 2), (Verbosity::Verbose, 5)] {
            let text = summary().text(verbosity, page);
            assert!(text.ends_with(&format!("\n\n{totals}")), "{text}");
            assert_eq!(text.lines().count(), 1 + rows + 1 + 3, "{text}");
            assert!(text.contains(r"\u{1b}[2J") && !text.contains('\u{1b}'), "{text}");
        }
        assert!(!summary().all_succeeded());
    }

    #[test]
    fn a_narrow_page_shortens_names_but_not_outcomes() {
        for columns in [44, 60, 80, 200] {
            let text = table_of(Page { columns: Some(columns), is_coloured: false });
            for line in text.lines() {
                assert!(line.chars().count() <= columns.into(), "{columns}: {line:?}");
            }
            assert!(text.contains("command_failed") && text.contains(".csv"), "{text}");
        }
        assert!(table_of(Page { columns: Some(44), is_coloured: false }).contains('…'));
        assert!(
            table_of(Page { columns: None, is_coloured: false })
                .contains("a/rather/long/name/of/a/file.csv")
        );
    }

    fn table_of(page: Page) -> String {
        let summary = summary();
        let failed: Vec<_> =
            summary.files.values().filter(|file| file.fate == Fate::Failed).collect();
        table(&failed, page).to_string()
    }
}
