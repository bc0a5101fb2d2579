//! Checks the settings in the environment and in the profile before the first request.
//!
//! The SDK reports a bad setting only at the first request, which uses up a receive of a message,
//! or it panics: at a control character in a header, or at an unknown retry mode.

use std::ffi::OsString;
use std::net::IpAddr;
use std::str::FromStr;

use aws_config::SdkConfig;
use aws_config::profile::{self, ProfileSet};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::checksum_config::{RequestChecksumCalculation, ResponseChecksumValidation};
use aws_smithy_types::retry::RetryMode;
use aws_types::os_shim_internal::{Env, Fs};

use super::{LoadError, addressing_style, causes, custom_endpoint};
use crate::adapters::url::{host_of, is_url};

/// The kind of value that a setting takes.
#[derive(Clone, Copy)]
enum ValueKind {
    Region,
    /// A value for a header; never shown.
    Credential,
    Attempts,
    RetryMode,
    RequestChecksums,
    ResponseChecksums,
    Addressing,
    /// A server; never shown. The SDK logs a value that it cannot parse, so a value with a password
    /// must not reach it.
    Endpoint,
    /// The same, with a path and maybe a query. The SDK panics at one without a scheme.
    Address,
    Text,
}

/// The variable, its key in a profile if it has one, and its kind.
const SETTINGS: [(&str, Option<&str>, ValueKind); 26] = [
    ("AWS_REGION", Some("region"), ValueKind::Region),
    ("AWS_DEFAULT_REGION", None, ValueKind::Region),
    ("AWS_ACCESS_KEY_ID", Some("aws_access_key_id"), ValueKind::Credential),
    ("AWS_SECRET_ACCESS_KEY", Some("aws_secret_access_key"), ValueKind::Credential),
    ("AWS_SESSION_TOKEN", Some("aws_session_token"), ValueKind::Credential),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN", None, ValueKind::Text),
    ("AWS_MAX_ATTEMPTS", Some("max_attempts"), ValueKind::Attempts),
    ("AWS_RETRY_MODE", Some("retry_mode"), ValueKind::RetryMode),
    (
        "AWS_REQUEST_CHECKSUM_CALCULATION",
        Some("request_checksum_calculation"),
        ValueKind::RequestChecksums,
    ),
    (
        "AWS_RESPONSE_CHECKSUM_VALIDATION",
        Some("response_checksum_validation"),
        ValueKind::ResponseChecksums,
    ),
    ("AWS_S3_ADDRESSING_STYLE", None, ValueKind::Addressing),
    ("AWS_PROFILE", None, ValueKind::Text),
    ("AWS_CONFIG_FILE", None, ValueKind::Text),
    ("AWS_SHARED_CREDENTIALS_FILE", None, ValueKind::Text),
    ("AWS_CA_BUNDLE", None, ValueKind::Text),
    ("AWS_ENDPOINT_URL", Some("endpoint_url"), ValueKind::Endpoint),
    ("AWS_ENDPOINT_URL_SQS", None, ValueKind::Endpoint),
    ("AWS_ENDPOINT_URL_S3", None, ValueKind::Endpoint),
    ("AWS_ENDPOINT_URL_STS", None, ValueKind::Endpoint),
    (
        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        Some("ec2_metadata_service_endpoint"),
        ValueKind::Endpoint,
    ),
    ("AWS_ROLE_ARN", Some("role_arn"), ValueKind::Text),
    ("AWS_ROLE_SESSION_NAME", Some("role_session_name"), ValueKind::Text),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", Some("web_identity_token_file"), ValueKind::Text),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", None, ValueKind::Address),
    ("AWS_EXECUTION_ENV", None, ValueKind::Text),
    ("AWS_SDK_UA_APP_ID", Some("sdk_ua_app_id"), ValueKind::Text),
];

/// Refuses the first of these variables, or of the profile's settings, that is not valid. An empty
/// variable counts as unset.
pub(super) async fn check(variables: &[(String, OsString)]) -> Result<(), LoadError> {
    let refuse = |name: String, why: String| Err(LoadError::Setting { name, why });
    for (name, value) in variables.iter().filter(|(_, value)| !value.is_empty()) {
        let Some((.., kind)) = SETTINGS.iter().find(|(variable, ..)| variable == name) else {
            continue;
        };
        let Some(value) = value.to_str() else {
            return refuse(name.clone(), "is not UTF-8".to_owned());
        };
        if let Some(why) = kind.problem(value) {
            return refuse(name.clone(), why);
        }
    }
    // The SDK ignores unreadable files, too.
    profiles(variables, None).await.map_or(Ok(()), |profiles| check_values(&profiles))
}

