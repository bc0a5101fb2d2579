//! The trigger: which queue KEDA counts, with which credentials, and how many messages make a Job.

use serde_json::Value;

use super::ScaledJob;
use super::container::Container;
use super::environment::{Environment, is_known};
use super::fields;
use crate::adapters::aws;
use crate::adapters::aws::sqs::queue_url;
use crate::adapters::url;
use crate::check::{Finding, Location, Rule};

/// KEDA's default number of messages for one Job.
const QUEUE_LENGTH: i64 = 5;

impl ScaledJob<'_> {
    /// `container` is the one that runs leasehold.
    pub fn triggers(&self, container: Option<&Container>) -> Vec<Finding> {
        let Some(triggers) = self.spec["triggers"].as_array() else {
            let change = "add an aws-sqs-queue trigger there, beside jobTargetRef";
            return vec![Finding::new(
                Rule::NoTrigger,
                self.at("spec.triggers"),
                "it is missing: KEDA creates no Job",
                change,
            )];
        };
        let of_sqs =
            triggers.iter().enumerate().filter(|(_, trigger)| trigger["type"] == "aws-sqs-queue");
        let of_sqs: Vec<_> = of_sqs.collect();
        if of_sqs.is_empty() {
            return vec![Finding::new(
                Rule::NoTrigger,
                self.at("spec.triggers"),
                "it has no trigger of type aws-sqs-queue",
                "add a trigger of type aws-sqs-queue",
            )];
        }
        let mut findings = Vec::new();
        for (number, value) in of_sqs {
            let trigger = Trigger { number, value, metadata: &value["metadata"] };
            findings.extend(self.trigger(&trigger, container));
        }
        if triggers.len() > 1 {
            findings.push(Finding::new(
                Rule::SeveralTriggers,
                self.at("spec.triggers"),
                "a pod receives from one queue: pods that the other triggers start find no message",
                "give each queue its own ScaledJob",
            ));
        }
        findings
    }

    fn trigger(&self, trigger: &Trigger, container: Option<&Container>) -> Vec<Finding> {
        let mut findings = Vec::new();
        let path = format!("spec.triggers[{}].metadata", trigger.number);
        findings.extend(fields::check_trigger(self, &path, trigger.metadata));
        let place = |field: &str| self.at(&format!("spec.triggers[{}].{field}", trigger.number));

        let environment = self.keda_reads(container, trigger, &mut findings);
        let queue = match (trigger.text("queueURL"), trigger.text("queueURLFromEnv")) {
            (Some(url), _) => Some(url),
            (None, Some(variable)) => {
                environment.and_then(|environment| environment.get(&variable))
            }
            (None, None) => {
                let change = "set it, or queueURLFromEnv: LEASEHOLD_QUEUE_URL";
                findings.push(Finding::new(
                    Rule::NoQueueUrl,
                    place("metadata.queueURL"),
                    "it is missing",
                    change,
                ));
                None
            }
        };
        let queue = queue.filter(|queue| is_known(queue));
        findings.extend(
            queue
                .as_deref()
                .and_then(|queue| compare_queues(&place("metadata.queueURL"), queue, container)),
        );
        findings.extend(compare_endpoints(&place("metadata.awsEndpoint"), trigger, container));
        findings.extend(self.authentication(trigger, &place("authenticationRef")));
        findings.extend(self.region(
            trigger,
            queue.as_deref(),
            container,
            &place("metadata.awsRegion"),
        ));
        findings.extend(queue_length(trigger, container, &place("metadata.queueLength")));
        findings.extend(activation(trigger, &place("metadata.activationQueueLength")));
        for name in ["scaleOnInFlight", "scaleOnDelayed"] {
            if let Some(value) =
                trigger.text(name).filter(|value| value != "true" && value != "false")
            {
                findings.push(Finding::new(
                    Rule::UnreadableValue,
                    place(&format!("metadata.{name}")),
                    format!(
                        "KEDA cannot parse {value:?}: it uses the default, or creates no Job at all"
                    ),
                    "set it to \"true\" or \"false\"",
                ));
            }
        }
        if trigger.text("scaleOnDelayed").as_deref() == Some("true") {
            findings.push(Finding::new(
                Rule::DelayedMessages,
                place("metadata.scaleOnDelayed"),
                "a delayed message cannot be received yet: at each poll, KEDA creates a pod for it that finds no message",
                "remove it",
            ));
        }
        let in_flight = trigger.text("scaleOnInFlight").as_deref() != Some("false");
        findings.extend(self.check_strategy(&place("metadata.scaleOnInFlight"), in_flight));
        findings
    }

    /// The environment that KEDA reads: that of the container in envSourceContainerName, else of
    /// the first. Adds findings about missing variables.
    fn keda_reads(
        &self,
        container: Option<&Container>,
        trigger: &Trigger,
        findings: &mut Vec<Finding>,
    ) -> Option<Environment> {
        let from_env = ["queueURLFromEnv", "awsAccessKeyIDFromEnv", "awsSecretAccessKeyFromEnv"];
        let instead = [Some("queueURL"), None, None];
        let from_env = from_env.into_iter().zip(instead);
        let needed: Vec<_> = from_env
            .filter(|(_, instead)| instead.is_none_or(|instead| trigger.text(instead).is_none()))
            .filter_map(|(field, _)| Some((field, trigger.text(field)?)))
            .collect();
        let named = self.spec["envSourceContainerName"].as_str().filter(|name| !name.is_empty());
        let source = match named {
            Some(name) => self.containers().find(|container| container["name"] == name),
            None => self.containers().next(),
        };
        let ours = container.and_then(|container| container.value["name"].as_str());
        let instead = || {
            ours.map_or_else(
                || "set it to a container of the pod".to_owned(),
                |name| format!("set it to {name}"),
            )
        };
        // If no variable is needed, the environment has no effect; but a wrong container name stops
        // KEDA anyway.
        if needed.is_empty() && (named.is_none() || source.is_some()) {
            return None;
        }
        let Some(source) = source else {
            findings.push(Finding::new(
                Rule::EnvSource,
                self.at("spec.envSourceContainerName"),
                format!(
                    "the pod has no container {}: KEDA creates no Job",
                    named.unwrap_or("at all")
                ),
                instead(),
            ));
            return None;
        };
        let name = source["name"].as_str().unwrap_or("without a name");
        let (environment, _) = self.environment(&self.path_of(source), source);
        for (field, variable) in needed {
            if environment.get(&variable).is_some_and(|value| !value.is_empty()) {
                continue;
            }
            let which =
                if named.is_some() { "envSourceContainerName names" } else { "is the first" };
            let has_it =
                container.is_some_and(|container| container.environment.known(&variable).is_some());
            let change = match ours {
                Some(ours) if has_it => {
                    format!("set envSourceContainerName to {ours}, or put that container first")
                }
                Some(_) | None if field == "queueURLFromEnv" => {
                    "set it to LEASEHOLD_QUEUE_URL, and that in the container".to_owned()
                }
                Some(_) | None => format!("set {variable} in the container"),
            };
            findings.push(Finding::new(Rule::EnvSource, self.at(&format!("spec.triggers[{}].metadata.{field}", trigger.number)),
                format!("KEDA reads {variable} from container {name}, which {which}, but it is not set there: KEDA creates no Job"),
                change,
            ));
        }
        Some(environment)
    }

    fn authentication(&self, trigger: &Trigger, place: &Location) -> Vec<Finding> {
        let reference = &trigger.value["authenticationRef"];
        let is_operator = trigger.text("identityOwner").as_deref() == Some("operator");
        let Some(name) = reference["name"].as_str() else {
            let as_itself = trigger.text("awsAccessKeyIDFromEnv").is_some() || is_operator;
            let missing = || {
                Finding::new(
                    Rule::NoAuthentication,
                    place,
                    "it is missing, so KEDA has no credentials and cannot read the queue's length",
                    "set it to a TriggerAuthentication, for example with podIdentity: {provider: aws}",
                )
            };
            return (!as_itself).then(missing).into_iter().collect();
        };
        let kinds = ["TriggerAuthentication", "ClusterTriggerAuthentication"];
        let kind = reference["kind"].as_str().unwrap_or(kinds[0]);
        if !kinds.contains(&kind) || self.authentication_object(kind, name).is_some() {
            return Vec::new();
        }
        let what = format!(
            "the file has no {kind} {name}: without it, KEDA sets Ready to False and creates no Job"
        );
        if let Some(other) =
            kinds.into_iter().find(|other| self.authentication_object(other, name).is_some())
        {
            return vec![Finding::new(
                Rule::ReferenceNotFound,
                place,
                format!("{what}; the file has a {other} of that name"),
                format!("set kind to {other}"),
            )];
        }
        let of_kind: Vec<_> =
            self.manifest.objects.iter().filter(|object| object["kind"] == kind).collect();
        let others: Vec<_> =
            of_kind.iter().filter_map(|object| object["metadata"]["name"].as_str()).collect();
        vec![if others.is_empty() {
            let change = "render it together with the ScaledJob";
            Finding::new(
                Rule::NotInFile,
                place,
                format!("{kind} {name} is not in the file"),
                change,
            )
        } else if others.contains(&name) {
            Finding::new(
                Rule::ReferenceNotFound,
                place,
                format!("{what}; the one in the file is in another namespace"),
                "put both into one namespace",
            )
        } else {
            Finding::new(
                Rule::ReferenceNotFound,
                place,
                what,
                format!("did you mean {}?", others.join(" or ")),
            )
        }]
    }

    /// A ClusterTriggerAuthentication has no namespace.
    fn authentication_object(&self, kind: &str, name: &str) -> Option<&Value> {
        if kind == "TriggerAuthentication" {
            return self.object(kind, name);
        }
        self.manifest
            .objects
            .iter()
            .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
    }

    fn region(
        &self,
        trigger: &Trigger,
        queue: Option<&str>,
        container: Option<&Container>,
        place: &Location,
    ) -> Option<Finding> {
        let Some(region) = trigger.text("awsRegion") else {
            let reference = &trigger.value["authenticationRef"];
            let kind = reference["kind"].as_str().unwrap_or("TriggerAuthentication");
            let object =
                reference["name"].as_str().and_then(|name| self.authentication_object(kind, name));
            // The region may be one of the object's parameters.
            let is_set = object.is_some_and(|object| {
                object["spec"].to_string().contains("\"parameter\":\"awsRegion\"")
            });
            let change = "set it to the queue's region";
            return (!is_set).then(|| {
                Finding::new(Rule::NoRegion, place, "it is missing, but KEDA requires it", change)
            });
        };
        let of_queue = queue.and_then(aws::region_of).map(|region| (region, "the queue's URL has"));
        let of_pod =
            container.and_then(Container::region).map(|region| (region, "the pod's AWS_REGION is"));
        let pods_queue = container.and_then(Container::queue_url).and_then(aws::region_of);
        let pods_queue = pods_queue.map(|region| (region, "the URL of the pod's queue has"));
        let (other, source) = [of_queue, of_pod, pods_queue]
            .into_iter()
            .flatten()
            .find(|(other, _)| *other != region)?;
        let what = format!(
            "it is {region}, but {source} {other}: KEDA queries a region that does not have the queue, and creates no Job"
        );
        Some(Finding::new(Rule::RegionMismatch, place, what, format!("set it to {other}")))
    }
}

