//! Finished work is recognised and not done again; the same work is not done twice at a time.
//!
//! One record for each piece of work, in S3, written on a condition only: no table, no lock service.
//!
//! ```text
//!            claim                    the work succeeded
//! (none) ────────────► in progress ───────────────────────► done: a redelivery is deleted without running
//!                       │   ▲   │
//!                expired│   │   │ the work failed or was stopped
//!            or released│   │   ▼
//!                       └───┴─ released
//! ```
//!
//! SQS cannot say "this delivery is no longer yours" before it is too late; a record can. Whoever claims it anew changes its
//! eTag, and then the refresh of the one before fails: that **is** a lost lease.
//!
//! A record in progress expires when it was not refreshed for its time to live, by the store's own clock, never by a pod's.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backon::{BackoffBuilder, ExponentialBuilder};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::job::delivery::Delivery;
use crate::job::lease::CEILING;
use crate::job::notification::Record;
use crate::job::place::Place;
use crate::job::verdict::Failure;

use crate::ports::clock::Clock;
use crate::ports::{Condition, Entry, RecordError, Records};
use crate::work::last_error::retrying;

/// The records of one queue's work.
#[derive(Clone)]
pub struct Idempotency {
    pub records: Arc<dyn Records>,
    pub place: Place,
    /// The queue's URL: two pipelines on the same objects must not hide each other's work.
    pub queue: String,
    /// Who we are, for whoever reads a record.
    pub owner: String,
    pub clock: Clock,
}

/// What there is to do.
pub enum Claim {
    /// Nothing: an earlier delivery finished this.
    Done,
    /// The work, and nobody else does it while this is refreshed.
    Ours(Box<Held>),
}

/// A record that is ours.
pub struct Held {
    of: Idempotency,
    key: String,
    /// Different for each claim, so that our own write whose answer was lost is recognised.
    nonce: String,
    /// How long it lasts when it is not refreshed.
    time_to_live: Duration,
    etag: String,
    about: About,
    /// On the run's clock; counted from before the request that wrote the record.
    expires_at: Duration,
    refresh_at: Duration,
}

/// The content of a record.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    state: State,
    nonce: String,
    owner: String,
    /// In seconds.
    time_to_live: u64,
    written: String,
    #[serde(flatten)]
    about: About,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
    /// Claims the work on the `number`th object of a message, for as long as the message's lease: nobody waits for the dead
    /// longer than SQS does. Waits while a living pod has it: to give the message back instead would burn its receives.
    pub async fn claim(
        &self,
        delivery: &Delivery,
        number: usize,
        record: Option<&Record>,
        time_to_live: Duration,
    ) -> Result<Claim, Failure> {
        let mut held = Held {
            of: self.clone(),
            key: self.place.key(&self.name(delivery, number, record)),
            nonce: format!("{:016x}", fastrand::u64(..)),
            time_to_live,
            etag: String::new(),
            about: About {
                queue: self.queue.clone(),
                message_id: delivery.message_id.to_string(),
                receive_count: delivery.receive_count,
                bucket: record.map(|record| record.object.bucket.clone()),
                key: record.map(|record| record.object.key.clone()),
            },
            expires_at: Duration::ZERO,
            refresh_at: Duration::ZERO,
        };
        let (mut seen, mut pauses) = (None, pauses());
        while !held.try_write(seen.as_deref()).await? {
            let free = match held.wait_until_free().await? {
                Found::Done => return Ok(Claim::Done),
                Found::Ours => break,
                Found::Free(etag) => etag,
            };
            if free == seen {
                pause(&mut pauses, "the store refuses to write a record that has not changed".to_owned()).await?;
            }
            seen = free;
        }
        Ok(Claim::Ours(Box::new(held)))
    }

    async fn read(&self, key: &str) -> Result<Option<Entry>, RecordError> {
        in_time(self.records.read(&self.place.bucket, key)).await
    }

    /// What a piece of work is called: from the queue, and from what the sender calls it, or else from the object and the
    /// event about it.
    fn name(&self, delivery: &Delivery, number: usize, record: Option<&Record>) -> String {
        let message_id = delivery.message_id.as_str();
        let of = |Record { event, object, .. }: &Record| {
            let version = object.version_id.as_ref().or(object.etag.as_ref());
            // S3 numbers puts and deletes only. Of all others nothing but the message tells one from the next.
            let which = match &object.sequencer {
                Some(sequencer) => serde_json::json!(sequencer),
                None => serde_json::json!([message_id, number]),
            };
            serde_json::json!([self.queue, event, object.bucket, object.key, version, which])
        };
        let named = match (&delivery.idempotency_key, record) {
            (Some(key), _) => serde_json::json!([self.queue, key, number]),
            (None, Some(record)) => of(record),
            // A body of its own kind is one message's.
            (None, None) => serde_json::json!([self.queue, message_id]),
        };
        format!("{}.json", hex::encode(Sha256::digest(named.to_string())))
    }
}

