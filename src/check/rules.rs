//! The rules of findings: each has an id that never changes, and an explanation.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::Severity;

/// One row of the table.
struct Row {
    id: &'static str,
    name: &'static str,
    severity: Severity,
    summary: &'static str,
    explanation: &'static str,
}

macro_rules! rules {
    ($($rule:ident $id:literal $severity:ident $name:literal: $summary:literal, $explanation:literal;)*) => {
        /// A variant for each row, so that a finding cannot name a rule that does not exist.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule {
            $(#[doc = $summary] $rule,)*
        }

        impl Rule {
            pub const ALL: &[Self] = &[$(Self::$rule,)*];
        }

        const ROWS: &[super::Row] = &[$(super::Row {
            id: $id,
            name: $name,
            severity: super::Severity::$severity,
            summary: $summary,
            explanation: $explanation,
        },)*];

        impl Rule {
            pub(super) fn row(self) -> &'static super::Row {
                &ROWS[self as usize]
            }
        }
    };
}

mod table;

pub use table::Rule;

impl Rule {
    pub fn id(self) -> &'static str {
        self.row().id
    }

    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The default severity of its findings.
    pub fn severity(self) -> Severity {
        self.row().severity
    }

    pub fn summary(self) -> &'static str {
        self.row().summary
    }

    /// Markdown.
    pub fn explanation(self) -> &'static str {
        self.row().explanation
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// By id or by name, in upper or lower case.
impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_it = |rule: &&Self| {
            [rule.id(), rule.name()].iter().any(|one| one.eq_ignore_ascii_case(text))
        };
        if let Some(rule) = Self::ALL.iter().find(is_it) {
            return Ok(*rule);
        }
        let distance =
            |one: &&str| strsim::damerau_levenshtein(&one.to_lowercase(), &text.to_lowercase());
        let nearest =
            Self::ALL.iter().flat_map(|rule| [rule.id(), rule.name()]).min_by_key(distance);
        Err(format!("unknown rule: did you mean {}?", nearest.unwrap_or_default()))
    }
}

/// The output of `--explain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Explain {
    Rule(Rule),
    /// `docs/findings.md`.
    All,
}

impl FromStr for Explain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" { Ok(Self::All) } else { text.parse().map(Self::Rule) }
    }
}

impl fmt::Display for Explain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(rule) => {
                let (severity, name) = (rule.severity(), rule.name());
                write!(f, "{severity}[{rule}] {name}: {}\n\n{}", rule.summary(), rule.explanation())
            }
            Self::All => {
                f.write_str(INTRODUCTION)?;
                for rule in Rule::ALL {
                    writeln!(
                        f,
                        "| [{rule}](#{rule}) | `{}` | {} | {} |",
                        rule.name(),
                        rule.severity(),
                        rule.summary()
                    )?;
                }
                for rule in Rule::ALL {
                    let (name, summary) = (rule.name(), rule.summary());
                    write!(
                        f,
                        "\n<a id=\"{rule}\"></a>\n## {rule} {name}\n\n**{summary}** ({}). ",
                        rule.severity()
                    )?;
                    writeln!(f, "{}", rule.explanation())?;
                }
                Ok(())
            }
        }
    }
}

const INTRODUCTION: &str = "\
# The findings of `leasehold check`

Written by `leasehold check --explain all`; `leasehold check --explain LH222` prints one of them. `--ignore LH222` leaves a finding
out, by its id or its name. An id never changes its meaning.

An **error** prevents work or loses messages, and `check` exits with code 78. A **warning** wastes pods, attempts or time; with `--strict`,
the exit code is 1. **Unchecked** means that `check` could not find out.

| id | name | severity | summary |
|---|---|---|---|
";
