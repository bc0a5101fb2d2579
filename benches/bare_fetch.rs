//! A minimal download with the SDK, the baseline of `benches/compare-fetch`.
//!
//! `bare_fetch ENDPOINT BUCKET KEY FILE`

use std::io::Write;

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use tokio::runtime::Builder;

fn main() {
    let mut args = std::env::args().skip(1);
    let mut arg = || args.next().expect("bare_fetch ENDPOINT BUCKET KEY FILE");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("us-east-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .endpoint_url(arg())
        .force_path_style(true)
        .http_client(aws_smithy_http_client::Builder::new().build_http());
    let client = aws_sdk_s3::Client::from_conf(config.build());
    let get = client.get_object().bucket(arg()).key(arg());
    let mut file = std::fs::File::create(arg()).expect("a file");
    Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(async {
        let mut body = get.send().await.expect("an answer").body;
        while let Some(chunk) = body.next().await {
            file.write_all(&chunk.expect("bytes")).expect("written");
        }
    });
}