/// What a record that was read says to who wants to claim it.
enum Meaning {
    Done,
    Ours,
    Free,
    Taken { owner: String, left: Duration },
}

/// What there is when nobody else is at the work.
enum Found {
    Done,
    /// A write of ours had come through, and its answer had not.
    Ours,
    /// The eTag of what may be written over, if there is something.
    Free(Option<String>),
}

impl Held {
    /// Writes the claim over the record with the eTag that was seen. False if somebody was faster, or if an answer to us was lost.
    async fn try_write(&mut self, seen: Option<&str>) -> Result<bool, Failure> {
        let condition = seen.map_or(Condition::Absent, Condition::Unchanged);
        let mut pauses = pauses();
        loop {
            match self.write(State::InProgress, condition).await {
                Ok(()) => return Ok(true),
                Err(RecordError::ConditionFailed) => return Ok(false),
                Err(RecordError::Refused(why) | RecordError::ConditionsUnsupported(why)) => {
                    return Err(Failure::Record(why));
                }
                Err(RecordError::Retryable(why)) => pause(&mut pauses, why).await?,
            }
        }
    }

    async fn wait_until_free(&mut self) -> Result<Found, Failure> {
        let mut waits = false;
        loop {
            let (asked_at, entry) = self.look().await?;
            let Some(entry) = entry else { return Ok(Found::Free(None)) };
            match self.meaning(&entry)? {
                Meaning::Done => return Ok(Found::Done),
                Meaning::Ours => {
                    // It was written so long before it was asked for, or a little longer.
                    self.is_written(asked_at.saturating_sub(entry.age).saturating_sub(SECOND), entry.etag);
                    return Ok(Found::Ours);
                }
                Meaning::Free => return Ok(Found::Free(Some(entry.etag))),
                Meaning::Taken { owner, left } => {
                    if !waits {
                        let owner: String = owner.chars().take(LONGEST_OWNER).collect();
                        info!(owner, "another pod is at this work: waiting for its end");
                        waits = true;
                    }
                    tokio::time::sleep(left.min(LONGEST_WAIT)).await;
                }
            }
        }
    }

    /// The record, and when it was asked for. A wait may take hours: errors count only while there is no answer.
    async fn look(&self) -> Result<(Duration, Option<Entry>), Failure> {
        let mut pauses = pauses();
        loop {
            let asked_at = self.of.clock.now();
            match self.of.read(&self.key).await {
                Ok(entry) => return Ok((asked_at, entry)),
                Err(RecordError::Refused(why)) => return Err(Failure::Record(why)),
                Err(error) => pause(&mut pauses, error.to_string()).await?,
            }
        }
    }

    /// Refreshes the claim, again and again, until it is lost. Returns why.
    pub async fn keep(&mut self) -> String {
        let mut pauses = pauses();
        loop {
            let (clock, expires_at) = (self.of.clock, self.expires_at);
            clock.sleep_until(self.refresh_at.min(expires_at)).await;
            let refreshed = tokio::select! {
                // Also while a request is out: then the record may be claimed by another.
                biased;
                () = clock.sleep_until(expires_at) => return "its record could not be refreshed in time".to_owned(),
                refreshed = self.rewrite(State::InProgress) => refreshed,
            };
            match refreshed {
                Ok(()) => pauses = self::pauses(),
                Err(RecordError::ConditionFailed) => return "another pod has claimed its record".to_owned(),
                Err(RecordError::ConditionsUnsupported(why)) => return why,
                // A permission may be given again while the work runs.
                Err(RecordError::Retryable(why) | RecordError::Refused(why)) => {
                    warn!(error = why, "refreshing the idempotency record failed and will be retried");
                    self.refresh_at = self.of.clock.now() + pauses.next().unwrap_or(LONGEST_PAUSE);
                }
            }
        }
    }

    /// The work succeeded. After this, nobody does it again.
    pub async fn done(mut self) -> Result<(), Failure> {
        let mut pauses = pauses();
        loop {
            if self.of.clock.now() >= self.expires_at {
                return Err(Failure::Superseded("its record expired before the work could be recorded".to_owned()));
            }
            match self.rewrite(State::Done).await {
                Ok(()) => return Ok(()),
                Err(RecordError::ConditionFailed) => {
                    return Err(Failure::Superseded("another pod has claimed its record".to_owned()));
                }
                Err(RecordError::ConditionsUnsupported(why)) => return Err(Failure::Record(why)),
                Err(RecordError::Retryable(why) | RecordError::Refused(why)) => pause(&mut pauses, why).await?,
            }
        }
    }

