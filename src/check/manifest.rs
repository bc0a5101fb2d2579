//! Kubernetes objects: what KEDA and Kubernetes take without a word, and what it does.
//!
//! `fields` are those that KEDA knows; `scaling`, `trigger`, `pod` and `container` say what in them does harm. What a container is
//! told is read as Kubernetes and a shell would read it: `environment`, `start`, `shell`, `files`.

mod container;
mod environment;
mod fields;
mod files;
mod pod;
mod probes;
mod scaling;
mod shell;
mod start;
mod trigger;

use serde_json::Value;

use super::{Finding, Findings, Severity};

/// Reads a file of YAML documents; empty ones are left out.
pub fn parse(text: &str) -> Result<Vec<Value>, String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| error.to_string())?;
    let mut objects = Vec::new();
    for document in documents {
        unfold(document, &mut objects);
    }
    Ok(objects)
}

/// A list (`List`, `ScaledJobList`) has objects, or lists.
fn unfold(document: Value, objects: &mut Vec<Value>) {
    let is_list = document["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    if let Some(items) = document["items"].as_array().filter(|_| is_list) {
        for item in items {
            unfold(item.clone(), objects);
        }
    } else if document.is_object() {
        objects.push(document);
    }
}

/// What is wrong with the ScaledJobs among these objects. `file` is what they are called if there is none.
pub fn findings(file: &str, objects: &[Value]) -> Findings {
    let scaled_jobs: Vec<_> = objects.iter().filter(|object| object["kind"] == "ScaledJob").collect();
    if scaled_jobs.is_empty() {
        let change = "give the rendered objects, for example the output of kubectl kustomize";
        return vec![Finding::error(file, "there is no ScaledJob in it", change)].into();
    }
    let mut all = Findings::from(objects.iter().flat_map(environment::not_texts).collect::<Vec<_>>());
    let mut counted: Vec<(String, String)> = Vec::new();
    for object in scaled_jobs {
        let scaled_job = ScaledJob::new(object, objects);
        if let Some(version) = object["apiVersion"].as_str().filter(|version| *version != "keda.sh/v1alpha1") {
            let what = format!("KEDA does not read {version}");
            all.add(vec![Finding::error(scaled_job.at("apiVersion"), what, "set it to keda.sh/v1alpha1")].into());
        }
        let (container, findings) = scaled_job.container();
        all.add(findings);
        all.add(container.iter().flat_map(probes::findings).collect::<Vec<_>>().into());
        all.add(scaled_job.findings(container.as_ref()).into());
        let Some(queue) = container.as_ref().and_then(container::Container::queue_url) else { continue };
        if let Some((other, _)) = counted.iter().find(|(_, counted)| counted == queue) {
            let what = format!(
                "ScaledJob {other} has the same queue: for each message both start a Job, and one finds nothing"
            );
            all.add(vec![Finding::warning(scaled_job.at("spec.triggers"), what, "remove one of them")].into());
        }
        counted.push((scaled_job.name.clone(), queue.to_owned()));
    }
    all
}

struct ScaledJob<'a> {
    name: String,
    spec: &'a Value,
    job: &'a Value,
    pod: &'a Value,
    metadata: &'a Value,
    namespace: Option<&'a str>,
    others: &'a [Value],
}

impl<'a> ScaledJob<'a> {
    fn new(object: &'a Value, others: &'a [Value]) -> Self {
        let name = object["metadata"]["name"].as_str().unwrap_or("without a name").to_owned();
        let spec = &object["spec"];
        let job = &spec["jobTargetRef"];
        let metadata = &object["metadata"];
        Self {
            name,
            spec,
            job,
            pod: &job["template"]["spec"],
            metadata,
            namespace: metadata["namespace"].as_str(),
            others,
        }
    }

    fn at(&self, field: &str) -> String {
        format!("ScaledJob {}, {field}", self.name)
    }

    /// What is wrong besides how its container runs leasehold.
    fn findings(&self, container: Option<&container::Container>) -> Vec<Finding> {
        let beside = container.map(|container| self.beside(container)).unwrap_or_default();
        [fields::findings(self), self.scaling(), self.triggers(container), self.pod(), self.volumes(), beside].concat()
    }

    fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        self.pod["containers"].as_array().into_iter().flatten()
    }
}

fn names(object: &Value) -> impl Iterator<Item = &str> {
    object.as_object().into_iter().flat_map(|object| object.keys().map(String::as_str))
}
