//! From a body to records and a route: what `notification` and `route` return for each fixture, and
//! properties of any body.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use leasehold_core::event::{self, EventFilter};
use leasehold_core::notification::{CUSTOM, Notification, Record, parse, payload};
use leasehold_core::object_from::ObjectFrom;
use leasehold_core::outcome::NoWorkReason;
use leasehold_core::route::{Content, Found, Route, Selection, find_objects, route};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::settings;

/// The name and the text of every fixture, in order.
#[expect(clippy::disallowed_methods, reason = "the files of the tests, not of the core")]
fn fixtures() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut fixtures: Vec<_> = fs::read_dir(folder)
        .expect("the folder is part of the repository")
        .map(|entry| {
            let entry = entry.expect("the folder can be read");
            let body = fs::read_to_string(entry.path()).expect("a fixture is a file in UTF-8");
            (entry.file_name().to_string_lossy().into_owned(), body)
        })
        .collect();
    fixtures.sort();
    fixtures
}

fn records(body: &str) -> Vec<Record> {
    match parse(body) {
        Ok(Notification::Records(records)) => records,
        other => panic!("no records but {other:?}"),
    }
}

fn only_key(body: &Value) -> String {
    let mut records = records(&body.to_string());
    assert_eq!(records.len(), 1);
    records.remove(0).object.key
}

/// S3's encoding of keys (Java's `URLEncoder`, with `/` unchanged).
fn encode(key: &str) -> String {
    key.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b' ' => encoded.push('+'),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'*' | b'_' | b'/' => {
                encoded.push(byte.into());
            }
            _ => write!(encoded, "%{byte:02X}").expect("a String takes any text"),
        }
        encoded
    })
}

