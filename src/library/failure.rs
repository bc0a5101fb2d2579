//! Why a handler failed, and when its message is retried.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// The error of a handler: any error converts into it with `?`, also one of `anyhow` or `eyre`, and
/// a text.
pub type Error = Box<dyn StdError + Send + Sync>;

/// An error that decides when the message is retried. Every other error is retried with backoff.
///
/// Its class is found wherever it is in the chain of causes, so an error may be wrapped or get a
/// context later. The chain is reported as a whole.
///
/// ```
/// use leasehold::{Error, Failure};
/// use std::time::Duration;
///
/// fn width(image: &[u8]) -> Result<u32, Error> {
///     if image.is_empty() {
///         return Err(Failure::permanent("the image is empty").into());
///     }
///     let text = std::str::from_utf8(image).map_err(Failure::permanent)?;
///     Ok(text.parse()?)
/// }
///
/// fn is_open(status: u16) -> Result<(), Failure> {
///     match status {
///         503 => Err(Failure::retry("the service is closed").after(Duration::from_mins(5))),
///         _ => Ok(()),
///     }
/// }
/// # assert!(width(b"").is_err() && width(b"x").is_err() && is_open(503).is_err());
/// ```
pub struct Failure(Reason);

/// The class of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Retry { after: Option<Duration> },
    Permanent,
}

/// The cause of a failure. It has the class, too: `anyhow` hides the type of the outermost error
/// when it becomes an [`Error`], but not the types of its causes.
struct Reason {
    class: Class,
    error: Error,
}

impl Failure {
    /// This input can never work: the message goes to the dead-letter queue soon.
    pub fn permanent(error: impl Into<Error>) -> Self {
        Self(Reason { class: Class::Permanent, error: error.into() })
    }

    /// A later attempt may succeed; it comes after the usual backoff, or [`after`](Self::after) a
    /// delay.
    pub fn retry(error: impl Into<Error>) -> Self {
        Self(Reason { class: Class::Retry { after: None }, error: error.into() })
    }

    /// The next attempt comes after this delay. A permanent failure stays permanent.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        if let Class::Retry { after } = &mut self.0.class {
            *after = Some(delay);
        }
        self
    }

    /// Whether no retry can succeed.
    pub fn is_permanent(&self) -> bool {
        self.0.class == Class::Permanent
    }

    /// The delay that [`after`](Self::after) has set.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.0.class {
            Class::Retry { after } => after,
            Class::Permanent => None,
        }
    }
}

/// The class; the alternate form `{:#}` adds the causes.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.class {
            Class::Permanent => f.write_str("permanent failure")?,
            Class::Retry { after: None } => f.write_str("temporary failure")?,
            Class::Retry { after: Some(delay) } => {
                write!(
                    f,
                    "temporary failure, to retry after {}",
                    humantime::format_duration(delay)
                )?;
            }
        }
        if f.alternate() { write!(f, ": {}", causes(self)) } else { Ok(()) }
    }
}

/// As `anyhow` does it: what a test or `main` prints is for a person.
impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:#}")
    }
}

impl StdError for Failure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.error, f)
    }
}

impl StdError for Reason {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}

type Cause<'a> = &'a (dyn StdError + 'static);

fn chain(error: Cause<'_>) -> impl Iterator<Item = Cause<'_>> {
    crate::ports::causes::chain(error).take(LONGEST_CHAIN)
}

/// A chain may be endless.
const LONGEST_CHAIN: usize = 64;

/// In bytes: a container runtime splits records of more than 16 KiB.
const LONGEST_TEXT: usize = 4096;

/// The class that an error has, if any.
pub(super) fn class(error: Cause<'_>) -> Option<Class> {
    chain(error).find_map(|it| it.downcast_ref::<Reason>()).map(|reason| reason.class)
}

/// The error and its causes on one line, without the names of classes.
pub(super) fn causes(error: Cause<'_>) -> String {
    let mut parts: Vec<String> = Vec::new();
    for error in chain(error) {
        let is_class = error.source().is_some_and(<dyn StdError>::is::<Reason>);
        let text = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        // Some errors repeat their cause.
        if !is_class && !parts.last().is_some_and(|last| last.contains(&text)) {
            parts.push(text);
        }
    }
    let mut text = parts.join(": ");
    text.truncate(text.floor_char_boundary(LONGEST_TEXT));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Wrapped(Error);

    impl fmt::Display for Wrapped {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("while resizing")
        }
    }

    impl StdError for Wrapped {
        fn source(&self) -> Option<Cause<'_>> {
            Some(&*self.0)
        }
    }

    fn no_such_file() -> Error {
        std::io::Error::from(std::io::ErrorKind::NotFound).into()
    }

    #[test]
    fn the_class_is_found_at_every_place_in_the_chain() {
        let delay = Duration::from_mins(5);
        let failure = || Failure::retry(no_such_file()).after(delay);
        let expected = Some(Class::Retry { after: Some(delay) });
        assert_eq!(class(&failure()), expected);
        assert_eq!(class(&Wrapped(failure().into())), expected);
        assert_eq!(class(&Wrapped(Wrapped(failure().into()).into())), expected);
        assert_eq!(class(&Wrapped(no_such_file())), None);
        assert_eq!((failure().retry_after(), failure().is_permanent()), (Some(delay), false));
        assert_eq!(Failure::permanent(no_such_file()).after(delay).retry_after(), None);
        // The outer decision is the later one.
        assert_eq!(class(&Failure::permanent(failure())), Some(Class::Permanent));
    }

    #[test]
    fn the_chain_is_reported_as_a_whole_and_without_repetitions() {
        let failure = Failure::permanent(Wrapped(no_such_file()));
        assert_eq!(causes(&failure), "while resizing: entity not found");
        assert_eq!(failure.to_string(), "permanent failure");
        assert_eq!(format!("{failure:#}"), "permanent failure: while resizing: entity not found");
        assert_eq!(format!("{failure:?}"), format!("{failure:#}"));
        let repeated = Failure::retry(format!("it failed: {}", no_such_file()));
        assert_eq!(
            causes(&Wrapped(repeated.into())),
            "while resizing: it failed: entity not found"
        );
        assert_eq!(causes(&Wrapped("a\nb".into())), "while resizing: a b");
    }

    #[test]
    fn a_long_or_endless_chain_is_cut() {
        let long = Failure::permanent("ü".repeat(LONGEST_TEXT));
        assert_eq!(causes(&long).len(), LONGEST_TEXT);
        let mut deep: Error = "the cause".into();
        for _ in 0..1000 {
            deep = Wrapped(deep).into();
        }
        assert!(causes(&*deep).len() < LONGEST_TEXT);
    }
}
