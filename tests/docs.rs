//! The documentation is correct: links resolve, examples parse, commands are accepted, and names
//! exist.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use clap::Parser;
use clap::error::ErrorKind;
use leasehold::ports::job_facts::JobFacts;
use leasehold::settings::command_line::command;
use leasehold::settings::embedding::Embedding;
use leasehold::settings::{Cli, JobTypesFile};
use serde_json::Value;
use walkdir::WalkDir;

/// Flags of other programs that a page names by themselves.
const FLAGS_OF_OTHERS: [&str; 2] = ["--force", "--set"];

/// Kubernetes sets variables like these for a Service.
const VARIABLES_OF_OTHERS: [&str; 1] = ["LEASEHOLD_SERVICE_HOST"];

/// A page of the documentation.
pub struct Page {
    /// From the root of the repository.
    path: PathBuf,
    /// The text without the fenced blocks.
    prose: String,
    pub blocks: Vec<Block>,
}

/// A fenced block.
pub struct Block {
    /// The word after the opening fence.
    pub language: String,
    pub text: String,
}

impl Page {
    pub fn read(path: &Path) -> Self {
        let text = fs::read_to_string(root().join(path))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (mut prose, mut blocks, mut open) = (String::new(), Vec::new(), None::<Block>);
        for line in text.lines() {
            match (line.trim_start().strip_prefix("```"), open.as_mut()) {
                (Some(language), None) => {
                    open =
                        Some(Block { language: language.trim().to_owned(), text: String::new() });
                    // A fence ends a paragraph.
                    prose.push('\n');
                }
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (None, Some(block)) => block.text.extend([line, "\n"]),
                (None, None) => prose.extend([line, "\n"]),
            }
        }
        assert!(open.is_none(), "{}: a fence is not closed", path.display());
        Self { path: path.to_owned(), prose, blocks }
    }

    /// The prose in pieces: text, and code between backticks.
    fn pieces(&self) -> (Vec<&str>, Vec<&str>) {
        let (mut text, mut code) = (Vec::new(), Vec::new());
        for paragraph in self.prose.split("\n\n") {
            let pieces: Vec<_> = paragraph.split('`').collect();
            assert!(
                pieces.len() % 2 == 1,
                "{}: a backtick is not closed: {paragraph}",
                self.path.display()
            );
            text.extend(pieces.iter().step_by(2));
            code.extend(pieces.iter().skip(1).step_by(2));
        }
        (text, code)
    }

    /// The targets of its links, as written.
    fn links(&self) -> Vec<String> {
        // The text of a link may be code, and code may look like a link.
        let text: String =
            self.prose.split("\n\n").map(|paragraph| text_of(paragraph) + "\n").collect();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        targets.map(|(target, _)| target.to_owned()).collect()
    }

    /// The anchors of its headings, as GitHub and mdBook derive them.
    fn anchors(&self) -> BTreeSet<String> {
        let mut seen = BTreeMap::<String, u32>::new();
        let headings = self.prose.lines().filter(|line| line.starts_with('#'));
        let names = headings.map(|line| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>()
        });
        let mut numbered = BTreeSet::new();
        for name in names {
            let count = seen.entry(name.clone()).or_default();
            numbered.insert(if *count == 0 { name } else { format!("{name}-{count}") });
            *count += 1;
        }
        let anchors = self
            .prose
            .lines()
            .filter_map(|line| line.strip_prefix("<a id=\"")?.strip_suffix("\"></a>"));
        numbered.extend(anchors.map(str::to_owned));
        numbered
    }

    /// All of its text.
    fn everything(&self) -> impl Iterator<Item = &str> {
        [self.prose.as_str()].into_iter().chain(self.blocks.iter().map(|block| block.text.as_str()))
    }
}

/// A paragraph without the code between backticks.
fn text_of(paragraph: &str) -> String {
    paragraph.split('`').step_by(2).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<Page> {
    let below = |folder: &str| -> Vec<PathBuf> {
        let entries =
            WalkDir::new(root().join(folder)).sort_by_file_name().into_iter().map(Result::unwrap);
        let paths = entries.map(|entry| entry.path().strip_prefix(root()).unwrap().to_owned());
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
    };
    let single =
        ["README.md", "CONTRIBUTING.md", "SECURITY.md", "tests/README.md"].map(PathBuf::from);
    let folders = ["docs", "deploy", "examples", "grafana"].into_iter().flat_map(below);
    single.into_iter().chain(folders).map(|path| Page::read(&path)).collect()
}

/// `docs/../README.md` as `README.md`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        if component == Component::ParentDir {
            assert!(normal.pop(), "{} is outside of the repository", path.display());
        } else {
            normal.push(component);
        }
    }
    normal
}

