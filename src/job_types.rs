//! The file of job types (`--job-types`), as it is written. What it says is checked against everything else in
//! [`crate::config`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use schemars::{JsonSchema, Schema, schema_for};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::cli::values::{InputArg, RetryArg, VisibilityArg, time};
use crate::job::place::Template;
use crate::job::route::{BadEventFilter, EventFilter, KeyGlob, Task};

/// What leasehold does with which messages: the first job type that matches a message says how it is worked on.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(title = "leasehold's job types")]
pub struct JobTypesFile {
    #[schemars(length(min = 1))]
    pub job_types: Vec<Entry>,
    /// Where it is, if it was loaded.
    #[serde(skip)]
    pub path: Option<String>,
}

/// A job type. What it does not say is as the flag of the same name says.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Entry {
    pub name: Name,
    #[serde(default)]
    pub r#match: MatchEntry,
    /// What to run on each object, as a list: the program and its arguments.
    #[schemars(length(min = 1))]
    pub command: Option<Vec<String>>,
    pub input: Option<InputArg>,
    pub visibility: Option<VisibilityArg>,
    pub visibility_timeout: Option<Time>,
    pub max_duration: Option<Time>,
    pub stall_timeout: Option<Time>,
    pub stop_grace: Option<Time>,
    /// Where results go.
    pub output: Option<S3Place>,
    /// Where partial state is kept; with it max-duration is the time of all attempts together, and may be over 12 hours.
    pub checkpoint: Option<S3Place>,
    /// How often it is saved while the command runs.
    pub checkpoint_interval: Option<Time>,
    pub retry: Option<RetryArg>,
    pub retry_min: Option<Time>,
    pub retry_max: Option<Time>,
    /// Exit codes with which the command says that this input will never work.
    pub permanent_exit_codes: Option<Vec<u8>>,
    #[serde(skip)]
    pub said_at: SaidAt,
}

/// Where in the file an entry says what, by the settings' names.
#[derive(Debug, Clone, Default)]
pub struct SaidAt(BTreeMap<String, At>);

/// A place in the file. Both count from 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct At {
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} column {}", self.line, self.column)
    }
}

impl SaidAt {
    pub fn name(&self) -> At {
        self.0.get("name").copied().unwrap_or_default()
    }

    /// Where the first setting is said that a complaint names (`--max-duration 13h is over …`); if none is, the entry's name.
    pub fn what(&self, complaint: &str) -> At {
        let mut named = complaint.split([' ', ':']).filter_map(|word| self.0.get(word.strip_prefix("--")?));
        named.next().copied().unwrap_or_else(|| self.name())
    }
}

/// The file, as far as it says where something is said.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Located<T> {
    job_types: Vec<BTreeMap<String, T>>,
}

/// Which messages: all that is said must be so. Where nothing is said, every message.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MatchEntry {
    /// A bucket's name.
    pub bucket: Option<String>,
    pub key: Option<Key>,
    pub event: Option<Events>,
}

/// The type's name in logs and metrics, and in JOB_TYPE.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend("pattern" = "^[A-Za-z0-9._-]{1,63}$"))]
pub struct Name(pub String);

/// A pattern for the whole key: `*` and `?` stand for what is within one folder, `**` for folders, `{a,b}` for either.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
pub struct Key(pub KeyGlob);

/// S3's names of events, as for `--events`: `ObjectCreated:*,ObjectRestore:Completed`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
pub struct Events(pub EventFilter);

/// A place in S3, which may have `{key}`, `{name}`, `{stem}`, `{message_id}` and `{job_type}` in it:
/// `s3://results/{job_type}/{stem}`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
pub struct S3Place(pub Template);

/// A length of time, such as `90s`, `10m` or `2h30m`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
pub struct Time(pub Duration);

impl TryFrom<String> for Name {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !(1..=63).contains(&name.len()) || !name.chars().all(is_plain) {
            return Err("a name is 1 to 63 letters, digits, dots, hyphens or underscores");
        }
        if name == Task::DEFAULT {
            return Err("the name default is that of messages of no job type");
        }
        Ok(Self(name))
    }
}

impl TryFrom<String> for Key {
    type Error = String;

    fn try_from(glob: String) -> Result<Self, String> {
        glob.parse().map(Self)
    }
}

impl TryFrom<String> for Events {
    type Error = BadEventFilter;

    fn try_from(events: String) -> Result<Self, BadEventFilter> {
        events.parse().map(Self)
    }
}

impl TryFrom<String> for S3Place {
    type Error = String;

    fn try_from(place: String) -> Result<Self, String> {
        place.parse().map(Self)
    }
}

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        time(&text).map(Self)
    }
}

impl JobTypesFile {
    /// TOML if the file's name ends so, else YAML, and so JSON. The error says what is wrong, and in which line and column.
    pub fn load(path: &str) -> Result<Self, String> {
        let file = Self::parse(path, || std::fs::read_to_string(path).map_err(|error| error.to_string()))?;
        Ok(Self { path: Some(path.to_owned()), ..file })
    }

    /// The same of a file that is read from elsewhere.
    pub fn parse(path: &str, read: impl FnOnce() -> Result<String, String>) -> Result<Self, String> {
        let text = read()?;
        // A byte order mark is invisible, and editors on Windows write it.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        match Path::new(path).extension().and_then(|extension| extension.to_str()) {
            Some("toml") => Self::from_toml(text).map_err(|error| error.to_string()),
            Some(_) | None => Self::from_yaml(text).map_err(|error| error.to_string()),
        }
    }

    fn from_yaml(text: &str) -> Result<Self, serde_saphyr::Error> {
        let file: Self = serde_saphyr::from_str(text)?;
        let located: Located<serde_saphyr::Spanned<IgnoredAny>> = serde_saphyr::from_str(text)?;
        let number = |number| usize::try_from(number).unwrap_or_default();
        Ok(file.located(located, |value| At {
            line: number(value.referenced.line()),
            column: number(value.referenced.column()),
        }))
    }

    fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        let file: Self = toml::from_str(text)?;
        let located: Located<toml::Spanned<IgnoredAny>> = toml::from_str(text)?;
        Ok(file.located(located, |value| {
            let before = &text[..value.span().start];
            let line = before.rsplit('\n').next().unwrap_or_default();
            At { line: before.matches('\n').count() + 1, column: line.chars().count() + 1 }
        }))
    }

    fn located<T>(mut self, located: Located<T>, at: impl Fn(&T) -> At) -> Self {
        for (entry, said) in self.job_types.iter_mut().zip(located.job_types) {
            entry.said_at = SaidAt(said.iter().map(|(name, value)| (name.clone(), at(value))).collect());
        }
        self
    }

    /// JSON Schema, for editors.
    pub fn schema() -> Schema {
        schema_for!(Self)
    }
}
