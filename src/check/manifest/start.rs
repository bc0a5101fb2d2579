//! How a container starts leasehold: directly, through other programs, or not at all.

use serde_json::Value;

use super::environment::{Environment, is_known, quoted};
use super::shell::{self, assignment};
use crate::check::{Finding, Location, Rule, Severity};

/// The program that a container's command and arguments start.
#[derive(Debug, PartialEq)]
pub enum Start {
    /// leasehold, with these words after `run`.
    Leasehold(Vec<String>),
    /// The image's entrypoint, which is not in the file.
    Image,
    /// Another program, which gets no message.
    Other(String),
    /// Unknown, since it depends on this text, which is not in the file.
    Unseen(String),
}

/// Programs that replace themselves by the next one, or pass signals on to it.
const TRANSPARENT: [&str; 16] = [
    "tini",
    "tini-static",
    "dumb-init",
    "catatonit",
    "nice",
    "ionice",
    "chrt",
    "taskset",
    "numactl",
    "prlimit",
    "setpriv",
    "gosu",
    "su-exec",
    "s6-setuidgid",
    "stdbuf",
    "nohup",
];

const SHELLS: [&str; 6] = ["sh", "bash", "dash", "ash", "ksh", "zsh"];

/// Shell keywords that can precede a command.
const KEYWORDS: [&str; 11] =
    ["if", "then", "elif", "else", "while", "until", "do", "{", "!", "time", "command"];

/// Finds out what a container starts.
pub struct Starter<'a> {
    pub place: Location,
    pub environment: &'a mut Environment,
    pub findings: Vec<Finding>,
}

