//! Patterns for keys.

use std::fmt;
use std::str::{self, FromStr};

use globset::GlobBuilder;
use regex_lite::{Regex, RegexBuilder};

/// A pattern for a whole key: `*` and `?` match within one folder, `**` matches folders, `[a-z]`
/// one character, `{a,b}` either. A backslash escapes the next character.
#[derive(Clone)]
pub struct KeyGlob {
    glob: String,
    regex: Regex,
}

impl KeyGlob {
    pub fn matches(&self, key: &str) -> bool {
        self.regex.is_match(key)
    }
}

/// globset translates the pattern to a regex. It matches bytes, because a path is not always text,
/// so its `?` matches half of an `é`. A key is text, so the regex is compiled for characters
/// instead.
impl FromStr for KeyGlob {
    type Err = String;

    fn from_str(glob: &str) -> Result<Self, String> {
        let parsed = GlobBuilder::new(glob)
            .literal_separator(true)
            .empty_alternates(true)
            .build()
            .map_err(|error| error.to_string())?;
        let regex = parsed.regex().strip_prefix("(?-u)").unwrap_or(parsed.regex());
        let regex = RegexBuilder::new(&for_characters(regex))
            .dot_matches_new_line(true)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { glob: glob.to_owned(), regex })
    }
}

/// Replaces escaped bytes by their characters: globset writes an `é` as `\xc3\xa9`.
fn for_characters(regex: &str) -> String {
    let mut written = Vec::with_capacity(regex.len());
    let mut rest = regex.as_bytes();
    loop {
        rest = match rest {
            [b'\\', b'x', digits @ ..] if let Some(byte) = byte_above_ascii(digits) => {
                written.push(byte);
                &digits[2..]
            }
            // An escaped backslash does not begin an escaped byte.
            [b'\\', escaped, rest @ ..] => {
                written.extend([b'\\', *escaped]);
                rest
            }
            [byte, rest @ ..] => {
                written.push(*byte);
                rest
            }
            [] => break,
        }
    }
    String::from_utf8(written).unwrap_or_else(|_| regex.to_owned())
}

fn byte_above_ascii(digits: &[u8]) -> Option<u8> {
    let byte = u8::from_str_radix(str::from_utf8(digits.get(..2)?).ok()?, 16).ok()?;
    Some(byte).filter(|byte| !byte.is_ascii())
}

impl PartialEq for KeyGlob {
    fn eq(&self, other: &Self) -> bool {
        self.glob == other.glob
    }
}

impl fmt::Debug for KeyGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.glob)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_keys() {
        for (glob, key, matches) in [
            ("**/*.csv", "a.csv", true),
            ("**/*.csv", "in/b/a.csv", true),
            ("*.csv", "in/a.csv", false),
            ("*.csv", ".csv", true),
            ("in/**", "in/a/b", true),
            ("in/**", "in", false),
            ("in/**/x", "in/x", true),
            ("in/*", "in/a/b", false),
            ("in/a b.csv", "in/a b.csv", true),
            ("in/*.csv", "in/a\nb.csv", true),
            ("uploads/**/*.{mp4,mov}", "uploads/a/b.mov", true),
            ("in/*.csv{,.gz}", "in/a.csv", true),
            ("in/*.csv{,.gz}", "in/a.csv.gz", true),
            ("a\\[1\\].csv", "a[1].csv", true),
            ("a\\\\xc3.csv", "a\\xc3.csv", true),
            ("a?c", "a/c", false),
            ("(a|b)+.$", "(a|b)+.$", true),
            ("a.csv", "axcsv", false),
            ("In/*", "in/x", false),
        ] {
            assert_eq!(glob.parse::<KeyGlob>().unwrap().matches(key), matches, "{glob} {key}");
        }
        assert!("in/[a".parse::<KeyGlob>().unwrap_err().contains("in/[a"));
    }

    #[test]
    fn every_character_can_be_matched() {
        for character in (' '..='~').filter(|it| !"/\\".contains(*it)) {
            let key = format!("a{character}");
            for glob in [format!("a\\{character}"), format!("a[{character}]")] {
                // These have a meaning at this place in a class.
                if ["a[!]", "a[]]", "a[^]"].contains(&&*glob) {
                    continue;
                }
                let matches = glob.parse::<KeyGlob>().map(|it| it.matches(&key));
                assert_eq!(matches, Ok(true), "{glob}");
            }
        }
    }

    #[test]
    fn a_question_mark_matches_one_character_of_any_length() {
        for (glob, key, matches) in [
            ("in/?.csv", "in/é.csv", true),
            ("in/?.csv", "in/éé.csv", false),
            ("in/??.csv", "in/日本.csv", true),
            ("in/?", "in/😀", true),
            ("in/[äöü].csv", "in/ö.csv", true),
            ("in/[äöü].csv", "in/é.csv", false),
            ("in/[!a].csv", "in/é.csv", true),
            ("in/[а-я].csv", "in/ж.csv", true),
            ("in/{Ä,ä}*.csv", "in/ä1.csv", true),
            ("**/日本/*", "a/日本/x", true),
            ("ä\\xc3", "äxc3", true),
        ] {
            assert_eq!(glob.parse::<KeyGlob>().unwrap().matches(key), matches, "{glob} {key}");
        }
    }
}
