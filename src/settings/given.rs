//! Settings from code: names of flags and texts, without a command line and without variables.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::path::PathBuf;

pub use leasehold_derive::Settings;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error, StrDeserializer};

use super::error::SettingError;
use crate::adapters::url::without_userinfo;
use crate::telemetry::plain::Plain;

/// Names of flags without dashes, and their values.
pub type Values = Vec<(&'static str, OsString)>;

/// A struct whose fields are settings. It is derived from the attributes of the command line.
pub trait Settings: Sized {
    /// Takes the fields from `given`.
    fn read(given: &mut Given<'_>) -> Result<Self, Refused>;
}

/// A setting that was refused. The text names its flag, too.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refused {
    /// The name of the flag without dashes, if the complaint is about one.
    pub setting: Option<String>,
    pub text: String,
}

impl Refused {
    fn new(flag: &str, text: String) -> Self {
        Self { setting: Some(flag.to_owned()), text }
    }
}

impl From<SettingError> for Refused {
    fn from(error: SettingError) -> Self {
        Self { setting: error.setting(), text: error.to_string() }
    }
}

/// The given values, and the names of all settings that were read.
pub struct Given<'a> {
    values: &'a Values,
    known: Vec<&'static str>,
    /// Switches with the value `false`.
    off: Vec<&'static str>,
}

/// Reads settings, and refuses values of other names.
pub fn read<S: Settings>(values: &Values) -> Result<S, Refused> {
    let mut given = Given { values, known: Vec::new(), off: Vec::new() };
    let settings = S::read(&mut given)?;
    given.refuse_unknown()?;
    Ok(settings)
}

/// The names of all settings.
pub fn names<S: Settings>() -> Vec<&'static str> {
    let mut given = Given { values: &Vec::new(), known: Vec::new(), off: Vec::new() };
    // Without a value, nothing is refused before its name is known.
    let _ = S::read(&mut given);
    given.known
}

/// The name of a setter.
pub fn in_code(flag: &str) -> String {
    flag.replace('-', "_")
}

impl Given<'_> {
    /// The value of `flag`; the last one counts.
    pub fn last<T, E: Display>(
        &mut self,
        flag: &'static str,
        default: Option<&str>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Refused> {
        self.all(flag, default, parse).map(|mut values| values.pop())
    }

    /// The values of a `flag` that may be set several times.
    pub fn all<T, E: Display>(
        &mut self,
        flag: &'static str,
        default: Option<&str>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Vec<T>, Refused> {
        let parse = |value: &OsStr| {
            let text = value
                .to_str()
                .ok_or_else(|| Refused::new(flag, format!("--{flag}: the value is not UTF-8")))?;
            parse(text).map_err(|why| refused(flag, text, &why.to_string()))
        };
        let given =
            self.values_of(flag).map(|value| parse(value)).collect::<Result<Vec<_>, _>>()?;
        match default {
            Some(default) if given.is_empty() => Ok(vec![parse(default.as_ref())?]),
            Some(_) | None => Ok(given),
        }
    }

    /// A switch; with `false`, it counts as not given.
    pub fn switch(
        &mut self,
        flag: &'static str,
        default: Option<&str>,
    ) -> Result<Option<bool>, Refused> {
        let parse = |text: &str| text.parse().map_err(|_| "it must be true or false");
        let is_on = self.last(flag, default, parse)?;
        if is_on == Some(false) {
            self.off.push(flag);
        }
        Ok(is_on)
    }

    /// A path, which need not be UTF-8.
    pub fn path(&mut self, flag: &'static str) -> Result<Option<PathBuf>, Refused> {
        let path = self.values_of(flag).next_back().map(PathBuf::from);
        if path.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err(Refused::new(flag, format!("--{flag}: the path is empty")));
        }
        Ok(path)
    }

    /// Refuses `flag` without `other`.
    pub fn requires(&self, flag: &str, other: &str) -> Result<(), Refused> {
        if self.has(flag) && !self.has(other) {
            let why = format!("--{flag} has no effect without --{other}: set both, or neither");
            return Err(Refused::new(flag, why));
        }
        Ok(())
    }

    /// Refuses `flag` together with `other`.
    pub fn conflicts(&self, flag: &str, other: &str) -> Result<(), Refused> {
        if self.has(flag) && self.has(other) {
            let why = format!("--{flag} cannot be used with --{other}: remove one of them");
            return Err(Refused::new(flag, why));
        }
        Ok(())
    }

    fn has(&self, flag: &str) -> bool {
        !self.off.contains(&flag) && self.values.iter().any(|(name, _)| *name == flag)
    }

    fn values_of(&mut self, flag: &'static str) -> impl DoubleEndedIterator<Item = &OsString> {
        self.known.push(flag);
        self.values.iter().filter(move |(name, _)| *name == flag).map(|(_, value)| value)
    }

    fn refuse_unknown(&self) -> Result<(), Refused> {
        let is_unknown = |name: &&str| !self.known.contains(name);
        let Some(unknown) = self.values.iter().map(|(name, _)| *name).find(is_unknown) else {
            return Ok(());
        };
        let distance = |known: &&&str| strsim::damerau_levenshtein(known, unknown);
        let nearest = self.known.iter().min_by_key(distance).expect("there are settings");
        let unknown_in_code = in_code(unknown);
        let why = format!("{unknown_in_code} is not a setting here; did you mean --{nearest}?");
        Err(Refused::new(unknown, why))
    }
}

/// The complaint about a value, without passwords and control characters.
fn refused(flag: &str, text: &str, why: &str) -> Refused {
    let shown = without_userinfo(text);
    // The reason may quote a part of the value.
    let why = if shown == text { format!(": {}", Plain(why)) } else { String::new() };
    Refused::new(flag, format!("invalid value '{}' for --{flag}{why}", Plain(&shown)))
}

/// A value of an enum, by its name.
pub fn choice<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, Error> {
    let text: StrDeserializer<'_, Error> = text.into_deserializer();
    T::deserialize(text)
}
