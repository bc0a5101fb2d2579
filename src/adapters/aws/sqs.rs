//! A queue at SQS, or at another server with its JSON protocol.
//!
//! Architecture invariant: every call is one attempt. The SDK's retries are off, since the SDK
//! would repeat a delete after the stop began.

mod batch;
mod message;
pub mod queue_url;
mod refusal;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_sqs::config::endpoint::DefaultResolver;
use aws_sdk_sqs::config::{Builder, Region};
use aws_sdk_sqs::types::{MessageSystemAttributeName, QueueAttributeName};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use tracing::warn;

use super::answers::{self, Service};
use crate::adapters::aws::{self, ATTEMPT_LIMIT, Failure, Permission};
use crate::adapters::url;
use crate::job::delivery::{Delivery, ReceiptHandle, Redrive};
use crate::job::verdict::DeletePermit;
use crate::ports::{DeleteError, Queue, ReceiveError, VisibilityError};
use message::delivery;
use queue_url::{is_aws_default, is_fifo, origin_of, queue_name};
use refusal::{ErrorClass, advice, plain, without_handle};

/// A queue at SQS.
pub struct Sqs {
    client: aws_sdk_sqs::Client,
    queue_url: String,
    /// Host and port of the requests, for errors.
    host: String,
    /// The `ReceiveRequestAttemptId`s of requests whose answer was lost. A FIFO queue returns the
    /// same message to a retry with the same id; otherwise the message would stay hidden until its
    /// visibility timeout ends. Two requests in flight never have the same id.
    unanswered: Mutex<Vec<String>>,
    /// The message attribute with the sender's idempotency key.
    key_attribute: Option<String>,
    /// The attributes of the queue that a request asks for.
    system_attributes: Vec<MessageSystemAttributeName>,
}

/// Reads the SDK's list of AWS's partitions, which takes a sixth of the instructions of a start.
/// The first client would do it: on another thread before, it costs no time.
pub fn prepare() {
    DefaultResolver::new();
}

impl Sqs {
    /// Requests go to the region in the queue's URL, if it has one. If its host is not a default
    /// AWS host, the URL is the endpoint as well, unless `AWS_ENDPOINT_URL` or
    /// `AWS_ENDPOINT_URL_SQS` is set.
    pub fn new(config: &SdkConfig, queue_url: String) -> Self {
        let mut builder = Builder::from(config).retry_config(RetryConfig::disabled());
        if let Some(region) = aws::region_of(&queue_url) {
            builder = builder.region(Region::new(region.to_owned()));
        }
        let custom = aws::custom_endpoint(config, "SQS");
        if custom.is_none() && !is_aws_default(&queue_url) {
            // The host is already one of FIPS or dualstack, or its server has no such variants.
            builder =
                builder.endpoint_url(origin_of(&queue_url)).use_fips(false).use_dual_stack(false);
        }
        if let Some(client) = answers::checked(config, Service::Sqs) {
            builder = builder.http_client(client);
        }
        let endpoint = custom.as_ref().unwrap_or(&queue_url);
        let host = url::host_of(endpoint).unwrap_or(endpoint).to_owned();
        let client = aws_sdk_sqs::Client::from_conf(builder.build());
        let system_attributes = SYSTEM_ATTRIBUTES.to_vec();
        Self {
            client,
            queue_url,
            host,
            unanswered: Mutex::default(),
            key_attribute: None,
            system_attributes,
        }
    }

    /// Also asks for the attributes that only a Lambda function gets, such as the sender's id.
    #[must_use]
    pub fn with_all_attributes(self) -> Self {
        Self { system_attributes: vec![MessageSystemAttributeName::All], ..self }
    }

    /// Reads the idempotency key from this message attribute. Without it, the key is a FIFO queue's
    /// `MessageDeduplicationId`, if the sender chose it: with content-based deduplication it is the
    /// SHA-256 of the body (SQS API, `SendMessage`), and the same body on another day is other
    /// work.
    #[must_use]
    pub fn with_key_attribute(self, key_attribute: Option<String>) -> Self {
        Self { key_attribute, ..self }
    }

