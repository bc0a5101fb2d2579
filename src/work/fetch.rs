//! Fetched: the object, exactly as the event told of it, as a file.

use std::path::Path;

use tokio::io::{AsyncWriteExt, BufReader};
use tracing::info;

use crate::job::notification::Object;
use crate::job::verdict::Failure;
use crate::ports::{FetchError, ObjectBody, ObjectStore};

/// What to make of an object that is gone, or no longer the one that the event told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum MissingObject {
    /// Keep the message: it may come back
    Retry,
    /// Keep the message: redrive takes it to the dead-letter queue
    Fail,
    /// There is nothing to do: delete the message
    Ignore,
}

/// Which objects are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FetchPolicy {
    /// Where nothing is said, a missing object is retried, and one that was overwritten is a failure.
    pub missing: Option<MissingObject>,
    /// The buckets to read from; any if it is empty.
    pub buckets: Vec<String>,
}

/// Is there a file now?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    Here,
    Gone,
}

/// Streams the object into a new file at `path`; all of it or an error.
pub async fn fetch(
    store: &dyn ObjectStore,
    policy: &FetchPolicy,
    object: &Object,
    path: &Path,
) -> Result<Fetched, Failure> {
    if !policy.buckets.is_empty() && !policy.buckets.contains(&object.bucket) {
        let buckets = policy.buckets.join(",");
        return Err(Failure::Unreadable(format!("bucket {} is none of --buckets {buckets}", object.bucket)));
    }
    let (missing, why) = match store.open(object).await {
        Ok(body) => return save(body, object, path).await.map(|()| Fetched::Here),
        Err(FetchError::Missing(why)) => (policy.missing.unwrap_or(MissingObject::Retry), why),
        Err(FetchError::Overwritten(why)) => (policy.missing.unwrap_or(MissingObject::Fail), why),
        Err(FetchError::Retryable(why)) => return Err(Failure::Fetch(why)),
        Err(FetchError::Permanent(why)) => return Err(Failure::Unreadable(why)),
    };
    match missing {
        MissingObject::Retry => Err(Failure::Fetch(why)),
        MissingObject::Fail => Err(Failure::Unreadable(why)),
        MissingObject::Ignore => {
            info!(why, "no work on an object that is gone (--missing-object ignore)");
            Ok(Fetched::Gone)
        }
    }
}

async fn save(body: ObjectBody, object: &Object, path: &Path) -> Result<(), Failure> {
    let name = format!("s3://{}/{}", object.bucket, object.key);
    let broken = |error: std::io::Error| Failure::Fetch(format!("{name}: {error}"));
    let mut file = tokio::fs::File::create_new(path).await.map_err(broken)?;
    let mut bytes = BufReader::with_capacity(BUFFER, body.bytes);
    let got = tokio::io::copy_buf(&mut bytes, &mut file).await.map_err(broken)?;
    file.flush().await.map_err(broken)?;
    match body.size {
        Some(size) if size != got => Err(Failure::Fetch(format!("{name}: got {got} of {size} bytes"))),
        Some(_) | None => Ok(()),
    }
}

const BUFFER: usize = 256 * 1024;
