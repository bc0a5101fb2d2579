//! Only our fetch, for `benches/compare-fetch`; the settings of the AWS SDK are in the environment.
//!
//! `fetch STREAMS BUCKET KEY FILE`

use std::path::PathBuf;

use leasehold::adapters::aws;
use leasehold::adapters::aws::s3::S3;
use leasehold::job::notification::Object;
use leasehold::work::fetch::{FetchPolicy, fetch};
use leasehold::work::workspace::WorkDir;
use tokio::runtime::Builder;

fn main() {
    let mut args = std::env::args().skip(1);
    let mut arg = || args.next().expect("fetch STREAMS BUCKET KEY FILE");
    let policy =
        FetchPolicy { streams: arg().parse().expect("a number"), ..FetchPolicy::default() };
    let (bucket, key, path) = (arg(), arg(), PathBuf::from(arg()));
    let object = Object {
        bucket,
        key,
        version_id: None,
        etag: None,
        size: None,
        sequencer: None,
        is_from_aws: false,
    };
    let work_dir =
        WorkDir { path: path.parent().expect("a file in a folder").to_owned(), limit: None };
    // As in a pod: one thread for the work.
    let runtime =
        Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let work = async move {
        let config = aws::load("http://localhost/0/q", None, &[]).await.expect("settings");
        fetch(&S3::new(&config, None), &policy, None, &work_dir, &object, None, &path)
            .await
            .expect("the fetch succeeds");
    };
    runtime.block_on(runtime.spawn(work)).expect("no panic");
}
