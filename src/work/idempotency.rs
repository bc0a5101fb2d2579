//! Finished work is recognised and not repeated; the same work does not run twice at the same time.
//!
//! Each piece of work has one record in S3, written only with a condition: no table, no lock
//! service. [`job::claim`](crate::job::claim) decides what its owner does next; this module does
//! it.
//!
//! A record reveals in time that another pod has taken over the work; SQS does so too late.
//!
//! A record in progress expires when it was not refreshed for its time to live, by the store's
//! clock, never by a pod's.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::job::claim::{Answer, Claim, Input, Milestone, Next, RecordState, Report, StoredRecord};
use crate::job::lease::CEILING;
use crate::job::notification::Record;
use crate::job::outcome::Failure;
use crate::job::report::Subject;
use crate::job::s3_location::S3Location;
use crate::ports::clock::Clock;
use crate::ports::{Condition, RecordError, Records};
use crate::work::last_error::retrying;

/// The records of one queue's work.
#[derive(Clone)]
pub struct Idempotency {
    pub records: Arc<dyn Records>,
    pub location: S3Location,
    /// The queue's URL: two pipelines on the same objects must not hide each other's work.
    pub queue: String,
    /// The pod's name, for readers of a record.
    pub owner: String,
    pub clock: Clock,
}

/// The result of a claim.
pub enum Claimed {
    /// An earlier delivery finished the work.
    AlreadyDone,
    /// The work is ours; no other pod does it while this record is refreshed.
    Ours(Box<OwnRecord>),
}

/// The record of work that this pod does or wants to do.
pub struct OwnRecord {
    of: Idempotency,
    key: String,
    /// Different for each claim, so that our own write whose answer was lost is recognised.
    nonce: String,
    /// How long it lasts without a refresh.
    time_to_live: Duration,
    info: WorkInfo,
    claim: Claim,
}

/// The content of a record.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    #[serde(with = "State")]
    state: RecordState,
    nonce: String,
    owner: String,
    /// In seconds.
    time_to_live: u64,
    written: String,
    #[serde(flatten)]
    info: WorkInfo,
}

/// The serialized form of a [`RecordState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[serde(remote = "RecordState")]
enum State {
    InProgress,
    Released,
    Done,
}

/// Details for human readers of a record; leasehold itself does not use them.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct WorkInfo {
    queue: String,
    message_id: String,
    receive_count: u32,
    bucket: Option<String>,
    key: Option<String>,
}

impl Idempotency {
    /// Claims the work on the `number`th object of a message, for the length of the message's
    /// lease, so that no pod waits for a dead one longer than SQS does. Waits while a live pod owns
    /// the work: releasing the message instead would use up its receives.
    pub async fn claim(
        &self,
        subject: &Subject,
        number: usize,
        record: Option<&Record>,
        time_to_live: Duration,
    ) -> Result<Claimed, Failure> {
        let mut own = OwnRecord {
            of: self.clone(),
            key: self.location.key(&self.record_name(subject, number, record)),
            nonce: format!("{:016x}", fastrand::u64(..)),
            time_to_live,
            info: WorkInfo {
                queue: self.queue.clone(),
                message_id: subject.message_id.to_string(),
                receive_count: subject.receive_count,
                bucket: record.map(|record| record.object.bucket.clone()),
                key: record.map(|record| record.object.key.clone()),
            },
            claim: Claim::new(subject.delivery(), time_to_live, self.clock.now()),
        };
        match own.next_milestone().await {
            Milestone::AlreadyDone => Ok(Claimed::AlreadyDone),
            Milestone::Claimed => Ok(Claimed::Ours(Box::new(own))),
            Milestone::Finished(Err(failure)) => Err(failure),
            Milestone::Lost(why) => Err(Failure::Superseded(why)),
            Milestone::Finished(Ok(())) => {
                Err(Failure::Record("it was finished before it was claimed".to_owned()))
            }
        }
    }

    /// The name of a piece of work: a hash of the queue and the sender's key, or else of the object
    /// and its event.
    fn record_name(&self, subject: &Subject, number: usize, record: Option<&Record>) -> String {
        let message_id = subject.message_id.as_str();
        let of = |Record { event, object, .. }: &Record| {
            let version = object.version_id.as_ref().or(object.etag.as_ref());
            // S3 numbers puts and deletes only. Only the message distinguishes other events.
            let which = match &object.sequencer {
                Some(sequencer) => serde_json::json!(sequencer),
                None => serde_json::json!([message_id, number]),
            };
            serde_json::json!([self.queue, event, object.bucket, object.key, version, which])
        };
        let name = match (&subject.idempotency_key, record) {
            (Some(key), _) => serde_json::json!([self.queue, key, number]),
            (None, Some(record)) => of(record),
            // A raw body belongs to one message.
            (None, None) => serde_json::json!([self.queue, message_id]),
        };
        format!("{}.json", hex::encode(Sha256::digest(name.to_string())))
    }
}

impl OwnRecord {
    /// Keeps refreshing the claim until it is lost. Returns the reason.
    pub async fn refresh(&mut self) -> String {
        loop {
            if let Milestone::Lost(why) = self.next_milestone().await {
                return why;
            }
        }
    }

