//! The arguments of a command, with placeholders for values of the job: `--in={input}`.
//!
//! Most braces in commands are not placeholders, and stay:
//!
//! | argument | becomes |
//! |---|---|
//! | `--in={input}` | `--in=/tmp/leasehold-KAl1pM/input/orders.csv` |
//! | `{{input}}` | `{input}` |
//! | `{}`, `{a,b}`, `{print $1}`, `{"a": 1}` | the same: not the form of a placeholder |
//! | `${HOME}`, `%{http_code}`, `@{upstream}` | the same: a character before the brace says so |
//! | `sh -c 'echo {key}'`, `awk '{print}'` | the same: text of a program, see `arguments::code` |

mod code;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use self::code::Code;
use super::notification::Object;
use super::s3_location::name_and_stem;

/// One argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    pieces: Vec<Piece>,
    /// A word `--` comes before it, so that it is not an option, whatever it begins with.
    is_operand: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(OsString),
    Value(Placeholder),
}

/// A value of the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placeholder {
    Input,
    Uri,
    Bucket,
    Key,
    Name,
    Stem,
    VersionId,
    OutputDir,
    MessageId,
    ReceiveCount,
    JobType,
    /// A message attribute of this name.
    Attribute(String),
}

use Placeholder::{
    Attribute, Bucket, Input, JobType, Key, MessageId, Name, OutputDir, ReceiveCount, Stem, Uri,
    VersionId,
};

/// All but the attributes.
const NAMES: [(&str, Placeholder); 11] = [
    ("input", Input),
    ("uri", Uri),
    ("bucket", Bucket),
    ("key", Key),
    ("name", Name),
    ("stem", Stem),
    ("version_id", VersionId),
    ("output_dir", OutputDir),
    ("message_id", MessageId),
    ("receive_count", ReceiveCount),
    ("job_type", JobType),
];

const ATTRIBUTES: &str = "attributes.";

impl Placeholder {
    fn named(name: &str) -> Option<Self> {
        match name.strip_prefix(ATTRIBUTES) {
            Some(attribute) => Some(Attribute(attribute.to_owned())),
            None => NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, it)| it),
        }
    }
}

impl fmt::Display for Placeholder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Attribute(name) = self {
            return write!(f, "{{{ATTRIBUTES}{name}}}");
        }
        let name = NAMES.iter().find(|(_, known)| known == self).map_or("", |(name, _)| name);
        write!(f, "{{{name}}}")
    }
}

/// A word that has the form of a placeholder, but an unknown name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown placeholder {{{name}}}{}: the placeholders are {}, {{{ATTRIBUTES}NAME}}; for the text {{{name}}} write {{{{{name}}}}}",
    suggestion(name),
    NAMES.map(|(known, _)| format!("{{{known}}}")).join(", ")
)]
pub struct UnknownPlaceholder {
    pub name: String,
}

fn suggestion(name: &str) -> String {
    let distance = |known: &str| strsim::damerau_levenshtein(known, name);
    let nearest = NAMES.iter().map(|(known, _)| *known).min_by_key(|known| distance(known));
    let is_near = |known: &&str| distance(known) <= name.len() / 2;
    nearest.filter(is_near).map(|it| format!(" (did you mean {{{it}}}?)")).unwrap_or_default()
}

/// The values for the placeholders.
#[derive(Debug, Clone, Copy)]
pub struct Values<'a> {
    /// `None` if the object is not fetched.
    pub input: Option<&'a Path>,
    pub output_dir: &'a Path,
    /// `None` if the body itself is the work.
    pub object: Option<&'a Object>,
    pub message_id: &'a str,
    pub receive_count: u32,
    pub job_type: &'a str,
    pub attributes: &'a BTreeMap<String, String>,
}

impl Values<'_> {
    /// Unknown values are empty.
    fn of(&self, placeholder: &Placeholder) -> OsString {
        let key = self.object.map_or("", |object| &object.key);
        let text = match placeholder {
            Input => return self.input.map(Into::into).unwrap_or_default(),
            OutputDir => return self.output_dir.into(),
            Uri => self.object.map(|it| format!("s3://{}/{}", it.bucket, it.key)),
            Bucket => self.object.map(|object| object.bucket.clone()),
            Key => Some(key.to_owned()),
            Name => Some(name_and_stem(key).0.to_owned()),
            Stem => Some(name_and_stem(key).1.to_owned()),
            VersionId => self.object.and_then(|object| object.version_id.clone()),
            MessageId => Some(self.message_id.to_owned()),
            ReceiveCount => Some(self.receive_count.to_string()),
            JobType => Some(self.job_type.to_owned()),
            Attribute(name) => self.attributes.get(name).cloned(),
        };
        text.unwrap_or_default().into()
    }
}

/// Why an argument cannot be passed to the command. It never can with this message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadArgument {
    #[error("the value of {0} contains a NUL character, which no argument of a command can hold")]
    Nul(Placeholder),
    #[error(
        "the value of {0} begins with -, so the command would take it for an option: write -- as a word before it"
    )]
    Option(Placeholder),
    #[error("with the value of {0}, an argument of the command is longer than 128 KiB")]
    TooLong(Placeholder),
}

