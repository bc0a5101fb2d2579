//! Kubernetes objects: finds the mistakes that KEDA and Kubernetes accept silently.
//!
//! `schema` and `fields` have the fields that KEDA knows; `scaling`, `trigger`, `pod` and
//! `container` find harmful values. `environment`, `start`, `shell` and `files` evaluate a
//! container's configuration in the way of Kubernetes and a shell.

mod container;
mod environment;
mod fields;
mod files;
mod lines;
mod pod;
mod probes;
mod program;
mod scaling;
mod schema;
mod shell;
mod start;
mod trigger;

use serde_json::Value;

pub use self::lines::Lines;
pub use self::schema::Schema;
use super::{Finding, Findings, Location, Rule, Severity};

/// A file of objects, and the schema to check them with.
#[derive(Debug, Default)]
pub struct Manifest {
    /// The name of the file.
    pub file: String,
    pub objects: Vec<Value>,
    /// The lines of each object, if they are known.
    pub lines: Vec<Lines>,
    pub schema: Schema,
}

impl Manifest {
    /// Reads YAML documents; empty ones are left out.
    pub fn parse(file: &str, text: &str, schema: Schema) -> Result<Self, String> {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(text).map_err(|error| error.to_string())?;
        // Best effort: findings without a line are useful, too.
        let lines: Vec<Lines> = serde_saphyr::from_multiple(text).unwrap_or_default();
        let mut manifest =
            Self { file: file.to_owned(), objects: Vec::new(), lines: Vec::new(), schema };
        let is_complete = lines.len() == documents.len();
        for (number, document) in documents.into_iter().enumerate() {
            let lines = lines.get(number).filter(|_| is_complete);
            manifest.unfold(document, lines.cloned().unwrap_or_default());
        }
        Ok(manifest)
    }

    /// A list (`List`, `ScaledJobList`) contains objects or lists.
    fn unfold(&mut self, mut document: Value, lines: Lines) {
        let is_list = document["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
        if is_list && document["items"].is_array() {
            let Value::Array(items) = document["items"].take() else { return };
            for (number, item) in items.into_iter().enumerate() {
                self.unfold(item, lines.item(number));
            }
        } else if document.is_object() {
            self.objects.push(document);
            self.lines.push(lines);
        }
    }

    /// The line of a field of one of the objects.
    fn line(&self, object: &Value, path: &str) -> Option<u64> {
        let number = self.objects.iter().position(|one| std::ptr::eq(one, object))?;
        self.lines.get(number)?.of(path)
    }

    /// Findings about the ScaledJobs.
    pub fn findings(&self) -> Findings {
        let mut all = self.check_objects();
        for finding in &mut all.findings {
            finding.file = Some(self.file.clone());
        }
        all
    }

    fn check_objects(&self) -> Findings {
        let scaled_jobs: Vec<_> =
            self.objects.iter().filter(|object| object["kind"] == "ScaledJob").collect();
        if scaled_jobs.is_empty() {
            let change = "pass the rendered objects, for example the output of kubectl kustomize";
            return vec![Finding::new(
                Rule::NoScaledJob,
                "the file",
                "it has no ScaledJob",
                change,
            )]
            .into();
        }
        let mut all = Findings::from(
            self.objects.iter().flat_map(|object| self.non_strings(object)).collect::<Vec<_>>(),
        );
        let mut counted: Vec<(String, String)> = Vec::new();
        for object in scaled_jobs {
            let scaled_job = ScaledJob::new(object, self);
            if let Some(version) =
                object["apiVersion"].as_str().filter(|version| *version != "keda.sh/v1alpha1")
            {
                let (place, what) =
                    (scaled_job.at("apiVersion"), format!("KEDA ignores {version}"));
                all.add(
                    vec![Finding::new(Rule::ApiVersion, place, what, "set it to keda.sh/v1alpha1")]
                        .into(),
                );
            }
            let (container, findings) = scaled_job.container();
            all.add(findings);
            all.add(container.iter().flat_map(probes::findings).collect::<Vec<_>>().into());
            all.add(scaled_job.findings(container.as_ref()).into());
            let Some(queue) = container.as_ref().and_then(container::Container::queue_url) else {
                continue;
            };
            if let Some((other, _)) = counted.iter().find(|(_, counted)| counted == queue) {
                let what = format!(
                    "ScaledJob {other} has the same queue: both create a Job for each message, and one of the two pods finds no message"
                );
                let place = scaled_job.at("spec.triggers");
                all.add(
                    vec![Finding::new(Rule::SharedQueue, place, what, "remove one of them")].into(),
                );
            }
            counted.push((scaled_job.name.clone(), queue.to_owned()));
        }
        all
    }
}

struct ScaledJob<'a> {
    name: String,
    object: &'a Value,
    spec: &'a Value,
    job: &'a Value,
    pod: &'a Value,
    metadata: &'a Value,
    namespace: Option<&'a str>,
    manifest: &'a Manifest,
}

impl<'a> ScaledJob<'a> {
    fn new(object: &'a Value, manifest: &'a Manifest) -> Self {
        let name = object["metadata"]["name"].as_str().unwrap_or("without a name").to_owned();
        let spec = &object["spec"];
        let job = &spec["jobTargetRef"];
        let metadata = &object["metadata"];
        Self {
            name,
            object,
            spec,
            job,
            pod: &job["template"]["spec"],
            metadata,
            namespace: metadata["namespace"].as_str(),
            manifest,
        }
    }

    fn at(&self, field: &str) -> Location {
        let name = format!("ScaledJob {}, {field}", self.name);
        Location { name, line: self.manifest.line(self.object, field) }
    }

    /// The path of one of the pod's containers.
    fn path_of(&self, container: &Value) -> ContainerPath<'a> {
        let all = ["containers", "initContainers"].into_iter().flat_map(|list| {
            self.pod[list]
                .as_array()
                .into_iter()
                .flatten()
                .enumerate()
                .map(move |(number, one)| (list, number, one))
        });
        let found = { all }.find(|(_, _, one)| std::ptr::eq(*one, container));
        let path = found
            .map(|(list, number, _)| format!("spec.jobTargetRef.template.spec.{list}[{number}]"));
        let name = container["name"].as_str().unwrap_or("without a name");
        let name = format!("ScaledJob {}, container {name}", self.name);
        ContainerPath {
            name,
            path: path.unwrap_or_default(),
            object: self.object,
            manifest: self.manifest,
        }
    }

    /// All findings, except for those about how the container runs leasehold.
    fn findings(&self, container: Option<&container::Container>) -> Vec<Finding> {
        let second_containers =
            container.map(|container| self.second_containers(container)).unwrap_or_default();
        [
            fields::findings(self),
            self.scaling(),
            self.triggers(container),
            self.pod(),
            self.volumes(),
            self.undeclared_volumes(),
            second_containers,
        ]
        .concat()
    }

    fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        self.pod["containers"].as_array().into_iter().flatten()
    }
}

/// The name and the location of a container.
struct ContainerPath<'a> {
    name: String,
    path: String,
    object: &'a Value,
    manifest: &'a Manifest,
}

impl ContainerPath<'_> {
    fn whole(&self) -> Location {
        Location { name: self.name.clone(), line: self.manifest.line(self.object, &self.path) }
    }

    fn at(&self, field: &str) -> Location {
        let line = self.manifest.line(self.object, &format!("{}.{field}", self.path));
        Location { name: format!("{}, {field}", self.name), line }
    }
}

fn names(object: &Value) -> impl Iterator<Item = &str> {
    object.as_object().into_iter().flat_map(|object| object.keys().map(String::as_str))
}
