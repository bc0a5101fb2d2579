//! Parses the file of job types (`--job-types`). [`super::resolve`] checks it against the other
//! settings.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

#[cfg(feature = "check")]
use schemars::{JsonSchema, Schema, schema_for, transform::RecursiveTransform};
use serde::Deserialize;
#[cfg(feature = "job-types")]
use serde::de::IgnoredAny;

use super::error::rename_flags;
use super::task::TaskSettings;
use super::values;
use crate::job::route::{EventFilter, KeyGlob, Task};

/// Job types: the first one that matches a message sets how leasehold processes it.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "check", derive(JsonSchema))]
#[cfg_attr(feature = "check", schemars(title = "leasehold's job types"))]
#[cfg_attr(feature = "check", schemars(transform = RecursiveTransform(for_editors)))]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct JobTypesFile {
    #[cfg_attr(feature = "check", schemars(length(min = 1)))]
    pub job_types: Vec<TaskSettings>,
    /// The file's path, if it was loaded from one.
    #[serde(skip)]
    pub path: Option<String>,
}

/// A missing field takes the flag's value, so the schema has no defaults. Its descriptions are
/// comments, whose line breaks mean nothing to an editor.
#[cfg(feature = "check")]
fn for_editors(schema: &mut Schema) {
    schema.remove("default");
    if let Some(serde_json::Value::String(text)) = schema.get_mut("description") {
        let paragraphs: Vec<_> = text.split("\n\n").map(|it| it.replace('\n', " ")).collect();
        *text = paragraphs.join("\n\n");
    }
}

/// The position of each setting of one job type, by the setting's name.
#[derive(Debug, Clone, Default)]
pub struct SourceMap(BTreeMap<String, At>);

/// A position in the file. Both numbers count from 1.
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

impl At {
    /// `types.yaml, line 3 column 12`; without the file's name if it is unknown.
    pub fn in_file(self, path: &str) -> String {
        if path.is_empty() { self.to_string() } else { format!("{path}, {self}") }
    }
}

impl SourceMap {
    pub fn name(&self) -> At {
        self.0.get("name").copied().unwrap_or_default()
    }

    /// Removes the dashes of flags that are set in this job type: the file has no dashes.
    pub fn with_field_names(&self, error: &str) -> String {
        rename_flags(error, &['('], |flag| self.0.contains_key(flag).then(|| flag.to_owned()))
    }

    /// The position of the first setting that an error names (`--max-duration 13h is over …`), or of
    /// the job type's name.
    pub fn position(&self, error: &str) -> At {
        let mut named =
            error.split([' ', ':']).filter_map(|word| self.0.get(word.strip_prefix("--")?));
        named.next().copied().unwrap_or_else(|| self.name())
    }
}

/// The file again, parsed only for positions.
#[cfg(feature = "job-types")]
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Located<T> {
    job_types: Vec<BTreeMap<String, T>>,
}

/// Which messages match: they must match every field that is set. Without fields, all messages
/// match.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(feature = "check", derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// A bucket's name.
    pub bucket: Option<String>,
    /// A pattern for the whole key: `*` and `?` match within one folder, `**` matches across
    /// folders, `{a,b}` matches either.
    #[serde(default, deserialize_with = "values::text")]
    #[cfg_attr(feature = "check", schemars(with = "Option<String>"))]
    pub key: Option<KeyGlob>,
    /// S3's event names, as for `--events`: `ObjectCreated:*,ObjectRestore:Completed`.
    #[serde(default, deserialize_with = "values::text")]
    #[cfg_attr(feature = "check", schemars(with = "Option<String>"))]
    pub event: Option<EventFilter>,
}

/// The job type's name in logs, metrics and JOB_TYPE.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "check", derive(JsonSchema))]
#[cfg_attr(feature = "check", schemars(extend("pattern" = "^[A-Za-z0-9._-]{1,63}$")))]
#[serde(try_from = "String")]
pub struct Name(pub String);

/// The name for messages that match no job type: the flags apply to them.
impl Default for Name {
    fn default() -> Self {
        Self(Task::DEFAULT.to_owned())
    }
}

