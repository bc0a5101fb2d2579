//! The files of a container: its mounts, and the mounted ConfigMaps in the manifest.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::ScaledJob;
use super::environment::{NO_POD, UNKNOWN, data};
use crate::check::Finding;

/// A volume that is mounted in a container.
pub struct Mount<'a> {
    pub volume: &'a Value,
    /// The mounted part of the volume.
    sub_path: &'a str,
    /// The path below the mount point.
    pub rest: PathBuf,
    pub is_read_only: bool,
}

/// A container's file, as far as the manifest shows it.
pub enum File {
    Text(String),
    /// It should be in a ConfigMap of the manifest, which has no such key.
    Missing(String),
    Elsewhere,
}

/// The kinds of volumes that are always read-only.
const NEVER_WRITABLE: [&str; 4] = ["configMap", "secret", "projected", "downwardAPI"];

impl ScaledJob<'_> {
    /// The volume that a path of a container is on.
    pub fn mount<'a>(&'a self, container: &'a Value, path: &Path) -> Option<Mount<'a>> {
        let mounts = container["volumeMounts"].as_array()?.iter();
        let of_path =
            mounts.filter_map(|mount| Some((mount, Path::new(mount["mountPath"].as_str()?))));
        let deepest = of_path
            .filter(|(_, at)| path.starts_with(at))
            .max_by_key(|(_, at)| at.components().count());
        let (mount, at) = deepest?;
        let volume = self.pod["volumes"]
            .as_array()?
            .iter()
            .find(|volume| volume["name"] == mount["name"])?;
        let rest = path.strip_prefix(at).ok()?.to_owned();
        let sub_path = mount["subPath"].as_str().unwrap_or_default();
        let is_read_only = mount["readOnly"] == true
            || NEVER_WRITABLE.iter().any(|kind| volume[*kind].is_object());
        Some(Mount { volume, sub_path, rest, is_read_only })
    }

    /// The content of a container's file, if it comes from a ConfigMap in the manifest.
    pub fn file(&self, container: &Value, path: &str) -> File {
        let Some(Mount { volume, sub_path, rest, .. }) = self.mount(container, Path::new(path))
        else {
            return File::Elsewhere;
        };
        // Joining an empty path would add a slash.
        let rest = if rest.as_os_str().is_empty() {
            PathBuf::from(sub_path)
        } else {
            Path::new(sub_path).join(rest)
        };
        let source = &volume["configMap"];
        let map = source["name"].as_str().and_then(|name| self.object("ConfigMap", name));
        let (Some(map), Some(rest)) = (map, rest.to_str()) else { return File::Elsewhere };
        let items = source["items"].as_array();
        let item = items.map(|items| {
            items.iter().find(|item| item["path"] == rest).and_then(|item| item["key"].as_str())
        });
        let key = item.unwrap_or(Some(rest));
        let text = key.and_then(|key| data(map).remove(key));
        match text {
            Some(text) if !text.contains(UNKNOWN) => File::Text(text),
            Some(_) => File::Elsewhere,
            None => {
                let name = map["metadata"]["name"].as_str().unwrap_or_default();
                File::Missing(format!("ConfigMap {name} has no {rest}"))
            }
        }
    }

    /// Findings about volumes whose ConfigMap or Secret is not in the manifest, if another one is
    /// probably meant.
    pub fn volumes(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (number, volume) in self.pod["volumes"].as_array().into_iter().flatten().enumerate() {
            let place = self.at(&format!("spec.jobTargetRef.template.spec.volumes[{number}]"));
            let references = [
                ("ConfigMap", &volume["configMap"], &volume["configMap"]["name"]),
                ("Secret", &volume["secret"], &volume["secret"]["secretName"]),
            ];
            for (kind, source, name) in references {
                let Some(name) = name.as_str().filter(|name| self.object(kind, name).is_none())
                else {
                    continue;
                };
                let missing = self.missing_object(&place, kind, name, NO_POD);
                if missing.severity == crate::check::Severity::Error && source["optional"] != true {
                    findings.push(missing);
                }
            }
        }
        findings
    }
}
