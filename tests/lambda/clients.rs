//! AWS's own clients of the Runtime API, each with a function in the form of AWS's samples. All
//! clients pass the same tests. A client ends if the API answers with an error, so a process that
//! stays proves that it got none.

use clap::Parser;
use leasehold::settings::Cli;

use super::*;
use crate::support::servers::installed;

/// How the functions of a client are started. They are the same program in each language.
struct Client {
    /// In `tests/lambda`; copied into the current directory.
    files: &'static [&'static str],
    /// The function for SQS events.
    sqs: fn() -> Vec<String>,
    /// The one for S3 events.
    s3: fn() -> Vec<String>,
    /// What the client reports about an error while the function is loaded.
    init_error: &'static str,
    /// What it reports about an error of the function.
    error: &'static str,
}

const PYTHON: Client = Client {
    files: &["function.py"],
    sqs: || python("function.lambda_handler"),
    s3: || python("function.of_s3"),
    init_error: "RuntimeError: no model",
    error: "ValueError: bad row",
};

const NODE: Client = Client {
    files: &["node/function.js"],
    sqs: || node("function.handler"),
    s3: || node("function.ofS3"),
    init_error: "no model",
    error: "Error: bad row",
};

/// It reports nothing if `main` ends before it asks for an event.
const RUST: Client = Client {
    files: &[],
    sqs: || vec![built("rust/debug/sqs")],
    s3: || vec![built("rust/debug/s3")],
    init_error: "ended before it answered: exit code 1",
    error: "bad row",
};

fn python(handler: &str) -> Vec<String> {
    let python = installed("lambda", "python").get_program().display().to_string();
    [&python, "-m", "awslambdaric", handler].map(str::to_owned).into()
}

fn node(handler: &str) -> Vec<String> {
    let client = built("node/node_modules/aws-lambda-ric/index.mjs");
    vec![built("node/node"), client, handler.to_owned()]
}

/// What tests/lambda/prepare has built.
fn built(name: &str) -> String {
    let profile = Path::new(env!("CARGO_BIN_EXE_leasehold")).parent().unwrap();
    let path = profile.parent().unwrap().join("lambda").join(name);
    assert!(
        path.exists(),
        "{} is missing: run the tests by tests/run, which builds it",
        path.display()
    );
    path.display().to_string()
}

impl Client {
    /// Starts `leasehold run` with the function for SQS events.
    fn run(&self, cloud: &Cloud, flags: &str) -> Leasehold {
        self.start(cloud, &format!("{FLAGS} {flags}"), self.sqs)
    }

    fn start(&self, cloud: &Cloud, flags: &str, function: fn() -> Vec<String>) -> Leasehold {
        for name in self.files {
            let to = cloud.dir.path().join(Path::new(name).file_name().unwrap());
            fs::copy(file(name), to).unwrap();
        }
        let mut command = cloud.command(&[], flags, r#"exec "$@""#);
        command.arg("sh").args(function());
        Leasehold::start(command)
    }
}

/// The lines that the function printed and that begin so. Node.js's client writes the time, the
/// request id and the level before each line.
fn printed<'a>(exited: &'a ExitedRun, prefix: &str) -> Vec<&'a str> {
    let lines = exited.log.iter().filter_map(|record| record["line"].as_str());
    let texts = lines.filter_map(|line| line.rsplit('\t').next());
    texts.filter(|text| text.starts_with(prefix)).collect()
}

async fn one_process_works_on_messages_that_succeed_and_fail(client: &Client) {
    let cloud = Cloud::new(5).await;
    for body in ["describe", "raise", "fail", "good", "good"] {
        cloud.send(body.to_owned()).await;
    }
    let exited = client.run(&cloud, "--max-messages 5").expect_exit(1).await;
    let reasons = reasons(&exited);
    assert_eq!((reasons.len(), cloud.counts().await), (2, (0, 2)), "{}", exited.stdout);
    for why in [client.error, "in batchItemFailures"] {
        assert!(reasons.iter().any(|reason| reason.contains(why)), "{why}: {reasons:#?}");
    }
    assert_eq!(printed(&exited, "loading").len(), 1, "{}", exited.stdout);
    assert_eq!(printed(&exited, "event of 1").len(), 5, "{}", exited.stdout);
    let event = exited.log.iter().find(|record| record["event"]["function"].is_string());
    let described = event.map_or_else(
        || serde_json::from_str(printed(&exited, "{")[0]).unwrap(),
        |record| record["event"].clone(),
    );
    assert_eq!(described["function"], *cloud.bucket);
    let arn = cloud.queue_arn().await.replacen(":sqs:", ":lambda:", 1);
    let arn = arn.replacen(&cloud.bucket, &format!("function:{}", cloud.bucket), 1);
    assert_eq!(described["arn"], arn);
    assert!(described["memory"].as_u64() > Some(0), "{described}");
    let left = described["seconds_left"].as_f64().unwrap();
    assert!((1.0..=600.0).contains(&left), "--max-duration is 10m: {left}");
}

