//! Finished work is recognised and not done again; the same work is not done twice at a time.
//!
//! One record for each piece of work, in S3, written on a condition only: no table, no lock
//! service. What its owner does next is decided in [`job::claim`](crate::job::claim) and carried
//! out here.
//!
//! SQS cannot say "this delivery is no longer yours" before it is too late; a record can.
//!
//! A record in progress expires when it was not refreshed for its time to live, by the store's own
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
    /// Who we are, for whoever reads a record.
    pub owner: String,
    pub clock: Clock,
}

/// What there is to do.
pub enum Claimed {
    /// Nothing: an earlier delivery finished this.
    AlreadyDone,
    /// The work, and nobody else does it while this is refreshed.
    Ours(Box<OwnRecord>),
}

/// The record of work that we want to do, or do.
pub struct OwnRecord {
    of: Idempotency,
    key: String,
    /// Different for each claim, so that our own write whose answer was lost is recognised.
    nonce: String,
    /// How long it lasts when it is not refreshed.
    time_to_live: Duration,
    about: About,
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
    about: About,
}

/// A [`RecordState`], as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[serde(remote = "RecordState")]
enum State {
    InProgress,
    Released,
    Done,
}

/// For whoever reads a record; leasehold itself does not.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct About {
    queue: String,
    message_id: String,
    receive_count: u32,
    bucket: Option<String>,
    key: Option<String>,
}

impl Idempotency {
    /// Claims the work on the `number`th object of a message, for as long as the message's lease:
    /// nobody waits for the dead longer than SQS does. Waits while a living pod has it: to give the
    /// message back instead would burn its receives.
    pub async fn claim(
        &self,
        subject: &Subject,
        number: usize,
        record: Option<&Record>,
        time_to_live: Duration,
    ) -> Result<Claimed, Failure> {
        let mut own = OwnRecord {
            of: self.clone(),
            key: self.location.key(&self.name(subject, number, record)),
            nonce: format!("{:016x}", fastrand::u64(..)),
            time_to_live,
            about: About {
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
                Err(Failure::Record("it is over before it was claimed".to_owned()))
            }
        }
    }

    /// What a piece of work is called: from the queue, and from what the sender calls it, or else
    /// from the object and the event about it.
    fn name(&self, subject: &Subject, number: usize, record: Option<&Record>) -> String {
        let message_id = subject.message_id.as_str();
        let of = |Record { event, object, .. }: &Record| {
            let version = object.version_id.as_ref().or(object.etag.as_ref());
            // S3 numbers puts and deletes only. Of all others nothing but the message tells one
            // from the next.
            let which = match &object.sequencer {
                Some(sequencer) => serde_json::json!(sequencer),
                None => serde_json::json!([message_id, number]),
            };
            serde_json::json!([self.queue, event, object.bucket, object.key, version, which])
        };
        let named = match (&subject.idempotency_key, record) {
            (Some(key), _) => serde_json::json!([self.queue, key, number]),
            (None, Some(record)) => of(record),
            // A body of its own kind is one message's.
            (None, None) => serde_json::json!([self.queue, message_id]),
        };
        format!("{}.json", hex::encode(Sha256::digest(named.to_string())))
    }
}

impl OwnRecord {
    /// Refreshes the claim, again and again, until it is lost. Returns why.
    pub async fn refresh(&mut self) -> String {
        loop {
            if let Milestone::Lost(why) = self.next_milestone().await {
                return why;
            }
        }
    }

    /// The work succeeded. After this, nobody does it again.
    pub async fn done(mut self) -> Result<(), Failure> {
        self.claim.handle(self.of.clock.now(), Input::Succeeded);
        self.over().await
    }

    /// The work did not succeed: the next one need not wait. What cannot be released within the
    /// limit expires.
    pub async fn release(mut self, limit: Duration) {
        self.claim.handle(self.of.clock.now(), Input::Ended);
        match timeout(limit, self.over()).await {
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

    async fn over(&mut self) -> Result<(), Failure> {
        loop {
            match self.next_milestone().await {
                Milestone::Finished(result) => return result,
                Milestone::Lost(why) => return Err(Failure::Superseded(why)),
                Milestone::Claimed | Milestone::AlreadyDone => {}
            }
        }
    }

    /// Does what is to be done, until there is something that the work has to know.
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
                    let owner: String = owner.chars().take(LONGEST_OWNER).collect();
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

    async fn write(&self, state: RecordState, over: Option<&str>) -> Result<Answer, RecordError> {
        let content = Content {
            version: VERSION,
            state,
            nonce: self.nonce.clone(),
            owner: self.of.owner.clone(),
            time_to_live: self.time_to_live.as_secs(),
            written: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            about: self.about.clone(),
        };
        let bytes = serde_json::to_vec(&content).expect("its fields are text and numbers");
        let condition = over.map_or(Condition::Absent, Condition::Unchanged);
        self.of
            .records
            .write(&self.of.location.bucket, &self.key, bytes, condition)
            .await
            .map(Answer::Written)
    }
}

impl Content {
    /// Another version may mean something else by the same words, so nothing of it is believed. The
    /// error quotes nothing.
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

/// What is logged of who owns a record: as long as a pod's name may be.
const LONGEST_OWNER: usize = 253;

const NOT_A_RECORD: &str = "the object is not an idempotency record that leasehold wrote";
