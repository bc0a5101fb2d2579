//! The profile of S3 requests (`--s3-profile`), for objects in another store or account than the
//! queue.

use std::ffi::OsString;
use std::path::PathBuf;

use aws_config::{Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_types::service_config::{LoadServiceConfig, ServiceConfigKey};

use super::credentials::{self, Checked, Profile};
use super::{LoadError, check, environment, loader};

/// The configuration of S3: `config`, or with `profile` (`--s3-profile`) the credentials, the
/// endpoint and the region of that profile. `config` has the region for a profile without one, and
/// the environment the endpoint.
pub async fn load_s3(
    config: &SdkConfig,
    profile: Option<&str>,
    ca_bundle: Option<PathBuf>,
    variables: &[(String, OsString)],
) -> Result<SdkConfig, LoadError> {
    let Some(profile) = profile else { return Ok(config.clone()) };
    let region = environment::check_profile(variables, profile).await?;
    let region = region.map(Region::new).or_else(|| config.region().cloned());
    let config = loader(ca_bundle.as_ref()).region(region).profile_name(profile).load().await;
    let mut builder = config.clone().into_builder().service_config(ProfileFirst(config));
    builder.set_endpoint_url(None);
    let config = builder.build();
    check(&config, ca_bundle.as_ref())?;
    let provider = SharedCredentialsProvider::new(credentials::of_profile(&config, profile));
    let profile = Profile { setting: "--s3-profile", name: profile.to_owned() };
    let credentials = SharedCredentialsProvider::new(Checked::new(provider, Some(profile)));
    Ok(config.into_builder().credentials_provider(credentials).build())
}

/// The settings of services, from the profile if it has them. The SDK prefers the environment, but
/// here that is the pod's, and the profile was named explicitly.
#[derive(Debug)]
struct ProfileFirst(SdkConfig);

impl LoadServiceConfig for ProfileFirst {
    fn load_config(&self, key: ServiceConfigKey<'_>) -> Option<String> {
        let settings = self.0.service_config()?;
        let without_variable = ServiceConfigKey::builder()
            .service_id(key.service_id())
            .env("")
            .profile(key.profile())
            .build();
        let of_profile = settings.load_config(without_variable.expect("all three are set"));
        of_profile.or_else(|| settings.load_config(key))
    }
}