#[test]
fn every_link_has_a_file_and_a_heading() {
    let mut count = 0;
    for page in pages() {
        let here = page.path.display();
        for link in page.links() {
            if link.contains("://") {
                continue;
            }
            count += 1;
            let (file, anchor) =
                link.split_once('#').map_or((&*link, None), |(file, anchor)| (file, Some(anchor)));
            let folder = page.path.parent().unwrap_or(Path::new(""));
            let target =
                if file.is_empty() { page.path.clone() } else { normal(&folder.join(file)) };
            let exists = root().join(&target).exists();
            assert!(exists, "{here}: {link}: no such file");
            let Some(anchor) = anchor else { continue };
            assert!(
                target.extension().is_some_and(|it| it == "md"),
                "{here}: {link}: only pages have headings"
            );
            let anchors = Page::read(&target).anchors();
            assert!(
                anchors.contains(anchor),
                "{here}: {link}: no such heading; there are {anchors:?}"
            );
        }
    }
    assert!(count > 100, "only {count} links were found");
}

#[test]
fn the_summary_has_every_page_once() {
    let listed: Vec<_> = Page::read(Path::new("docs/SUMMARY.md")).links();
    let mut listed: Vec<_> =
        listed.iter().map(|link| normal(&Path::new("docs").join(link))).collect();
    listed.retain(|path| path.starts_with("docs"));
    listed.sort();
    let pages = pages().into_iter().map(|page| page.path);
    let mut pages: Vec<_> =
        pages.filter(|path| path.starts_with("docs") && !path.ends_with("SUMMARY.md")).collect();
    pages.sort();
    assert_eq!(listed, pages);
}

#[test]
fn every_example_of_yaml_and_json_parses() {
    let mut count = 0;
    for page in pages() {
        for Block { language, text } in &page.blocks {
            let parsed = match language.as_str() {
                "yaml" => serde_saphyr::from_str::<Value>(text)
                    .map(drop)
                    .map_err(|error| error.to_string()),
                "json" => {
                    serde_json::from_str::<Value>(text).map(drop).map_err(|error| error.to_string())
                }
                _ => continue,
            };
            count += 1;
            parsed.unwrap_or_else(|why| panic!("{}: {why}\n{text}", page.path.display()));
        }
    }
    assert!(count > 5, "only {count} examples were found");
}

#[test]
fn every_scaled_job_passes_the_check() {
    let room = tempfile::tempdir().unwrap();
    let file = room.path().join("manifest.yaml");
    let mut count = 0;
    for page in pages() {
        let is_one =
            |block: &&Block| block.language == "yaml" && block.text.contains("kind: ScaledJob\n");
        for Block { text, .. } in page.blocks.iter().filter(is_one) {
            count += 1;
            fs::write(&file, text).unwrap();
            let mut check = Command::new(env!("CARGO_BIN_EXE_leasehold"));
            let checked =
                check.args(["check", "--strict", "--manifest"]).arg(&file).output().unwrap();
            let found = String::from_utf8_lossy(&checked.stdout).into_owned();
            assert!(checked.status.success(), "{}: {found}", page.path.display());
        }
    }
    assert_eq!(count, 1);
}

