//! What the tests share.

pub mod aws;
pub mod bucket;
pub mod cloud;
pub mod http;
pub mod journey;
pub mod logs;
pub mod records;
pub mod servers;

/// A number from the environment of the test.
#[expect(clippy::disallowed_methods, reason = "the environment of the test, not of the program")]
pub fn asked_for(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// An S3 notification about one object.
pub fn object_created(key: &str) -> String {
    serde_json::json!({ "Records": [{
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventName": "ObjectCreated:Put",
        "s3": { "bucket": { "name": "inbox" }, "object": { "key": key, "size": 4, "eTag": "e", "sequencer": "1" } },
    }]})
    .to_string()
}