/// Refuses the profile of `--s3-profile` if it does not exist or has a setting that is not valid;
/// returns its region.
pub(super) async fn check_profile(
    variables: &[(String, OsString)],
    profile: &str,
) -> Result<Option<String>, LoadError> {
    let refuse = |why: String| Err(LoadError::Setting { name: "--s3-profile".to_owned(), why });
    let profiles = match profiles(variables, Some(profile)).await {
        Ok(profiles) => profiles,
        Err(why) => {
            return refuse(format!("is {profile:?}, but the profiles cannot be read: {why}"));
        }
    };
    if profiles.get_profile(profile).is_none() {
        let file = |variable: &str, usual: &str| {
            let set = variables.iter().find(|(name, path)| name == variable && !path.is_empty());
            set.map_or(usual.to_owned(), |(_, path)| path.to_string_lossy().into_owned())
        };
        let mut names: Vec<_> = profiles.profiles().map(|name| format!("{name:?}")).collect();
        names.sort();
        let names = if names.is_empty() {
            "they have no profile".to_owned()
        } else {
            format!("their profiles are {}", names.join(", "))
        };
        return refuse(format!(
            "is {profile:?}, but neither {} nor {} has this profile; {names}",
            file("AWS_CONFIG_FILE", "~/.aws/config"),
            file("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        ));
    }
    check_values(&profiles)?;
    Ok(profiles.get("region").map(str::to_owned))
}

/// Refuses the first setting of the selected profile that is not valid.
fn check_values(profiles: &ProfileSet) -> Result<(), LoadError> {
    for (_, key, kind) in &SETTINGS {
        let Some((key, value)) = key.and_then(|key| Some((key, profiles.get(key)?))) else {
            continue;
        };
        if let Some(why) = kind.problem(value) {
            let name = format!("{key} of the profile {:?}", profiles.selected_profile());
            return Err(LoadError::Setting { name, why });
        }
    }
    Ok(())
}

/// The shared configuration and credentials files; `profile` is selected instead of that of the
/// environment.
async fn profiles(
    variables: &[(String, OsString)],
    profile: Option<&str>,
) -> Result<ProfileSet, String> {
    let set = variables.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str()?)));
    let set: Vec<_> = set.filter(|(_, value)| !value.is_empty()).collect();
    #[expect(
        deprecated,
        reason = "its replacement is in aws-runtime, which we need for nothing else"
    )]
    let files = profile::profile_file::ProfileFiles::default();
    let selected = profile.map(|name| name.to_owned().into());
    let loaded = profile::load(&Fs::real(), &Env::from_slice(&set), &files, selected).await;
    loaded.map_err(|error| causes(&error))
}

impl ValueKind {
    /// Why a value is not valid, and which values are.
    fn problem(self, value: &str) -> Option<String> {
        let is = |expected: &str| Some(format!("is {value:?}; it must be {expected}"));
        match self {
            Self::Region if !is_region(value) => is("the name of a region, such as eu-west-1"),
            // Headers are ASCII.
            Self::Credential if !value.bytes().all(|byte| byte.is_ascii_graphic()) => {
                let why = "contains a line break, a blank or another character that is not valid in a credential (does it come from a file that ends with a line break?)";
                Some(why.to_owned())
            }
            // The SDK counts up to this number before the first request.
            Self::Attempts
                if !value.parse().is_ok_and(|attempts: u32| (1..=100).contains(&attempts)) =>
            {
                is("a number from 1 to 100")
            }
            Self::RetryMode if RetryMode::from_str(value).is_err() => is("standard or adaptive"),
            Self::RequestChecksums if RequestChecksumCalculation::from_str(value).is_err() => {
                is("when_supported or when_required")
            }
            Self::ResponseChecksums if ResponseChecksumValidation::from_str(value).is_err() => {
                is("when_supported or when_required")
            }
            Self::Addressing
                if !["auto", "path", "virtual"].contains(&value.trim().to_lowercase().as_str()) =>
            {
                is("auto, path or virtual")
            }
            Self::Endpoint if !is_url(value) || !is_endpoint(value) => {
                let why = "is not the URL of a server; write for example http://localhost:4566, without a user, a password or a query";
                Some(why.to_owned())
            }
            Self::Address if !is_address(value) => {
                let why = "is not a URL; write for example http://localhost:8080/credentials, without a user or a password";
                Some(why.to_owned())
            }
            Self::Text if value.chars().any(char::is_control) => {
                Some("contains a control character".to_owned())
            }
            Self::Region
            | Self::Credential
            | Self::Attempts
            | Self::RetryMode
            | Self::RequestChecksums
            | Self::ResponseChecksums
            | Self::Addressing
            | Self::Endpoint
            | Self::Address
            | Self::Text => None,
        }
    }
}