impl TryFrom<String> for Name {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !(1..=63).contains(&name.len()) || !name.chars().all(is_plain) {
            return Err("a name must be 1 to 63 letters, digits, dots, hyphens or underscores");
        }
        if name == Task::DEFAULT {
            return Err("the name default is reserved for messages that match no job type");
        }
        Ok(Self(name))
    }
}

/// Longer than any list of job types: a device has no end.
const LONGEST: u64 = 4 << 20;

/// How long a pipe without a writer may block: signals wait meanwhile.
const READING: Duration = Duration::from_secs(10);

/// On another thread, unless it is a file.
fn read_in_time(path: &str) -> Result<String, String> {
    if Path::new(path).is_file() {
        return read(path);
    }
    let (done, is_done) = mpsc::channel();
    let file = path.to_owned();
    // Fails only after the time.
    let reading = move || drop(done.send(read(&file)));
    let started = thread::Builder::new().spawn(reading);
    started.map_err(|error| format!("a thread could not be started: {error}"))?;
    is_done
        .recv_timeout(READING)
        .unwrap_or_else(|_| Err(format!("it could not be read within {READING:?}")))
}

fn read(path: &str) -> Result<String, String> {
    let read = |file: File| {
        let mut bytes = Vec::new();
        file.take(LONGEST + 1).read_to_end(&mut bytes).map(|_| bytes)
    };
    let bytes = File::open(path).and_then(read).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > LONGEST {
        return Err(format!("it is longer than {LONGEST} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())
}

impl JobTypesFile {
    /// Reads TOML if the name ends in `.toml`, otherwise YAML, which includes JSON. The error has
    /// the line and column.
    pub fn load(path: &str) -> Result<Self, String> {
        let file = Self::parse(path, || read_in_time(path))?;
        Ok(Self { path: Some(path.to_owned()), ..file })
    }

    /// Like [`Self::load`], with the text from `read`.
    #[cfg(not(feature = "job-types"))]
    pub fn parse(_: &str, _: impl FnOnce() -> Result<String, String>) -> Result<Self, String> {
        Err("this build of leasehold has no job types: build it with the feature job-types".into())
    }

    /// Like [`Self::load`], with the text from `read`.
    #[cfg(feature = "job-types")]
    pub fn parse(
        path: &str,
        read: impl FnOnce() -> Result<String, String>,
    ) -> Result<Self, String> {
        let text = read()?;
        // A byte order mark is invisible, and editors on Windows write it.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        match Path::new(path).extension().and_then(|extension| extension.to_str()) {
            Some("toml") => Self::from_toml(text).map_err(|error| error.to_string()),
            Some(_) | None => Self::from_yaml(text).map_err(|error| error.to_string()),
        }
    }

    #[cfg(feature = "job-types")]
    fn from_yaml(text: &str) -> Result<Self, serde_saphyr::Error> {
        let file: Self = serde_saphyr::from_str(text)?;
        let located: Located<serde_saphyr::Spanned<IgnoredAny>> = serde_saphyr::from_str(text)?;
        let number = |number| usize::try_from(number).unwrap_or_default();
        Ok(file.located(located, |value| At {
            line: number(value.referenced.line()),
            column: number(value.referenced.column()),
        }))
    }

    #[cfg(feature = "job-types")]
    fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        let file: Self = toml::from_str(text)?;
        let located: Located<toml::Spanned<IgnoredAny>> = toml::from_str(text)?;
        Ok(file.located(located, |value| {
            let before = &text[..value.span().start];
            let line = before.rsplit('\n').next().unwrap_or_default();
            At { line: before.matches('\n').count() + 1, column: line.chars().count() + 1 }
        }))
    }

    #[cfg(feature = "job-types")]
    fn located<T>(mut self, located: Located<T>, at: impl Fn(&T) -> At) -> Self {
        for (entry, values) in self.job_types.iter_mut().zip(located.job_types) {
            entry.source =
                SourceMap(values.iter().map(|(name, value)| (name.clone(), at(value))).collect());
        }
        self
    }

    /// JSON Schema, for editors.
    #[cfg(feature = "check")]
    pub fn schema() -> Schema {
        schema_for!(Self)
    }
}