/// The longest argument, with the NUL at its end (execve(2), `MAX_ARG_STRLEN`).
const LONGEST: usize = 128 << 10;

impl Argument {
    /// The arguments of `program`.
    pub fn parse_all(program: &OsStr, words: &[OsString]) -> Result<Vec<Self>, UnknownPlaceholder> {
        let mut code = Code::None.after(program);
        let mut is_operand = false;
        let mut arguments = Vec::new();
        for word in words {
            let pieces =
                if code.is_text(word) { vec![Piece::Text(word.clone())] } else { pieces(word)? };
            arguments.push(Self { pieces, is_operand });
            is_operand |= word == "--";
            code = code.after(word);
        }
        Ok(arguments)
    }

    pub fn contains(&self, placeholder: &Placeholder) -> bool {
        self.values().any(|value| value == placeholder)
    }

    pub fn has_placeholders(&self) -> bool {
        self.values().next().is_some()
    }

    fn values(&self) -> impl Iterator<Item = &Placeholder> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Value(value) => Some(value),
            Piece::Text(_) => None,
        })
    }

    /// The argument for a job.
    pub fn fill(&self, values: &Values<'_>) -> Result<OsString, BadArgument> {
        let mut filled = OsString::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => filled.push(text),
                Piece::Value(placeholder) => {
                    let value = values.of(placeholder);
                    if value.as_bytes().contains(&0) {
                        return Err(BadArgument::Nul(placeholder.clone()));
                    }
                    filled.push(value);
                    if filled.len() >= LONGEST {
                        return Err(BadArgument::TooLong(placeholder.clone()));
                    }
                }
            }
        }
        match self.pieces.first() {
            Some(Piece::Value(value))
                if filled.as_bytes().starts_with(b"-") && !self.is_operand =>
            {
                Err(BadArgument::Option(value.clone()))
            }
            Some(Piece::Value(_) | Piece::Text(_)) | None => Ok(filled),
        }
    }
}

/// Splits a word at its placeholders.
fn pieces(word: &OsStr) -> Result<Vec<Piece>, UnknownPlaceholder> {
    let mut pieces = Vec::new();
    let mut text = Vec::new();
    let mut rest = word.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let is_marked = text.last().is_some_and(|last| MARKS.contains(last));
        if byte == b'{' && is_marked {
            let braces = rest.iter().take_while(|byte| **byte == b'{').count();
            text.extend(&rest[..braces]);
            rest = &rest[braces..];
        } else if let Some((name, after)) = escaped(rest) {
            text.extend([b"{", name.as_bytes(), b"}"].concat());
            rest = after;
        } else if let Some((name, after)) = braced(rest) {
            let unknown = || UnknownPlaceholder { name: name.to_owned() };
            let value = Placeholder::named(name).ok_or_else(unknown)?;
            if !text.is_empty() {
                pieces.push(Piece::Text(OsString::from_vec(std::mem::take(&mut text))));
            }
            pieces.push(Piece::Value(value));
            rest = after;
        } else {
            text.push(byte);
            rest = after;
        }
    }
    if !text.is_empty() {
        pieces.push(Piece::Text(OsString::from_vec(text)));
    }
    Ok(pieces)
}

/// A brace after one of these belongs to a shell, curl, rpm, Ruby or git: `${HOME}`,
/// `%{http_code}`, `#{x}`, `@{upstream}`, `HEAD^{commit}`.
const MARKS: &[u8] = b"$%#@^";

/// The name in `{name}`, at the beginning of `text`, and the rest of the text: a name is lower-case
/// letters and underscores, and may have a part after a dot.
fn braced(text: &[u8]) -> Option<(&str, &[u8])> {
    let text = text.strip_prefix(b"{")?;
    let end = text.iter().position(|byte| *byte == b'}')?;
    let name = std::str::from_utf8(&text[..end]).ok()?;
    let (family, part) = name.split_once('.').map_or((name, None), |(it, part)| (it, Some(part)));
    let is_name = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    let is_form = !family.is_empty()
        && family.bytes().all(is_name)
        && part.is_none_or(|part| !part.is_empty() && part.bytes().all(is_part));
    is_form.then_some((name, &text[end + 1..]))
}