/// A region becomes a part of a host name and of a signature.
pub(super) fn is_region(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    name.len() <= 63
        && name.bytes().all(is_inner)
        && !name.is_empty()
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// A URL to which request paths can be appended: its port is a number, and it ends with its path.
pub(super) fn is_endpoint(url: &str) -> bool {
    let Some(host) = host_of(url) else { return false };
    let port = match host.strip_prefix('[') {
        // An IPv6 address.
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else { return false };
            if address.parse::<IpAddr>().is_err() {
                return false;
            }
            port
        }
        None => host.find(':').map_or("", |colon| &host[colon..]),
    };
    let path =
        url.split_once("://").and_then(|(_, rest)| rest.strip_prefix(host)).unwrap_or_default();
    let is_port =
        port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    is_port && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte))
}

/// A URL that can be requested, without anything that looks like the end of a password.
fn is_address(url: &str) -> bool {
    let is_readable = HttpRequest::new(SdkBody::empty()).set_uri(url).is_ok();
    is_url(url) && is_readable && !["@", "%40", "#"].iter().any(|part| url.contains(part))
}

/// A bucket cannot be in the host name if the endpoint is an IP address.
pub(super) fn check_addressing(config: &SdkConfig) -> Result<(), LoadError> {
    let style = addressing_style(config);
    if let Some(why) = style.as_deref().and_then(|style| ValueKind::Addressing.problem(style)) {
        return Err(LoadError::Setting {
            name: "addressing_style of the profile's section s3".to_owned(),
            why,
        });
    }
    let Some(endpoint) = custom_endpoint(config, "S3") else { return Ok(()) };
    let host = host_of(&endpoint).unwrap_or_default();
    let host = host
        .rsplit_once(':')
        .map_or(host, |(host, _)| host)
        .trim_start_matches('[')
        .trim_end_matches(']');
    if style.as_deref() == Some("virtual") && host.parse::<IpAddr>().is_ok() {
        let name =
            "AWS_S3_ADDRESSING_STYLE, or addressing_style of the profile's section s3,".to_owned();
        let why = format!(
            "is virtual, but the S3 endpoint is the IP address {host}: set it to path or auto, since there are no bucket host names"
        );
        return Err(LoadError::Setting { name, why });
    }
    Ok(())
}

/// The SDK cannot derive a FIPS or dualstack host from a custom endpoint.
pub(super) fn check_variants(config: &SdkConfig) -> Result<(), LoadError> {
    let variants = [
        ("AWS_USE_FIPS_ENDPOINT", config.use_fips()),
        ("AWS_USE_DUALSTACK_ENDPOINT", config.use_dual_stack()),
    ];
    for (name, _) in variants.into_iter().filter(|(_, is_on)| *is_on == Some(true)) {
        for service in ["SQS", "S3"] {
            if custom_endpoint(config, service).is_some() {
                let why = format!(
                    "is true, but AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_{service} names an endpoint: unset one of the two"
                );
                return Err(LoadError::Setting { name: name.to_owned(), why });
            }
        }
    }
    Ok(())
}

