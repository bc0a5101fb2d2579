//! `leasehold check`.

use std::io::{self, Read, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anstream::{AutoStream, ColorChoice};

use super::exit::{MISCONFIGURED, print};
use super::runtime::block_on;
use crate::check::manifest::{Manifest, Schema};
use crate::check::report::{Text, sarif};
use crate::check::{self, Finding, Findings, Rule, Severity, StopTimeline};
use crate::settings::errors::as_given;
use crate::settings::resolve::RunConfig;
use crate::settings::{CheckFormat, CheckSettings, RunSettings, environment};
use crate::wiring::machine::{check_machine, check_threads};

/// The largest file that is read: the manifests of a whole cluster are smaller.
const LONGEST: u64 = 64 * 1024 * 1024;

/// Prints the findings; the exit code depends on the worst of them.
pub fn check(args: CheckSettings, runs_commands: bool) -> Result<ExitCode, String> {
    check_threads()?;
    let CheckSettings { manifest, crd, ignore, explain, format, strict, run } = args;
    if let Some(explain) = explain {
        print(stdout(), explain.to_string().trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    let mut findings = Findings::default();
    if let Some(path) = manifest {
        let schema = match crd {
            Some(crd) => Schema::of_cluster(&read(&crd, "--crd")?)
                .map_err(|error| format!("--crd {}: {error}", crd.display()))?,
            None => Schema::default(),
        };
        let text = read(&path, "--manifest")?;
        let file =
            if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() };
        let manifest = Manifest::parse(&file, &text, schema)
            .map_err(|error| format!("--manifest {file}: {error}"))?;
        findings.add(manifest.findings());
    }
    if run.queue_url.is_some() {
        findings.add(check_flags(run, runs_commands)?);
    }
    findings.ignore(&ignore);
    let text = match format {
        CheckFormat::Text => {
            let is_coloured = AutoStream::choice(&stdout()) != ColorChoice::Never;
            Text { findings: &findings, is_coloured }.to_string()
        }
        CheckFormat::Json => serde_json::to_string(&findings).expect("findings are JSON"),
        CheckFormat::Sarif => sarif(&findings).to_string(),
    };
    print(stdout(), &text);
    Ok(ExitCode::from(if findings.count(Severity::Error) > 0 {
        MISCONFIGURED
    } else {
        u8::from(strict && findings.count(Severity::Warning) > 0)
    }))
}

/// Reads the file that a flag names; `-` is standard input.
fn read(path: &Path, flag: &str) -> Result<String, String> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin().take(LONGEST + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_string(&mut text))
    };
    match read {
        Ok(length) if length as u64 > LONGEST => {
            Err(format!("{flag} {}: longer than {LONGEST} bytes", path.display()))
        }
        Ok(_) => Ok(text),
        Err(error) => Err(format!("{flag} {}: {error}", path.display())),
    }
}

/// Findings about the flags, this machine, and the queue and buckets that a run would use.
fn check_flags(mut run: RunSettings, runs_commands: bool) -> Result<Findings, String> {
    // The other settings can be checked without a command.
    let has_command =
        runs_commands && (!run.work.task.command.is_empty() || run.work.job_types.is_some());
    if !has_command {
        run.work.task.command.push("command".into());
    }
    let config = match RunConfig::try_from(run) {
        Ok(config) => config,
        Err(error) => {
            return Ok(vec![Finding::new(
                Rule::SettingsRefused,
                "the flags",
                as_given(&error.to_string()),
                "correct it",
            )]
            .into());
        }
    };
    let mut found = check::settings::findings(&|flag| format!("the flags, {flag}").into(), &config);
    if let Err(why) = check_machine(&config.work, has_command) {
        found.push(Finding::new(Rule::Machine, "this machine", why, "correct it"));
    }
    let variables = environment::aws();
    let live = check::live::findings(&config, environment::ca_bundle(), &variables);
    found.extend(block_on(|_| live, Duration::ZERO)?);
    Ok(Findings { findings: found, stops: vec![StopTimeline::of("the stop", &config)] })
}
