//! The settings of the container that runs leasehold, as far as they are in the file.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::environment::{Environment, is_known};
use super::files::File;
use super::program::missing_command;
use super::start::{Start, Starter};
use super::{ContainerPath, ScaledJob};
use crate::check::{Finding, Findings, Location, Rule, Severity, StopTimeline, settings};
use crate::settings::JobTypesFile;
use crate::settings::command_line;
use crate::settings::resolve::RunConfig;
use crate::telemetry::termination::TerminationLog;

/// The container that runs leasehold, with its known settings.
pub struct Container<'a> {
    pub value: &'a Value,
    pub path: ContainerPath<'a>,
    pub environment: Environment,
    /// `None` if it is unknown or invalid.
    pub config: Option<RunConfig>,
    /// The variables of settings whose values are not in the file.
    unknown: BTreeSet<String>,
    /// The variables of settings that are set by flags.
    flags: BTreeSet<String>,
}

impl Container<'_> {
    /// The settings, if the file shows for each of these variables its value, or that it is unset.
    pub fn config_if_known(&self, variables: &[&str]) -> Option<&RunConfig> {
        let is_known = |variable: &&str| {
            let is_set = self.environment.known(variable).is_some() || !self.environment.has_unseen;
            self.flags.contains(*variable) || is_set && !self.unknown.contains(*variable)
        };
        self.config.as_ref().filter(|_| variables.iter().all(is_known))
    }

    /// The location of a setting: its variable, or the whole container.
    pub fn variable(&self, name: &str) -> Location {
        let line = self.environment.line(name).or_else(|| self.path.whole().line);
        Location { name: format!("{}, {name}", self.path.name), line }
    }

    /// The queue from which the pod receives.
    pub fn queue_url(&self) -> Option<&str> {
        Some(self.config_if_known(&["LEASEHOLD_QUEUE_URL"])?.queue_url.as_str())
    }

    /// The pod's region, if a variable sets it.
    pub fn region(&self) -> Option<&str> {
        self.environment
            .known("AWS_REGION")
            .or_else(|| self.environment.known("AWS_DEFAULT_REGION"))
    }
}

impl<'a> ScaledJob<'a> {
    /// The container that runs leasehold, if one does, and findings about how it does.
    pub fn container(&self) -> (Option<Container<'a>>, Findings) {
        let place = self.at("spec.jobTargetRef.template.spec.containers");
        let mut inspected: Vec<_> =
            self.containers().map(|container| self.inspect(container)).collect();
        // Errors in the other containers keep the pod from starting, too.
        let init_containers = self.pod["initContainers"].as_array().into_iter().flatten();
        let init_containers: Vec<_> =
            init_containers.map(|container| self.inspect(container)).collect();
        let of_others =
            inspected.iter().chain(&init_containers).flat_map(|(_, _, findings)| findings);
        let of_others = of_others.filter(|finding| finding.severity == Severity::Error).cloned();
        let mut all = Findings::from(of_others.collect::<Vec<_>>());
        let runs = inspected.iter().position(|(_, start, _)| matches!(start, Start::Leasehold(_)));
        let is_set = |(container, _, _): &(Container, Start, Vec<Finding>)| {
            container.environment.settings().next().is_some()
        };
        let Some(found) = runs.or_else(|| inspected.iter().position(is_set)) else {
            let change = "start the command with leasehold: command: [leasehold, run, --, …]";
            all.findings.push(Finding::new(
                Rule::LeaseholdNotFound,
                place,
                "no container seems to run leasehold",
                change,
            ));
            return (None, all);
        };
        let (mut container, start, findings) = inspected.swap_remove(found);
        all.findings.extend(findings);
        let command = container.path.at("command");
        let words = match start {
            Start::Leasehold(words) => Some(words),
            Start::Image => Some(Vec::new()),
            Start::Other(program) => {
                let what = format!(
                    "it starts {program}, not leasehold, although LEASEHOLD_ variables are set: no message is received, and KEDA creates such a pod at every poll"
                );
                let change = "put leasehold before it: command: [leasehold, run, --, …]";
                all.findings.push(Finding::new(Rule::LeaseholdNotStarted, command, what, change));
                None
            }
            Start::Unseen(what) => {
                let what = format!(
                    "check cannot see whether it starts leasehold: {what} is not in the file"
                );
                let change = "check that it ends with exec leasehold run; otherwise a stop does not release the message";
                all.findings.push(Finding::new(Rule::StartUnseen, command, what, change));
                None
            }
        };
        if let Some(words) = words {
            all.add(self.settings(&mut container, words.clone()));
            let others = self.runs_beside(container.value);
            all.add(Vec::from_iter(missing_command(&container, &words, others)).into());
        }
        all.add(Vec::from_iter(self.program(&container)).into());
        all.add(self.time_limits(&container).into());
        all.add(self.work_dir(&container).into());
        all.add(Vec::from_iter(termination_message(&container)).into());
        all.add(Vec::from_iter(memory_limit(&container)).into());
        (Some(container), all)
    }

