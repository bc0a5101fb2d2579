//! Publishes the command's results as objects.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::{self, StreamExt};
use tokio_util::sync::CancellationToken;

use crate::adapters::local::folder::{ListedFile, files_below};
use crate::job::outcome::{Manifest, Published};
use crate::job::s3_location::{LocationTemplate, Values};
use crate::ports::{ObjectWriter, Outbox, PublishError, Results, Upload};

/// Writes results to the S3 locations that tasks name. Each file becomes an object, whose key ends
/// with the file's path below `JOB_OUTPUT_DIR`.
///
/// S3 has no transactions: if publishing fails, some objects may already exist. Then the message is
/// kept, and the next attempt writes the same keys.
pub struct S3Outbox {
    pub writer: Arc<dyn ObjectWriter>,
}

/// How many files are uploaded at the same time.
const FILES: usize = 4;

#[async_trait]
impl Outbox for S3Outbox {
    fn accepts(&self, to: Option<&LocationTemplate>) -> bool {
        to.is_some()
    }

    async fn publish(
        &self,
        results: &Results<'_>,
        halt: &CancellationToken,
    ) -> Result<Manifest, PublishError> {
        let Results { object, message_id, job_type, to, attributes, directory } = *results;
        let Some(to) = to else { return Ok(Manifest::default()) };
        let location = to.fill(Values {
            key: object.map(|object| object.key.as_str()),
            message_id: message_id.as_str(),
            job_type,
        });
        let files = {
            let directory = directory.to_owned();
            tokio::task::spawn_blocking(move || files_below(&directory)).await
        };
        let files = files.map_err(std::io::Error::from).and_then(|files| files);
        let files = files.map_err(|error| PublishError(error.to_string()))?;

        // The first failure cancels the other uploads, which clean up before they end.
        let give_up = halt.child_token();
        let upload = async |ListedFile { name, bytes }: ListedFile| {
            let (key, path) = (location.key(&name), directory.join(&name));
            let content_type = mime_guess::from_path(&name).first_or_octet_stream();
            let content_type = content_type.essence_str();
            let upload = Upload {
                bucket: &location.bucket,
                key: &key,
                path: &path,
                bytes,
                content_type,
                attributes: Some(attributes),
            };
            let uploaded =
                self.writer.upload(&upload, &give_up).await.inspect_err(|_| give_up.cancel())?;
            let checksum = uploaded.checksum;
            Ok::<_, String>(Published {
                to: format!("s3://{}/{key}", location.bucket),
                bytes,
                checksum: Some(format!("{}:{}", checksum.algorithm, checksum.value)),
                etag: uploaded.etag,
            })
        };
        let mut uploads = stream::iter(files).map(upload).buffer_unordered(FILES);
        let (mut done, mut failed) = (Vec::new(), None);
        while let Some(uploaded) = uploads.next().await {
            match uploaded {
                Ok(published) => done.push(published),
                // Later errors only report that the upload was cancelled.
                Err(why) => failed = failed.or(Some(why)),
            }
        }
        if let Some(why) = failed {
            return Err(PublishError(why));
        }
        done.sort_by(|a, b| a.to.cmp(&b.to));
        let mut manifest = Manifest::default();
        for published in done {
            manifest.add(published);
        }
        Ok(manifest)
    }
}
