//! Kubernetes objects: what KEDA and Kubernetes take without a word, and what it does.
//!
//! The fields are those of KEDA 2.20's CustomResourceDefinition of a ScaledJob.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::{Finding, Findings, StopTimeline, settings};
use crate::cli;
use crate::config::RunConfig;
use crate::job::lease::CEILING;
use crate::job_types::JobTypesFile;

/// Reads a file of YAML documents; empty ones are left out.
pub fn parse(text: &str) -> Result<Vec<Value>, String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| error.to_string())?;
    let items = |document: Value| match document["items"].as_array() {
        Some(items) if document["kind"] == "List" => items.clone(),
        Some(_) | None => vec![document],
    };
    let objects = documents.into_iter().filter(Value::is_object).flat_map(items);
    Ok(objects.collect())
}

/// What is wrong with the ScaledJobs among these objects. `file` is what they are called if there is none.
pub fn findings(file: &str, objects: &[Value]) -> Findings {
    let scaled_jobs: Vec<_> = objects.iter().filter(|object| object["kind"] == "ScaledJob").collect();
    if scaled_jobs.is_empty() {
        let change = "give the rendered objects, for example the output of kubectl kustomize";
        return vec![Finding::error(file, "there is no ScaledJob in it", change)].into();
    }
    let mut all = Findings::default();
    for object in scaled_jobs {
        all.add(ScaledJob::new(object, objects).findings());
    }
    all
}

struct ScaledJob<'a> {
    name: String,
    spec: &'a Value,
    job: &'a Value,
    pod: &'a Value,
    others: &'a [Value],
}

/// The fields of a ScaledJob's spec.
const SPEC: [&str; 11] = [
    "jobTargetRef",
    "triggers",
    "pollingInterval",
    "successfulJobsHistoryLimit",
    "failedJobsHistoryLimit",
    "rollout",
    "rolloutStrategy",
    "envSourceContainerName",
    "minReplicaCount",
    "maxReplicaCount",
    "scalingStrategy",
];

/// Fields of other kinds that are found in a ScaledJob's spec, and what is true instead.
const FOREIGN: [(&str, &str); 5] = [
    ("cooldownPeriod", "a Job ends when its work does, there is nothing to cool down: remove it"),
    ("scaleTargetRef", "a ScaledJob has jobTargetRef, a whole Job's spec: write that"),
    ("fallback", "remove it"),
    ("advanced", "remove it; what a ScaledJob has is scalingStrategy"),
    ("idleReplicaCount", "remove it"),
];

/// The metadata of the trigger `aws-sqs-queue`.
const TRIGGER: [&str; 11] = [
    "queueURL",
    "queueURLFromEnv",
    "queueLength",
    "activationQueueLength",
    "awsRegion",
    "awsEndpoint",
    "scaleOnInFlight",
    "scaleOnDelayed",
    "identityOwner",
    "awsAccessKeyIDFromEnv",
    "awsSecretAccessKeyFromEnv",
];

impl<'a> ScaledJob<'a> {
    fn new(object: &'a Value, others: &'a [Value]) -> Self {
        let name = object["metadata"]["name"].as_str().unwrap_or("without a name").to_owned();
        let spec = &object["spec"];
        let job = &spec["jobTargetRef"];
        Self { name, spec, job, pod: &job["template"]["spec"], others }
    }

    fn at(&self, field: &str) -> String {
        format!("ScaledJob {}, {field}", self.name)
    }

    fn findings(&self) -> Findings {
        let mut all = Findings::default();
        all.add(self.fields().into());
        all.add(self.scaling().into());
        all.add(self.triggers().into());
        all.add(self.pod().into());
        all.add(self.container());
        all
    }

    /// Fields that are where they mean nothing.
    fn fields(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for field in names(self.spec).filter(|field| !SPEC.contains(field)) {
            let place = self.at(&format!("spec.{field}"));
            if let Some((_, truth)) = FOREIGN.iter().find(|(foreign, _)| *foreign == field) {
                findings.push(Finding::error(
                    place,
                    "no field of a ScaledJob: ignored, or refused by kubectl apply",
                    *truth,
                ));
            } else {
                let change = format!("did you mean {}?", nearest(field, &SPEC));
                findings.push(Finding::error(place, "KEDA has no such field", change));
            }
        }
        for field in names(self.job).filter(|field| SPEC.contains(field)) {
            findings.push(Finding::error(
                self.at(&format!("spec.jobTargetRef.{field}")),
                "it is nested too deep: a Job has no such field",
                format!("move it to spec.{field}, beside jobTargetRef"),
            ));
        }
        if self.job.is_null() {
            findings.push(Finding::error(self.at("spec.jobTargetRef"), "it is missing", "write a Job's spec there"));
        }
        findings
    }

