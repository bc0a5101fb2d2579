//! `leasehold check`.

use std::process::ExitCode;
use std::time::Duration;

use super::exit::{MISCONFIGURED, say};
use super::machine::{check_machine, check_threads};
use super::runtime::block_on;
use crate::check::{self, Finding, Findings, Severity, StopTimeline};
use crate::settings::errors::as_given;
use crate::settings::resolve::RunConfig;
use crate::settings::{CheckFormat, CheckSettings, environment};

/// Prints what is wrong; the exit code says how bad the worst is.
pub fn check(args: CheckSettings, runs_commands: bool) -> Result<ExitCode, String> {
    check_threads()?;
    let CheckSettings { manifest, format, strict, mut run } = args;
    let mut findings = Findings::default();
    if let Some(path) = manifest {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(&path).map_err(|error| format!("--manifest {file}: {error}"))?;
        let objects = check::manifest::parse(&text).map_err(|error| format!("--manifest {file}: {error}"))?;
        findings.add(check::manifest::findings(&file, &objects));
    }
    // What would be done with the messages can be looked at without what it is done by.
    let has_command = runs_commands && (!run.work.task.command.is_empty() || run.work.job_types.is_some());
    if !has_command {
        run.work.task.command.push("command".into());
    }
    if run.queue_url.is_some() {
        match RunConfig::try_from(run) {
            Ok(config) => {
                let mut found = check::settings::findings("the flags", &config);
                found.extend(
                    check_machine(&config.work, has_command)
                        .err()
                        .map(|why| Finding::error("this machine", why, "correct it")),
                );
                let variables = environment::aws();
                let live = check::live::findings(&config, environment::ca_bundle(), &variables);
                found.extend(block_on(live, Duration::ZERO)?);
                findings.add(Findings { findings: found, stops: vec![StopTimeline::of("the stop", &config)] });
            }
            Err(error) => {
                findings.add(vec![Finding::error("the flags", as_given(&error.to_string()), "correct it")].into());
            }
        }
    }
    match format {
        CheckFormat::Text => say(std::io::stdout(), &findings.to_string()),
        CheckFormat::Json => say(std::io::stdout(), &serde_json::to_string(&findings).expect("findings are JSON")),
    }
    Ok(ExitCode::from(if findings.count(Severity::Error) > 0 {
        MISCONFIGURED
    } else {
        u8::from(strict && findings.count(Severity::Warning) > 0)
    }))
}