    /// Records that the work succeeded, so that no delivery repeats it.
    pub async fn done(mut self) -> Result<(), Failure> {
        self.claim.handle(self.of.clock.now(), Input::Succeeded);
        self.finish().await
    }

    /// Releases the record of failed work, so that the next delivery need not wait. A record that
    /// cannot be released within the limit expires.
    pub async fn release(mut self, limit: Duration) {
        self.claim.handle(self.of.clock.now(), Input::Ended);
        match timeout(limit, self.finish()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(
                ?error,
                "the idempotency record was not released: it remains until it expires"
            ),
            Err(_) => debug!(
                "the idempotency record was not released in time: it remains until it expires"
            ),
        }
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        loop {
            match self.next_milestone().await {
                Milestone::Finished(result) => return result,
                Milestone::Lost(why) => return Err(Failure::Superseded(why)),
                Milestone::Claimed | Milestone::AlreadyDone => {}
            }
        }
    }

    /// Carries out the claim's actions until the next milestone.
    async fn next_milestone(&mut self) -> Milestone {
        let clock = self.of.clock;
        loop {
            let answer = match self.claim.next(clock.now()) {
                Next::Read { limit } => in_time(limit, self.read()).await,
                Next::Write { state, if_match, limit } => {
                    in_time(limit, self.write(state, if_match.as_deref())).await
                }
                Next::Wait { until } => {
                    clock.sleep_until(until).await;
                    continue;
                }
                Next::Report(Report::Waiting { owner }) => {
                    let owner: String = owner.chars().take(MAX_OWNER).collect();
                    info!(owner, "another pod is processing this work: waiting until it ends");
                    continue;
                }
                Next::Report(Report::Retrying(error)) => {
                    debug!(
                        error,
                        "reading or writing the idempotency record failed and will be retried"
                    );
                    retrying(error);
                    continue;
                }
                Next::Report(Report::RefreshFailed(error)) => {
                    warn!(error, "refreshing the idempotency record failed and will be retried");
                    continue;
                }
                Next::Report(Report::Reached(milestone)) => return milestone,
            };
            self.claim.handle(clock.now(), Input::Answered(answer));
        }
    }

    async fn read(&self) -> Result<Answer, RecordError> {
        let S3Location { bucket, .. } = &self.of.location;
        let Some(entry) = self.of.records.read(bucket, &self.key).await? else {
            return Ok(Answer::Read(None));
        };
        Ok(match Content::read(&entry.bytes) {
            Ok(content) => Answer::Read(Some(StoredRecord {
                state: content.state,
                is_ours: content.nonce == self.nonce,
                owner: content.owner,
                etag: entry.etag,
                age: entry.age,
                time_to_live: Duration::from_secs(content.time_to_live),
            })),
            Err(why) => Answer::Unreadable(format!("s3://{bucket}/{}: {why}", self.key)),
        })
    }

    async fn write(
        &self,
        state: RecordState,
        if_match: Option<&str>,
    ) -> Result<Answer, RecordError> {
        let content = Content {
            version: VERSION,
            state,
            nonce: self.nonce.clone(),
            owner: self.of.owner.clone(),
            time_to_live: self.time_to_live.as_secs(),
            written: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            info: self.info.clone(),
        };
        let bytes = serde_json::to_vec(&content).expect("its fields are text and numbers");
        let condition = if_match.map_or(Condition::Absent, Condition::Unchanged);
        self.of
            .records
            .write(&self.of.location.bucket, &self.key, bytes, condition)
            .await
            .map(Answer::Written)
    }
}

impl Content {
    /// Another version may use the same fields differently, so it is not read. The error quotes
    /// nothing.
    fn read(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(bytes).map_err(|_| NOT_A_RECORD)?;
        if version != VERSION {
            return Err(format!(
                "the record has version {version}, but this leasehold reads only version {VERSION}"
            ));
        }
        let content: Self = serde_json::from_slice(bytes).map_err(|_| NOT_A_RECORD)?;
        if content.time_to_live > CEILING.as_secs() {
            let time_to_live = content.time_to_live;
            return Err(format!(
                "its time_to_live is {time_to_live} s, longer than the 12 hours of a lease"
            ));
        }
        Ok(content)
    }
}

/// A single request.
async fn in_time(
    limit: Duration,
    request: impl Future<Output = Result<Answer, RecordError>>,
) -> Answer {
    match timeout(limit, request).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(RecordError::ConditionFailed)) => Answer::ConditionFailed,
        Ok(Err(RecordError::Refused(why))) => Answer::Refused(why),
        Ok(Err(RecordError::ConditionsUnsupported(why))) => Answer::Unsupported(why),
        Ok(Err(RecordError::Retryable(why))) => Answer::Failed(why),
        Err(_) => Answer::Failed(format!("no answer within {limit:?}")),
    }
}

const VERSION: u32 = 1;

/// How much of an owner's name is logged: the maximum length of a pod's name.
const MAX_OWNER: usize = 253;

const NOT_A_RECORD: &str = "the object is not an idempotency record that leasehold wrote";
