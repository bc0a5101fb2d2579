//! Parses a shell line into its commands, and finds those that run in a separate process.

use std::iter::Peekable;
use std::mem::take;
use std::str::Chars;

use super::environment::{Environment, UNKNOWN};

/// A simple command of a line.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Simple {
    pub words: Vec<String>,
    /// In a pipeline, in the background or in parentheses: in a separate process even with `exec`.
    pub is_forked: bool,
}

/// The longest line, including the values of its variables.
const LONGEST: usize = 1024 * 1024;

/// The commands of `line` in their order. `arguments` are `$0`, `$1` and so on; assignments of the
/// line change `environment`. `None` if the line cannot be parsed.
pub fn parse(
    line: &str,
    arguments: &[String],
    environment: &mut Environment,
) -> Option<Vec<Simple>> {
    let mut reader = Reader {
        rest: line.chars().peekable(),
        arguments,
        environment,
        commands: Vec::new(),
        current: Simple::default(),
        word: None,
        is_target: false,
        in_pipeline: false,
        depth: 0,
        room: LONGEST,
    };
    reader.read()?;
    Some(reader.commands)
}

struct Reader<'a> {
    rest: Peekable<Chars<'a>>,
    arguments: &'a [String],
    environment: &'a mut Environment,
    commands: Vec<Simple>,
    current: Simple,
    word: Option<String>,
    /// The next word is the target of a redirection.
    is_target: bool,
    in_pipeline: bool,
    /// How many parentheses are open.
    depth: usize,
    /// How many more bytes the values of variables may have.
    room: usize,
}

