//! Sets the output of `leasehold --version`: the commit, its date and the target, if known.

use std::path::Path;
use std::process::Command;

#[expect(
    clippy::disallowed_methods,
    reason = "cargo passes its parameters to build scripts in the environment"
)]
fn main() {
    let git = |words: &[&str]| {
        let output = Command::new("git")
            .args(words)
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
            .filter(|text| !text.is_empty())
    };
    // The log of HEAD changes with the commit. Cargo would rebuild every time if the file did not
    // exist.
    if let Some(log) =
        git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).exists())
    {
        println!("cargo::rerun-if-changed={log}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=BUILD_COMMIT");
    // For an image that is built without the repository's history.
    let given = std::env::var("BUILD_COMMIT").ok().filter(|commit| !commit.is_empty());
    // A package may be unpacked inside another repository, whose commit is not the package's.
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let real = |path: &str| Path::new(path).canonicalize().ok();
    let is_ours =
        git(&["rev-parse", "--show-toplevel"]).is_some_and(|top| real(&top) == real(&here));
    let commit = given
        .or_else(|| is_ours.then(|| git(&["show", "--no-patch", "--format=%h %cs"])).flatten());
    let target = std::env::var("TARGET").expect("cargo sets it");
    let version = env!("CARGO_PKG_VERSION");
    let about = commit.map_or_else(|| target.clone(), |commit| format!("{commit}, {target}"));
    println!("cargo::rustc-env=BUILD_VERSION={version} ({about})");
}