    fn scaling(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        match self.spec["rollout"]["strategy"].as_str() {
            Some("gradual") => {}
            None | Some("immediate") => findings.push(Finding::error(
                self.at("spec.rollout.strategy"),
                "it is immediate, KEDA's default: each edit of this object stops every pod that works",
                "set it to gradual",
            )),
            Some(other) => findings.push(Finding::error(
                self.at("spec.rollout.strategy"),
                format!("KEDA refuses {other:?}"),
                "set it to gradual",
            )),
        }
        if self.spec["minReplicaCount"].as_u64().is_some_and(|count| count > 0) {
            findings.push(Finding::warning(
                self.at("spec.minReplicaCount"),
                "so many Jobs are kept running at all times, which find the queue empty at every poll",
                "set it to 0",
            ));
        }
        let scaling = &self.spec["scalingStrategy"];
        let waits_for_ready =
            scaling["pendingPodConditions"].as_array().is_some_and(|all| all.iter().any(|it| it == "Ready"));
        if waits_for_ready && !self.containers().any(|container| container["readinessProbe"].is_object()) {
            findings.push(Finding::warning(
                self.at("spec.scalingStrategy.pendingPodConditions"),
                "without a readinessProbe a pod is Ready as soon as it runs, and gets a twin before it has received",
                "give the container a readinessProbe on /readyz, every second",
            ));
        }
        if scaling["strategy"] == "accurate" && !waits_for_ready {
            findings.push(Finding::warning(
                self.at("spec.scalingStrategy.pendingPodConditions"),
                "a pod that runs but has not received yet gets a twin",
                "set it to [Ready], with a readinessProbe on /readyz",
            ));
        }
        findings
    }

    fn triggers(&self) -> Vec<Finding> {
        let Some(triggers) = self.spec["triggers"].as_array() else {
            let change = "add an aws-sqs-queue trigger there, beside jobTargetRef";
            return vec![Finding::error(self.at("spec.triggers"), "it is missing: nothing starts a Job", change)];
        };
        let of_sqs = |trigger: &&(usize, &Value)| trigger.1["type"] == "aws-sqs-queue";
        let numbered: Vec<_> = triggers.iter().enumerate().collect();
        let of_sqs: Vec<_> = numbered.iter().filter(of_sqs).collect();
        if of_sqs.is_empty() {
            return vec![Finding::error(self.at("spec.triggers"), "none is of type aws-sqs-queue", "add one")];
        }
        of_sqs.into_iter().flat_map(|(number, trigger)| self.trigger(*number, trigger)).collect()
    }

    fn trigger(&self, number: usize, trigger: &Value) -> Vec<Finding> {
        let mut findings = Vec::new();
        let metadata = &trigger["metadata"];
        let place = |field: &str| self.at(&format!("spec.triggers[{number}].{field}"));
        if !trigger["metricType"].is_null() {
            findings.push(Finding::error(place("metricType"), "a ScaledJob may not have it", "remove it"));
        }
        for name in names(metadata) {
            if !TRIGGER.contains(&name) {
                findings.push(Finding::error(
                    place(&format!("metadata.{name}")),
                    "KEDA ignores it: aws-sqs-queue has no such setting",
                    format!("did you mean {}?", nearest(name, &TRIGGER)),
                ));
            }
            if !metadata[name].is_string() {
                findings.push(Finding::error(
                    place(&format!("metadata.{name}")),
                    format!("{} is no string, and Kubernetes refuses it", metadata[name]),
                    format!("write it in quotes: \"{}\"", metadata[name]),
                ));
            }
        }
        let value = |name: &str| metadata[name].as_str().map_or_else(|| metadata[name].to_string(), str::to_owned);
        let is_set = |name: &str| !metadata[name].is_null();
        if !is_set("queueURL") && !is_set("queueURLFromEnv") {
            findings.push(Finding::error(
                place("metadata.queueURL"),
                "it is missing",
                "set it, or queueURLFromEnv: LEASEHOLD_QUEUE_URL",
            ));
        }
        if !is_set("awsRegion") {
            findings.push(Finding::error(
                place("metadata.awsRegion"),
                "it is missing, and KEDA needs it",
                "set it to the queue's region",
            ));
        }
        if !is_set("queueLength") {
            findings.push(Finding::error(
                place("metadata.queueLength"),
                "it is 5, KEDA's default: one pod for five messages",
                "set it to \"1\", or to --max-messages",
            ));
        }
        if is_set("activationQueueLength") && value("activationQueueLength") != "0" {
            findings.push(Finding::warning(
                place("metadata.activationQueueLength"),
                format!("{} messages or fewer never start a Job", value("activationQueueLength")),
                "remove it",
            ));
        }
        findings.extend(self.pairing(&place("metadata.scaleOnInFlight"), value("scaleOnInFlight") != "false"));
        findings
    }