    /// The work did not succeed: the next one need not wait. What cannot be released within the limit expires.
    pub async fn release(mut self, limit: Duration) {
        match timeout(limit, self.rewrite(State::Released)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "the idempotency record was not released: it expires"),
            Err(_) => debug!("the idempotency record was not released in time: it expires"),
        }
    }

    /// Writes over our own record; also over the one that we wrote without hearing of it.
    async fn rewrite(&mut self, state: State) -> Result<(), RecordError> {
        let etag = self.etag.clone();
        match self.write(state, Condition::Unchanged(&etag)).await {
            Err(RecordError::ConditionFailed) => {}
            written => return written,
        }
        let Some(entry) = self.of.read(&self.key).await? else {
            return Err(RecordError::ConditionFailed);
        };
        match Content::read(&entry.bytes) {
            Ok(content) if content.nonce == self.nonce => self.write(state, Condition::Unchanged(&entry.etag)).await,
            Ok(_) | Err(_) => Err(RecordError::ConditionFailed),
        }
    }

    async fn write(&mut self, state: State, condition: Condition<'_>) -> Result<(), RecordError> {
        let asked_at = self.of.clock.now();
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
        let written = self.of.records.write(&self.of.place.bucket, &self.key, bytes, condition);
        self.is_written(asked_at, in_time(written).await?);
        Ok(())
    }

    fn is_written(&mut self, asked_at: Duration, etag: String) {
        self.etag = etag;
        self.expires_at = asked_at + self.time_to_live;
        self.refresh_at = asked_at + self.time_to_live / 3;
    }

    fn meaning(&self, entry: &Entry) -> Result<Meaning, Failure> {
        let content = Content::read(&entry.bytes).map_err(|why| {
            let Place { bucket, .. } = &self.of.place;
            Failure::Record(format!("s3://{bucket}/{}: {why}", self.key))
        })?;
        // Ages are whole seconds, rounded down.
        let time_to_live = Duration::from_secs(content.time_to_live) + SECOND;
        Ok(match content.state {
            State::Done => Meaning::Done,
            State::Released => Meaning::Free,
            State::InProgress if content.nonce == self.nonce => Meaning::Ours,
            State::InProgress if entry.age > time_to_live => Meaning::Free,
            State::InProgress => {
                Meaning::Taken { owner: content.owner, left: time_to_live.saturating_sub(entry.age) + SECOND }
            }
        })
    }
}

impl Content {
    /// Another version may mean something else by the same words, so nothing of it is believed. The error quotes nothing.
    fn read(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(bytes).map_err(|_| NOT_A_RECORD)?;
        if version != VERSION {
            return Err(format!("the record is of version {version}, and this leasehold reads version {VERSION} only"));
        }
        let content: Self = serde_json::from_slice(bytes).map_err(|_| NOT_A_RECORD)?;
        if content.time_to_live > CEILING.as_secs() {
            let time_to_live = content.time_to_live;
            return Err(format!("its time_to_live is {time_to_live} s, longer than the 12 hours of a lease"));
        }
        Ok(content)
    }
}

/// A single request.
async fn in_time<T>(asked: impl Future<Output = Result<T, RecordError>>) -> Result<T, RecordError> {
    let answer = timeout(TRY_LIMIT, asked).await;
    answer.unwrap_or_else(|_| Err(RecordError::Retryable(format!("no answer within {TRY_LIMIT:?}"))))
}

/// How long a release may take that has so much of a stop: a tenth, but not more than a second.
pub fn limit(of_the_stop: Duration) -> Duration {
    (of_the_stop / 10).min(RELEASE)
}

/// How long a release may take.
pub const RELEASE: Duration = SECOND;

/// Before the next try of what may pass; an error after so many.
async fn pause(pauses: &mut impl Iterator<Item = Duration>, why: String) -> Result<(), Failure> {
    let Some(pause) = pauses.next() else { return Err(Failure::Record(why)) };
    debug!(error = why, "the idempotency record will be asked for again");
    retrying(why);
    tokio::time::sleep(pause).await;
    Ok(())
}

fn pauses() -> impl Iterator<Item = Duration> {
    let pauses = ExponentialBuilder::new().with_min_delay(FIRST_PAUSE).with_max_delay(LONGEST_PAUSE).with_jitter();
    pauses.with_max_times(8).build()
}

const VERSION: u32 = 1;

/// What is logged of who owns a record: as long as a pod's name may be.
const LONGEST_OWNER: usize = 253;

const NOT_A_RECORD: &str = "the object is not an idempotency record that leasehold wrote";

const SECOND: Duration = Duration::from_secs(1);

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The longest a single request may take.
const TRY_LIMIT: Duration = Duration::from_secs(5);

/// How long until a record that is another pod's is looked at again.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
