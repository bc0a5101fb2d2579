//! Which arguments are text of a program: scripts of shells and other interpreters.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Whether the next word is text of a program. Such text has braces of its own, and a value in it
/// would be run as a part of the program: a key may be `$(reboot)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    None,
    /// Among the options of a shell or of another interpreter. `value_next`: the next word is the
    /// value of an option.
    Options {
        value_next: bool,
    },
    /// After `-c` or `-e` of an interpreter: its first word that is not an option.
    Next,
    /// All words of awk, jq and sed, except for paths.
    Filter,
}

impl Code {
    pub(super) fn is_text(self, word: &OsStr) -> bool {
        match self {
            Self::None => false,
            Self::Options { .. } => holds_code(word.as_bytes()),
            Self::Next => true,
            Self::Filter => word != "{input}" && word != "{output_dir}",
        }
    }

    /// The state after `word`.
    pub(super) fn after(self, word: &OsStr) -> Self {
        let bytes = word.as_bytes();
        let is_option = bytes.starts_with(b"-") || bytes.starts_with(b"+");
        match self {
            Self::Next if is_option => Self::Next,
            Self::Options { .. } if is_option && begins_code(bytes) => Self::Next,
            Self::Options { .. } if is_option => Self::Options { value_next: takes_value(bytes) },
            Self::Next | Self::Options { value_next: true } => Self::Options { value_next: false },
            Self::Filter => Self::Filter,
            Self::None | Self::Options { value_next: false } => Self::of_program(word),
        }
    }

    fn of_program(word: &OsStr) -> Self {
        let name = Path::new(word).file_name().and_then(OsStr::to_str).unwrap_or_default();
        match name.trim_end_matches(|it: char| it.is_ascii_digit() || it == '.') {
            "sh" | "ash" | "bash" | "dash" | "fish" | "ksh" | "zsh" | "lua" | "node" | "perl"
            | "php" | "pypy" | "python" | "ruby" => Self::Options { value_next: false },
            "awk" | "gawk" | "mawk" | "nawk" | "jq" | "yq" | "sed" => Self::Filter,
            _ => Self::None,
        }
    }
}

/// `-c`, `-ec`, `-ne`, `--eval`: text of a program follows; `-r` is PHP's, `-p` Node's. Where the
/// option means something else, the next word is a file's name, in which a placeholder is of no use.
fn begins_code(option: &[u8]) -> bool {
    match option.strip_prefix(b"--") {
        Some(long) => [&b"eval"[..], b"print", b"command"].contains(&long),
        None => option.last().is_some_and(|last| b"cCeEpr".contains(last)),
    }
}

/// `-eprint`, `--eval=print`.
fn holds_code(option: &[u8]) -> bool {
    let short = ["-c", "-e", "-E"].iter().any(|flag| option.starts_with(flag.as_bytes()));
    short && option.len() > 2
        || ["--eval=", "--print=", "--command="].iter().any(|it| option.starts_with(it.as_bytes()))
}

/// `-o pipefail`, `-W ignore`, `-I lib`.
fn takes_value(option: &[u8]) -> bool {
    option.last().is_some_and(|last| b"oOWXIM".contains(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words that are text of a program.
    fn texts<'a>(words: &[&'a str]) -> Vec<&'a str> {
        let mut code = Code::None;
        let is_text = |word: &&str| {
            let is_text = code.is_text(OsStr::new(word));
            code = code.after(OsStr::new(word));
            is_text
        };
        words.iter().copied().filter(is_text).collect()
    }

    #[test]
    fn the_word_after_the_option_of_an_interpreter_is_text() {
        for words in [
            &["sh", "-c", "TEXT", "sh", "{input}"][..],
            &["/bin/bash", "-euo", "pipefail", "-c", "TEXT"],
            &["bash", "-c", "TEXT", "{key}"],
            &["timeout", "60", "sh", "-ec", "TEXT"],
            &["tini", "--", "sh", "-c", "TEXT"],
            &["python3.12", "-W", "ignore", "-c", "TEXT", "{key}"],
            &["perl", "-pi", "-e", "TEXT", "{input}"],
            &["node", "--eval", "TEXT"],
            &["php", "-r", "TEXT"],
        ] {
            // An option that may hold text counts as such, too: `-ec` could be `-e` with the text `c`.
            let texts: Vec<_> =
                texts(words).into_iter().filter(|word| !word.starts_with('-')).collect();
            assert_eq!(texts, ["TEXT"], "{words:?}");
        }
        assert_eq!(texts(&["bash", "-c", "-x", "TEXT"]), ["-x", "TEXT"]);
        assert_eq!(texts(&["node", "-r", "module", "-e", "TEXT"]), ["module", "TEXT"]);
        assert_eq!(texts(&["node", "--eval=print(1)"]), ["--eval=print(1)"]);
        assert_eq!(texts(&["perl", "-eprint", "{input}"]), ["-eprint"]);
    }

    #[test]
    fn all_words_of_a_filter_but_paths_are_text() {
        let words = ["awk", "-F", ",", "{print}", "{input}", "{output_dir}"];
        assert_eq!(texts(&words), ["-F", ",", "{print}"]);
        assert_eq!(texts(&["jq", "{name}", "{input}"]), ["{name}"]);
        assert_eq!(texts(&["sed", "s/{key}/x/", "{key}"]), ["s/{key}/x/", "{key}"]);
    }

    #[test]
    fn other_words_are_not_text() {
        for words in [
            &["tool", "-c", "{key}"][..],
            &["python3", "load.py", "-c", "{key}"],
            &["python3", "-u", "load.py", "-c", "{key}"],
            &["python3", "-m", "load", "-c", "{key}"],
            &["sh", "load.sh", "-e", "{key}"],
        ] {
            assert!(texts(words).is_empty(), "{words:?}");
        }
    }
}
