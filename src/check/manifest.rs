//! Kubernetes objects: what KEDA and Kubernetes take without a word, and what it does.
//!
//! `fields` are those that KEDA knows; `scaling`, `pod` and `container` say what is in them that does harm.

mod container;
mod fields;
mod pod;
mod scaling;

use serde_json::Value;

use super::{Finding, Findings};

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
        all.add(fields::findings(self).into());
        all.add(self.scaling().into());
        all.add(self.triggers().into());
        all.add(self.pod().into());
        all.add(self.container());
        all
    }

    fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        self.pod["containers"].as_array().into_iter().flatten()
    }
}

fn names(object: &Value) -> impl Iterator<Item = &str> {
    object.as_object().into_iter().flat_map(|object| object.keys().map(String::as_str))
}
