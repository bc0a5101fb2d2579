//! The program in the pod: is leasehold where the container starts it, and does it get a command?

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::ScaledJob;
use super::container::Container;
use super::files::Mount;
use super::start::named;
use crate::check::{Finding, Rule};

/// What an init container does with a volume, as far as the file shows.
enum Writer {
    /// `leasehold install` into this directory of the volume.
    Installs(PathBuf),
    /// leasehold with another subcommand, which it does not have.
    Misspelt(String),
    /// Another program, which may copy leasehold.
    Other,
}

impl ScaledJob<'_> {
    /// Kubernetes rejects a pod with a mount of a volume that it does not have.
    pub fn undeclared_volumes(&self) -> Vec<Finding> {
        let volumes = self.pod["volumes"].as_array();
        let is_declared =
            |name: &Value| volumes.is_some_and(|all| all.iter().any(|it| it["name"] == *name));
        let init_containers = self.pod["initContainers"].as_array().into_iter().flatten();
        let mut findings = Vec::new();
        for container in self.containers().chain(init_containers) {
            for mount in container["volumeMounts"].as_array().into_iter().flatten() {
                if !is_declared(&mount["name"]) {
                    let name = mount["name"].as_str().unwrap_or_default();
                    findings.push(Finding::new(
                        Rule::UndeclaredVolume,
                        self.path_of(container).at("volumeMounts"),
                        format!("it mounts the volume {name:?}, which spec.volumes does not have"),
                        "add the volume, or correct the name",
                    ));
                }
            }
        }
        findings
    }

    /// The container starts leasehold from a volume: an init container must put it there.
    pub fn program(&self, container: &Container) -> Option<Finding> {
        let words = container.value["command"].as_array()?;
        let program = words.iter().filter_map(Value::as_str).find(|it| named(it) == "leasehold")?;
        let path = Path::new(program);
        if !path.is_absolute() {
            return None;
        }
        let finding = |what: String| {
            let change = "make the container's command and the init container's install name the same directory of the volume";
            Finding::new(Rule::ProgramMissing, container.path.at("command"), what, change)
        };
        let Some(Mount { volume, rest, .. }) = self.mount(container.value, path) else {
            let installs = self.installs();
            let (name, into) = installs.first()?;
            return Some(finding(format!(
                "{program} is on no volume, and the init container {name} installs leasehold into {into}, which this container does not mount there"
            )));
        };
        let name = volume["name"].as_str().unwrap_or_default();
        if rest.as_os_str().is_empty() {
            return Some(finding(format!("{program} is the directory of the volume {name}")));
        }
        if !volume["emptyDir"].is_object() {
            return None;
        }
        let writers = self.writers(name);
        let is_there = writers.iter().any(|writer| match writer {
            Writer::Installs(into) => into.join("leasehold") == rest,
            Writer::Misspelt(_) => false,
            Writer::Other => true,
        });
        let misspelt = writers.iter().find_map(|writer| match writer {
            Writer::Misspelt(word) => Some(word),
            Writer::Installs(_) | Writer::Other => None,
        });
        match (is_there, misspelt) {
            (true, _) => None,
            (false, Some(word)) => Some(finding(format!(
                "the init container for the volume {name} runs leasehold {word}, which does not exist: write install"
            ))),
            (false, None) => Some(finding(format!(
                "the volume {name} is empty when a pod starts, and no init container installs leasehold at {program}"
            ))),
        }
    }

    /// The names of init containers that install leasehold, and the directories.
    fn installs(&self) -> Vec<(String, String)> {
        let init_containers = self.pod["initContainers"].as_array().into_iter().flatten();
        let installed = init_containers.filter_map(|container| match subcommand(container)? {
            ("install", Some(into)) => {
                Some((container["name"].as_str()?.to_owned(), into.to_owned()))
            }
            _ => None,
        });
        installed.collect()
    }

    /// The init containers that mount a volume.
    fn writers(&self, volume: &str) -> Vec<Writer> {
        let init_containers = self.pod["initContainers"].as_array().into_iter().flatten();
        let mounts_it = |container: &&Value| {
            let mut mounts = container["volumeMounts"].as_array().into_iter().flatten();
            mounts.any(|mount| mount["name"] == volume)
        };
        let writer = |container: &Value| match subcommand(container) {
            Some(("install", Some(into))) => {
                match self
                    .mount(container, Path::new(into))
                    .filter(|it| it.volume["name"] == volume)
                {
                    Some(mount) => Writer::Installs(mount.rest),
                    // Another volume, or a directory that goes with the init container.
                    None => Writer::Installs(PathBuf::from("..")),
                }
            }
            Some((word, _)) => Writer::Misspelt(word.to_owned()),
            None => Writer::Other,
        };
        init_containers.filter(mounts_it).map(writer).collect()
    }
}

/// Without a command the image's own would run: Kubernetes ignores it where `command` is set. With
/// `--handler http://…`, another container may have the server. `others` is whether the pod has one.
pub fn missing_command(container: &Container, words: &[String], others: bool) -> Option<Finding> {
    let has_own = container.value["command"].as_array().is_some_and(|words| !words.is_empty());
    let mut after = words.iter().skip_while(|word| *word != "--").skip(1);
    let has_job_types = words.iter().any(|word| word.starts_with("--job-types"))
        || container.environment.get("LEASEHOLD_JOB_TYPES").is_some();
    let has_server = container.config.as_ref().is_some_and(|config| config.work.handler.is_http());
    let is_missing = has_own && after.next().is_none();
    if has_server {
        return (is_missing && !others).then(|| {
            Finding::new(
                Rule::NoServer,
                container.path.at("command"),
                "no command follows run --, and the pod has no sidecar: no server accepts the requests of --handler, and every message is kept",
                "write the command of the server after --, or run it in initContainers with restartPolicy: Always",
            )
        });
    }
    (is_missing && !has_job_types).then(|| {
        Finding::new(
            Rule::NoCommand,
            container.path.at("command"),
            "no command follows run --, and Kubernetes ignores the CMD of the image where command is set: every pod exits with code 78",
            "write the program and its arguments after --, in command or in args",
        )
    })
}

/// The first word after leasehold, and the next one, if the container seems to start it: by its
/// name, or by the entrypoint of an image that is called leasehold.
fn subcommand(container: &Value) -> Option<(&str, Option<&str>)> {
    let words = |field: &str| {
        container[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let (command, args): (Vec<&str>, Vec<&str>) = (words("command"), words("args"));
    let all = match command.first() {
        Some(program) if named(program) == "leasehold" => [&command[1..], &args].concat(),
        Some(_) => return None,
        None => {
            let image = container["image"].as_str()?;
            let name = image.rsplit('/').next()?.split([':', '@']).next()?;
            (name == "leasehold").then_some(args)?
        }
    };
    Some((*all.first()?, all.get(1).copied()))
}