    /// Which strategies count messages in flight, and which must not.
    fn pairing(&self, place: &str, in_flight: bool) -> Option<Finding> {
        let strategy = &self.spec["scalingStrategy"]["strategy"];
        match (strategy.as_str(), in_flight) {
            (None | Some("default"), true) | (Some("accurate"), false) => None,
            (Some("accurate"), true) => Some(Finding::error(
                place,
                "with strategy accurate and \"true\", KEDA's default, each poll makes a Job for each message that is worked on",
                "set it to \"false\"",
            )),
            (None | Some("default"), false) => Some(Finding::error(
                place,
                "with the default strategy and \"false\" new messages wait until running Jobs have ended",
                "set scalingStrategy.strategy to accurate, with pendingPodConditions [Ready]",
            )),
            (Some("eager"), _) => Some(Finding::error(
                self.at("spec.scalingStrategy.strategy"),
                "eager makes Jobs for messages that others work on",
                "set it to accurate, with scaleOnInFlight \"false\"",
            )),
            (Some("custom"), _) => Some(Finding::unchecked(
                self.at("spec.scalingStrategy.strategy"),
                "what custom does depends on numbers of yours",
                "accurate with scaleOnInFlight \"false\" makes one Job a message",
            )),
            (Some(other), _) => Some(Finding::error(
                self.at("spec.scalingStrategy.strategy"),
                format!("KEDA has no {other:?}"),
                "set it to accurate, with scaleOnInFlight \"false\"",
            )),
        }
    }

    fn pod(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let inside = self.containers().any(|container| container["restartPolicy"].is_string());
        let place = self.at("spec.jobTargetRef.template.spec.restartPolicy");
        match self.pod["restartPolicy"].as_str() {
            Some("Never") => {}
            None => findings.push(Finding::error(
                place,
                format!(
                    "it is missing{}, so KEDA sets OnFailure: the container is started again, finds nothing, and the Job \
                     completes although the work failed",
                    if inside { " (the container's own is another field)" } else { "" }
                ),
                "set it to Never, of the pod",
            )),
            Some(other) => findings.push(Finding::error(
                place,
                format!("{other} starts the container again, which receives another message or cannot start at all"),
                "set it to Never",
            )),
        }
        if self.job["backoffLimit"].as_u64() != Some(0) {
            findings.push(Finding::warning(
                self.at("spec.jobTargetRef.backoffLimit"),
                format!(
                    "{}: a retry by the Job is a new pod that receives another message; SQS retries already",
                    self.job["backoffLimit"]
                        .as_u64()
                        .map_or_else(|| "it is 6, the default".to_owned(), |limit| format!("it is {limit}"))
                ),
                "set it to 0",
            ));
        }
        for field in ["parallelism", "completions"] {
            if self.job[field].as_u64().is_some_and(|count| count > 1) {
                findings.push(Finding::warning(
                    self.at(&format!("spec.jobTargetRef.{field}")),
                    "KEDA counts Jobs, not pods: the others find nothing",
                    "set it to 1",
                ));
            }
        }
        findings
    }

    fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        self.pod["containers"].as_array().into_iter().flatten()
    }

    /// What the container that runs leasehold is told, against what the pod and the Job are.
    fn container(&self) -> Findings {
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

    fn probes(&self, place: &str, container: &Value) -> Vec<Finding> {
        let mut findings = Vec::new();
        if container["livenessProbe"].is_object() {
            findings.push(Finding::warning(
                format!("{place}, livenessProbe"),
                "when it fails the work is killed, and the message's attempt is lost",
                "remove it: a command that hangs is what --max-duration and --stall-timeout are for",
            ));
        }
        let probe = &container["readinessProbe"];
        let path = &probe["httpGet"]["path"];
        if probe.is_object() && path.is_string() && path != "/readyz" {
            findings.push(Finding::warning(
                format!("{place}, readinessProbe"),
                format!("{path} does not tell whether a message is held"),
                "ask /readyz",
            ));
        }
        if path == "/readyz" && !self.listens(container) {
            findings.push(Finding::error(
                format!("{place}, readinessProbe"),
                "nothing answers it, so the pod never is Ready, and counts as pending as long as it runs",
                "set LEASEHOLD_LISTEN, for example to 0.0.0.0:9464",
            ));
        }
        if probe.is_object() && probe["periodSeconds"].as_u64().unwrap_or(10) > 2 {
            findings.push(Finding::warning(
                format!("{place}, readinessProbe.periodSeconds"),
                "until it is asked, a pod that holds a message counts as pending",
                "set it to 1",
            ));
        }
        if container["lifecycle"]["preStop"].is_object() {
            findings.push(Finding::warning(
                format!("{place}, lifecycle.preStop"),
                "its time is taken from terminationGracePeriodSeconds before leasehold gets TERM",
                "remove it, or lower LEASEHOLD_TERMINATION_GRACE by what it takes",
            ));
        }
        findings
    }

    fn listens(&self, container: &Value) -> bool {
        let (variables, elsewhere) = self.variables(container);
        let said = variables.contains_key("LEASEHOLD_LISTEN") || !elsewhere.is_empty();
        said || words(container).iter().any(|word| word.starts_with("--listen"))
    }

    /// The times that the pod and the Job allow, against those that leasehold was told.
    fn budgets(&self, place: &str, container: &Value, config: &RunConfig) -> Vec<Finding> {
        let mut findings = Vec::new();
        let settings = &config.work.settings;
        let stop = settings.policy.limits.stop_grace + settings.stop.reserve;
        let types = settings.policy.job_types.iter().map(|job_type| job_type.limits.stop_grace + settings.stop.reserve);
        let stop = types.fold(stop, Duration::max).max(settings.polling.longest_poll + settings.stop.reserve);
        let grace = Duration::from_secs(self.pod["terminationGracePeriodSeconds"].as_u64().unwrap_or(30));
        if stop > grace {
            findings.push(Finding::error(
                self.at("spec.jobTargetRef.template.spec.terminationGracePeriodSeconds"),
                format!("the stop is planned to take {stop:?}, and the kubelet kills after {grace:?}: the message is not released"),
                format!("set it to {} or more, or LEASEHOLD_TERMINATION_GRACE to {}s", seconds(stop), grace.as_secs()),
            ));
        } else if stop < grace {
            findings.push(Finding::warning(
                format!("{place}, LEASEHOLD_TERMINATION_GRACE"),
                format!("the stop takes {stop:?} of the {grace:?} that the pod has"),
                format!("set it to {}s, so that the command gets the rest", grace.as_secs()),
            ));
        }
        let longest = settings.policy.job_types.iter().map(|job_type| job_type.limits.max_duration);
        let longest = longest.fold(settings.policy.limits.max_duration, Duration::max).min(CEILING);
        let rounds = settings.policy.max_messages.div_ceil(u32::try_from(config.concurrency).unwrap_or(1).max(1));
        let whole = (settings.polling.wait + longest) * rounds + stop;
        for (field, deadline) in [
            ("spec.jobTargetRef.activeDeadlineSeconds", &self.job["activeDeadlineSeconds"]),
            ("spec.jobTargetRef.template.spec.activeDeadlineSeconds", &self.pod["activeDeadlineSeconds"]),
        ] {
            if let Some(deadline) = deadline.as_u64().filter(|deadline| Duration::from_secs(*deadline) < whole) {
                findings.push(Finding::error(
                    self.at(field),
                    format!("after {deadline}s the pod is stopped, although its work may take {whole:?} with the stop"),
                    format!("remove it, or set it above {}", seconds(whole)),
                ));
            }
        }
        findings.extend(self.work_dir(place, container, config));
        findings
    }

    fn work_dir(&self, place: &str, container: &Value, config: &RunConfig) -> Option<Finding> {
        let mounts = container["volumeMounts"].as_array()?;
        let holds = |mount: &&Value| {
            mount["mountPath"].as_str().is_some_and(|path| config.work.work_dir.path.starts_with(path))
        };
        let volume = &mounts.iter().find(holds)?["name"];
        let volume = self.pod["volumes"].as_array()?.iter().find(|one| one["name"] == *volume)?;
        let size = volume["emptyDir"]["sizeLimit"].as_str()?;
        let size: bytesize::ByteSize = size.parse().ok()?;
        let fits = config.work.work_dir.limit.is_some_and(|limit| limit <= size.as_u64());
        (!fits).then(|| {
            Finding::warning(
                format!("{place}, LEASEHOLD_WORK_DIR_LIMIT"),
                format!("it is not within the sizeLimit {size} of the work directory's volume, over which the pod is evicted"),
                "set it to the sizeLimit",
            )
        })
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

fn names(object: &Value) -> impl Iterator<Item = &str> {
    object.as_object().into_iter().flat_map(|object| object.keys().map(String::as_str))
}

fn nearest<'a>(name: &str, known: &[&'a str]) -> &'a str {
    let distance = |known: &&&str| strsim::damerau_levenshtein(&known.to_lowercase(), &name.to_lowercase());
    known.iter().min_by_key(distance).copied().unwrap_or_default()
}

fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