async fn a_crash_keeps_the_message_and_the_next_one_gets_a_new_process(client: &Client) {
    let cloud = Cloud::new(5).await;
    for body in ["good", "crash", "good"] {
        cloud.send(body.to_owned()).await;
    }
    let exited = client.run(&cloud, "--max-messages 3").wait().await;
    let reasons = reasons(&exited);
    assert_eq!((reasons.len(), cloud.counts().await), (1, (0, 1)), "{}", exited.stdout);
    assert!(reasons[0].contains("ended before it answered: exit code 0"), "{reasons:#?}");
    assert!((1..=2).contains(&printed(&exited, "loading").len()), "{}", exited.stdout);
}

async fn an_error_while_it_is_loaded_is_the_reason(client: &Client) {
    let cloud = Cloud::new(5).await;
    cloud.send("good".to_owned()).await;
    cloud.touch("broken");
    let exited = client.run(&cloud, "").expect_exit(1).await;
    let reasons = reasons(&exited);
    assert!(reasons[0].contains(client.init_error), "{reasons:#?}");
    assert_eq!(cloud.counts().await, (0, 1));
}

async fn messages_of_an_event_succeed_and_fail_one_by_one(client: &Client) {
    let cloud = Cloud::new(5).await;
    for body in ["good", "fail", "good", "fail"] {
        cloud.send(body.to_owned()).await;
    }
    let flags = "--batch-size 4 --batch-window 40s --max-messages 4 --wait 15s";
    let exited = client.run(&cloud, flags).expect_exit(1).await;
    assert_eq!(printed(&exited, "event of 4").len(), 1, "{}", exited.stdout);
    assert_eq!((reasons(&exited).len(), cloud.counts().await), (2, (0, 2)), "{}", exited.stdout);
}

async fn a_stop_ends_it_while_it_waits_for_an_event(client: &Client) {
    let cloud = Cloud::new(5).await;
    cloud.send("good".to_owned()).await;
    let running = client.run(&cloud, "--max-messages 2 --wait 15s");
    eventually("the message is deleted", async || (cloud.counts().await == (0, 0)).then_some(()))
        .await;
    running.signal(Signal::SIGTERM);
    let exited = running.expect_exit(0).await;
    assert_eq!(printed(&exited, "processed good").len(), 1, "{}", exited.stdout);
    let pid = printed(&exited, "loading")[0].rsplit(' ').next().unwrap().parse().unwrap();
    assert!(!is_alive(pid));
    let killed = exited.stdout.contains("killing it");
    assert!(!killed, "it ends at SIGTERM: {}", exited.stdout);
}

async fn a_stop_ends_it_while_it_works_and_releases_the_message(client: &Client) {
    let cloud = Cloud::new(5).await;
    cloud.send("wait".to_owned()).await;
    let running = client.run(&cloud, "");
    eventually("it works", async || cloud.dir.path().join("waits").exists().then_some(())).await;
    running.signal(Signal::SIGTERM);
    let exited = running.expect_exit(143).await;
    assert_eq!(exited.record("message kept")["outcome"], "stopped");
    assert_eq!(cloud.counts().await, (1, 0), "released at once");
}

async fn the_lease_is_held_while_it_works_for_longer(client: &Client) {
    let cloud = Cloud::new(5).await;
    cloud.send("slow".to_owned()).await;
    let running = client.run(&cloud, "--visibility-timeout 6s");
    eventually("it is received", async || (cloud.counts().await.1 == 1).then_some(())).await;
    let exited = cloud.wait_while_another_polls(running).await;
    assert_eq!((exited.code(), cloud.counts().await), (0, (0, 0)), "{}", exited.stdout);
}

