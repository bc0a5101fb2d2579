//! Loads credentials and validates them: an agent or a process may return anything.

use std::sync::OnceLock;

use aws_config::SdkConfig;
use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};

use super::{causes, environment};

/// The SDK's default chain: the same providers in the same order, with the same names. The provider
/// for web identities is omitted if the environment has none: it creates an STS client at once,
/// which takes half a million instructions.
pub(super) fn chain(config: &SdkConfig, has_web_identity: bool) -> CredentialsProviderChain {
    let of = provider_config(config);
    let profile =
        Lazy::new(&of, |of| ProfileFileCredentialsProvider::builder().configure(of).build());
    let mut chain = CredentialsProviderChain::first_try(
        "Environment",
        EnvironmentVariableCredentialsProvider::new(),
    )
    .or_else("Profile", profile);
    if has_web_identity {
        let web_identity = WebIdentityTokenCredentialsProvider::builder().configure(&of).build();
        chain = chain.or_else("WebIdentityToken", web_identity);
    }
    let instance = Lazy::new(&of, |of| ImdsCredentialsProvider::builder().configure(of).build());
    chain
        .or_else("EcsContainer", EcsCredentialsProvider::builder().configure(&of).build())
        .or_else("Ec2InstanceMetadata", instance)
}

/// A provider that is built for its first use. Those of profiles and of instances have a client
/// each, and most pods get their credentials from an earlier provider.
#[derive(Debug)]
struct Lazy<P> {
    config: ProviderConfig,
    build: fn(&ProviderConfig) -> P,
    provider: OnceLock<P>,
}

impl<P> Lazy<P> {
    fn new(config: &ProviderConfig, build: fn(&ProviderConfig) -> P) -> Self {
        Self { config: config.clone(), build, provider: OnceLock::new() }
    }
}

impl<P: ProvideCredentials> ProvideCredentials for Lazy<P> {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        self.provider.get_or_init(|| (self.build)(&self.config)).provide_credentials()
    }

    fn fallback_on_interrupt(&self) -> Option<Credentials> {
        self.provider.get()?.fallback_on_interrupt()
    }
}

/// The credentials of a profile, and no others.
pub(super) fn of_profile(config: &SdkConfig, profile: &str) -> ProfileFileCredentialsProvider {
    let of = provider_config(config);
    ProfileFileCredentialsProvider::builder().configure(&of).profile_name(profile).build()
}

fn provider_config(config: &SdkConfig) -> ProviderConfig {
    let mut of = ProviderConfig::without_region()
        .with_region(config.region().cloned())
        .with_behavior_version(config.behavior_version())
        .with_use_fips(config.use_fips())
        .with_use_dual_stack(config.use_dual_stack());
    if let Some(client) = config.http_client() {
        of = of.with_http_client(client);
    }
    if let Some(retries) = config.retry_config() {
        of = of.with_retry_config(retries.clone());
    }
    if let Some(timeouts) = config.timeout_config() {
        of = of.with_timeout_config(timeouts.clone());
    }
    of
}

/// The profile of the credentials, and the setting that names it.
#[derive(Debug, Clone)]
pub(super) struct Profile {
    pub(super) setting: &'static str,
    pub(super) name: String,
}

/// Provides only credentials that are valid in an HTTP header.
///
/// A permanent error is reported at every call: the SDK has the reason only for the first call.
#[derive(Debug)]
pub(super) struct Checked {
    inner: SharedCredentialsProvider,
    profile: Option<Profile>,
    misconfigured: OnceLock<String>,
}

impl Checked {
    pub(super) fn new(inner: SharedCredentialsProvider, profile: Option<Profile>) -> Self {
        Self { inner, profile, misconfigured: OnceLock::new() }
    }

    fn read(&self, error: CredentialsError) -> CredentialsError {
        let text = causes(&error);
        // The SDK answers "already taken" if an earlier call got the reason.
        if let Some(why) = self.misconfigured.get().filter(|_| text.contains("already taken")) {
            return CredentialsError::invalid_configuration(why.clone());
        }
        // A process may write secrets to its stderr.
        let (why, stderr) = text
            .split_once(" Stderr: ")
            .map_or((text.as_str(), None), |(why, rest)| (why, Some(rest)));
        let why = match stderr {
            Some(_) => {
                format!("{why} (its stderr is not shown: run credential_process by hand to see it)")
            }
            None => why.to_owned(),
        };
        if is_misconfigured(&error, &why) {
            let profile = self
                .profile
                .as_ref()
                .map(|Profile { setting, name }| format!(" ({setting} is {name:?})"))
                .unwrap_or_default();
            let why = self.misconfigured.get_or_init(|| format!("{why}{profile}"));
            return CredentialsError::invalid_configuration(why.clone());
        }
        // The instance metadata is the last provider, so no other provider has credentials, either.
        let instance_has_none = why.contains("IMDS is disabled");
        if instance_has_none || matches!(error, CredentialsError::CredentialsNotLoaded(_)) {
            let Some(Profile { setting, name }) = &self.profile else {
                return CredentialsError::not_loaded(why);
            };
            let why = || {
                format!(
                    "no credentials: {setting} is {name:?}, and this profile does not exist or has no usable credentials"
                )
            };
            return CredentialsError::invalid_configuration(
                self.misconfigured.get_or_init(why).clone(),
            );
        }
        if stderr.is_some() { CredentialsError::provider_error(why) } else { error }
    }
}

