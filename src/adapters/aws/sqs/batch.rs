//! Several calls in one request. SQS answers with a result for each entry, under the entry's id: its
//! number in the request.

use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry,
};

use super::refusal::without_handle;
use super::{Sqs, seconds};
use crate::adapters::aws::{self, Failure};
use crate::job::delivery::{Delivery, ReceiptHandle};
use crate::job::verdict::DeletePermit;
use crate::ports::{BatchQueue, DeleteError, ReceiveError, VisibilityError};

const CHANGE: &str = "ChangeMessageVisibilityBatch";
const DELETE: &str = "DeleteMessageBatch";

/// What an answer has about one entry.
#[derive(Debug, PartialEq)]
enum Entry {
    Succeeded,
    Failed(BatchResultErrorEntry),
    /// No result, or several.
    Unclear,
}

#[async_trait]
impl BatchQueue for Sqs {
    async fn receive_batch(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Result<Delivery, ReceiveError>>, ReceiveError> {
        self.receive_up_to(most, wait, visibility).await
    }

    async fn change_visibility_batch(
        &self,
        changes: &[(ReceiptHandle, Duration)],
    ) -> Vec<Result<(), VisibilityError>> {
        let entries = changes.iter().enumerate().map(|(number, (receipt, to))| {
            let entry = ChangeMessageVisibilityBatchRequestEntry::builder().id(number.to_string());
            let entry = entry.receipt_handle(receipt.expose()).visibility_timeout(seconds(*to));
            entry.build().expect("it has all required fields")
        });
        let request = self.client.change_message_visibility_batch().queue_url(&self.queue_url);
        match request.set_entries(Some(entries.collect())).send().await {
            Ok(answer) => {
                let succeeded = answer.successful.iter().map(|entry| entry.id.as_str());
                let entries = entries_of(changes.len(), succeeded, answer.failed);
                let result = |(entry, (receipt, _)): (Entry, &(ReceiptHandle, _))| match entry {
                    Entry::Succeeded => Ok(()),
                    Entry::Failed(error) => {
                        let is_unclear = may_have_succeeded(&error);
                        let failure = without_handle(failure_of(error), receipt);
                        Err(self.visibility_error(CHANGE, &failure, is_unclear))
                    }
                    Entry::Unclear => Err(VisibilityError::Unclear(self.no_result(CHANGE))),
                };
                entries.into_iter().zip(changes).map(result).collect()
            }
            Err(error) => {
                let is_unclear = aws::may_have_succeeded(&error);
                let failure = without_handles(Failure::of(&error), changes);
                let error = self.visibility_error(CHANGE, &failure, is_unclear);
                vec![Err(error); changes.len()]
            }
        }
    }

    async fn delete_batch(
        &self,
        deletes: Vec<(ReceiptHandle, DeletePermit)>,
    ) -> Vec<Result<(), DeleteError>> {
        let entries = deletes.iter().enumerate().map(|(number, (receipt, _))| {
            let entry = DeleteMessageBatchRequestEntry::builder().id(number.to_string());
            entry.receipt_handle(receipt.expose()).build().expect("it has all required fields")
        });
        let request = self.client.delete_message_batch().queue_url(&self.queue_url);
        match request.set_entries(Some(entries.collect())).send().await {
            Ok(answer) => {
                let succeeded = answer.successful.iter().map(|entry| entry.id.as_str());
                let entries = entries_of(deletes.len(), succeeded, answer.failed);
                let result = |(entry, (receipt, _)): (Entry, &(ReceiptHandle, _))| match entry {
                    Entry::Succeeded => Ok(()),
                    Entry::Failed(error) => {
                        let failure = without_handle(failure_of(error), receipt);
                        Err(self.delete_error(DELETE, &failure))
                    }
                    Entry::Unclear => Err(DeleteError::Transient(self.no_result(DELETE))),
                };
                entries.into_iter().zip(&deletes).map(result).collect()
            }
            Err(error) => {
                let failure = without_handles(Failure::of(&error), &deletes);
                vec![Err(self.delete_error(DELETE, &failure)); deletes.len()]
            }
        }
    }
}

impl Sqs {
    fn no_result(&self, call: &str) -> String {
        let why = "the answer does not have exactly one result for this message".to_owned();
        self.describe(call, &Failure::Unanswered(why))
    }
}

/// The result of each of `count` entries. Ids that were not sent are ignored.
fn entries_of<'a>(
    count: usize,
    succeeded: impl Iterator<Item = &'a str>,
    failed: Vec<BatchResultErrorEntry>,
) -> Vec<Entry> {
    let succeeded = succeeded.map(|id| (id.to_owned(), Entry::Succeeded));
    let failed = failed.into_iter().map(|error| (error.id.clone(), Entry::Failed(error)));
    let mut entries: Vec<Option<Entry>> = (0..count).map(|_| None).collect();
    for (id, result) in succeeded.chain(failed) {
        let number = id.parse().ok().filter(|number: &usize| number.to_string() == id);
        if let Some(entry) = number.and_then(|number| entries.get_mut(number)) {
            *entry = Some(if entry.is_none() { result } else { Entry::Unclear });
        }
    }
    entries.into_iter().map(|entry| entry.unwrap_or(Entry::Unclear)).collect()
}

