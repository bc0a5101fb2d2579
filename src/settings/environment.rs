//! Environment variables and the host name. No other module reads them.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

#[cfg(feature = "cli")]
use super::command_line;

/// `RUST_LOG`.
pub fn log_filter() -> Option<OsString> {
    variable("RUST_LOG")
}

/// Has the variable a value?
pub fn is_set(name: &str) -> bool {
    variable(name).is_some()
}

/// The file of certificate authorities, from the variables that other AWS tools read, too.
pub fn ca_bundle() -> Option<PathBuf> {
    ["AWS_CA_BUNDLE", "SSL_CERT_FILE"].into_iter().find_map(variable).map(PathBuf::from)
}

/// The system's folder for temporary files.
pub fn temp_dir() -> PathBuf {
    variable("TMPDIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from)
}

/// The variables that AWS tools read.
pub fn aws() -> Vec<(String, OsString)> {
    all().filter(|(name, _)| name.starts_with("AWS_") || name == "HOME").collect()
}

/// Starts this program again, in the same process, without the `AWS_` variables that are empty.
/// Many charts leave a variable empty when its value is missing, and other AWS tools treat it as
/// unset; the SDK for Rust does not. It reads the environment itself, which cannot be changed
/// safely once threads run.
pub fn without_empty_aws_variables() -> Result<(), String> {
    let (empty, others): (Vec<_>, Vec<_>) = variables()
        .partition(|(name, value)| name.as_bytes().starts_with(b"AWS_") && value.is_empty());
    let Some((first, _)) = empty.first() else { return Ok(()) };
    let again = || -> io::Result<Infallible> {
        let text = |text: &OsStr| CString::new(text.as_bytes());
        let program = std::env::current_exe()?;
        let words = std::env::args_os().map(|word| text(&word)).collect::<Result<Vec<_>, _>>()?;
        let set = |(name, value): &(OsString, OsString)| {
            CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())
        };
        let variables = others.iter().map(set).collect::<Result<Vec<_>, _>>()?;
        Ok(nix::unistd::execve(&text(program.as_os_str())?, &words, &variables)?)
    };
    let Err(why) = again();
    Err(format!("{} is empty, and could not be unset: {why}", first.display()))
}

#[expect(clippy::disallowed_methods, reason = "only this module reads the environment")]
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

pub(super) fn all() -> impl Iterator<Item = (String, OsString)> {
    variables().filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
}

#[expect(clippy::disallowed_methods, reason = "only this module reads the environment")]
fn variables() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os()
}

/// The error for the first unknown `LEASEHOLD_` variable: an ignored typo would be hard to find.
#[cfg(feature = "cli")]
pub(super) fn unknown_variable(names: impl Iterator<Item = String>) -> Option<String> {
    let ours: Vec<String> = names.filter(|name| is_ours(name)).collect();
    if ours.is_empty() {
        return None;
    }
    let known: Vec<String> = command_line::command()
        .get_subcommands()
        .flat_map(|action| {
            action
                .get_arguments()
                .filter_map(|arg| arg.get_env()?.to_str().map(str::to_owned))
                .collect::<Vec<_>>()
        })
        .collect();
    let unknown = ours.into_iter().find(|name| !known.contains(name))?;
    let nearest = known.iter().min_by_key(|known| strsim::damerau_levenshtein(known, &unknown))?;
    Some(format!(
        "environment variable '{unknown}' is not a setting of leasehold; did you mean '{nearest}'?"
    ))
}

/// The first variable of ours whose value is not UTF-8.
pub(super) fn not_utf8() -> Option<String> {
    let is_bad = |(name, value): &(String, OsString)| is_ours(name) && value.to_str().is_none();
    all().find(is_bad).map(|(name, _)| name)
}

/// Whether the name has leasehold's prefix, known or not, and is not a Service's variable.
pub(super) fn is_ours(name: &str) -> bool {
    name.starts_with("LEASEHOLD_") && !is_service_variable(name)
}

/// Kubernetes sets such variables in every pod of a namespace with a Service called `leasehold` or
/// `leasehold-…`.
fn is_service_variable(name: &str) -> bool {
    let of_a_port = |rest: &str| {
        let mut parts = rest.split('_');
        parts
            .next()
            .is_some_and(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
            && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
            && matches!(parts.next(), None | Some("PROTO" | "PORT" | "ADDR"))
    };
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.rsplit_once("_PORT_").is_some_and(|(_, rest)| of_a_port(rest))
        // LEASEHOLD_PORT_80_TCP_PORT ends in a second _PORT.
        || name.strip_suffix("_PORT").and_then(|name| name.rsplit_once("_PORT_")).is_some_and(|(_, rest)| of_a_port(rest))
}

/// The host name; in Kubernetes it is the pod's name.
pub fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_variable_is_refused_with_the_nearest_name() {
        let complaint = |name: &str| unknown_variable([name.to_owned()].into_iter());
        assert!(
            complaint("LEASEHOLD_MAX_DURATON")
                .unwrap()
                .contains("did you mean 'LEASEHOLD_MAX_DURATION'?")
        );
        assert_eq!(complaint("LEASEHOLD_MAX_DURATION"), None);
        assert_eq!(complaint("PATH"), None);
    }

    #[test]
    fn the_variables_of_a_service_are_not_ours() {
        for name in [
            "LEASEHOLD_SERVICE_HOST",
            "LEASEHOLD_PUSHGATEWAY_SERVICE_HOST",
            "LEASEHOLD_PUSHGATEWAY_SERVICE_PORT_HTTP",
            "LEASEHOLD_PUSHGATEWAY_PORT",
            "LEASEHOLD_PUSHGATEWAY_PORT_9091_TCP",
            "LEASEHOLD_PUSHGATEWAY_PORT_9091_TCP_ADDR",
            "LEASEHOLD_PUSHGATEWAY_PORT_9091_TCP_PORT",
        ] {
            assert!(is_service_variable(name), "{name}");
        }
        assert!(!is_service_variable("LEASEHOLD_EXPORT_TCP"));
    }
}