async fn a_function_for_s3_gets_events_of_s3_also_from_eventbridge(client: &Client) {
    let cloud = Cloud::new(5).await;
    cloud.put("in/orders.csv", b"x").await;
    let of_eventbridge = serde_json::json!({
        "detail-type": "Object Created", "source": "aws.s3",
        "time": "2025-03-14T09:26:53Z", "region": "eu-central-1",
        "detail": {
            "bucket": { "name": "incoming" }, "object": { "key": "rows.csv", "size": 5 },
            "reason": "CompleteMultipartUpload",
        },
    });
    cloud.send(of_eventbridge.to_string()).await;
    let flags = "--handler lambda --lambda-event s3 --max-messages 2";
    let exited = client.start(&cloud, flags, client.s3).expect_exit(0).await;
    let expected = [
        format!("ObjectCreated:Put s3://{}/in/orders.csv", cloud.bucket),
        "ObjectCreated:CompleteMultipartUpload s3://incoming/rows.csv".to_owned(),
    ];
    let lines: BTreeSet<_> = printed(&exited, "ObjectCreated").into_iter().collect();
    assert_eq!(lines, expected.iter().map(String::as_str).collect(), "{}", exited.stdout);
    assert_eq!(cloud.counts().await, (0, 0));
}

/// Each test once for each client.
macro_rules! tests_of {
    ($($module:ident: $client:ident),*; $tests:tt) => { $(tests_of!(@ $module $client $tests);)* };
    (@ $module:ident $client:ident [$($test:ident),* $(,)?]) => {
        mod $module {
            $(
                #[tokio::test]
                async fn $test() {
                    super::$test(&super::$client).await;
                }
            )*
        }
    };
}

tests_of!(of_python: PYTHON, of_node: NODE, of_rust: RUST; [
    one_process_works_on_messages_that_succeed_and_fail,
    a_crash_keeps_the_message_and_the_next_one_gets_a_new_process,
    an_error_while_it_is_loaded_is_the_reason,
    messages_of_an_event_succeed_and_fail_one_by_one,
    a_stop_ends_it_while_it_waits_for_an_event,
    a_stop_ends_it_while_it_works_and_releases_the_message,
    the_lease_is_held_while_it_works_for_longer,
    a_function_for_s3_gets_events_of_s3_also_from_eventbridge,
]);

#[tokio::test]
async fn pythons_client_lets_the_function_handle_signals_and_report_progress() {
    let cloud = Cloud::new(5).await;
    cloud.send("report".to_owned()).await;
    let exited = PYTHON.run(&cloud, "").expect_exit(0).await;
    let ended = exited.record("message deleted");
    assert_eq!(ended["metrics"]["rows"].as_f64(), Some(5.0), "{ended}");
    // Its own signal handler runs at the end, although it waits for an event.
    assert_eq!(printed(&exited, "stopping").len(), 1, "{}", exited.stdout);
}

/// The images of docs/warm-workers.md cannot be built here: their bases come from a registry.
#[test]
fn the_documented_images_start_the_clients_as_these_tests_do() {
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/warm-workers.md"))
            .unwrap();
    let images: Vec<_> =
        page.split("```dockerfile\n").skip(1).filter_map(|it| it.split("```").next()).collect();
    let commands: Vec<Vec<String>> = images
        .iter()
        .map(|image| {
            let line = image.lines().find_map(|line| line.strip_prefix("CMD ")).unwrap();
            serde_json::from_str(line).expect("a list, so that no shell is between")
        })
        .collect();
    for words in &commands {
        let with_queue = ["leasehold", "run", "--queue-url", "https://sqs/q"].map(str::to_owned);
        Cli::try_parse_from(with_queue.iter().chain(&words[2..])).unwrap();
    }
    let tails: Vec<_> = commands
        .iter()
        .map(|words| words[words.iter().position(|word| word == "--").unwrap() + 1..].join(" "))
        .collect();
    assert_eq!(
        tails,
        [
            "python -m awslambdaric app.handler",
            "node node_modules/aws-lambda-ric/index.mjs app.handler",
            "bootstrap",
        ]
    );
    let requirements = fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/requirements/lambda.txt"),
    )
    .unwrap();
    let python = requirements.lines().find(|line| line.starts_with("awslambdaric==")).unwrap();
    assert!(images[0].contains(python), "{python}");
    let package = fs::read_to_string(file("node/package.json")).unwrap();
    let package: Value = serde_json::from_str(&package).unwrap();
    let node = package["dependencies"]["aws-lambda-ric"].as_str().unwrap();
    assert!(images[1].contains(&format!("aws-lambda-ric@{node}")), "{node}");
}
