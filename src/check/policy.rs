//! The queue's policy: may S3 send?
//!
//! S3 tries it when the notification is made, and never says later that it may not any more.

use serde_json::Value;

/// Does a queue's policy let S3 send events of a bucket? `None` if that depends on what is not
/// known here.
///
/// Of IAM's rules as far as policies of queues use them (IAM User Guide, "Policy evaluation
/// logic"): a Deny outranks every Allow.
pub fn lets_s3_send(policy: &str, queue_arn: &str, bucket: &str) -> Option<bool> {
    let policy: Value = serde_json::from_str(policy).ok()?;
    let statements = listed(&policy["Statement"]);
    let (mut allowed, mut denied) = (Some(false), Some(false));
    for statement in statements {
        let holds = holds(statement, queue_arn, bucket);
        let so_far = if statement["Effect"] == "Allow" { &mut allowed } else { &mut denied };
        *so_far = either(*so_far, holds);
    }
    match (allowed, denied) {
        (Some(false), _) | (_, Some(true)) => Some(false),
        (Some(true), Some(false)) => Some(true),
        (None, _) | (_, None) => None,
    }
}

/// Is the statement about S3's sending, in all its parts?
fn holds(statement: &Value, queue_arn: &str, bucket: &str) -> Option<bool> {
    if ["NotPrincipal", "NotAction", "NotResource"].iter().any(|part| !statement[part].is_null()) {
        return None;
    }
    let principal = &statement["Principal"];
    let principals =
        [principal, &principal["AWS"]].into_iter().flat_map(listed).any(|one| one == "*");
    let principals =
        principals || listed(&principal["Service"]).iter().any(|one| *one == "s3.amazonaws.com");
    let action =
        |one: &&Value| one.as_str().is_some_and(|one| like(&one.to_lowercase(), "sqs:sendmessage"));
    let resource = |one: &&Value| one.as_str().is_some_and(|one| like(one, queue_arn));
    if !principals
        || !listed(&statement["Action"]).iter().any(action)
        || !listed(&statement["Resource"]).iter().any(resource)
    {
        return Some(false);
    }
    let mut all = Some(true);
    for (operator, keys) in statement["Condition"].as_object().into_iter().flatten() {
        for (key, values) in keys.as_object().into_iter().flatten() {
            all = both(all, condition(operator, key, &listed(values), queue_arn, bucket));
        }
    }
    all
}

fn condition(
    operator: &str,
    key: &str,
    values: &[&Value],
    queue_arn: &str,
    bucket: &str,
) -> Option<bool> {
    // arn:PARTITION:sqs:REGION:ACCOUNT:NAME
    let parts: Vec<&str> = queue_arn.split(':').collect();
    let [_, partition, _, _, account, _] = parts[..] else { return None };
    let is = match key.to_lowercase().as_str() {
        "aws:sourcearn" => format!("arn:{partition}:s3:::{bucket}"),
        "aws:sourceaccount" => account.to_owned(),
        "aws:securetransport" => "true".to_owned(),
        _ => return None,
    };
    let values = || {
        values.iter().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    let matches = match operator.trim_end_matches("IfExists") {
        "ArnEquals" | "ArnLike" | "StringLike" => values().any(|value| like(&value, &is)),
        "StringEquals" | "Bool" => values().any(|value| value == is),
        _ => return None,
    };
    // The bucket's account may be another than the queue's.
    if !matches && key.eq_ignore_ascii_case("aws:sourceaccount") { None } else { Some(matches) }
}

/// A list, or one that is written without.
fn listed(value: &Value) -> Vec<&Value> {
    match value.as_array() {
        Some(all) => all.iter().collect(),
        None if value.is_null() => Vec::new(),
        None => vec![value],
    }
}

/// With `*` for any text and `?` for any character.
///
/// The policy is somebody else's text, so no pattern may take long: on a difference only the last
/// `*` takes one character more, which is enough, since whatever an earlier one took can stay. At
/// most the product of both lengths.
fn like(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut in_pattern, mut in_text) = (0, 0);
    // After the last `*`, and where the text goes on behind what it took.
    let mut last_star = None;
    while in_text < text.len() {
        match pattern.get(in_pattern) {
            Some('*') => {
                in_pattern += 1;
                last_star = Some((in_pattern, in_text));
            }
            Some(one) if *one == '?' || *one == text[in_text] => {
                in_pattern += 1;
                in_text += 1;
            }
            Some(_) | None => {
                let Some((after, taken)) = last_star else { return false };
                (in_pattern, in_text) = (after, taken + 1);
                last_star = Some((after, taken + 1));
            }
        }
    }
    pattern[in_pattern..].iter().all(|one| *one == '*')
}

fn either(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    if a == Some(true) || b == Some(true) { Some(true) } else { Some(a? || b?) }
}

fn both(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    if a == Some(false) || b == Some(false) { Some(false) } else { Some(a? && b?) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks_stand_for_what_iam_says() {
        for (pattern, text, is_like) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("**", "abc", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("?", "ü", true),
            ("*ü", "süß-ü", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-", false),
            ("*ab", "aab", true),
            ("*a*a*", "a", false),
            ("arn:aws:s3:::*-in", "arn:aws:s3:::x-in-in", true),
        ] {
            assert_eq!(like(pattern, text), is_like, "{pattern} {text}");
        }
        // A long policy with a long name: 2^60 steps if each star were tried with each of the
        // others.
        let text = "x".repeat(2000);
        assert!(!like(&format!("{}Z", "*x".repeat(1000)), &text));
        assert!(like(&"*x".repeat(1000), &text));
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        let arn = "arn:aws:sqs:eu-west-1:123456789012:orders";
        let allow = serde_json::json!({
            "Effect": "Allow", "Principal": { "Service": "s3.amazonaws.com" }, "Action": "sqs:SendMessage", "Resource": arn,
        });
        let with = |effect: &str, condition: &str| {
            let mut statement = allow.clone();
            statement["Effect"] = effect.into();
            statement["Condition"] = serde_json::from_str(condition).unwrap();
            serde_json::json!({ "Statement": if effect == "Deny" { vec![allow.clone(), statement] } else { vec![statement] } })
        };
        for (effect, condition, may_send) in [
            ("Allow", r#"{"StringEquals": {"aws:SourceAccount": "123456789012"}}"#, Some(true)),
            ("Allow", r#"{"StringEquals": {"aws:SourceAccount": "210987654321"}}"#, None),
            ("Allow", r#"{"StringEquals": {"aws:PrincipalOrgID": "o-1"}}"#, None),
            ("Allow", r#"{"ArnNotEquals": {"aws:SourceArn": "arn:aws:s3:::b"}}"#, None),
            ("Deny", r#"{"Bool": {"aws:SecureTransport": "false"}}"#, Some(true)),
            ("Deny", r#"{"Bool": {"aws:SecureTransport": true}}"#, Some(false)),
            ("Deny", r#"{"StringNotEquals": {"aws:SourceVpc": "vpc-1"}}"#, None),
        ] {
            let policy = with(effect, condition).to_string();
            assert_eq!(lets_s3_send(&policy, arn, "b"), may_send, "{effect} {condition}");
        }
        // A statement alone is a list of one.
        assert_eq!(
            lets_s3_send(&serde_json::json!({ "Statement": allow }).to_string(), arn, "b"),
            Some(true)
        );
        assert_eq!(lets_s3_send("no JSON", arn, "b"), None);
    }
}