impl Reader<'_> {
    fn read(&mut self) -> Option<()> {
        while let Some(next) = self.rest.next() {
            match next {
                ' ' | '\t' | '\r' => self.end_word(),
                '#' if self.word.is_none() => {
                    while self.rest.next_if(|next| *next != '\n').is_some() {}
                }
                '\n' | ';' => self.end_command(false, false),
                '&' if self.rest.next_if_eq(&'&').is_some() => self.end_command(false, false),
                '&' if self.rest.peek() == Some(&'>') => self.end_word(),
                '&' => self.end_command(true, false),
                '|' if self.rest.next_if_eq(&'|').is_some() => self.end_command(false, false),
                '|' => {
                    self.rest.next_if_eq(&'&');
                    self.end_command(true, true);
                }
                '(' => {
                    self.end_command(false, false);
                    self.depth += 1;
                }
                ')' => {
                    self.end_command(false, false);
                    self.depth = self.depth.checked_sub(1)?;
                }
                '<' | '>' => self.redirect(next)?,
                '\\' => match self.rest.next() {
                    Some('\n') | None => {}
                    Some(escaped) => self.push(escaped),
                },
                '\'' => self.single_quoted()?,
                '"' => self.double_quoted()?,
                '`' => self.computed('`')?,
                '$' => {
                    let value = self.expansion()?;
                    self.room = self.room.checked_sub(value.len())?;
                    self.split(&value);
                }
                other => self.push(other),
            }
        }
        self.end_command(false, false);
        (self.depth == 0).then_some(())
    }

    fn push(&mut self, one: char) {
        self.word.get_or_insert_default().push(one);
    }

    fn single_quoted(&mut self) -> Option<()> {
        let word = self.word.get_or_insert_default();
        loop {
            match self.rest.next()? {
                '\'' => return Some(()),
                other => word.push(other),
            }
        }
    }

    fn double_quoted(&mut self) -> Option<()> {
        self.word.get_or_insert_default();
        loop {
            match self.rest.next()? {
                '"' => return Some(()),
                '\\' => match self.rest.next()? {
                    '\n' => {}
                    escaped @ ('"' | '\\' | '$' | '`') => self.push(escaped),
                    other => {
                        self.push('\\');
                        self.push(other);
                    }
                },
                '`' => self.computed('`')?,
                '$' if self.rest.next_if_eq(&'@').is_some() => self.all_arguments(),
                '$' => {
                    let value = self.expansion()?;
                    self.room = self.room.checked_sub(value.len())?;
                    self.word.get_or_insert_default().push_str(&value);
                }
                other => self.push(other),
            }
        }
    }

    /// `"$@"`: each argument is a word.
    fn all_arguments(&mut self) {
        for (number, argument) in self.arguments.iter().skip(1).enumerate() {
            if number > 0 {
                self.end_word();
            }
            self.word.get_or_insert_default().push_str(argument);
        }
    }

    /// The output of another command, whose text ends at `end`.
    fn computed(&mut self, end: char) -> Option<()> {
        self.push(UNKNOWN);
        while self.rest.next()? != end {}
        Some(())
    }

    /// The value of the text after a `$`.
    fn expansion(&mut self) -> Option<String> {
        let unknown = || Some(UNKNOWN.to_string());
        match self.rest.peek() {
            Some('(') => {
                let mut depth = 0_usize;
                loop {
                    match self.rest.next()? {
                        '(' => depth += 1,
                        ')' if depth == 1 => return unknown(),
                        ')' => depth -= 1,
                        _ => {}
                    }
                }
            }
            Some('{') => {
                self.rest.next();
                let mut name = String::new();
                loop {
                    match self.rest.next()? {
                        '}' => break,
                        other => name.push(other),
                    }
                }
                let is_name = name.chars().all(|one| one.is_ascii_alphanumeric() || one == '_');
                if is_name { Some(self.value(&name)) } else { unknown() }
            }
            Some('@' | '*') => {
                self.rest.next();
                Some(
                    self.arguments.iter().skip(1).map(String::as_str).collect::<Vec<_>>().join(" "),
                )
            }
            Some(one) if one.is_ascii_digit() => {
                let number = self.rest.next()?.to_string();
                Some(self.value(&number))
            }
            Some(one) if one.is_ascii_alphabetic() || *one == '_' => {
                let mut name = String::new();
                while let Some(one) =
                    self.rest.next_if(|one| one.is_ascii_alphanumeric() || *one == '_')
                {
                    name.push(one);
                }
                Some(self.value(&name))
            }
            Some('?' | '!' | '#' | '$' | '-') => {
                self.rest.next();
                unknown()
            }
            Some(_) | None => Some("$".to_owned()),
        }
    }

    fn value(&self, name: &str) -> String {
        match name.parse::<usize>() {
            Ok(number) => self.arguments.get(number).cloned().unwrap_or_default(),
            Err(_) => self.environment.get(name).unwrap_or_default(),
        }
    }

    /// Splits a value outside of quotes into words.
    fn split(&mut self, value: &str) {
        for one in value.chars() {
            if one.is_ascii_whitespace() { self.end_word() } else { self.push(one) }
        }
    }

    /// Skips the operator, the word after it and the number before it. A here-document (`<<`)
    /// cannot be parsed.
    fn redirect(&mut self, operator: char) -> Option<()> {
        if self.word.as_ref().is_some_and(|word| word.chars().all(|one| one.is_ascii_digit())) {
            self.word = None;
        }
        self.end_word();
        if operator == '<' && self.rest.peek() == Some(&'<') {
            return None;
        }
        self.rest.next_if(|next| matches!(next, '>' | '|'));
        self.rest.next_if_eq(&'&');
        self.is_target = true;
        Some(())
    }

    fn end_word(&mut self) {
        let Some(word) = self.word.take() else { return };
        if !take(&mut self.is_target) {
            self.current.words.push(word);
        }
    }

    fn end_command(&mut self, is_forked: bool, is_piped: bool) {
        self.end_word();
        self.is_target = false;
        let mut command = take(&mut self.current);
        command.is_forked = is_forked || self.in_pipeline || self.depth > 0;
        self.in_pipeline = is_piped;
        if command.words.is_empty() {
            return;
        }
        self.assign(&command.words);
        self.commands.push(command);
    }

    /// Sets the variables that a command assigns for later commands.
    fn assign(&mut self, words: &[String]) {
        let words = match words[0].as_str() {
            // Runs another file or a computed text.
            "." | "source" | "eval" => {
                self.environment.has_unseen = true;
                return;
            }
            "export" | "declare" | "readonly" => &words[1..],
            _ => words,
        };
        if words.iter().all(|word| assignment(word).is_some() || word.starts_with('-')) {
            for (name, value) in words.iter().filter_map(|word| assignment(word)) {
                self.environment.set(name, value.to_owned());
            }
        }
    }
}