fn from_s3(encoded_key: &str) -> Value {
    json!({"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "b"}, "object": {"key": encoded_key}}}]})
}

fn from_eventbridge(key: &str) -> Value {
    json!({"source": "aws.s3", "detail-type": "Object Created", "detail": {"bucket": {"name": "b"}, "object": {"key": key}}})
}

fn through_sns(message: &Value) -> Value {
    json!({"Type": "Notification", "Message": message.to_string()})
}

#[test]
fn fixtures_are_parsed() {
    let mut table = String::new();
    for (name, body) in fixtures() {
        writeln!(table, "{name}").unwrap();
        match parse(&body) {
            Err(why) => writeln!(table, "    refused: {why}").unwrap(),
            Ok(Notification::Test) => writeln!(table, "    test event").unwrap(),
            Ok(Notification::Objects(records)) => {
                for Record { event, object, .. } in records {
                    writeln!(table, "    work: {event}, {:?} in {}", object.key, object.bucket)
                        .unwrap();
                }
            }
            Ok(Notification::Records(records)) => {
                for Record { event, object, .. } in records {
                    let is_work =
                        match (EventFilter::default().is_work(&event), event::is_s3(&event)) {
                            (true, _) => "work",
                            (false, true) => "ignored",
                            (false, false) => "unknown",
                        };
                    writeln!(
                        table,
                        "    {is_work}: {event} of {:?} in {}",
                        object.key, object.bucket
                    )
                    .unwrap();
                    let details = [
                        ("version", object.version_id),
                        ("eTag", object.etag),
                        ("size", object.size.map(|size| size.to_string())),
                        ("sequencer", object.sequencer),
                    ];
                    for (detail, value) in details {
                        if let Some(value) = value {
                            writeln!(table, "        {detail} {value}").unwrap();
                        }
                    }
                }
            }
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn bad_fixtures_are_refused_and_all_others_are_read() {
    for (name, body) in fixtures() {
        assert_eq!(parse(&body).is_err(), name.starts_with("bad-"), "{name}: {:?}", parse(&body));
    }
}

#[test]
fn a_body_cut_off_anywhere_is_refused() {
    let body = from_s3("key").to_string();
    for end in 0..body.len() {
        assert!(parse(&body[..end]).is_err(), "{}", &body[..end]);
    }
}

#[test]
fn a_refusal_never_quotes_the_body() {
    let secret = "hunter2";
    for body in [
        json!(secret),
        json!({ "Type": secret }),
        json!({"Type": "Notification", "Message": secret}),
        json!({"Type": "Notification", "Message": {secret: secret}}),
        json!({ "Records": secret }),
        json!({ "Records": [secret] }),
        json!({"Records": [{"eventSource": secret}]}),
        json!({"Records": [{"eventVersion": secret}]}),
        json!({"Records": [{"eventName": [secret]}]}),
        json!({"source": secret, "detail-type": secret}),
        json!({"source": "aws.s3", "detail-type": secret, "detail": secret}),
    ] {
        let why = parse(&body.to_string()).expect_err("the body is not a notification").to_string();
        assert!(!why.contains(secret), "{why}");
    }
    assert!(!parse(secret).expect_err("not JSON").to_string().contains(secret));
}

#[test]
fn a_byte_order_mark_is_ignored_once() {
    let body = from_s3("key").to_string();
    assert_eq!(parse(&format!("\u{feff}{body}")), parse(&body));
    assert!(parse(&format!("\u{feff}\u{feff}{body}")).is_err());
}

#[test]
fn deep_nesting_is_refused_without_a_crash() {
    for depth in [100, 1_000, 100_000] {
        let brackets = "[".repeat(depth);
        let braces = r#"{"Records":"#.repeat(depth);
        let closed = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        for body in [brackets, braces, closed] {
            assert!(parse(&body).is_err());
            assert!(parse(&json!({"Type": "Notification", "Message": body}).to_string()).is_err());
        }
    }
}

#[test]
fn a_key_is_decoded_once_and_only_where_it_was_encoded() {
    let literal = "1%2B1 = 100%";
    assert_eq!(only_key(&from_s3("1%252B1+%3D+100%25")), literal);
    assert_eq!(only_key(&through_sns(&from_s3("1%252B1+%3D+100%25"))), literal);
    assert_eq!(only_key(&from_eventbridge(literal)), literal);
    assert_eq!(only_key(&through_sns(&from_eventbridge(literal))), literal);
}

#[test]
fn eventbridge_events_get_s3_names() {
    let event = |detail_type: &str, reason: Option<&str>, deletion: Option<&str>| {
        let mut body = from_eventbridge("key");
        body["detail-type"] = detail_type.into();
        body["detail"]["reason"] = reason.into();
        body["detail"]["deletion-type"] = deletion.into();
        records(&body.to_string()).remove(0).event
    };
    let mut table = String::new();
    for detail_type in [
        "Object Created",
        "Object Deleted",
        "Object Restore Initiated",
        "Object Restore Completed",
        "Object Restore Expired",
        "Object Storage Class Changed",
        "Object Access Tier Changed",
        "Object ACL Updated",
        "Object Tags Added",
        "Object Tags Deleted",
        "Object Annotation Created",
        "Object Annotation Removed",
        "Object Folded Twice",
    ] {
        let (reasons, deletions): (&[_], &[_]) = match detail_type {
            "Object Created" => (
                &[
                    Some("PutObject"),
                    Some("POST Object"),
                    Some("CopyObject"),
                    Some("CompleteMultipartUpload"),
                    Some("FoldObject"),
                    None,
                ],
                &[None],
            ),
            "Object Deleted" => (
                &[Some("DeleteObject"), Some("Lifecycle Expiration"), None],
                &[Some("Permanently Deleted"), Some("Delete Marker Created"), Some("Folded"), None],
            ),
            _ => (&[None], &[None]),
        };
        for reason in reasons {
            for deletion in deletions {
                let fields = [Some(detail_type), *reason, *deletion]
                    .into_iter()
                    .flatten()
                    .collect::<Vec<_>>()
                    .join(", ");
                writeln!(table, "{fields:<60} {}", event(detail_type, *reason, *deletion)).unwrap();
            }
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn only_records_that_are_work_are_routed_and_in_order() {
    let (_, body) =
        fixtures().into_iter().find(|(name, _)| name == "s3-many-records.json").unwrap();
    let all = records(&body);
    let routed = route(parse(&body).unwrap(), &Selection::default());
    assert_eq!(routed, Ok(Route::Work(Content::Objects(vec![all[0].clone(), all[2].clone()]))));
    let removed = only("s3:ObjectRemoved:*");
    assert_eq!(
        route(parse(&body).unwrap(), &removed),
        Ok(Route::Work(Content::Objects(vec![all[1].clone()])))
    );
}

fn only(events: &str) -> Selection {
    Selection { events: events.parse().unwrap(), folders: false }
}

/// A message with an event of another sender than S3 is kept, whatever else it contains.
#[test]
fn an_unknown_event_is_never_ignored() {
    for name in [
        "ObjectCreatedPut",
        "ObjectCreated",
        "s3:ObjectCreated",
        "PutObject",
        "ObjectAccessed:Get",
        "s3:",
    ] {
        let mut body = from_s3("key");
        body["Records"][0]["eventName"] = name.into();
        let known = from_s3("other")["Records"][0].clone();
        let routed = route(parse(&body.to_string()).unwrap(), &Selection::default());
        assert!(routed.unwrap_err().starts_with("unknown S3 event"), "{name}");
        body["Records"].as_array_mut().unwrap().push(known);
        assert!(route(parse(&body.to_string()).unwrap(), &Selection::default()).is_err(), "{name}");
    }
    let mut folded = from_eventbridge("key");
    folded["detail-type"] = "Object Folded Twice".into();
    assert!(route(parse(&folded.to_string()).unwrap(), &Selection::default()).is_err());

    let mut of_minio = from_s3("key");
    of_minio["Records"][0]["eventName"] = "s3:ObjectAccessed:Get".into();
    assert!(matches!(
        route(parse(&of_minio.to_string()).unwrap(), &only("ObjectAccessed:*")),
        Ok(Route::Work(_))
    ));
    // Not a creation, although its name looks like one.
    of_minio["Records"][0]["eventName"] = "s3:ObjectCreated:PutTagging".into();
    let routed = route(parse(&of_minio.to_string()).unwrap(), &Selection::default());
    assert_eq!(routed, Ok(Route::Nothing(NoWorkReason::Ignored)));
}

#[test]
fn a_folder_object_is_work_only_if_configured() {
    let mut body = from_s3("reports/2026/");
    let mut routed = |size: Value, folders| {
        body["Records"][0]["s3"]["object"]["size"] = size;
        route(parse(&body.to_string()).unwrap(), &Selection { folders, ..Selection::default() })
            .unwrap()
    };
    assert_eq!(routed(json!(0), false), Route::Nothing(NoWorkReason::Ignored));
    for (size, folders) in [(json!(0), true), (json!(1), false), (json!(null), false)] {
        assert!(matches!(routed(size, folders), Route::Work(_)));
    }
    // Some stores send a size of 0 for objects that are not empty.
    for (etag, is_work) in
        [("d41d8cd98f00b204e9800998ecf8427e", false), ("5d41402abc4b2a76b9719d911017c592", true)]
    {
        let mut body = from_s3("reports/2026/");
        body["Records"][0]["s3"]["object"]["size"] = json!(0);
        body["Records"][0]["s3"]["object"]["eTag"] = etag.into();
        let routed = route(parse(&body.to_string()).unwrap(), &Selection::default()).unwrap();
        assert_eq!(matches!(routed, Route::Work(_)), is_work, "{etag}");
    }
}

#[test]
fn secondary_fields_may_be_numbers() {
    let mut body = from_s3("key");
    body["Records"][0]["eventVersion"] = json!(2.1);
    body["Records"][0]["s3"]["object"]["versionId"] = json!(7);
    assert_eq!(records(&body.to_string())[0].object.version_id.as_deref(), Some("7"));
    for sequencer in [json!(1.5), json!(true), json!({})] {
        body["Records"][0]["s3"]["object"]["sequencer"] = sequencer;
        assert_eq!(records(&body.to_string())[0].object.sequencer, None);
    }
    body["Records"][0]["s3"]["object"]["eTag"] = json!("W/\"e\"");
    assert_eq!(records(&body.to_string())[0].object.etag.as_deref(), Some("e"));
    body["Records"][0]["eventVersion"] = json!(3.0);
    assert!(parse(&body.to_string()).is_err());
    // Other stores have their own versions.
    body["Records"][0]["eventSource"] = json!("scality:s3");
    assert_eq!(records(&body.to_string()).len(), 1);
}

#[test]
fn only_an_event_that_names_aws_is_from_aws() {
    let mut body = from_s3("key");
    for (source, is_from_aws) in
        [(json!("aws:s3"), true), (json!("minio:s3"), false), (json!(null), false)]
    {
        body["Records"][0]["eventSource"] = source;
        assert_eq!(records(&body.to_string())[0].object.is_from_aws, is_from_aws);
    }
    assert!(records(&from_eventbridge("key").to_string())[0].object.is_from_aws);
}

#[test]
fn a_key_that_was_not_encoded_is_not_decoded() {
    for key in ["50% off + 5%.txt", "a b+c", "ä+b", "q\"+", "100%2x+", "50%ff+.txt"] {
        assert_eq!(only_key(&from_s3(key)), key);
    }
    assert_eq!(only_key(&from_s3("a+b%2Bc")), "a b+c");
}

#[test]
fn keys_and_buckets_that_s3_does_not_allow_are_refused() {
    assert_eq!(only_key(&from_s3(&"a".repeat(1024))).len(), 1024);
    for body in [
        from_s3(&"a".repeat(1025)),
        from_s3(&"%41".repeat(1025)),
        from_eventbridge(&"ä".repeat(513)),
    ] {
        let why = parse(&body.to_string()).unwrap_err().to_string();
        assert!(why.contains("S3 allows 1 to 1024"), "{why}");
    }
    for bucket in [
        "arn:aws:s3:::b",
        "arn:aws:s3-object-lambda:eu-west-1:1:accesspoint/x",
        "a/b",
        "a b",
        "..",
        "x..y",
        "b?",
    ] {
        let (mut s3, mut eventbridge) = (from_s3("k"), from_eventbridge("k"));
        s3["Records"][0]["s3"]["bucket"]["name"] = bucket.into();
        eventbridge["detail"]["bucket"]["name"] = bucket.into();
        assert!(
            parse(&s3.to_string()).is_err() && parse(&eventbridge.to_string()).is_err(),
            "{bucket}"
        );
    }
}

#[test]
fn a_message_without_work_has_a_reason() {
    let acl = only("ObjectAcl:Put");
    let created = parse(&from_s3("key").to_string()).unwrap();
    assert_eq!(route(created, &acl), Ok(Route::Nothing(NoWorkReason::Ignored)));
    assert_eq!(route(Notification::Test, &acl), Ok(Route::Nothing(NoWorkReason::TestEvent)));
}

fn found(from: &str, fixture: &str) -> Result<Vec<Record>, Option<String>> {
    let (_, body) = fixtures().into_iter().find(|(name, _)| name == fixture).unwrap();
    let from: ObjectFrom = from.parse().unwrap();
    find_objects(&[], Some(&from), &body).map(|Found { records, .. }| records)
}

#[test]
fn pointers_find_the_objects_of_other_messages() {
    let uri = found("uri=/s3Uri", "bad-own-json.json").unwrap().remove(0);
    assert_eq!(
        (uri.object.bucket.as_str(), uri.object.key.as_str()),
        ("documents", "in/a+b%20c.txt")
    );
    let list = found("list=/files,bucket=/bucket,key=/key,version=/version", "bad-own-list.json");
    let versions: Vec<_> = list.unwrap().into_iter().map(|it| it.object.version_id).collect();
    assert_eq!(versions, [None, Some("3".to_owned())]);
    let details = "/detail/s3ObjectDetails";
    let from = format!(
        "bucket={details}/bucketName,key={details}/objectKey,version={details}/versionId,etag={details}/eTag"
    );
    let scanned = found(&from, "bad-guardduty.json").unwrap().remove(0).object;
    assert_eq!((scanned.key.as_str(), scanned.version_id.is_some()), ("in/invoice+1.pdf", true));
    assert_eq!(scanned.etag.as_deref(), Some("9b2cf535f27731c974343645a3985328"));

    let through = |body: &Value| {
        let from: ObjectFrom = "bucket=b,key=/k".parse().unwrap();
        find_objects(&[], Some(&from), &body.to_string()).map(|it| it.records[0].object.key.clone())
    };
    assert_eq!(through(&through_sns(&json!({ "k": "x+y" }))), Ok("x+y".to_owned()));
    let missing = Err(Some("/k is missing".to_owned()));
    assert_eq!(through(&json!({ "Message": { "k": "x" } })), missing);
    assert_eq!(through(&json!([{ "k": "x" }])), missing);
    assert_eq!(through(&json!({ "Type": "SubscriptionConfirmation", "k": "x" })), Err(None));
}

/// An object without an event is never deleted without work, whatever `--events` and folders say.
#[test]
fn an_object_without_an_event_is_never_ignored() {
    let pointer = |key: &str| json!(["software.amazon.payloadoffloading.PayloadS3Pointer", { "s3BucketName": "b", "s3Key": key }]);
    for key in ["k", "folder/"] {
        let routed = route(parse(&pointer(key).to_string()).unwrap(), &only("ObjectAcl:Put"));
        assert!(matches!(routed, Ok(Route::Work(Content::Objects(_)))), "{key}");
    }
}

#[test]
fn only_a_pointer_of_the_extended_client_has_a_payload() {
    for (name, body) in fixtures() {
        let found = payload(&body).map(|object| (object.bucket, object.key));
        let key = match name.as_str() {
            "extended-client.json" | "sns-extended-client.json" => {
                Some("0d2f6d5c-5d3f-4c39-a1ee-3a1c0de9d1b4")
            }
            "extended-client-1.json" => Some("of a+b/%2B"),
            _ => None,
        };
        assert_eq!(found, key.map(|key| ("long-messages".to_owned(), key.to_owned())), "{name}");
    }
}

#[test]
fn a_payload_is_understood_if_it_names_objects() {
    let mut policy = settings().policy;
    let own = json!({ "uri": "s3://b/k" }).to_string();
    for (name, body) in fixtures() {
        let is_pointer = payload(&body).is_some();
        assert_eq!(policy.understands(&body), parse(&body).is_ok() && !is_pointer, "{name}");
    }
    assert!(!policy.understands(&own));
    policy.object_from = Some("uri=/uri".parse().unwrap());
    assert!(policy.understands(&own) && !policy.understands("{}"));
}

/// Words that the parser knows, and similar ones.
const WORDS: [&str; 36] = [
    "Records",
    "software.amazon.payloadoffloading.PayloadS3Pointer",
    "s3BucketName",
    "s3Key",
    "s3://b/k",
    "Event",
    "s3:TestEvent",
    "Type",
    "Notification",
    "Message",
    "eventSource",
    "aws:s3",
    "eventVersion",
    "2.1",
    "eventName",
    "s3:",
    "ObjectCreated:Put",
    "s3",
    "bucket",
    "name",
    "object",
    "key",
    "size",
    "eTag",
    "\"\"",
    "versionId",
    "source",
    "aws.s3",
    "detail-type",
    "Object Created",
    "detail",
    "",
    "+",
    "%2B",
    "%",
    "%ff",
];

/// JSON made of these words, so that it often resembles a notification.
fn json_like_ours() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(&WORDS[..]);
    let leaf = prop_oneof![
        4 => word.clone().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((word.clone(), inner.clone()), 0..6).prop_map(|entries| entries
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect()),
            inner.prop_map(|message| through_sns(&message)),
        ]
    })
}

/// The path of every value in it.
fn pointers(json: &Value, path: &str, found: &mut Vec<String>) {
    found.push(path.to_owned());
    for (i, value) in json.as_array().into_iter().flatten().enumerate() {
        pointers(value, &format!("{path}/{i}"), found);
    }
    for (key, value) in json.as_object().into_iter().flatten() {
        pointers(value, &format!("{path}/{key}"), found);
    }
}

/// Pointers to the fields of these fixtures and of [`json_like_ours`].
const FROM: [&str; 4] = [
    "bucket=/bucket,key=/key,version=/versionId,etag=/eTag,size=/size",
    "list=/Records,bucket=/s3/bucket/name,key=/s3/object/key",
    "list=/Records,uri=",
    "uri=",
];

/// The records of the notification, or those that pointers find.
fn all_records(body: &str) -> Vec<Vec<Record>> {
    let found = FROM.iter().filter_map(|from| {
        let from: ObjectFrom = from.parse().unwrap();
        let found = find_objects(&[], Some(&from), body).ok()?;
        assert!(found.records.iter().all(|record| record.event == CUSTOM));
        Some(found.records)
    });
    let parsed = match parse(body) {
        Ok(Notification::Records(records) | Notification::Objects(records)) => Some(records),
        Ok(Notification::Test) | Err(_) => None,
    };
    found.chain(parsed).collect()
}

/// No field that a command or a fetch uses is empty.
fn assert_nothing_is_empty(body: &str) {
    for records in all_records(body) {
        assert!(!records.is_empty());
        for Record { event, object, .. } in records {
            assert!(!event.is_empty() && !object.bucket.is_empty() && !object.key.is_empty());
            for optional in [object.version_id, object.etag, object.sequencer] {
                assert_ne!(optional.as_deref(), Some(""));
            }
        }
    }
}

#[test]
fn no_single_replaced_value_makes_a_field_empty() {
    let mut new: Vec<Value> = WORDS.into_iter().map(Value::from).collect();
    new.extend([
        json!(null),
        json!(7),
        json!(-0.5),
        json!(true),
        json!([]),
        json!({}),
        json!([[]]),
        json!([{}]),
    ]);
    let whole = ["s3-versioned.json", "eventbridge-created.json", "s3-test-event.json"];
    for (name, body) in fixtures().into_iter().filter(|(name, _)| whole.contains(&name.as_str())) {
        let body: Value = serde_json::from_str(&body).unwrap();
        let mut paths = Vec::new();
        pointers(&body, "", &mut paths);
        assert!(paths.len() > 5, "{name} has too little to replace");
        for path in paths {
            for new in &new {
                let mut body = body.clone();
                *body.pointer_mut(&path).unwrap() = new.clone();
                assert_nothing_is_empty(&body.to_string());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_parsed_or_refused(body in any::<String>()) {
        assert_nothing_is_empty(&body);
    }

    #[test]
    fn any_json_is_parsed_or_refused(body in json_like_ours()) {
        assert_nothing_is_empty(&body.to_string());
        assert_nothing_is_empty(&through_sns(&body).to_string());
    }

    #[test]
    fn an_encoded_key_is_decoded_to_the_original(key in "\\PC{1,250}|[ +%2B/.]{1,40}|.+") {
        prop_assert_eq!(&only_key(&from_s3(&encode(&key))), &key);
        prop_assert_eq!(&only_key(&through_sns(&from_s3(&encode(&key)))), &key);
        prop_assert_eq!(&only_key(&from_eventbridge(&key)), &key);
        prop_assert_eq!(&only_key(&through_sns(&from_eventbridge(&key))), &key);
    }

    #[test]
    fn a_key_that_looks_encoded_is_decoded_once(key in "[ +%2B/.]{1,40}") {
        let encoded = encode(&key);
        prop_assert_eq!(&only_key(&from_s3(&encode(&encoded))), &encoded);
    }
}
