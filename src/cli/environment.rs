//! The environment, and who we are. Nobody else reads them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::CommandFactory;

use super::Cli;

/// `RUST_LOG`, or what a pod's log should hold: not the spans that ractor opens around each of its handlers.
pub fn log_filter() -> String {
    variable("RUST_LOG").and_then(|filter| filter.into_string().ok()).unwrap_or_else(|| "info,ractor=error".to_owned())
}

/// The file of certificate authorities that other AWS tools would use, if one is set.
pub fn ca_bundle() -> Option<PathBuf> {
    ["AWS_CA_BUNDLE", "SSL_CERT_FILE"].into_iter().find_map(variable).map(PathBuf::from)
}

fn variable(name: &str) -> Option<OsString> {
    all().find_map(|(variable, value)| (variable == name && !value.is_empty()).then_some(value))
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
pub(super) fn all() -> impl Iterator<Item = (String, OsString)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
}

/// A complaint about the first variable that looks like ours and is none: a silent typo costs days.
pub(super) fn unknown_variable(names: impl Iterator<Item = String>) -> Option<String> {
    let ours: Vec<String> = names.filter(|name| name.starts_with("LEASEHOLD_") && !is_service_variable(name)).collect();
    if ours.is_empty() {
        return None;
    }
    let known: Vec<String> = Cli::command()
        .get_subcommands()
        .flat_map(|action| {
            action.get_arguments().filter_map(|arg| arg.get_env()?.to_str().map(str::to_owned)).collect::<Vec<_>>()
        })
        .collect();
    let unknown = ours.into_iter().find(|name| !known.contains(name))?;
    let nearest = known.iter().min_by_key(|known| strsim::damerau_levenshtein(known, &unknown))?;
    Some(format!("environment variable '{unknown}' is no setting of leasehold: did you mean '{nearest}'?"))
}

/// Kubernetes sets such variables in every pod beside a Service called `leasehold` or `leasehold-…`.
fn is_service_variable(name: &str) -> bool {
    let of_a_port = |rest: &str| {
        let mut parts = rest.split('_');
        parts.next().is_some_and(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
            && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
            && matches!(parts.next(), None | Some("PROTO" | "PORT" | "ADDR"))
    };
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.rsplit_once("_PORT_").is_some_and(|(_, rest)| of_a_port(rest))
        // LEASEHOLD_PORT_80_TCP_PORT splits at its last _PORT, which is its end.
        || name.strip_suffix("_PORT").and_then(|name| name.rsplit_once("_PORT_")).is_some_and(|(_, rest)| of_a_port(rest))
}

/// The host's, which in Kubernetes is the pod's.
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
        assert!(complaint("LEASEHOLD_MAX_DURATON").unwrap().contains("did you mean 'LEASEHOLD_MAX_DURATION'?"));
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
