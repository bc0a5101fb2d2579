//! The configuration of the AWS adapters for a local server.

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_sqs::config::{Credentials, SharedCredentialsProvider};

pub fn config(endpoint: &str) -> SdkConfig {
    config_as(endpoint, Credentials::new("test", "test", None, None, "test"))
}

pub fn config_as(endpoint: &str, credentials: Credentials) -> SdkConfig {
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .endpoint_url(endpoint)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build()
}

/// At its first request microburst loads the descriptions of all services, and answers no request
/// for seconds.
pub async fn warm_up(endpoint: &str) {
    let config = config(endpoint);
    aws_sdk_sqs::Client::new(&config).list_queues().send().await.expect("an answer");
    let s3 = aws_sdk_s3::config::Builder::from(&config).force_path_style(true).build();
    aws_sdk_s3::Client::from_conf(s3).list_buckets().send().await.expect("an answer");
}