/// Splits a line as a shell does, as far as the examples need it: words, quotes, a comment, and
/// several commands.
fn commands_of(line: &str) -> Vec<Vec<String>> {
    let (mut commands, mut word, mut quote) = (vec![Vec::new()], None::<String>, None);
    let add = |commands: &mut Vec<Vec<String>>, word: Option<String>| {
        commands.last_mut().expect("never empty").extend(word);
    };
    for c in line.chars() {
        match c {
            _ if quote == Some(c) => quote = None,
            '\'' | '"' if quote.is_none() => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            '#' if quote.is_none() && word.is_none() => break,
            '|' | ';' | '&' if quote.is_none() => {
                add(&mut commands, word.take());
                commands.push(Vec::new());
            }
            _ if quote.is_none() && c.is_whitespace() => add(&mut commands, word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    add(&mut commands, word);
    commands
}

/// `LEASEHOLD_QUEUE_URL=…` as the flag that it stands for.
fn as_flag(assignment: &str) -> Option<String> {
    let (variable, value) = assignment.strip_prefix("LEASEHOLD_")?.split_once('=')?;
    Some(format!("--{}={value}", variable.to_lowercase().replace('_', "-")))
}

/// The calls of leasehold in a block.
fn calls(block: &Block) -> Vec<Vec<String>> {
    let text = block.text.replace("\\\n", " ");
    let lines = text.lines().filter_map(|line| match block.language.as_str() {
        "sh" => Some(line),
        "console" => line.strip_prefix("$ "),
        _ => None,
    });
    let (mut calls, mut exported) = (Vec::new(), Vec::new());
    for mut words in lines.flat_map(commands_of) {
        let is_assignment = |word: &String| {
            word.split_once('=')
                .is_some_and(|(name, _)| name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
        };
        if words.first().is_some_and(|word| word == "export") {
            exported.extend(words.iter().filter_map(|word| as_flag(word)));
            continue;
        }
        let of_this_call = words.iter().take_while(|word| is_assignment(word)).count();
        let set: Vec<_> = words.drain(..of_this_call).filter_map(|word| as_flag(&word)).collect();
        // The alias of .cargo/config.toml.
        if words.starts_with(&["cargo".to_owned(), "local".to_owned()]) {
            "leasehold".clone_into(&mut words[0]);
        }
        let is_cargo = words.first().is_some_and(|word| word == "cargo")
            && words.get(1).is_some_and(|word| word == "run");
        if is_cargo {
            let Some(end) = words.iter().position(|word| word == "--") else { continue };
            words.splice(..=end, ["leasehold".to_owned()]);
        }
        if !words.first().is_some_and(|word| word == "leasehold" || word.ends_with("/leasehold")) {
            continue;
        }
        let at = words.len().min(2);
        words.splice(at..at, exported.iter().cloned().chain(set));
        // The parser reads this file, so it must exist.
        let file = words.iter().position(|word| word == "--job-types").map(|flag| flag + 1);
        if let Some(word) = file.and_then(|file| words.get_mut(file)) {
            "examples/job-types.yaml".clone_into(word);
        }
        calls.push(words);
    }
    calls
}

#[test]
fn every_command_line_is_accepted() {
    let mut count = 0;
    for page in pages() {
        // Its program has a handler.
        let is_embedded = page.path.ends_with("library.md");
        for words in page.blocks.iter().flat_map(calls) {
            count += 1;
            let parsed = if is_embedded {
                Embedding::new("of-the-page")
                    .parse(words.iter().map(OsString::from).collect())
                    .map(drop)
            } else {
                Cli::try_parse_from(&words).map(drop)
            };
            match parsed {
                Ok(()) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
                    ) => {}
                Err(error) => panic!("{}: {words:?}: {error}", page.path.display()),
            }
        }
    }
    assert!(count > 15, "only {count} command lines were found");
}

/// The filters of each `cargo test` in a text, without those after `--`.
fn test_filters(text: &str) -> impl Iterator<Item = Vec<&str>> {
    const WITH_VALUE: [&str; 3] = ["-p", "--test", "--features"];
    text.split("cargo test ").skip(1).map(|rest| {
        let end = rest.find(['`', '\n', '#', '&']).unwrap_or(rest.len());
        let words = rest[..end].split_whitespace().take_while(|word| *word != "--");
        let words: Vec<_> = words.collect();
        let is_value = |at: usize| at > 0 && WITH_VALUE.contains(&words[at - 1]);
        let filters = words.iter().enumerate();
        let filters = filters.filter(|(at, word)| !word.starts_with('-') && !is_value(*at));
        filters.map(|(_, word)| *word).collect()
    })
}

/// Cargo takes one before `--`.
#[test]
fn cargo_test_has_one_filter_or_those_after_two_dashes() {
    assert_eq!(test_filters("cargo test --test all a:: b:: # c").next(), Some(vec!["a::", "b::"]));
    for page in pages() {
        for filters in page.everything().flat_map(test_filters) {
            assert!(filters.len() < 2, "{}: cargo test {filters:?}", page.path.display());
        }
    }
}

#[test]
fn every_field_of_a_job_type_is_documented() {
    let schema = JobTypesFile::schema().to_value();
    let fields = schema["$defs"]["JobType"]["properties"].as_object().expect("fields");
    let page = include_str!("../docs/job-types.md");
    let (_, table) = page.split_once("| setting | page |\n").expect("the table");
    let rows = table.lines().take_while(|line| line.starts_with('|')).skip(1);
    let named: BTreeSet<_> = rows
        .flat_map(|row| row.split('|').nth(1).expect("a cell").split('`').skip(1).step_by(2))
        .collect();
    let documented = |field: &&str| !["name", "match"].contains(field);
    assert_eq!(named, fields.keys().map(String::as_str).filter(documented).collect());
}

#[test]
fn a_line_is_split_as_by_a_shell() {
    let words =
        |line| commands_of(line).into_iter().map(|command| command.join("|")).collect::<Vec<_>>();
    assert_eq!(words("a 'b c' \"d\"e # f"), ["a|b c|de"]);
    assert_eq!(words("a | b && c"), ["a", "b", "", "c"]);
    let block = |text: &str| Block { language: "sh".into(), text: text.into() };
    let called = |text: &str| {
        calls(&block(text)).into_iter().map(|words| words.join(" ")).collect::<Vec<_>>()
    };
    assert_eq!(
        called("export LEASEHOLD_MAX_DURATION=1h\nleasehold run -- a"),
        ["leasehold run --max-duration=1h -- a"]
    );
    assert_eq!(
        called("LEASEHOLD_WAIT=1s ./leasehold run \\\n  -- a"),
        ["./leasehold run --wait=1s -- a"]
    );
    assert_eq!(called("cargo run -- local in"), ["leasehold local in"]);
    assert_eq!(called("cargo local in -- a"), ["leasehold local in -- a"]);
    assert_eq!(called("kubectl get leasehold"), Vec::<String>::new());
}

/// All flags, with their dashes, and variables of clap.
fn known() -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut flags, mut variables) =
        (BTreeSet::from(["--help".to_owned(), "--version".to_owned()]), BTreeSet::new());
    for action in command().get_subcommands() {
        flags.extend(
            action.get_arguments().filter_map(|arg| Some(format!("--{}", arg.get_long()?))),
        );
        variables.extend(
            action.get_arguments().filter_map(|arg| Some(arg.get_env()?.to_str()?.to_owned())),
        );
    }
    (flags, variables)
}

#[test]
fn every_documented_flag_exists() {
    let (flags, _) = known();
    for page in pages() {
        let (_, code) = page.pieces();
        // Code that begins with another word belongs to another program.
        for span in
            code.into_iter().filter(|span| span.starts_with("--") || span.starts_with("leasehold "))
        {
            // The words after `--` belong to the command.
            let words = span.split_whitespace().take_while(|word| *word != "--");
            for flag in words.filter(|word| word.starts_with("--")) {
                let flag = flag.split('=').next().unwrap();
                let exists = flags.contains(flag) || FLAGS_OF_OTHERS.contains(&flag);
                assert!(exists, "{}: `{span}`: unknown flag {flag}", page.path.display());
            }
        }
    }
}

/// The names in a text with this prefix, continued by such bytes. A name that ends in `_` is itself
/// a prefix.
fn names<'a>(
    text: &'a str,
    prefix: &'a str,
    is_part: fn(u8) -> bool,
) -> impl Iterator<Item = &'a str> {
    text.match_indices(prefix).filter_map(move |(at, _)| {
        let is_within_another =
            text[..at].bytes().next_back().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
        let rest = &text.as_bytes()[at + prefix.len()..];
        let length = rest.iter().take_while(|b| is_part(**b)).count();
        let name = &text[at..at + prefix.len() + length];
        (!is_within_another && !name.ends_with('_')).then_some(name)
    })
}