struct Trigger<'a> {
    number: usize,
    value: &'a Value,
    metadata: &'a Value,
}

impl Trigger<'_> {
    /// A value as KEDA reads it: trimmed, and an empty one counts as unset.
    fn text(&self, name: &str) -> Option<String> {
        let text = match &self.metadata[name] {
            Value::Null => return None,
            Value::String(text) => text.trim().to_owned(),
            other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                other.to_string()
            }
        };
        (!text.is_empty()).then_some(text)
    }
}

/// Whether KEDA counts the queue from which the pods receive.
fn compare_queues(place: &Location, keda: &str, container: Option<&Container>) -> Option<Finding> {
    let account_and_name = |url: &str| {
        let (_, rest) = url.split_once("://")?;
        let parts: Vec<_> = rest.split('/').skip(1).map(str::to_owned).collect();
        <[String; 2]>::try_from(parts).ok().filter(|parts| !parts[1].is_empty())
    };
    let is_url = keda.contains("://");
    let counted = account_and_name(keda);
    if is_url && counted.is_none() {
        let what =
            format!("KEDA requires https://HOST/ACCOUNT/NAME, not {keda}, and creates no Job");
        return Some(Finding::new(Rule::QueueUrlForm, place, what, "set it to the queue's URL"));
    }
    let received = container?.queue_url()?;
    let is_same = match (counted, account_and_name(received)) {
        (Some(counted), Some(received)) => counted == received,
        // KEDA also accepts a name without the rest of the URL.
        _ => queue_url::queue_name(keda) == queue_url::queue_name(received),
    };
    (!is_same).then(|| {
        let what = format!(
            "KEDA counts {keda}, but the pods receive from {received}: pods find no message, or none are created for waiting messages"
        );
        Finding::new(
            Rule::QueueMismatch,
            place,
            what,
            "set queueURLFromEnv: LEASEHOLD_QUEUE_URL, so that KEDA and the pods use the same URL",
        )
    })
}