    /// Sends one request, with a `ReceiveRequestAttemptId` if the queue is FIFO.
    async fn receive_up_to(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Result<Delivery, ReceiveError>>, ReceiveError> {
        let longer =
            TimeoutConfig::builder().operation_attempt_timeout(wait + ATTEMPT_LIMIT).build();
        let unanswered = || self.unanswered.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || format!("{:032x}", fastrand::u128(..));
        let attempt = is_fifo(&self.queue_url).then(|| unanswered().pop().unwrap_or_else(new));
        let answer = self
            .client
            .receive_message()
            .queue_url(&self.queue_url)
            .max_number_of_messages(i32::try_from(most).unwrap_or(i32::MAX))
            .wait_time_seconds(seconds(wait))
            .visibility_timeout(seconds(visibility))
            .set_message_system_attribute_names(Some(self.system_attributes.clone()))
            .message_attribute_names("All")
            .set_receive_request_attempt_id(attempt.clone())
            .customize()
            .config_override(aws_sdk_sqs::Config::builder().timeout_config(longer))
            .send()
            .await;
        match answer {
            Ok(answer) => {
                let received = answer.messages.into_iter().flatten();
                let key_attribute = self.key_attribute.as_deref();
                Ok(received.map(|message| delivery(message, key_attribute)).collect())
            }
            Err(error) => {
                unanswered().extend(attempt);
                let failure = Failure::of(&error);
                let text = self.describe("ReceiveMessage", &failure);
                match ErrorClass::of(&failure) {
                    ErrorClass::Hopeless => Err(ReceiveError::Misconfigured(text)),
                    ErrorClass::NotInFlight | ErrorClass::AtCeiling | ErrorClass::MayPass => {
                        Err(ReceiveError::Transient(text))
                    }
                }
            }
        }
    }

    /// The attributes of a queue by their names in SQS's API; `None` if the queue does not exist.
    /// The error is the reason why they are unknown.
    pub async fn attributes(
        &self,
        queue_url: &str,
    ) -> Result<Option<BTreeMap<String, String>>, String> {
        let request = self
            .client
            .get_queue_attributes()
            .queue_url(queue_url)
            .attribute_names(QueueAttributeName::All);
        match request.send().await {
            Ok(answer) => {
                let attributes = answer.attributes.into_iter().flatten();
                Ok(Some(
                    attributes.map(|(name, value)| (name.as_str().to_owned(), value)).collect(),
                ))
            }
            Err(error) => {
                let failure = Failure::of(&error);
                let is_gone =
                    |code: &str| matches!(plain(code), "NonExistentQueue" | "QueueDoesNotExist");
                if matches!(&failure, Failure::Refused { code: Some(code), .. } if is_gone(code)) {
                    return Ok(None);
                }
                Err(self.describe("GetQueueAttributes", &failure))
            }
        }
    }

    /// Checks the permission to extend and release with an invalid handle.
    pub async fn probe_change_visibility(&self) -> Probed {
        let call = self
            .client
            .change_message_visibility()
            .queue_url(&self.queue_url)
            .receipt_handle(NO_HANDLE);
        self.probed("ChangeMessageVisibility", call.visibility_timeout(0).send().await)
    }

    /// Checks the permission to delete with an invalid handle, so that no message is deleted.
    pub async fn probe_delete(&self) -> Probed {
        let call =
            self.client.delete_message().queue_url(&self.queue_url).receipt_handle(NO_HANDLE);
        self.probed("DeleteMessage", call.send().await)
    }

    fn probed<T, E>(&self, call: &str, answer: Result<T, SdkError<E, HttpResponse>>) -> Probed
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let Err(error) = answer else {
            return Probed { permission: Permission::Allowed, date: None };
        };
        let date = error.raw_response().and_then(|answer| answer.headers().get("date"));
        let date =
            date.and_then(|date| DateTime::from_str(date, Format::HttpDate).ok()?.try_into().ok());
        let failure = Failure::of(&error);
        let text = self.describe(call, &failure);
        let permission = match (&failure, ErrorClass::of(&failure)) {
            (Failure::Refused { .. }, ErrorClass::NotInFlight) => Permission::Allowed,
            (Failure::Refused { .. }, ErrorClass::Hopeless)
            | (Failure::Refused { code: None, status: 403, .. }, _) => Permission::Denied(text),
            (Failure::Refused { .. } | Failure::Misconfigured(_) | Failure::Unanswered(_), _) => {
                Permission::Unknown(text)
            }
        };
        Probed { permission, date }
    }

