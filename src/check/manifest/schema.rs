//! The schema of a ScaledJob: our own, or a cluster's.

use std::sync::{Arc, LazyLock};

use serde_json::Value;

/// Our own schema; it names its KEDA version.
static OWN: LazyLock<Arc<Value>> = LazyLock::new(|| {
    Arc::new(
        serde_json::from_str(include_str!("../keda-scaledjob.schema.json"))
            .expect("our own schema is JSON"),
    )
});

/// In the dialect of a CustomResourceDefinition: `properties`, `items`, `additionalProperties`,
/// `type`, `enum`, `minimum`.
#[derive(Debug, Clone)]
pub struct Schema {
    root: Arc<Value>,
    /// The schema is the cluster's, so that it has all fields.
    pub is_of_cluster: bool,
}

impl Default for Schema {
    fn default() -> Self {
        Self { root: OWN.clone(), is_of_cluster: false }
    }
}

impl Schema {
    /// The schema of a CustomResourceDefinition, as printed by `kubectl get crd scaledjobs.keda.sh
    /// -o yaml`. The text may contain other objects, too.
    pub fn of_cluster(text: &str) -> Result<Self, String> {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(text).map_err(|error| error.to_string())?;
        let lists = documents.iter().filter_map(|document| document["items"].as_array()).flatten();
        let crd = documents
            .iter()
            .chain(lists)
            .find(|object| object["metadata"]["name"] == "scaledjobs.keda.sh");
        let crd = crd.ok_or("it has no CustomResourceDefinition scaledjobs.keda.sh")?;
        let versions = crd["spec"]["versions"].as_array().into_iter().flatten();
        let version = versions.into_iter().find(|version| version["name"] == "v1alpha1");
        let root = version.map(|version| &version["schema"]["openAPIV3Schema"]);
        let root = root.filter(|root| root["properties"]["spec"]["properties"].is_object());
        let mut root = root.ok_or("its version v1alpha1 has no schema")?.clone();
        // KEDA's manifests and its chart set this label (Kubernetes, "Recommended Labels").
        root["x-keda-version"] = crd["metadata"]["labels"]["app.kubernetes.io/version"].clone();
        Ok(Self { root: Arc::new(root), is_of_cluster: true })
    }

    pub fn root(&self) -> &Value {
        &self.root
    }

    /// KEDA's version, empty if it is unknown.
    pub fn version(&self) -> &str {
        self.root["x-keda-version"].as_str().unwrap_or_default()
    }

    /// KEDA's version as two numbers.
    pub fn major_and_minor(&self) -> Option<(u32, u32)> {
        let mut parts =
            self.version().trim_start_matches('v').split('.').map(|part| part.parse().ok());
        Some((parts.next()??, parts.next()??))
    }

    /// The schema of an `aws-sqs-queue` trigger's metadata; only our own schema has it.
    pub fn trigger_metadata(&self) -> &Value {
        &self.root["x-trigger-metadata"]["aws-sqs-queue"]
    }
}