/// Whether KEDA uses the same service as the pods. Different names are allowed: an emulator may
/// have other names in other namespaces, and AWS has several.
fn compare_endpoints(
    place: &Location,
    trigger: &Trigger,
    container: Option<&Container>,
) -> Option<Finding> {
    let environment = &container?.environment;
    let of_pods = ["AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL"].map(|name| environment.get(name));
    let of_pods = of_pods.into_iter().flatten().find(|url| !url.is_empty());
    // Without a user and a password.
    let host = |url: &str| {
        url::host_of(url).and_then(|host| host.rsplit('@').next()).unwrap_or_default().to_owned()
    };
    let is_emulator = |url: &String| is_known(url) && !queue_url::is_at_aws(url);
    match (trigger.text("awsEndpoint"), of_pods) {
        (None, Some(pods)) if is_emulator(&pods) => {
            let what =
                format!("KEDA uses AWS, but the pods use {} (AWS_ENDPOINT_URL)", host(&pods));
            Some(Finding::new(
                Rule::EndpointMismatch,
                place,
                what,
                "set it to the same endpoint, with a host name that resolves in KEDA's namespace",
            ))
        }
        (Some(keda), None) if is_emulator(&keda) => {
            let what = format!("KEDA uses {}, but the pods use AWS", host(&keda));
            Some(Finding::new(
                Rule::EndpointMismatch,
                place,
                what,
                "remove it, or set AWS_ENDPOINT_URL in the container",
            ))
        }
        (_, _) => None,
    }
}

