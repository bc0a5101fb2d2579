//! Buckets that are in another region than the one that is configured: S3 says which, and is asked
//! there.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_sdk_s3::config::{Builder, Region};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;

/// What was learnt of buckets' regions.
#[derive(Debug, Default)]
pub(super) struct Regions(Mutex<HashMap<String, Region>>);

impl Regions {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Region>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` if it is the configured one, as far as we know.
    pub(super) fn of(&self, bucket: &str) -> Option<Region> {
        self.known().get(bucket).cloned()
    }

    pub(super) fn learn(&self, bucket: &str, region: Region) {
        self.known().insert(bucket.to_owned(), region);
    }

    /// What a request about the bucket needs that is different from the client's own configuration.
    pub(super) fn config(&self, bucket: &str) -> Builder {
        let config = aws_sdk_s3::Config::builder();
        match self.of(bucket) {
            Some(region) => config.region(region),
            None => config,
        }
    }
}

/// The region that an answer sends us to: 301 `PermanentRedirect` and 307 have it in a header, 400
/// `AuthorizationHeaderMalformed` in its body (S3 API, "Error responses").
pub(super) fn named<E>(error: &SdkError<E, HttpResponse>) -> Option<Region> {
    let answer = error.raw_response()?;
    if !matches!(answer.status().as_u16(), 301 | 307 | 400) {
        return None;
    }
    let in_header = answer.headers().get("x-amz-bucket-region").map(str::to_owned);
    let in_body = || {
        let body = String::from_utf8_lossy(answer.body().bytes()?);
        let (_, rest) = body.split_once("<Region>")?;
        rest.split_once("</Region>").map(|(region, _)| region.to_owned())
    };
    // It becomes a part of a host's name.
    let is_region = |name: &String| {
        (1..=40).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    in_header.or_else(in_body).filter(is_region).map(Region::new)
}