    /// `is_unclear`: the request may have succeeded.
    fn visibility_error(&self, call: &str, failure: &Failure, is_unclear: bool) -> VisibilityError {
        let text = self.describe(call, failure);
        match ErrorClass::of(failure) {
            ErrorClass::NotInFlight => VisibilityError::NotInFlight(text),
            ErrorClass::AtCeiling => VisibilityError::AtCeiling(text),
            _ if is_unclear => VisibilityError::Unclear(text),
            // The lease is valid until its time is up, even without permission to extend it.
            ErrorClass::Hopeless | ErrorClass::MayPass => VisibilityError::Transient(text),
        }
    }

    fn delete_error(&self, call: &str, failure: &Failure) -> DeleteError {
        let text = self.describe(call, failure);
        match ErrorClass::of(failure) {
            ErrorClass::NotInFlight => DeleteError::Refused(text),
            ErrorClass::Hopeless if matches!(failure, Failure::Refused { .. }) => {
                DeleteError::Refused(text)
            }
            // Credentials that were lost during the work may return before the lease ends.
            ErrorClass::Hopeless | ErrorClass::AtCeiling | ErrorClass::MayPass => {
                DeleteError::Transient(text)
            }
        }
    }

    /// Which call failed and why, with advice where we know the cure.
    fn describe(&self, call: &str, failure: &Failure) -> String {
        let queue = queue_name(&self.queue_url);
        match failure {
            Failure::Refused { code: Some(code), message, status: _ } => {
                let message = message.as_deref().unwrap_or("no reason given").trim_end_matches('.');
                format!("{call} on {queue} was refused: {code}: {message}{}", advice(call, code))
            }
            Failure::Refused { code: None, message: _, status } => {
                format!("{call} on {queue} was refused by {}: HTTP {status}", self.host)
            }
            Failure::Misconfigured(why) => format!("{call} on {queue} cannot be sent: {why}"),
            Failure::Unanswered(why) => format!("{call} on {queue} at {} failed: {why}", self.host),
        }
    }
}