    fn inspect(&self, value: &'a Value) -> (Container<'a>, Start, Vec<Finding>) {
        let path = self.path_of(value);
        let (mut environment, mut findings) = self.environment(&path, value);
        let mut starter = Starter {
            place: path.at("command"),
            environment: &mut environment,
            findings: Vec::new(),
        };
        let start = starter.start(value);
        findings.append(&mut starter.findings);
        for field in ["command", "args", "env", "envFrom", "ports", "volumeMounts"] {
            if !value[field].is_null() && !value[field].is_array() {
                let what = "it is not a list, so Kubernetes rejects the object";
                findings.push(Finding::new(
                    Rule::WrongType,
                    path.at(field),
                    what,
                    "write it as a list",
                ));
            }
        }
        let container = Container {
            value,
            path,
            environment,
            config: None,
            unknown: BTreeSet::new(),
            flags: BTreeSet::new(),
        };
        (container, start, findings)
    }

    /// Reads the settings as leasehold would; `words` follow `run`.
    fn settings(&self, container: &mut Container, words: Vec<String>) -> Findings {
        let mut all = Findings::default();
        let (known, unknown): (Vec<_>, Vec<_>) =
            container.environment.settings().partition(|(_, value)| is_known(value));
        let mut variables: BTreeMap<String, String> =
            known.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        container.unknown = unknown.into_iter().map(|(name, _)| name.clone()).collect();
        let words = flags(words, &mut variables, container);
        // The pod's default, not this machine's.
        if !variables.contains_key("LEASEHOLD_WORK_DIR") {
            let temporary = container.environment.known("TMPDIR").unwrap_or("/tmp").to_owned();
            variables.insert("LEASEHOLD_WORK_DIR".to_owned(), temporary);
        }
        let is_set = variables.contains_key("LEASEHOLD_QUEUE_URL")
            || container.flags.contains("LEASEHOLD_QUEUE_URL");
        if !is_set
            && (container.unknown.contains("LEASEHOLD_QUEUE_URL")
                || container.environment.has_unseen)
        {
            let any = "https://sqs.eu-west-1.amazonaws.com/123456789012/unknown";
            variables.insert("LEASEHOLD_QUEUE_URL".to_owned(), any.to_owned());
        }
        let job_types = self.files(container, &mut variables, &mut all.findings);
        let args = command_line::container_args(&variables, &words).and_then(|mut args| {
            if let Some((text, path)) = job_types {
                let file = JobTypesFile::parse(&path, || Ok(text));
                args.work.job_types =
                    Some(file.map_err(|why| format!("--job-types {path}: {why}"))?);
            }
            Ok(args)
        });
        // Settings that are not in the file may resolve a conflict between two others.
        let is_complete = container.unknown.iter().all(|name| NAMES.contains(&name.as_str()))
            && !container.environment.has_unseen;
        let refused = if is_complete { Severity::Error } else { Severity::Unchecked };
        let config = args
            .map_err(|why| (Severity::Error, why))
            .and_then(|args| RunConfig::try_from(args).map_err(|why| (refused, why.to_string())));
        match config {
            Ok(config) => {
                let at = |flag: &str| {
                    let line = container.variable(&variable_of(flag)).line;
                    Location { name: format!("{}, {flag}", container.path.name), line }
                };
                all.findings.extend(settings::findings(&at, &config));
                container.config = Some(config);
                if container.region().is_some() || !container.environment.has_unseen {
                    all.findings.extend(region_of_the_queue(container));
                }
                if let Some(config) = container.config_if_known(&["LEASEHOLD_TERMINATION_GRACE"]) {
                    all.stops.push(StopTimeline::of(self.at("the stop").name, config));
                }
            }
            Err((severity, why)) => {
                all.findings.push(refusal(container, why).with_severity(severity));
            }
        }
        all
    }

    /// The file of the job types and its path, if the manifest has it. Settings that name files are
    /// removed from `variables`, since the files are not on this machine.
    fn files(
        &self,
        container: &Container,
        variables: &mut BTreeMap<String, String>,
        findings: &mut Vec<Finding>,
    ) -> Option<(String, String)> {
        let mut job_types = None;
        for name in [
            "LEASEHOLD_JOB_TYPES",
            "LEASEHOLD_PUSHGATEWAY_BASIC_AUTH_FILE",
            "LEASEHOLD_PUSHGATEWAY_BEARER_TOKEN_FILE",
        ] {
            let Some(path) = variables.remove(name) else { continue };
            let place = container.variable(name);
            match self.file(container.value, &path) {
                File::Text(text) if name == "LEASEHOLD_JOB_TYPES" => job_types = Some((text, path)),
                File::Text(_) => {}
                File::Missing(what) => {
                    let what = format!("{path} does not exist: {what}");
                    let change =
                        "every pod would exit with code 78: correct the path, or add the file";
                    findings.push(Finding::new(Rule::KeyNotFound, place, what, change));
                }
                File::Elsewhere => {
                    let what = format!("{path} is in the container, where check cannot read it");
                    let change = "run leasehold check in the pod";
                    findings.push(Finding::new(Rule::NotInFile, place, what, change));
                }
            }
        }
        job_types
    }
}

