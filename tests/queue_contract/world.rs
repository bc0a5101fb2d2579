//! The queues under test: the in-memory queue, or the adapter's on a real server.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName;
use leasehold::adapters::aws::sqs::Sqs;
use leasehold::adapters::local::memory::{Kind, MemoryQueue};
use leasehold::job::delivery::{Delivery, Redrive};
use leasehold::job::lease::{Lease, Strategy};
use leasehold::job::outcome::Outcome;
use leasehold::job::verdict::{DeletePermit, OnStop, Retry, RetryPolicy, Verdict};
use leasehold::ports::{BatchQueue, DeleteError, VisibilityError};

use super::LONG;
use super::behaviour::{Answer, Behaviour, MINISTACK, MOTO, SQS};
use crate::support::aws;
use crate::support::servers::{Ministack, Moto};

/// A new, empty queue, with direct access for the test.
pub trait World: Sized {
    const BEHAVIOUR: Behaviour;

    /// With `max_receive_count` it has a dead-letter queue.
    async fn with_queue(kind: Kind, max_receive_count: Option<u32>) -> Self;
    fn queue(&self) -> &dyn BatchQueue;
    fn dead_letter_queue(&self) -> String;
    /// Returns the message's id. A standard queue ignores the group.
    async fn send(&self, body: &str, group: &str) -> String;
    /// The bodies of the dead letters.
    async fn dead_letters(&self) -> Vec<String>;

    async fn receive(&self, wait: Duration, visibility: Duration) -> Option<Delivery> {
        self.queue().receive(wait, visibility).await.unwrap()
    }

    /// Receives a visible message, without waiting.
    async fn look(&self) -> Option<Delivery> {
        self.receive(Duration::ZERO, LONG).await
    }

    async fn change(&self, delivery: &Delivery, visibility: Duration) -> Answer {
        changed(&self.queue().change_visibility(&delivery.receipt, visibility).await)
    }

    async fn change_all(&self, deliveries: &[Delivery], visibility: Duration) -> Vec<Answer> {
        let receipt = |it: &Delivery| (it.receipt.for_request(), visibility);
        let changes: Vec<_> = deliveries.iter().map(receipt).collect();
        let answers = self.queue().change_visibility_batch(&changes).await;
        answers.iter().map(changed).collect()
    }

    async fn delete_all(&self, deliveries: &[Delivery]) -> Vec<Answer> {
        let delete = |it: &Delivery| (it.receipt.for_request(), permit(it));
        let answers = self.queue().delete_batch(deliveries.iter().map(delete).collect()).await;
        answers.iter().map(deleted).collect()
    }

    async fn release(&self, delivery: &Delivery) {
        assert_eq!(self.change(delivery, Duration::ZERO).await, Answer::Ok);
    }

    async fn delete(&self, delivery: &Delivery) -> Answer {
        deleted(&self.queue().delete(&delivery.receipt, permit(delivery)).await)
    }
}

fn permit(delivery: &Delivery) -> DeletePermit {
    let policy =
        RetryPolicy { retry: Retry::Expire, on_stop: OnStop::Expire, permanent_exit_codes: vec![] };
    let Verdict::Delete(completed) =
        policy.judge(&delivery.id(), &Redrive::None, Outcome::Finished)
    else {
        panic!("not completed")
    };
    let lease = Lease::taken(Strategy::Heartbeat, LONG, Duration::ZERO);
    completed.permit(&lease, Duration::ZERO).unwrap()
}

fn changed(answer: &Result<(), VisibilityError>) -> Answer {
    match answer {
        Ok(()) => Answer::Ok,
        Err(VisibilityError::NotInFlight(_)) => Answer::NotInFlight,
        Err(VisibilityError::AtCeiling(_)) => Answer::AtCeiling,
        Err(VisibilityError::Transient(_) | VisibilityError::Unclear(_)) => Answer::Transient,
    }
}

fn deleted(answer: &Result<(), DeleteError>) -> Answer {
    match answer {
        Ok(()) => Answer::Ok,
        Err(DeleteError::Refused(_)) => Answer::Refused,
        Err(DeleteError::Transient(_) | DeleteError::NotSent(_)) => Answer::Transient,
    }
}

pub struct Memory(MemoryQueue);

