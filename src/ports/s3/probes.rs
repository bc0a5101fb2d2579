//! What `leasehold check` asks of a bucket: nothing is changed by it.

use aws_sdk_s3::types::{FilterRule, FilterRuleName};

use super::S3;
use crate::ports::aws::Failure;

/// Whom a bucket tells of its events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notifications {
    pub to_queues: Vec<Notification>,
    /// EventBridge, or topics of SNS.
    pub others: bool,
}

impl Notifications {
    /// Those that go to this queue.
    pub fn to(&self, queue_arn: &str) -> impl Iterator<Item = &Notification> {
        self.to_queues.iter().filter(move |one| one.queue_arn == queue_arn)
    }
}

/// Events of some keys go to a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// As S3 or who made it called it; may be empty.
    pub id: String,
    pub queue_arn: String,
    /// As `ObjectCreated:*`.
    pub events: Vec<String>,
    /// How the keys begin and end; may be empty.
    pub prefix: String,
    pub suffix: String,
}

impl Notification {
    /// Does it tell of an event of this name (`ObjectCreated:Put`)?
    pub fn tells(&self, event: &str) -> bool {
        self.events.iter().any(|asked| match asked.strip_suffix('*') {
            Some(family) => event.starts_with(family),
            None => event == asked,
        })
    }
}

impl S3 {
    /// Whom a bucket tells of its events. The error says why that is not known.
    pub async fn notifications(&self, bucket: &str) -> Result<Notifications, String> {
        let asked = self.client().get_bucket_notification_configuration().bucket(bucket);
        let answer = asked.set_expected_bucket_owner(self.expected_owner.clone()).send().await;
        let answer = answer.map_err(|error| match Failure::of(&error) {
            Failure::Refused { code, message, status } => {
                let code = code.unwrap_or_else(|| format!("HTTP {status}"));
                format!("{code}: {}", message.as_deref().unwrap_or("no reason given"))
            }
            Failure::Misconfigured(why) | Failure::Unanswered(why) => why,
        })?;
        let others = answer.event_bridge_configuration.is_some() || !answer.topic_configurations().is_empty();
        let to_queues = answer.queue_configurations.unwrap_or_default().into_iter().map(|one| {
            let rules = one.filter.and_then(|filter| filter.key?.filter_rules).unwrap_or_default();
            let value = |name: &str| {
                // S3 takes the names in any case, and tells them as they were given.
                let is_it = |rule: &&FilterRule| rule.name().is_some_and(|is| is.as_str().eq_ignore_ascii_case(name));
                rules.iter().find(is_it).and_then(FilterRule::value).unwrap_or_default().to_owned()
            };
            Notification {
                id: one.id.unwrap_or_default(),
                queue_arn: one.queue_arn,
                events: one.events.iter().map(|event| event.as_str().trim_start_matches("s3:").to_owned()).collect(),
                prefix: value(FilterRuleName::Prefix.as_str()),
                suffix: value(FilterRuleName::Suffix.as_str()),
            }
        });
        Ok(Notifications { to_queues: to_queues.collect(), others })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::aws::testing::Canned;
    use super::*;

    /// S3 tells a filter's names with capitals, which its own API does not know.
    #[tokio::test]
    async fn a_notification_is_read_as_s3_writes_it() {
        let body = r#"<NotificationConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><QueueConfiguration>
            <Id>results</Id><Queue>arn:aws:sqs:eu-west-1:1:q</Queue><Event>s3:ObjectCreated:*</Event>
            <Filter><S3Key><FilterRule><Name>Prefix</Name><Value>in/</Value></FilterRule>
            <FilterRule><Name>Suffix</Name><Value>.csv</Value></FilterRule></S3Key></Filter>
            </QueueConfiguration></NotificationConfiguration>"#;
        let told = S3::new(&Canned::new(200, None, body).config(), None).notifications("b").await.unwrap();
        let notification = Notification {
            id: "results".into(),
            queue_arn: "arn:aws:sqs:eu-west-1:1:q".into(),
            events: vec!["ObjectCreated:*".into()],
            prefix: "in/".into(),
            suffix: ".csv".into(),
        };
        assert_eq!(told, Notifications { to_queues: vec![notification.clone()], others: false });
        assert!(notification.tells("ObjectCreated:Put") && !notification.tells("ObjectRemoved:Delete"));
        assert!(told.to("arn:aws:sqs:eu-west-1:1:q").eq([&notification]) && told.to("another").next().is_none());
    }
}