/// A profile that does not exist or refers to itself; a program that cannot be run, by the shell's
/// exit codes (POSIX, "Exit Status for Commands"); a setting of the instance metadata.
fn is_misconfigured(error: &CredentialsError, why: &str) -> bool {
    let is_in_reason = |text: &&str| why.contains(text);
    matches!(error, CredentialsError::InvalidConfiguration(_))
        || ["exit status: 126.", "exit status: 127.", "endpoint mode"].iter().any(is_in_reason)
}

impl ProvideCredentials for Checked {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let credentials =
                self.inner.provide_credentials().await.map_err(|error| self.read(error))?;
            let problem = environment::credential_problem(credentials.access_key_id())
                .or_else(|| environment::credential_problem(credentials.session_token()?));
            match problem {
                Some(why) => Err(CredentialsError::invalid_configuration(format!(
                    "the access key id or the session token {why}"
                ))),
                None => Ok(credentials),
            }
        })
    }

    fn fallback_on_interrupt(&self) -> Option<Credentials> {
        self.inner.fallback_on_interrupt()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_provider_is_built_once_when_it_is_first_asked() {
        static BUILT: AtomicUsize = AtomicUsize::new(0);
        let build = |_: &ProviderConfig| {
            BUILT.fetch_add(1, Ordering::Relaxed);
            Credentials::new("a", "s", None, None, "test")
        };
        let lazy = Lazy::new(&provider_config(&SdkConfig::builder().build()), build);
        assert_eq!(lazy.fallback_on_interrupt(), None);
        assert_eq!(BUILT.load(Ordering::Relaxed), 0);
        for _ in 0..2 {
            assert_eq!(lazy.provide_credentials().await.unwrap().access_key_id(), "a");
        }
        assert_eq!(BUILT.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn credentials_that_are_not_valid_in_a_header_are_refused() {
        for (token, is_good) in [(None, true), (Some("t/+="), true), (Some("t\n"), false)] {
            let credentials = Credentials::new("a", "s", token.map(str::to_owned), None, "agent");
            let provided = Checked::new(SharedCredentialsProvider::new(credentials), None)
                .provide_credentials()
                .await;
            assert_eq!(provided.is_ok(), is_good, "{provided:?}");
            assert!(
                provided.is_ok()
                    || matches!(provided, Err(CredentialsError::InvalidConfiguration(_)))
            );
        }
    }

    fn read(checked: &Checked, error: CredentialsError) -> (bool, String) {
        let error = checked.read(error);
        (matches!(error, CredentialsError::InvalidConfiguration(_)), causes(&error))
    }

    fn checked(profile: Option<&str>) -> Checked {
        let unused = SharedCredentialsProvider::new(Credentials::new("a", "s", None, None, "test"));
        let profile = profile.map(|name| Profile { setting: "AWS_PROFILE", name: name.to_owned() });
        Checked::new(unused, profile)
    }

    #[test]
    fn a_permanent_error_is_reported_at_every_call() {
        let checked = checked(Some("nonesuch"));
        let (is_misconfigured, why) =
            read(&checked, CredentialsError::provider_error("STS answered 503"));
        assert!(!is_misconfigured, "{why}");
        let first =
            read(&checked, CredentialsError::invalid_configuration("the profile is not defined"));
        assert_eq!(
            first,
            (true, "the profile is not defined (AWS_PROFILE is \"nonesuch\")".to_owned())
        );
        let taken = || {
            CredentialsError::unhandled(
                "profile file credentials provider initialization error already taken",
            )
        };
        assert_eq!(read(&checked, taken()), first);
        // A transient error does not become a permanent one.
        assert!(!read(&checked, CredentialsError::provider_error("STS answered 503")).0);
    }

    #[test]
    fn a_profile_that_has_no_credentials_is_named() {
        let not_loaded =
            || CredentialsError::not_loaded("no providers in chain provided credentials");
        let (is_misconfigured, why) = read(&checked(Some("nonesuch")), not_loaded());
        assert!(is_misconfigured && why.contains("AWS_PROFILE is \"nonesuch\""), "{why}");
        let nonesuch = checked(Some("nonesuch"));
        let first = read(&nonesuch, not_loaded());
        assert_eq!(
            read(&nonesuch, CredentialsError::unhandled("initialization error already taken")),
            first
        );
        assert!(matches!(
            checked(None).read(not_loaded()),
            CredentialsError::CredentialsNotLoaded(_)
        ));
    }

    #[test]
    fn an_instance_without_a_role_has_no_credentials() {
        let refused = || {
            let imds = "failed to load IMDS session token: request forbidden: IMDS is disabled or the caller has insufficient permissions.";
            CredentialsError::provider_error(imds)
        };
        assert!(matches!(checked(None).read(refused()), CredentialsError::CredentialsNotLoaded(_)));
        let (is_misconfigured, why) = read(&checked(Some("nonesuch")), refused());
        assert!(is_misconfigured && why.contains("AWS_PROFILE is \"nonesuch\""), "{why}");
    }

    #[test]
    fn a_missing_program_is_a_misconfiguration_and_its_stderr_is_not_shown() {
        for (status, is_misconfigured) in [(127, true), (126, true), (1, false), (12, false)] {
            let text = format!(
                "external process exited with code exit status: {status}. Stderr: exit status: 127. s3cr3t"
            );
            let (is, why) = read(&checked(None), CredentialsError::provider_error(text));
            assert_eq!(is, is_misconfigured, "{why}");
            assert!(
                why.contains(&format!("exit status: {status}.")) && !why.contains("s3cr3t"),
                "{why}"
            );
        }
    }
}