fn queue_length(
    trigger: &Trigger,
    container: Option<&Container>,
    place: &Location,
) -> Option<Finding> {
    let text = trigger.text("queueLength");
    let Some(length) = text.as_deref().map_or(Some(QUEUE_LENGTH), number) else {
        let what = format!(
            "KEDA cannot parse {:?} as a number, and creates no Job",
            text.unwrap_or_default()
        );
        return Some(Finding::new(
            Rule::UnreadableValue,
            place,
            what,
            "set it to \"1\", or to --max-messages",
        ));
    };
    if length < 1 {
        let what = format!(
            "with {length}, KEDA never creates a Job, but reports the ScaledJob as healthy"
        );
        return Some(Finding::new(
            Rule::QueueLengthZero,
            place,
            what,
            "set it to \"1\", or to --max-messages",
        ));
    }
    let most =
        container.and_then(|container| container.config_if_known(&["LEASEHOLD_MAX_MESSAGES"]));
    let most = most.map(|config| i64::from(config.work.settings.policy.max_messages));
    if text.is_none() && most.is_none_or(|most| most < length) {
        let change = "set it to \"1\", or to --max-messages";
        return Some(Finding::new(
            Rule::QueueLength,
            place,
            "it is 5, KEDA's default: KEDA creates one pod for five messages",
            change,
        ));
    }
    most.filter(|most| *most < length).map(|most| {
        let what = format!(
            "KEDA creates one pod for {length} messages, but a pod processes {most} (--max-messages): the others wait"
        );
        Finding::new(
            Rule::QueueLength,
            place,
            what,
            format!("set it to \"{most}\", or LEASEHOLD_MAX_MESSAGES to {length}"),
        )
    })
}

fn activation(trigger: &Trigger, place: &Location) -> Option<Finding> {
    let text = trigger.text("activationQueueLength")?;
    match number(&text) {
        None => {
            let what = format!("KEDA cannot parse {text:?} as a number, and creates no Job");
            Some(Finding::new(Rule::UnreadableValue, place, what, "remove it"))
        }
        Some(length) => (length > 0).then(|| {
            Finding::new(
                Rule::ActivationThreshold,
                place,
                format!("KEDA creates no Job for {length} messages or fewer"),
                "remove it",
            )
        }),
    }
}

/// Parses an integer as JSON, like KEDA.
fn number(text: &str) -> Option<i64> {
    serde_json::from_str(text).ok()
}