/// The same for `{{name}}`.
fn escaped(text: &[u8]) -> Option<(&str, &[u8])> {
    let (name, after) = braced(text.strip_prefix(b"{")?)?;
    Some((name, after.strip_prefix(b"}")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Vec<Argument>, UnknownPlaceholder> {
        let words: Vec<OsString> = words.iter().map(Into::into).collect();
        Argument::parse_all(&words[0], &words[1..])
    }

    fn object(key: &str) -> Object {
        Object { is_from_aws: true, ..Object::named("incoming", key) }
    }

    fn filled(words: &[&str], object: Option<&Object>) -> Result<Vec<String>, BadArgument> {
        let attributes = [("tenant.id".to_owned(), "42".to_owned())].into();
        let values = Values {
            input: Some(Path::new("/w/input/a.csv")),
            output_dir: Path::new("/w/output"),
            object,
            message_id: "m-1",
            receive_count: 2,
            job_type: "orders",
            attributes: &attributes,
        };
        let fill = |argument: Argument| Ok(argument.fill(&values)?.into_string().unwrap());
        parsed(words).unwrap().into_iter().map(fill).collect()
    }

    #[test]
    fn each_placeholder_becomes_its_value_inside_of_a_word() {
        let object = object("in/ü b.tar.gz");
        for (word, becomes) in [
            ("--in={input}", "--in=/w/input/a.csv"),
            ("{uri}", "s3://incoming/in/ü b.tar.gz"),
            ("{bucket}:{key}", "incoming:in/ü b.tar.gz"),
            ("{name}", "ü b.tar.gz"),
            ("{output_dir}/{stem}.txt", "/w/output/ü b.tar.txt"),
            ("[{version_id}]", "[]"),
            ("{message_id}-{receive_count}-{job_type}", "m-1-2-orders"),
            ("{attributes.tenant.id}", "42"),
            ("[{attributes.other}]", "[]"),
            ("{{input}}", "{input}"),
            ("{{{input}}}", "{{input}}"),
            ("{{input}", "{/w/input/a.csv"),
            ("{\"key\":{receive_count}}", "{\"key\":2}"),
        ] {
            assert_eq!(
                filled(&["tool", word], Some(&object)),
                Ok(vec![becomes.to_owned()]),
                "{word}"
            );
        }
        let program = ["sh", "-c", "wc < \"$1\" {key}", "sh", "{input}"];
        let words = ["-c", "wc < \"$1\" {key}", "sh", "/w/input/a.csv"];
        assert_eq!(filled(&program, Some(&object)).unwrap(), words, "text of a program stays");
        assert_eq!(filled(&["tool", "[{uri}{bucket}{key}{stem}]"], None).unwrap(), ["[]"]);
    }

    #[test]
    fn a_value_is_not_searched_for_placeholders() {
        assert_eq!(filled(&["tool", "{key}"], Some(&object("{input}"))).unwrap(), ["{input}"]);
    }

    #[test]
    fn other_braces_stay() {
        for word in [
            "{}",
            "{a,b}",
            "{print $1}",
            "{ print }",
            "{\"a\": .b}",
            "{3}",
            "a{2,}",
            "{Input}",
            "{input",
            "input}",
            "${input}",
            "${{input}}",
            "%{http_code}",
            "#{name}",
            "@{upstream}",
            "HEAD^{commit}",
            "{{.Name}}",
            "{{ name }}",
            "{.}",
            "{}}",
            "{{",
            "",
        ] {
            assert_eq!(filled(&["tool", word], None).unwrap(), [word]);
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_nearest_one() {
        let error = |word| parsed(&["tool", word]).unwrap_err().to_string();
        assert_eq!(
            error("--to={ouput_dir}/x"),
            "unknown placeholder {ouput_dir} (did you mean {output_dir}?): the placeholders are {input}, {uri}, {bucket}, \
             {key}, {name}, {stem}, {version_id}, {output_dir}, {message_id}, {receive_count}, {job_type}, {attributes.NAME}; \
             for the text {ouput_dir} write {{ouput_dir}}"
        );
        assert!(error("{print}").starts_with("unknown placeholder {print}: the placeholders"));
        for word in ["{attributes}", "{tags.a}", "{input.x}"] {
            assert!(error(word).starts_with(&format!("unknown placeholder {word}")), "{word}");
        }
    }

    #[test]
    fn a_value_never_becomes_an_option() {
        let hostile = object("-rf");
        for word in ["{key}", "{name}", "{key}={input}", "{version_id}{key}", "{version_id}-x"] {
            let error = filled(&["rm", word], Some(&hostile)).unwrap_err();
            assert!(matches!(error, BadArgument::Option(_)), "{word}: {error}");
        }
        for words in [&["rm", "--", "{key}"][..], &["rm", "./{key}"], &["rm", "--file={key}"]] {
            assert!(filled(words, Some(&hostile)).unwrap().last().unwrap().ends_with("-rf"));
        }
    }

    #[test]
    fn a_value_that_no_argument_can_hold_is_an_error() {
        let error =
            |key: &str| filled(&["tool", "{bucket}/{key}"], Some(&object(key))).unwrap_err();
        assert_eq!(error("a\0b"), BadArgument::Nul(Key));
        assert_eq!(error(&"k".repeat(LONGEST)), BadArgument::TooLong(Key));
        let longest = "k".repeat(LONGEST - 1 - "incoming/".len());
        assert_eq!(
            filled(&["tool", "{bucket}/{key}"], Some(&object(&longest))).unwrap()[0].len(),
            LONGEST - 1
        );
    }

    #[test]
    fn a_word_that_is_not_utf_8_keeps_its_bytes() {
        let word = OsString::from_vec(b"\xff{receive_count}\xfe".to_vec());
        let argument = &Argument::parse_all(OsStr::new("tool"), &[word]).unwrap()[0];
        assert_eq!(argument.pieces.len(), 3);
        assert!(argument.contains(&ReceiveCount) && !argument.contains(&Input));
    }
}