impl World for Memory {
    const BEHAVIOUR: Behaviour = SQS;

    async fn with_queue(kind: Kind, max_receive_count: Option<u32>) -> Self {
        let dead_letter =
            |max_receive_count| Redrive::DeadLetter { max_receive_count, queue: "dead".into() };
        Self(MemoryQueue::new(kind, max_receive_count.map_or(Redrive::None, dead_letter)))
    }

    fn queue(&self) -> &dyn BatchQueue {
        &self.0
    }

    fn dead_letter_queue(&self) -> String {
        "dead".into()
    }

    async fn send(&self, body: &str, group: &str) -> String {
        self.0.send_in_group(body, group).to_string()
    }

    async fn dead_letters(&self) -> Vec<String> {
        self.0.dead_letters().into_iter().map(|letter| letter.body).collect()
    }
}

pub trait Server {
    const BEHAVIOUR: Behaviour;

    async fn endpoint() -> String;
}

impl Server for Ministack {
    const BEHAVIOUR: Behaviour = MINISTACK;

    async fn endpoint() -> String {
        Self::shared().await.endpoint()
    }
}

impl Server for Moto {
    const BEHAVIOUR: Behaviour = MOTO;

    async fn endpoint() -> String {
        Self::shared().await.endpoint()
    }
}

pub struct On<S> {
    client: aws_sdk_sqs::Client,
    kind: Kind,
    queue: Sqs,
    queue_url: String,
    dead_letter_queue_url: String,
    server: PhantomData<S>,
}

impl<S: Server> World for On<S> {
    const BEHAVIOUR: Behaviour = S::BEHAVIOUR;

    async fn with_queue(kind: Kind, max_receive_count: Option<u32>) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let config = aws::config(&S::endpoint().await);
        let client = aws_sdk_sqs::Client::new(&config);
        let name = format!("contract-{}", MADE.fetch_add(1, Ordering::Relaxed));
        let create = async |name: String, redrive: Option<String>| {
            let (name, fifo) = match kind {
                Kind::Standard => (name, None),
                Kind::Fifo => (format!("{name}.fifo"), Some("true")),
            };
            let request = client.create_queue().queue_name(name);
            let request = request.set_attributes(Some(
                [
                    (QueueAttributeName::FifoQueue, fifo.map(str::to_owned)),
                    (QueueAttributeName::RedrivePolicy, redrive),
                ]
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)))
                .collect(),
            ));
            request.send().await.unwrap().queue_url.unwrap()
        };
        let dead_letter_queue_url = create(format!("{name}-dead"), None).await;
        let asked = client.get_queue_attributes().queue_url(&dead_letter_queue_url);
        let asked = asked.attribute_names(QueueAttributeName::QueueArn).send().await.unwrap();
        let arn = asked.attributes.unwrap().remove(&QueueAttributeName::QueueArn).unwrap();
        let redrive = max_receive_count.map(|max_receive_count| {
            format!(r#"{{"deadLetterTargetArn":"{arn}","maxReceiveCount":{max_receive_count}}}"#)
        });
        let queue_url = create(name, redrive).await;
        let queue = Sqs::new(&config, queue_url.clone());
        Self { client, kind, queue, queue_url, dead_letter_queue_url, server: PhantomData }
    }

    fn queue(&self) -> &dyn BatchQueue {
        &self.queue
    }

    fn dead_letter_queue(&self) -> String {
        last_part(&self.dead_letter_queue_url).to_owned()
    }

    async fn send(&self, body: &str, group: &str) -> String {
        let message = self.client.send_message().queue_url(&self.queue_url).message_body(body);
        let message = match self.kind {
            Kind::Standard => message,
            Kind::Fifo => message.message_group_id(group).message_deduplication_id(body),
        };
        message.send().await.unwrap().message_id.unwrap()
    }

    async fn dead_letters(&self) -> Vec<String> {
        let receive = self
            .client
            .receive_message()
            .queue_url(&self.dead_letter_queue_url)
            .max_number_of_messages(10);
        let messages = receive.send().await.unwrap().messages.unwrap_or_default();
        messages.into_iter().filter_map(|message| message.body).collect()
    }
}

fn last_part(url: &str) -> &str {
    url.rsplit('/').next().unwrap()
}