#[async_trait]
impl Queue for Sqs {
    async fn receive(
        &self,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Option<Delivery>, ReceiveError> {
        self.receive_up_to(1, wait, visibility).await?.into_iter().next().transpose()
    }

    async fn change_visibility(
        &self,
        receipt: &ReceiptHandle,
        visibility: Duration,
    ) -> Result<(), VisibilityError> {
        let answer = self
            .client
            .change_message_visibility()
            .queue_url(&self.queue_url)
            .receipt_handle(receipt.expose())
            .visibility_timeout(seconds(visibility))
            .send()
            .await;
        let Err(error) = answer else { return Ok(()) };
        let is_unclear = aws::may_have_succeeded(&error);
        let failure = without_handle(Failure::of(&error), receipt);
        Err(self.visibility_error("ChangeMessageVisibility", &failure, is_unclear))
    }

    async fn delete(&self, receipt: &ReceiptHandle, _: DeletePermit) -> Result<(), DeleteError> {
        let answer = self
            .client
            .delete_message()
            .queue_url(&self.queue_url)
            .receipt_handle(receipt.expose())
            .send()
            .await;
        let Err(error) = answer else { return Ok(()) };
        let failure = without_handle(Failure::of(&error), receipt);
        Err(self.delete_error("DeleteMessage", &failure))
    }

    async fn redrive(&self) -> Result<Redrive, String> {
        let answer = self
            .client
            .get_queue_attributes()
            .queue_url(&self.queue_url)
            .attribute_names(QueueAttributeName::RedrivePolicy)
            .send()
            .await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                let failure = Failure::of(&error);
                let why = self.describe("GetQueueAttributes", &failure);
                if ErrorClass::of(&failure) != ErrorClass::Hopeless {
                    return Err(why);
                }
                warn!(
                    why,
                    "the redrive policy is unknown: no message will be logged as the last attempt"
                );
                return Ok(Redrive::Unknown);
            }
        };
        let policy =
            answer.attributes().and_then(|all| all.get(&QueueAttributeName::RedrivePolicy));
        let redrive = redrive_in(policy.map(String::as_str));
        if redrive == Redrive::Unknown {
            warn!(
                policy,
                "the redrive policy cannot be parsed: no message will be logged as the last attempt"
            );
        }
        Ok(redrive)
    }
}

/// What the queue knows about a message. Not `All`, which includes the sender's AWS account.
const SYSTEM_ATTRIBUTES: [MessageSystemAttributeName; 6] = [
    MessageSystemAttributeName::ApproximateReceiveCount,
    MessageSystemAttributeName::ApproximateFirstReceiveTimestamp,
    MessageSystemAttributeName::SentTimestamp,
    MessageSystemAttributeName::AwsTraceHeader,
    MessageSystemAttributeName::MessageDeduplicationId,
    MessageSystemAttributeName::MessageGroupId,
];

/// A handle that is not valid in any queue.
const NO_HANDLE: &str = "leasehold-check";

/// The result of a call without effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    pub permission: Permission,
    /// SQS's clock, if the answer has it.
    pub date: Option<SystemTime>,
}

/// SQS uses whole seconds, up to 43,200.
fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)
}

/// Reads a queue's attribute `RedrivePolicy`.
pub fn redrive_in(policy: Option<&str>) -> Redrive {
    policy
        .filter(|policy| !policy.is_empty())
        .map_or(Redrive::None, |policy| redrive_of(policy).unwrap_or(Redrive::Unknown))
}

