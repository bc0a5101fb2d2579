//! Buckets in another region than the configured one: S3 names their region, and the requests
//! follow.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_sdk_s3::config::{Builder, Region};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;

use crate::job::s3_location::is_access_point;

/// The regions of buckets, as far as answers have named them.
#[derive(Debug, Default)]
pub(super) struct Regions(Mutex<HashMap<String, Region>>);

impl Regions {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Region>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` unless an answer has named another region than the configured one.
    pub(super) fn of(&self, bucket: &str) -> Option<Region> {
        self.known().get(bucket).cloned()
    }

    pub(super) fn learn(&self, bucket: &str, region: Region) {
        self.known().insert(bucket.to_owned(), region);
    }

    /// The part of the configuration that differs from the client's for requests about the bucket.
    pub(super) fn config(&self, bucket: &str) -> Builder {
        let config = aws_sdk_s3::Config::builder();
        // An access point is always in the host name.
        let config = if is_access_point(bucket) { config.force_path_style(false) } else { config };
        match self.of(bucket) {
            Some(region) => config.region(region),
            None => config,
        }
    }
}

/// The region that an answer redirects to: 301 `PermanentRedirect` and 307 have it in a header, 400
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
    // The region becomes a part of a host name.
    let is_region = |name: &String| {
        (1..=40).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    in_header.or_else(in_body).filter(is_region).map(Region::new)
}