impl Starter<'_> {
    pub fn start(&mut self, container: &Value) -> Start {
        let command = self.words(container, "command");
        let args = self.words(container, "args");
        if !command.is_empty() {
            return self.program(&[command, args].concat());
        }
        let unseen = |this: &mut Self, what: &str| {
            let change = "check that it is [leasehold, run, --], or set command";
            this.findings.push(Finding::new(Rule::StartUnseen, &this.place, what, change));
        };
        match args.first().map(String::as_str) {
            // For an image whose entrypoint is leasehold, such as that of deploy/Dockerfile.
            Some("run") => Start::Leasehold(args[1..].to_vec()),
            Some(flag) if flag.starts_with("--") => {
                unseen(
                    self,
                    "the image's entrypoint is not in the file; it gets these words as flags",
                );
                Start::Leasehold(args)
            }
            Some(_) if args.iter().any(|word| named(word) == "leasehold") => self.program(&args),
            Some(_) => {
                unseen(
                    self,
                    "the image's entrypoint is not in the file; it gets these words as arguments",
                );
                Start::Image
            }
            None => {
                unseen(self, "the image's entrypoint is not in the file");
                Start::Image
            }
        }
    }

    fn words(&mut self, container: &Value, field: &str) -> Vec<String> {
        let mut words = Vec::new();
        for word in container[field].as_array().into_iter().flatten() {
            if let Some(text) = word.as_str() {
                words.push(self.environment.expand(text));
            } else {
                let what = format!("{word} is not a string, so Kubernetes rejects the object");
                self.findings.push(Finding::new(Rule::NotAString, &self.place, what, quoted(word)));
                words.push(word.to_string());
            }
        }
        words
    }

    fn program(&mut self, words: &[String]) -> Start {
        let Some((first, rest)) = words.split_first() else {
            return Start::Unseen("nothing".to_owned());
        };
        if !is_known(first) {
            return Start::Unseen("a program whose name is not in the file".to_owned());
        }
        let name = named(first);
        if name == "leasehold" {
            return match rest.first() {
                Some(run) if run == "run" => Start::Leasehold(rest[1..].to_vec()),
                Some(other) if !is_known(other) => {
                    Start::Unseen("leasehold with an unknown subcommand".to_owned())
                }
                Some(other) => Start::Other(format!("leasehold {other}, without run")),
                None => Start::Other("leasehold without run".to_owned()),
            };
        }
        if SHELLS.contains(&name) {
            return self.shell(first, rest);
        }
        if name == "busybox" {
            return self.program(rest);
        }
        if name == "env" {
            let program =
                rest.iter().position(|word| !word.starts_with('-') && assignment(word).is_none());
            let (before, program) = rest.split_at(program.unwrap_or(rest.len()));
            for (name, value) in before.iter().filter_map(|word| assignment(word)) {
                self.environment.set(name, value.to_owned());
            }
            return self.program(program);
        }
        let leasehold =
            rest.windows(2).position(|two| named(&two[0]) == "leasehold" && two[1] == "run");
        if TRANSPARENT.contains(&name) {
            let is_program = |word: &String| {
                let name = named(word);
                [&SHELLS[..], &TRANSPARENT, &["leasehold", "env", "busybox"]]
                    .concat()
                    .contains(&name)
            };
            let behind_dashes = rest.iter().position(|word| word == "--").map(|dashes| dashes + 1);
            let program = rest.iter().position(is_program).or(behind_dashes);
            let program = program.or_else(|| rest.iter().position(|word| !word.starts_with('-')));
            return self.program(&rest[program.unwrap_or(rest.len())..]);
        }
        if let Some(at) = leasehold {
            let what = format!("check cannot see whether {first} passes signals on to leasehold");
            let change =
                "it must start leasehold with exec; otherwise a stop does not release the message";
            self.findings.push(Finding::new(Rule::SignalsUnseen, &self.place, what, change));
            return Start::Leasehold(rest[at + 2..].to_vec());
        }
        match rest {
            // A program that uses leasehold as a library has its flags, but no command.
            [run, flags @ ..]
                if run == "run" && flags.first().is_none_or(|flag| flag.starts_with("--")) =>
            {
                let what = format!("check cannot see whether {first} runs leasehold");
                let change = "start the command with leasehold: command: [leasehold, run, --, …]";
                self.findings.push(Finding::new(Rule::StartUnseen, &self.place, what, change));
                Start::Leasehold(flags.to_vec())
            }
            _ if name.contains("entrypoint")
                || matches!(name.rsplit_once('.'), Some((_, "sh" | "bash"))) =>
            {
                Start::Unseen(format!("the script {first}"))
            }
            _ => Start::Other(first.clone()),
        }
    }

    /// `sh -c LINE [$0 [$1 …]]`, or a script.
    fn shell(&mut self, shell: &str, words: &[String]) -> Start {
        let mut is_line = false;
        let mut words = words.iter();
        let line = loop {
            match words.next() {
                // These options take a value.
                Some(option)
                    if matches!(
                        option.as_str(),
                        "-o" | "+o" | "-O" | "+O" | "--rcfile" | "--init-file"
                    ) =>
                {
                    words.next();
                }
                Some(option) if option.starts_with("--") && option.len() > 2 => {}
                Some(option) if option.starts_with(['-', '+']) => {
                    is_line |= option.contains('c');
                    if option.ends_with('o') {
                        words.next();
                    }
                }
                other => break other,
            }
        };
        let Some(line) = line else { return Start::Other(format!("{shell} without a command")) };
        if !is_line {
            return Start::Unseen(format!("the script {line}"));
        }
        let arguments: Vec<String> = words.cloned().collect();
        let Some(commands) = shell::parse(line, &arguments, self.environment) else {
            return Start::Unseen(format!("the line that {shell} gets"));
        };
        let handles_signals = commands.iter().any(|command| command.words[0] == "trap");
        let mut starts = None;
        for (number, command) in commands.iter().enumerate() {
            let skipped =
                |word: &&String| KEYWORDS.contains(&word.as_str()) || assignment(word).is_some();
            let mut words = &command.words[command.words.iter().take_while(skipped).count()..];
            let mut is_exec = false;
            if words.first().is_some_and(|word| word == "exec") {
                is_exec = !command.is_forked;
                words = &words[1..];
            }
            let findings = std::mem::take(&mut self.findings);
            let start =
                if words.is_empty() { Start::Unseen(String::new()) } else { self.program(words) };
            let within = std::mem::replace(&mut self.findings, findings);
            if let Start::Leasehold(_) = start {
                for (name, value) in command.words.iter().map_while(|word| assignment(word)) {
                    self.environment.set(name, value.to_owned());
                }
                self.findings.extend(within);
                if !is_exec {
                    let is_alone = commands.len() == 1 && !command.is_forked;
                    self.findings.push(self.without_exec(shell, handles_signals, is_alone));
                }
                return start;
            }
            if is_exec && !words.is_empty() || number + 1 == commands.len() {
                // The program that the line starts instead.
                starts.get_or_insert(start);
            }
        }
        match starts {
            Some(Start::Other(program)) if is_known(line) && !line.contains("leasehold") => {
                Start::Other(program)
            }
            Some(Start::Other(_) | Start::Unseen(_) | Start::Image | Start::Leasehold(_))
            | None => Start::Unseen(format!("the line that {shell} gets")),
        }
    }

    fn without_exec(&self, shell: &str, handles_signals: bool, is_alone: bool) -> Finding {
        let change = "write exec before leasehold, and nothing after the command";
        if handles_signals {
            let what = format!(
                "check cannot see whether the traps of {shell} pass SIGTERM on to leasehold"
            );
            Finding::new(Rule::SignalsUnseen, &self.place, what, change)
        } else if is_alone {
            let what = format!(
                "without exec, {shell} may keep running as the parent of leasehold, and SIGTERM may not reach leasehold"
            );
            Finding::new(Rule::SignalsLost, &self.place, what, change)
                .with_severity(Severity::Warning)
        } else {
            let what = format!(
                "{shell} keeps running as the parent of leasehold and does not pass SIGTERM on: a stop ends with SIGKILL, and the message is visible again only when its visibility timeout ends"
            );
            Finding::new(Rule::SignalsLost, &self.place, what, change)
        }
    }
}

/// The program's name in a word that starts it.
pub fn named(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}
