//! Fetched: the object, exactly as the event told of it, as a file.

use std::path::Path;

use tokio::io::{AsyncWriteExt, BufReader};

use crate::job::notification::Object;
use crate::job::verdict::Failure;
use crate::ports::{FetchError, ObjectStore};

/// Streams the object into a new file at `path`; all of it or an error.
pub async fn fetch(store: &dyn ObjectStore, object: &Object, path: &Path) -> Result<(), Failure> {
    let body = store.open(object).await.map_err(|error| match error {
        FetchError::Retryable(why) => Failure::Fetch(why),
        FetchError::Permanent(why) => Failure::Unreadable(why),
    })?;
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