/// `NAME=value`
pub fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let is_name = name.chars().all(|one| one.is_ascii_alphanumeric() || one == '_');
    (is_name && !name.is_empty() && !name.starts_with(|first: char| first.is_ascii_digit()))
        .then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Option<Vec<(String, bool)>> {
        let mut environment = Environment::default();
        environment.set("MAX", "5m".into());
        environment.set("FLAGS", "--wait 1s".into());
        let arguments = ["sh", "a b", "c"].map(str::to_owned);
        let commands = parse(line, &arguments, &mut environment)?;
        Some(commands.into_iter().map(|one| (one.words.join("|"), one.is_forked)).collect())
    }

    #[test]
    fn lines_are_parsed_as_by_a_shell() {
        let whole = |words: &str| Some(vec![(words.to_owned(), false)]);
        for (line, words) in [
            ("exec leasehold run -- python3 x.py", "exec|leasehold|run|--|python3|x.py"),
            ("a 'b c' \"d $MAX\" e\\ f", "a|b c|d 5m|e f"),
            ("a ${MAX} $MAX '$MAX' \\$MAX", "a|5m|5m|$MAX|$MAX"),
            ("a $FLAGS \"$FLAGS\"", "a|--wait|1s|--wait 1s"),
            ("a $UNSET b", "a|b"),
            ("a \"$@\" $2 $0", "a|a b|c|c|sh"),
            ("a $(date +%s) `id` ${X:-y} $?", "a|\u{fffc}|\u{fffc}|\u{fffc}|\u{fffc}"),
            ("a >/dev/null 2>&1 b < c &> d", "a|b"),
            ("a # b; c", "a"),
            ("a \\\n b", "a|b"),
            ("a b#c", "a|b#c"),
        ] {
            assert_eq!(read(line), whole(words), "{line}");
        }
    }

    #[test]
    fn commands_are_separated_and_forked_ones_are_marked() {
        let all = |words: &[(&str, bool)]| {
            Some(words.iter().map(|(words, fork)| ((*words).into(), *fork)).collect())
        };
        for (line, commands) in [
            (
                "a; b && c || d\ne",
                all(&[("a", false), ("b", false), ("c", false), ("d", false), ("e", false)]),
            ),
            ("a | b; c", all(&[("a", true), ("b", true), ("c", false)])),
            ("a & b", all(&[("a", true), ("b", false)])),
            ("(a; b) c", all(&[("a", true), ("b", true), ("c", false)])),
            ("V=1m; a $V", all(&[("V=1m", false), ("a|1m", false)])),
            (
                "export V=1m W=$(x); a $V $W",
                all(&[("export|V=1m|W=\u{fffc}", false), ("a|1m|\u{fffc}", false)]),
            ),
            (". /env; a $V", all(&[(".|/env", false), ("a|\u{fffc}", false)])),
        ] {
            assert_eq!(read(line), commands, "{line}");
        }
        let doubled = "A=aaaaaaaa; ".to_owned() + &"A=$A$A; ".repeat(60);
        assert_eq!(read(&doubled), None);
        for line in ["a 'b", "a \"b", "a $(b", "a << E", "a )", "( a"] {
            assert_eq!(read(line), None, "{line}");
        }
    }
}