/// The same as the failure of a single call.
fn failure_of(error: BatchResultErrorEntry) -> Failure {
    let status = if error.sender_fault { 400 } else { 500 };
    Failure::Refused { code: Some(error.code), message: error.message, status }
}

fn may_have_succeeded(error: &BatchResultErrorEntry) -> bool {
    !error.sender_fault && !error.code.contains("Throttl")
}

fn without_handles<T>(failure: Failure, entries: &[(ReceiptHandle, T)]) -> Failure {
    entries.iter().fold(failure, |failure, (receipt, _)| without_handle(failure, receipt))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::super::super::testing::Canned;
    use super::*;
    use crate::job::delivery::{DeliveryId, MessageId, Redrive};
    use crate::job::lease::{Lease, Strategy};
    use crate::job::outcome::Outcome;
    use crate::job::verdict::{OnStop, Retry, RetryPolicy, Verdict};

    const S: Duration = Duration::from_secs(1);
    const QUEUE_URL: &str = "https://sqs.eu-west-1.amazonaws.com/123456789012/jobs";
    const HANDLES: [&str; 3] = ["AQEBone==", "AQEBtwo==", "AQEBthree=="];

    fn permit() -> DeletePermit {
        let policy = RetryPolicy {
            retry: Retry::Expire,
            on_stop: OnStop::Expire,
            permanent_exit_codes: vec![],
        };
        let delivery = DeliveryId { message_id: MessageId::new("m"), receive_count: 1 };
        let Verdict::Delete(completed) = policy.judge(&delivery, &Redrive::None, Outcome::Finished)
        else {
            panic!("it finished")
        };
        let lease = Lease::taken(Strategy::Heartbeat, 30 * S, Duration::ZERO);
        completed.permit(&lease, S).expect("held")
    }

    async fn deleted(server: &Canned) -> Vec<Result<(), DeleteError>> {
        let queue = Sqs::new(&server.config(), QUEUE_URL.into());
        let delete = |handle: &str| (ReceiptHandle::new(handle), permit());
        queue.delete_batch(HANDLES.into_iter().map(delete).collect()).await
    }

    async fn extended(server: &Canned) -> Vec<Result<(), VisibilityError>> {
        let queue = Sqs::new(&server.config(), QUEUE_URL.into());
        queue.change_visibility_batch(&HANDLES.map(|it| (ReceiptHandle::new(it), 30 * S))).await
    }

    fn words<E>(results: &[Result<(), E>], word: fn(&E) -> &'static str) -> Vec<&'static str> {
        results.iter().map(|result| result.as_ref().map_or_else(word, |()| "ok")).collect()
    }

    fn of_delete(error: &DeleteError) -> &'static str {
        match error {
            DeleteError::Refused(_) => "refused",
            DeleteError::Transient(_) | DeleteError::NotSent(_) => "transient",
        }
    }

    fn of_change(error: &VisibilityError) -> &'static str {
        match error {
            VisibilityError::NotInFlight(_) => "not in flight",
            VisibilityError::AtCeiling(_) => "at ceiling",
            VisibilityError::Transient(_) => "transient",
            VisibilityError::Unclear(_) => "unclear",
        }
    }

    #[tokio::test]
    async fn an_entry_succeeds_only_if_the_answer_has_exactly_one_success_for_it() {
        let invalid = r#""Code":"ReceiptHandleIsInvalid","SenderFault":true"#;
        let internal = r#""Code":"InternalError","SenderFault":false"#;
        let throttled = r#""Code":"RequestThrottled","SenderFault":true"#;
        let table = [
            (r#"[{"Id":"0"},{"Id":"1"},{"Id":"2"}]"#, "[]".to_owned(), ["ok", "ok", "ok"]),
            // Missing, twice, never sent.
            (r#"[{"Id":"0"},{"Id":"2"}]"#, "[]".into(), ["ok", "unclear", "ok"]),
            (r#"[{"Id":"0"},{"Id":"1"},{"Id":"1"}]"#, "[]".into(), ["ok", "unclear", "unclear"]),
            (
                r#"[{"Id":"3"},{"Id":"01"},{"Id":"x"},{"Id":"2"}]"#,
                "[]".into(),
                ["unclear", "unclear", "ok"],
            ),
            // Both a success and a failure.
            (
                r#"[{"Id":"0"},{"Id":"1"},{"Id":"2"}]"#,
                format!(r#"[{{"Id":"1",{invalid}}}]"#),
                ["ok", "unclear", "ok"],
            ),
            (
                r#"[{"Id":"0"}]"#,
                format!(r#"[{{"Id":"1",{invalid}}},{{"Id":"2",{internal}}}]"#),
                ["ok", "not in flight", "unclear"],
            ),
            (
                r#"[{"Id":"0"},{"Id":"1"}]"#,
                format!(r#"[{{"Id":"2",{throttled}}}]"#),
                ["ok", "ok", "transient"],
            ),
        ];
        for (successful, failed, results) in table {
            let body = format!(r#"{{"Successful":{successful},"Failed":{failed}}}"#);
            let server = Canned::new(200, None, body.clone());
            assert_eq!(words(&extended(&server).await, of_change), results, "{body}");
            let results = results.map(|it| match it {
                "not in flight" => "refused",
                "unclear" => "transient",
                it => it,
            });
            assert_eq!(words(&deleted(&server).await, of_delete), results, "{body}");
            assert_eq!(server.requests.load(Ordering::Relaxed), 2, "one for each batch");
        }
    }

    #[tokio::test]
    async fn an_error_of_the_request_is_that_of_each_entry() {
        let denied = r#"{"__type":"com.amazon.coral.service#AccessDeniedException","message":"AQEBtwo== is not yours"}"#;
        let refused = deleted(&Canned::new(400, None, denied)).await;
        let why = "the queue refused the delete: DeleteMessageBatch on jobs was refused: AccessDeniedException: (the \
                   receipt handle) is not yours (the pod's role and the queue's policy must allow sqs:DeleteMessage)";
        let refused: Vec<_> = refused.into_iter().map(|it| it.unwrap_err().to_string()).collect();
        assert_eq!(refused, [why; 3]);
        let answer = extended(&Canned::new(503, None, "")).await;
        assert_eq!(words(&answer, of_change), ["unclear"; 3]);
        // A portal's page is not an answer of SQS, and one without results does not have them.
        for body in ["<html></html>", "{}", r#"{"Successful":[]}"#] {
            let server = Canned::new(200, None, body);
            assert_eq!(words(&extended(&server).await, of_change), ["unclear"; 3], "{body}");
            assert_eq!(words(&deleted(&server).await, of_delete), ["transient"; 3], "{body}");
        }
    }

    #[tokio::test]
    async fn a_corrupted_message_does_not_hide_the_others() {
        let message = |id: &str, md5: &str| {
            format!(r#"{{"MessageId":"{id}","ReceiptHandle":"h","Body":"b","MD5OfBody":"{md5}"}}"#)
        };
        let (good, bad) = ("92eb5ffee6ae2fec3ad71c777531578f", "0cc175b9c0f1b6a831c399e269772661");
        let (first, second) = (message("m1", bad), message("m2", good));
        let server = Canned::new(200, None, format!(r#"{{"Messages":[{first},{second}]}}"#));
        let queue = Sqs::new(&server.config(), QUEUE_URL.into());
        let received = queue.receive_batch(10, S, 30 * S).await.unwrap();
        assert!(
            matches!(&received[..], [Err(ReceiveError::Transient(_)), Ok(it)] if it.message_id.as_str() == "m2"),
            "{received:?}"
        );
    }
}