/// Reads `{"deadLetterTargetArn": "arn:…:name", "maxReceiveCount": 5}`; SQS returns the count as
/// it was set, as a number or a string.
fn redrive_of(policy: &str) -> Option<Redrive> {
    let policy: serde_json::Value = serde_json::from_str(policy).ok()?;
    let count = policy.get("maxReceiveCount")?;
    let count = count.as_u64().or_else(|| count.as_str()?.parse().ok())?;
    let queue = policy.get("deadLetterTargetArn")?.as_str()?.rsplit(':').next()?;
    Some(Redrive::DeadLetter { max_receive_count: count.try_into().ok()?, queue: queue.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::super::testing::{Canned, real};
    use super::*;
    use crate::job::delivery::{MessageId, SqsAttributes};
    use crate::job::lease::{Lease, Strategy};
    use crate::job::outcome::Outcome;
    use crate::job::verdict::{OnStop, Retry, RetryPolicy, Verdict};

    const S: Duration = Duration::from_secs(1);
    const HANDLE: &str = "AQEBsecret+/handle==";
    const STALE: &str = "Value AQEBsecret+/handle== for parameter ReceiptHandle is invalid. Reason: Message does not \
                         exist or is not available for visibility timeout change.";
    const QUEUE_URL: &str = "https://sqs.eu-west-1.amazonaws.com/123456789012/jobs";

    fn sqs(server: &Canned) -> Sqs {
        Sqs::new(&server.config(), QUEUE_URL.into())
    }

    async fn delete(queue: &Sqs) -> Result<(), DeleteError> {
        let policy = RetryPolicy {
            retry: Retry::Expire,
            on_stop: OnStop::Expire,
            permanent_exit_codes: vec![],
        };
        let delivery = Delivery {
            message_id: MessageId::new("m"),
            receipt: ReceiptHandle::new(HANDLE),
            body: String::new(),
            payload_failed: None,
            receive_count: 1,
            sent_at: None,
            first_received_at: None,
            group_id: None,
            deduplication_id: None,
            idempotency_key: None,
            traceparent: None,
            attributes: BTreeMap::new(),
            sqs: SqsAttributes::default(),
        };
        let Verdict::Delete(completed) =
            policy.judge(&delivery.id(), &Redrive::None, Outcome::Finished)
        else {
            panic!("it finished")
        };
        let lease = Lease::taken(Strategy::Heartbeat, 30 * S, Duration::ZERO);
        queue.delete(&delivery.receipt, completed.permit(&lease, S).expect("held")).await
    }

    #[tokio::test]
    async fn errors_are_classified_as_they_come_over_the_wire() {
        let receipt = ReceiptHandle::new(HANDLE);
        // With the header that SQS sends, and without it, as from many SQS-compatible servers.
        let stale = format!(
            r#"{{"__type":"com.amazonaws.sqs#InvalidParameterValueException","message":"{STALE}"}}"#
        );
        for header in [Some("InvalidParameterValue;Sender"), None] {
            let queue = sqs(&Canned::new(400, header, stale.as_str()));
            let extended = queue.change_visibility(&receipt, 30 * S).await;
            assert!(matches!(extended, Err(VisibilityError::NotInFlight(_))), "{extended:?}");
            let deleted = delete(&queue).await;
            assert!(matches!(deleted, Err(DeleteError::Refused(_))), "{deleted:?}");
            assert!(
                !format!("{extended:?} {deleted:?}").contains(HANDLE),
                "{extended:?} {deleted:?}"
            );
        }
        let no_queue = r#"{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"The specified queue does not exist."}"#;
        for (header, code) in [
            (
                Some("AWS.SimpleQueueService.NonExistentQueue;Sender"),
                "AWS.SimpleQueueService.NonExistentQueue",
            ),
            (None, "QueueDoesNotExist"),
        ] {
            let received = sqs(&Canned::new(400, header, no_queue)).receive(S, 30 * S).await;
            let text = format!(
                "ReceiveMessage on jobs was refused: {code}: The specified queue does not exist (check --queue-url, \
                 its account and its region)"
            );
            assert_eq!(received, Err(ReceiveError::Misconfigured(text)));
        }
        let denied = r#"{"__type":"com.amazon.coral.service#AccessDeniedException","message":"User is not authorized."}"#;
        let received = sqs(&Canned::new(400, None, denied)).receive(S, 30 * S).await;
        assert!(
            matches!(&received, Err(ReceiveError::Misconfigured(text)) if text.contains("sqs:ReceiveMessage"))
        );
        let received =
            sqs(&Canned::new(502, None, "<html>Bad Gateway</html>")).receive(S, 30 * S).await;
        let text = "ReceiveMessage on jobs was refused by sqs.eu-west-1.amazonaws.com: HTTP 502";
        assert_eq!(received, Err(ReceiveError::Transient(text.into())));
    }

    /// A portal's page or a truncated answer proves neither that the queue is empty, nor that a
    /// lease was extended or a message deleted.
    #[tokio::test]
    async fn a_success_that_does_not_come_from_sqs_is_an_error() {
        const PAGE: &str = "<html>Sign in to the network</html>";
        let receipt = ReceiptHandle::new(HANDLE);
        for (server, problem) in [
            (Canned::new(200, None, PAGE), "its body is not a JSON object"),
            (
                Canned::new(200, None, r#"{"Messages":[{"MessageId":"m","#),
                "its body is not a JSON object",
            ),
            (Canned::new(200, None, "[]"), "its body is not a JSON object"),
            (
                Canned::new(200, None, r#"{"error":"upstream"}"#),
                "its body has a field that no answer of SQS has",
            ),
            (
                Canned::new(200, None, r#"{"__type":"x#AccessDenied"}"#),
                "its body has a field that no answer of SQS has",
            ),
            (
                Canned::new(200, None, r#"{"status":"ok"}"#),
                "its body has a field that no answer of SQS has",
            ),
            (
                Canned::new(200, None, r#"{"Error":{"Code":"x"}}"#),
                "its body has a field that no answer of SQS has",
            ),
            (
                Canned::new(200, None, "{}").header("x-amzn-requestid", ""),
                "it has no x-amzn-requestid",
            ),
            (
                Canned::new(200, None, "").header("x-amzn-requestid", ""),
                "it has no x-amzn-requestid",
            ),
        ] {
            let text = |call: &str| {
                format!(
                    "{call} on jobs at sqs.eu-west-1.amazonaws.com failed: the HTTP 200 answer is not from SQS: {problem} (does a \
                     proxy or a portal answer instead?)"
                )
            };
            let queue = sqs(&server);
            assert_eq!(
                queue.receive(S, 30 * S).await,
                Err(ReceiveError::Transient(text("ReceiveMessage")))
            );
            let extended = queue.change_visibility(&receipt, 30 * S).await;
            assert_eq!(extended, Err(VisibilityError::Unclear(text("ChangeMessageVisibility"))));
            assert_eq!(delete(&queue).await, Err(DeleteError::Transient(text("DeleteMessage"))));
        }
        for body in ["", "{}", r#"{"ResponseMetadata":{"RequestId":"r"}}"#] {
            let empty = sqs(&Canned::new(200, None, body));
            assert_eq!(
                (empty.change_visibility(&receipt, S).await, delete(&empty).await),
                (Ok(()), Ok(()))
            );
        }
    }

    /// The SDK refuses to derive a FIPS or dualstack host from a custom endpoint.
    #[tokio::test]
    async fn the_host_in_the_queue_url_wins_over_fips_and_dualstack() {
        let server = Canned::new(200, None, "{}");
        let config = server.config().into_builder().use_fips(true).use_dual_stack(true).build();
        for url in [
            QUEUE_URL,
            "https://sqs-fips.us-east-2.amazonaws.com/1/q",
            "https://sqs.eu-west-1.api.aws/1/q",
            "https://vpce-0a.sqs.eu-west-1.vpce.amazonaws.com/1/q",
            "http://localhost:4566/1/q",
        ] {
            assert_eq!(Sqs::new(&config, url.into()).receive(S, 30 * S).await, Ok(None), "{url}");
        }
        let config = config.into_builder().endpoint_url("http://localhost:4566").build();
        let received = Sqs::new(&config, QUEUE_URL.into()).receive(S, 30 * S).await;
        assert!(
            matches!(&received, Err(ReceiveError::Misconfigured(why)) if why.contains("custom endpoint")),
            "{received:?}"
        );
    }

    /// Another server with SQS's protocol need not send request ids, but must keep to the protocol.
    #[tokio::test]
    async fn another_queue_than_sqs_needs_no_request_id() {
        let at = |server: &Canned| Sqs::new(&server.config(), "http://sqs:9324/queue/q".into());
        let without_id = |body| Canned::new(200, None, body).header("x-amzn-requestid", "");
        assert_eq!(delete(&at(&without_id("{}"))).await, Ok(()));
        let refused = delete(&at(&without_id("<html></html>"))).await;
        assert!(matches!(refused, Err(DeleteError::Transient(_))), "{refused:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_poll_may_not_take_much_longer_than_its_wait() {
        let slow = |after| sqs(&Canned::new(200, None, "{}").after(after));
        assert_eq!(slow(25 * S).receive(20 * S, 30 * S).await, Ok(None));
        let late = slow(35 * S).receive(20 * S, 30 * S).await;
        assert!(matches!(late, Err(ReceiveError::Transient(_))), "{late:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_id_is_used_again_only_after_a_lost_answer() {
        let attempts = async |server: Canned| {
            let queue = Sqs::new(&server.clone().after(S).config(), format!("{QUEUE_URL}.fifo"));
            let _ = tokio::join!(queue.receive(S, 30 * S), queue.receive(S, 30 * S));
            let _ = queue.receive(S, 30 * S).await;
            let bodies = server.bodies.lock().unwrap().clone();
            let attempt = |body: String| {
                let body: serde_json::Value = serde_json::from_str(&body).unwrap();
                body["ReceiveRequestAttemptId"].as_str().unwrap().to_owned()
            };
            bodies.into_iter().map(attempt).collect::<Vec<_>>()
        };
        let answered = attempts(Canned::new(200, None, "{}")).await;
        let lost = attempts(Canned::new(503, None, "")).await;
        assert!(
            answered[0] != answered[1] && !answered[..2].contains(&answered[2]),
            "{answered:?}"
        );
        assert!(lost[0] != lost[1] && lost[..2].contains(&lost[2]), "{lost:?}");
    }

    #[tokio::test]
    async fn every_call_is_one_request() {
        let server = Canned::new(503, None, "");
        let queue = sqs(&server);
        assert!(matches!(delete(&queue).await, Err(DeleteError::Transient(_))));
        assert_eq!(server.requests.load(Ordering::Relaxed), 1);
        let receipt = ReceiptHandle::new(HANDLE);
        assert!(matches!(
            queue.change_visibility(&receipt, S).await,
            Err(VisibilityError::Unclear(_))
        ));
        assert_eq!(server.requests.load(Ordering::Relaxed), 2);
        assert!(matches!(queue.receive(S, S).await, Err(ReceiveError::Transient(_))));
        assert_eq!(server.requests.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_that_may_have_succeeded_is_unclear() {
        let changed = async |server: Canned| {
            let config = sqs(&server);
            match config.change_visibility(&ReceiptHandle::new(HANDLE), S).await {
                Err(VisibilityError::Unclear(_)) => "unclear",
                Err(VisibilityError::Transient(_)) => "not made",
                other => panic!("{other:?}"),
            }
        };
        let throttled = r#"{"__type":"com.amazonaws.sqs#RequestThrottled","message":"slow down"}"#;
        let denied = r#"{"__type":"com.amazonaws.sqs#AccessDenied","message":"no"}"#;
        for (status, body, meaning) in [
            (400, throttled, "not made"),
            (503, throttled, "not made"),
            (403, denied, "not made"),
            (429, "", "not made"),
            (500, "", "unclear"),
            (502, "<html>", "unclear"),
            (503, r#"{"__type":"ServiceUnavailable"}"#, "unclear"),
        ] {
            assert_eq!(changed(Canned::new(status, None, body)).await, meaning, "{status} {body}");
        }
        // Nothing listens on this port, so nothing was sent.
        let nowhere = real(None).into_builder().endpoint_url("http://127.0.0.1:1").build();
        let queue = Sqs::new(&nowhere, "http://127.0.0.1:1/1/jobs".into());
        let refused = queue.change_visibility(&ReceiptHandle::new(HANDLE), S).await;
        assert!(matches!(refused, Err(VisibilityError::Transient(_))), "{refused:?}");
    }

    #[tokio::test]
    async fn a_message_becomes_a_delivery() {
        let message = r#"{"Messages":[{"MessageId":"m","ReceiptHandle":"h","Body":"b",
            "Attributes":{"ApproximateReceiveCount":"3",
                "AWSTraceHeader":"Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"},
            "MessageAttributes":{"traceparent":{"DataType":"String","StringValue":"not one"}}}]}"#;
        let delivery =
            sqs(&Canned::new(200, None, message)).receive(S, 30 * S).await.unwrap().unwrap();
        assert_eq!((delivery.message_id.as_str(), delivery.receipt.expose()), ("m", "h"));
        assert_eq!((delivery.body.as_str(), delivery.receive_count), ("b", 3));
        let traceparent = "00-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01";
        assert_eq!(delivery.traceparent.as_deref(), Some(traceparent));
        assert_eq!(sqs(&Canned::new(200, None, "{}")).receive(S, 30 * S).await, Ok(None));
    }

    #[tokio::test]
    async fn a_corrupted_body_is_not_delivered() {
        let of = |md5: &str| {
            let message = format!(
                r#"{{"Messages":[{{"MessageId":"m","ReceiptHandle":"h","Body":"b","MD5OfBody":"{md5}"}}]}}"#
            );
            Canned::new(200, None, message)
        };
        let good = sqs(&of("92eb5ffee6ae2fec3ad71c777531578f")).receive(S, 30 * S).await;
        assert_eq!(good.unwrap().unwrap().body, "b");
        let changed = sqs(&of("0cc175b9c0f1b6a831c399e269772661")).receive(S, 30 * S).await;
        let why = "message m: the body does not match its MD5";
        assert_eq!(changed, Err(ReceiveError::Transient(why.into())));
    }

    #[tokio::test]
    async fn the_redrive_policy_is_read() {
        let dead_letter = Redrive::DeadLetter { max_receive_count: 5, queue: "dead".into() };
        let arn = "arn:aws:sqs:eu-west-1:123456789012:dead";
        let table = [
            (format!(r#"{{"deadLetterTargetArn":"{arn}","maxReceiveCount":5}}"#), &dead_letter),
            (format!(r#"{{"deadLetterTargetArn":"{arn}","maxReceiveCount":"5"}}"#), &dead_letter),
            (
                format!(r#"{{"deadLetterTargetArn":"{arn}","maxReceiveCount":-5}}"#),
                &Redrive::Unknown,
            ),
            ("nonsense".into(), &Redrive::Unknown),
            (String::new(), &Redrive::None),
        ];
        for (policy, redrive) in table {
            let body = serde_json::json!({ "Attributes": { "RedrivePolicy": policy } }).to_string();
            assert_eq!(
                sqs(&Canned::new(200, None, body)).redrive().await.as_ref(),
                Ok(redrive),
                "{policy}"
            );
        }
        assert_eq!(sqs(&Canned::new(200, None, "{}")).redrive().await, Ok(Redrive::None));
        let denied = r#"{"__type":"AccessDeniedException"}"#;
        assert_eq!(sqs(&Canned::new(400, None, denied)).redrive().await, Ok(Redrive::Unknown));
        assert!(sqs(&Canned::new(503, None, "")).redrive().await.is_err());
    }

    #[tokio::test]
    async fn the_ca_bundle_matters_to_https_only() {
        let receive_from = |queue_url: &'static str| async move {
            let queue = Sqs::new(&real(Some("/no/such/ca.pem".into())), queue_url.into());
            queue.receive(Duration::ZERO, S).await
        };
        // Nothing listens on port 1.
        let https = receive_from("https://127.0.0.1:1/123456789012/jobs").await;
        assert!(
            matches!(&https, Err(ReceiveError::Misconfigured(why)) if why.contains("/no/such/ca.pem")),
            "{https:?}"
        );
        let http = receive_from("http://127.0.0.1:1/123456789012/jobs").await;
        assert!(
            matches!(&http, Err(ReceiveError::Transient(why)) if why.contains("127.0.0.1:1 failed")),
            "{http:?}"
        );
    }
}