/// Why a part of credentials is not valid in a header.
pub(super) fn credential_problem(part: &str) -> Option<String> {
    ValueKind::Credential.problem(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn problem(variables: &[(&str, &str)]) -> Option<String> {
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), OsString::from(value)))
            .collect();
        check(&variables).await.err().map(|error| error.to_string())
    }

    #[tokio::test]
    async fn an_invalid_variable_is_named() {
        for (name, value, why) in [
            (
                "AWS_REGION",
                "us-east-1\n",
                "is \"us-east-1\\n\"; it must be the name of a region, such as eu-west-1",
            ),
            ("AWS_DEFAULT_REGION", "us east", "it must be the name of a region"),
            ("AWS_RETRY_MODE", "legacy", "is \"legacy\"; it must be standard or adaptive"),
            ("AWS_MAX_ATTEMPTS", "0", "is \"0\"; it must be a number from 1 to 100"),
            ("AWS_MAX_ATTEMPTS", "many", "it must be a number from 1 to 100"),
            ("AWS_MAX_ATTEMPTS", "2147483647", "it must be a number from 1 to 100"),
            ("AWS_ACCESS_KEY_ID", "AKIA\n", "contains a line break, a blank or another character"),
            (
                "AWS_SECRET_ACCESS_KEY",
                "secret ",
                "contains a line break, a blank or another character",
            ),
            ("AWS_SESSION_TOKEN", "töken", "contains a line break, a blank or another character"),
            (
                "AWS_REQUEST_CHECKSUM_CALCULATION",
                "never",
                "it must be when_supported or when_required",
            ),
            (
                "AWS_RESPONSE_CHECKSUM_VALIDATION",
                "never",
                "it must be when_supported or when_required",
            ),
            ("AWS_S3_ADDRESSING_STYLE", "host", "it must be auto, path or virtual"),
            ("AWS_ENDPOINT_URL_S3", "http://a\r", "is not the URL of a server"),
            ("AWS_EXECUTION_ENV", "a\0b", "contains a control character"),
        ] {
            let text = problem(&[("PATH", "/bin\n"), (name, value)]).await.unwrap_or_default();
            assert!(
                text.starts_with(&format!("{name} ")) && text.contains(why),
                "{name}={value:?}: {text}"
            );
            assert!(!text.contains("AKIA") && !text.contains("secret"), "{text}");
            assert_eq!(problem(&[(name, "")]).await, None, "{name}");
        }
        let good = [
            ("AWS_REGION", "eu-west-1"),
            ("AWS_RETRY_MODE", "Adaptive"),
            ("AWS_MAX_ATTEMPTS", "100"),
            ("AWS_SECRET_ACCESS_KEY", "a/b+c="),
            ("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_REQUIRED"),
            ("AWS_S3_ADDRESSING_STYLE", "virtual"),
            ("AWS_LAMBDA_NOTES", "two\nlines"),
        ];
        assert_eq!(problem(&good).await, None);
    }

    #[tokio::test]
    async fn a_url_with_a_password_is_refused_and_not_shown() {
        let variables = [
            "AWS_ENDPOINT_URL",
            "AWS_ENDPOINT_URL_SQS",
            "AWS_ENDPOINT_URL_S3",
            "AWS_ENDPOINT_URL_STS",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        ];
        for variable in variables {
            for url in [
                "http://user:s3cr3t@h:1",
                "http://user:s3cr3t@h:1/path",
                "http://user:s3cr3t#pw@h",
                "http://user:1#s3cr3t@h",
                "http://user:s3cr3t/pw@h",
                "http://user:1/s3cr3t@h",
                "http://user:1?s3cr3t@h",
                "http://user:1/s3cr3t%40h",
                "http://user:s3cr3t?@h",
                "http://user:s3cr3t pw@h",
                "http://user:s3cr3t^pw@h",
                "http://user:s3cr3t{@h",
                "http://user:s3cr3tü@h",
                "http://user%3As3cr3t%40h:1",
                "http://user:s3cr3t",
                "user:s3cr3t@127.0.0.1:1",
                "s3cr3t.local",
                "127.0.0.1",
                "127.0.0.1:1/s3cr3t",
                "/s3cr3t",
                "http://",
                "http://h/s3cr3t\n",
                "http://h/s3cr3t {}",
            ] {
                let text = problem(&[(variable, url)]).await.unwrap_or_default();
                let why = "write for example http://localhost:";
                assert!(
                    text.starts_with(&format!("{variable} is not ")) && text.contains(why),
                    "{url}: {text:?}"
                );
                assert!(!text.contains("s3cr3t"), "{text}");
            }
            assert_eq!(
                problem(&[(variable, "http://169.254.170.23:80/v1/credentials")]).await,
                None,
                "{variable}"
            );
        }
        let with_query = (
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "https://[::1]:8080/get-credentials?role=a%2Fb&x=1",
        );
        assert_eq!(problem(&[with_query]).await, None);
    }

    #[tokio::test]
    async fn an_invalid_setting_of_the_profile_is_named() {
        let home = tempfile::tempdir().unwrap();
        let (config, credentials) = (home.path().join("config"), home.path().join("credentials"));
        std::fs::write(&config, "[default]\nregion = eu-west-1\n[profile a]\nretry_mode = legacy\n[profile c]\nendpoint_url = http://u:p@h\n").unwrap();
        std::fs::write(
            &credentials,
            "[b]\naws_access_key_id = AK\tIA\naws_secret_access_key = s\n",
        )
        .unwrap();
        let files = [
            ("AWS_CONFIG_FILE", config.to_str().unwrap()),
            ("AWS_SHARED_CREDENTIALS_FILE", credentials.to_str().unwrap()),
        ];
        let of = async |profile: &str| {
            problem(&[&files[..], &[("AWS_PROFILE", profile)]].concat()).await
        };
        assert_eq!(of("").await, None);
        let text = of("a").await.unwrap();
        assert_eq!(
            text,
            "retry_mode of the profile \"a\" is \"legacy\"; it must be standard or adaptive"
        );
        let text = of("c").await.unwrap();
        assert!(
            text.starts_with("endpoint_url of the profile \"c\" is not the URL of a server"),
            "{text}"
        );
        let text = of("b").await.unwrap();
        assert!(
            text.starts_with("aws_access_key_id of the profile \"b\" contains a line break"),
            "{text}"
        );
        assert_eq!(of("none").await, None);
    }

    #[tokio::test]
    async fn the_profile_of_s3_must_exist_and_be_valid() {
        let home = tempfile::tempdir().unwrap();
        let config = home.path().join("config");
        std::fs::write(&config, "[profile a]\nregion = auto\n[profile b]\nretry_mode = legacy\n")
            .unwrap();
        let missing = home.path().join("missing");
        let of = async |config: &std::path::Path, profile: &str| {
            let variables = [
                ("AWS_CONFIG_FILE".to_owned(), config.into()),
                ("AWS_SHARED_CREDENTIALS_FILE".to_owned(), missing.clone().into()),
            ];
            check_profile(&variables, profile).await.map_err(|error| error.to_string())
        };
        assert_eq!(of(&config, "a").await, Ok(Some("auto".to_owned())));
        let refused = of(&config, "b").await.unwrap_err();
        assert!(refused.starts_with("retry_mode of the profile \"b\" is \"legacy\""), "{refused}");
        let refused = of(&config, "c").await.unwrap_err();
        assert!(refused.ends_with("their profiles are \"a\", \"b\""), "{refused}");
        let refused = of(&missing, "a").await.unwrap_err();
        assert!(refused.ends_with("has this profile; they have no profile"), "{refused}");
        std::fs::write(&config, "[profile a\nregion = auto\n").unwrap();
        let refused = of(&config, "a").await.unwrap_err();
        assert!(
            refused.starts_with("--s3-profile is \"a\", but the profiles cannot be read: "),
            "{refused}"
        );
    }

    #[test]
    fn an_endpoint_is_a_url_to_which_paths_can_be_appended() {
        for good in [
            "http://h/",
            "http://localhost:4566",
            "https://s3.eu-west-1.amazonaws.com",
            "http://[::1]:9000/s3/",
            "http://a/b-c",
        ] {
            assert!(is_endpoint(good), "{good}");
        }
        for bad in [
            "http://a:99999999",
            "http://a:",
            "http://a:b",
            "http://[::1",
            "http://[x]:1",
            "http://a/%zz",
            "http://a/?x",
            "",
        ] {
            assert!(!is_endpoint(bad), "{bad}");
        }
    }

    #[test]
    fn fips_and_dualstack_are_refused_with_a_custom_endpoint() {
        let config = || SdkConfig::builder().use_fips(true);
        assert_eq!(check_variants(&config().build()), Ok(()));
        assert_eq!(
            check_variants(&SdkConfig::builder().endpoint_url("http://h").use_fips(false).build()),
            Ok(())
        );
        let refused =
            check_variants(&config().endpoint_url("http://h").build()).unwrap_err().to_string();
        assert!(
            refused.starts_with("AWS_USE_FIPS_ENDPOINT is true, but AWS_ENDPOINT_URL or"),
            "{refused}"
        );
        let dualstack = SdkConfig::builder().use_dual_stack(true).endpoint_url("http://h").build();
        let refused = check_variants(&dualstack).unwrap_err().to_string();
        assert!(refused.starts_with("AWS_USE_DUALSTACK_ENDPOINT is true, but"), "{refused}");
    }
}
