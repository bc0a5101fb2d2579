//! The queue's policy: whether S3 may send.
//!
//! S3 tests it when the notification is created, but does not report it if the permission is
//! removed later.

use serde_json::Value;

/// Whether a queue's policy allows S3 to send events of a bucket. `None` if that depends on unknown
/// facts.
///
/// Implements the part of IAM's rules that queue policies use (IAM User Guide, "Policy evaluation
/// logic"): a Deny overrides every Allow.
pub fn lets_s3_send(policy: &str, queue_arn: &str, bucket: &str) -> Option<bool> {
    let policy: Value = serde_json::from_str(policy).ok()?;
    let statements = listed(&policy["Statement"]);
    let (mut allowed, mut denied) = (Some(false), Some(false));
    for statement in statements {
        let applies = applies(statement, queue_arn, bucket);
        let so_far = if statement["Effect"] == "Allow" { &mut allowed } else { &mut denied };
        *so_far = either(*so_far, applies);
    }
    match (allowed, denied) {
        (Some(false), _) | (_, Some(true)) => Some(false),
        (Some(true), Some(false)) => Some(true),
        (None, _) | (_, None) => None,
    }
}

/// Whether the statement applies to S3 sending an event.
fn applies(statement: &Value, queue_arn: &str, bucket: &str) -> Option<bool> {
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
    // The bucket may belong to another account than the queue.
    if !matches && key.eq_ignore_ascii_case("aws:sourceaccount") { None } else { Some(matches) }
}

/// A list, or a single value as a list.
fn listed(value: &Value) -> Vec<&Value> {
    match value.as_array() {
        Some(all) => all.iter().collect(),
        None if value.is_null() => Vec::new(),
        None => vec![value],
    }
}

/// Matches a pattern with `*` for any text and `?` for any character.
///
/// The policy is untrusted, so no pattern may take long: at a mismatch, only the last `*` takes one
/// more character. That is enough, since the match of an earlier `*` can stay. The time is at most
/// the product of both lengths.
fn like(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut in_pattern, mut in_text) = (0, 0);
    // The position after the last `*`, and the position in the text after its match.
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
    fn stars_and_question_marks_match_as_in_iam() {
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
        // With a long pattern and a long text, full backtracking would take 2^60 steps.
        let text = "x".repeat(2000);
        assert!(!like(&format!("{}Z", "*x".repeat(1000)), &text));
        assert!(like(&"*x".repeat(1000), &text));
    }

    #[test]
    fn an_unknown_condition_gives_no_answer() {
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
        // A single statement counts as a list.
        assert_eq!(
            lets_s3_send(&serde_json::json!({ "Statement": allow }).to_string(), arn, "b"),
            Some(true)
        );
        assert_eq!(lets_s3_send("no JSON", arn, "b"), None);
    }
}
