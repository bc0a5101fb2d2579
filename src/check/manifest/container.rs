//! What the container that runs leasehold is told, as far as it can be read in the file.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{ScaledJob, names};
use crate::check::{Finding, Findings, StopTimeline, settings};
use crate::cli;
use crate::config::RunConfig;
use crate::job_types::JobTypesFile;

impl ScaledJob<'_> {
    /// What the container that runs leasehold is told, against what the pod and the Job are.
    pub fn container(&self) -> Findings {
        let runs_leasehold = |container: &&Value| {
            let words = words(container);
            words.iter().take(2).any(|word| word.rsplit('/').next() == Some("leasehold"))
                || words.first().is_some_and(|word| word == "run")
                || self.variables(container).0.keys().any(|name| name.starts_with("LEASEHOLD_"))
        };
        let place = self.at("containers");
        let Some(container) = self.containers().find(runs_leasehold) else {
            let change = "start the command by leasehold: command: [leasehold, run, --, …]";
            return vec![Finding::unchecked(place, "none seems to run leasehold", change)].into();
        };
        let place = self.at(&format!("container {}", container["name"].as_str().unwrap_or("without a name")));
        let mut all = Findings::from(self.probes(&place, container));
        let (mut variables, elsewhere) = self.variables(container);
        for name in &elsewhere {
            all.findings.push(Finding::unchecked(
                &place,
                format!("settings from {name} are not in the file"),
                "render it together with the ScaledJob",
            ));
        }
        let job_types = variables.get("LEASEHOLD_JOB_TYPES").cloned();
        let job_types = job_types.and_then(|path| Some((self.mounted(container, &path)?, path)));
        if job_types.is_some() {
            variables.remove("LEASEHOLD_JOB_TYPES");
        }
        // What is in the container's other files cannot be read from here.
        for name in
            ["LEASEHOLD_JOB_TYPES", "LEASEHOLD_PUSHGATEWAY_BASIC_AUTH_FILE", "LEASEHOLD_PUSHGATEWAY_BEARER_TOKEN_FILE"]
        {
            if let Some(path) = variables.remove(name) {
                let place = format!("{place}, {name}");
                let change = "check it where it is: leasehold check in the pod";
                all.findings.push(Finding::unchecked(place, format!("{path} is in the container"), change));
            }
        }
        if !variables.contains_key("LEASEHOLD_QUEUE_URL") && !elsewhere.is_empty() {
            variables.insert(
                "LEASEHOLD_QUEUE_URL".to_owned(),
                "https://sqs.eu-west-1.amazonaws.com/123456789012/unknown".to_owned(),
            );
        }
        let config = cli::container_args(&variables, &flags(container)).and_then(|mut args| {
            if let Some((text, path)) = job_types {
                let file = JobTypesFile::parse(&path, || Ok(text));
                args.work.job_types = Some(file.map_err(|why| format!("--job-types {path}: {why}"))?);
            }
            RunConfig::try_from(args).map_err(|error| error.to_string())
        });
        match config {
            Ok(config) => {
                all.findings.extend(settings::findings(&place, &config));
                all.findings.extend(self.budgets(&place, container, &config));
                all.stops.push(StopTimeline::of(self.at("the stop"), &config));
            }
            Err(why) => all.findings.push(Finding::error(&place, why, "the pod would exit with 78: correct it")),
        }
        all
    }

    pub fn listens(&self, container: &Value) -> bool {
        let (variables, elsewhere) = self.variables(container);
        let said = variables.contains_key("LEASEHOLD_LISTEN") || !elsewhere.is_empty();
        said || words(container).iter().any(|word| word.starts_with("--listen"))
    }

    /// A file of the container that is in a ConfigMap of ours.
    fn mounted(&self, container: &Value, path: &str) -> Option<String> {
        let mounts = container["volumeMounts"].as_array()?;
        let below =
            |mount: &Value| path.strip_prefix(mount["mountPath"].as_str()?)?.strip_prefix('/').map(str::to_owned);
        let (mount, file) = mounts.iter().find_map(|mount| Some((mount, below(mount)?)))?;
        let volume = self.pod["volumes"].as_array()?.iter().find(|one| one["name"] == mount["name"])?;
        let name = volume["configMap"].get("name")?;
        let map = self.others.iter().find(|it| it["kind"] == "ConfigMap" && it["metadata"]["name"] == *name)?;
        Some(map["data"].get(&file)?.as_str()?.to_owned())
    }

    /// The container's variables as far as the file has them, and what has the others.
    fn variables(&self, container: &Value) -> (BTreeMap<String, String>, Vec<String>) {
        let (mut variables, mut elsewhere) = (BTreeMap::new(), Vec::new());
        let data_of = |kind: &str, name: &Value| {
            self.others.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == *name)
        };
        for from in container["envFrom"].as_array().into_iter().flatten() {
            let name = &from["configMapRef"]["name"];
            let prefix = from["prefix"].as_str().unwrap_or_default();
            match data_of("ConfigMap", name) {
                Some(map) => variables.extend(
                    names(&map["data"])
                        .filter_map(|key| Some((format!("{prefix}{key}"), map["data"][key].as_str()?.to_owned()))),
                ),
                None => elsewhere.extend(name.as_str().map(|name| format!("ConfigMap {name}"))),
            }
        }
        for variable in container["env"].as_array().into_iter().flatten() {
            let Some(name) = variable["name"].as_str().filter(|name| name.starts_with("LEASEHOLD_")) else { continue };
            if let Some(value) = variable["value"].as_str() {
                variables.insert(name.to_owned(), value.to_owned());
                continue;
            }
            let from = &variable["valueFrom"];
            let reference = &from["configMapKeyRef"];
            let value = data_of("ConfigMap", &reference["name"]);
            let value = value.and_then(|map| map["data"][reference["key"].as_str()?].as_str());
            match value {
                Some(value) => drop(variables.insert(name.to_owned(), value.to_owned())),
                // A field of the pod is known only when it is there, and none that we need.
                None if from["fieldRef"].is_object() => drop(variables.remove(name)),
                None => elsewhere.push(format!("{name}'s valueFrom")),
            }
        }
        (variables, elsewhere)
    }
}

/// A container's command and arguments.
fn words(container: &Value) -> Vec<String> {
    let list = |field: &str| container[field].as_array().into_iter().flatten();
    list("command").chain(list("args")).filter_map(Value::as_str).map(str::to_owned).collect()
}

/// What of that follows `run`, with a command in any case: without arguments the image has it.
fn flags(container: &Value) -> Vec<String> {
    let words = words(container);
    let run = words.iter().take_while(|word| *word != "--").position(|word| word == "run");
    let mut flags: Vec<String> = run.map(|run| words[run + 1..].to_vec()).unwrap_or_default();
    if !flags.iter().any(|word| word == "--") {
        flags.extend(["--".to_owned(), "command".to_owned()]);
    }
    flags
}