fn is_variable_byte(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_'
}

fn is_metric_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'
}

/// All variables that a command can get.
fn job_variables() -> BTreeSet<String> {
    let facts = JobFacts::complete_example();
    let names = facts.environment().into_iter().map(|(name, _)| name.into_string().unwrap());
    names.chain([JobFacts::PROGRESS_URL.to_owned()]).collect()
}

#[test]
fn every_documented_variable_and_metric_exists() {
    let (_, variables) = known();
    let of_jobs = job_variables();
    let exposed = include_str!(
        "metrics/snapshots/all__metrics__counts__names_types_and_help_texts_do_not_change.snap"
    );
    let metrics: BTreeSet<_> =
        exposed.split("# HELP ").skip(1).filter_map(|text| text.split(' ').next()).collect();
    for page in pages() {
        let here = page.path.display();
        for text in page.everything() {
            for name in names(text, "LEASEHOLD_", is_variable_byte) {
                assert!(
                    variables.contains(name) || VARIABLES_OF_OTHERS.contains(&name),
                    "{here}: unknown name {name}"
                );
            }
            for name in names(text, "JOB_", is_variable_byte) {
                assert!(of_jobs.contains(name), "{here}: unknown name {name}");
            }
            for name in names(text, "leasehold_", is_metric_byte) {
                let name = name.trim_end_matches("_bucket");
                assert!(metrics.contains(name), "{here}: unknown name {name}");
            }
        }
    }
}

#[test]
fn the_contract_documents_every_variable_of_a_command() {
    let page = fs::read_to_string(root().join("docs/command.md")).unwrap();
    for name in job_variables() {
        assert!(page.contains(&format!("`{name}`")), "docs/command.md does not name {name}");
    }
}