/// A finding at the first flag in the reason, if a variable sets that flag.
fn refusal(container: &Container, why: String) -> Finding {
    let named = why.split([' ', ':', '\'']).find(|word| word.starts_with("--") && word.len() > 2);
    let line = named.and_then(|flag| container.environment.line(&variable_of(flag)));
    let whole = container.path.whole();
    let place = Location { line: line.or(whole.line), ..whole };
    Finding::new(Rule::SettingsRefused, place, why, "every pod would exit with code 78: correct it")
}

/// Kubernetes must read the termination message from the file to which leasehold writes it.
fn termination_message(container: &Container) -> Option<Finding> {
    let read = container.value["terminationMessagePath"].as_str().unwrap_or(TERMINATION_LOG);
    let config = container.config_if_known(&["LEASEHOLD_TERMINATION_LOG"])?;
    let written = match &config.work.termination_log {
        TerminationLog::Kubernetes => TERMINATION_LOG,
        TerminationLog::At(path) => path.to_str()?,
    };
    (written != read).then(|| {
        Finding::new(Rule::TerminationMessage, container.path.at("terminationMessagePath"),
            format!(
                "Kubernetes reads {read}, but leasehold writes {written}: kubectl describe pod does not show why a pod failed"
            ),
            "remove terminationMessagePath and LEASEHOLD_TERMINATION_LOG, or set both to one file",
        )
    })
}

/// A pod whose guard has no limit exits before it receives a message.
fn memory_limit(container: &Container) -> Option<Finding> {
    let config = container.config_if_known(&["LEASEHOLD_MEMORY_GUARD"])?;
    let percent = config.memory_guard?;
    container.value["resources"]["limits"]["memory"].is_null().then(|| {
        Finding::new(
            Rule::NoMemoryLimit,
            container.path.at("resources"),
            format!(
                "--memory-guard {percent}% has no limit to compare with: every pod exits with 78"
            ),
            "set resources.limits.memory, or remove the guard",
        )
    })
}

/// Settings that are only names: any value is valid.
const NAMES: [&str; 3] = ["LEASEHOLD_JOB_ID", "LEASEHOLD_POD_NAME", "LEASEHOLD_NAMESPACE"];

/// The default of terminationMessagePath.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// SQS refuses a request that is signed for another region.
fn region_of_the_queue(container: &Container) -> Option<Finding> {
    let config = container.config_if_known(&["LEASEHOLD_QUEUE_URL"])?;
    let (signed, of_queue) =
        (container.region()?, crate::adapters::aws::region_of(&config.queue_url)?);
    let is_custom = ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SQS"]
        .iter()
        .any(|name| container.environment.known(name).is_some());
    (signed != of_queue && !is_custom).then(|| {
        let what =
            format!("it is {signed}, but the queue is in {of_queue}: SQS refuses every request");
        Finding::new(
            Rule::PodRegion,
            container.variable("AWS_REGION"),
            what,
            format!("set it to {of_queue}"),
        )
    })
}

/// The variable of a flag.
fn variable_of(flag: &str) -> String {
    format!("LEASEHOLD_{}", flag.trim_start_matches('-').replace('-', "_").to_uppercase())
}

/// The words after `run` as leasehold gets them. Adds a command if there is none, since the image
/// may have it. Flags with unknown values are left out.
fn flags(
    words: Vec<String>,
    variables: &mut BTreeMap<String, String>,
    container: &mut Container,
) -> Vec<String> {
    let name_of = |word: &str| Some(word.split_once('=').map_or(word, |(flag, _)| flag).to_owned());
    let name_of =
        |word: &str| name_of(word).filter(|flag| flag.starts_with("--") && is_known(flag));
    let mut flags: Vec<String> = Vec::new();
    let mut words = words.into_iter();
    for word in words.by_ref().take_while(|word| word != "--") {
        if is_known(&word) {
            container.flags.extend(name_of(&word).map(|flag| variable_of(&flag)));
            flags.push(word);
            continue;
        }
        let flag = name_of(&word)
            .or_else(|| flags.pop_if(|flag| flag.starts_with("--") && !flag.contains('=')));
        match flag.map(|flag| variable_of(&flag)) {
            Some(variable) => {
                variables.remove(&variable);
                container.flags.remove(&variable);
                container.unknown.insert(variable);
            }
            // The unknown word may be any flag.
            None => container.environment.has_unseen = true,
        }
    }
    let command: Vec<String> = words.collect();
    flags.push("--".to_owned());
    flags.extend(if command.is_empty() { vec!["command".to_owned()] } else { command });
    flags
}
