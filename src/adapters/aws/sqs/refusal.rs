//! Classifies calls that SQS refused or did not answer.

use crate::adapters::aws::Failure;
use crate::job::delivery::ReceiptHandle;

/// The class of a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrorClass {
    /// The delivery has ended: its handle has expired or is not valid.
    NotInFlight,
    /// The message would be hidden for more than 12 hours.
    AtCeiling,
    /// The same call will be refused again: no such queue, no permission, unknown credentials.
    Hopeless,
    MayPass,
}

impl ErrorClass {
    pub(super) fn of(failure: &Failure) -> Self {
        match failure {
            Failure::Refused { code, message, status: _ } => Self::of_refusal(
                code.as_deref().unwrap_or_default(),
                message.as_deref().unwrap_or_default(),
            ),
            Failure::Misconfigured(_) => Self::Hopeless,
            Failure::Unanswered(_) => Self::MayPass,
        }
    }

    /// Uses code and text, not the SDK's variants: for a stale handle SQS answers
    /// `InvalidParameterValue`, which the SDK's model does not have (aws-sdk-net issue 1927).
    fn of_refusal(code: &str, message: &str) -> Self {
        let contains = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
        match plain(code) {
            "InvalidParameterValue" if contains(&["beyond the limit"]) => Self::AtCeiling,
            "InvalidParameterValue"
                if contains(&["not available for visibility", "expired", "does not exist"]) =>
            {
                Self::NotInFlight
            }
            "MessageNotInflight" | "ReceiptHandleIsInvalid" | "InvalidIdFormat" => {
                Self::NotInFlight
            }
            "NonExistentQueue" | "QueueDoesNotExist" | "InvalidAddress" | "InvalidSecurity"
            | "AccessDenied" => Self::Hopeless,
            code if is_about_credentials(code) => Self::Hopeless,
            // Throttling, OverLimit, Kms…, ExpiredToken, 5xx, and unknown codes.
            _ => Self::MayPass,
        }
    }
}

/// An error code without the parts that differ between SQS's two protocols.
pub(super) fn plain(code: &str) -> &str {
    let code = code.strip_prefix("AWS.SimpleQueueService.").unwrap_or(code);
    code.strip_suffix("Exception").unwrap_or(code)
}

fn is_about_credentials(code: &str) -> bool {
    matches!(
        code,
        "InvalidClientTokenId"
            | "InvalidAccessKeyId"
            | "InvalidSignature"
            | "MissingAuthenticationToken"
            | "SignatureDoesNotMatch"
            | "UnrecognizedClient"
    )
}

/// What to change, in parentheses.
pub(super) fn advice(call: &str, code: &str) -> String {
    match plain(code) {
        "AccessDenied" => {
            // A batch has the permission of the single call.
            let action = call.strip_suffix("Batch").unwrap_or(call);
            format!(" (the pod's role and the queue's policy must allow sqs:{action})")
        }
        "NonExistentQueue" | "QueueDoesNotExist" | "InvalidAddress" => {
            " (check --queue-url, its account and its region)".into()
        }
        "KmsAccessDenied" | "KMS.AccessDenied" => {
            " (the pod's role must allow kms:Decrypt on the queue's KMS key)".into()
        }
        code if is_about_credentials(code) => " (check the pod's credentials)".into(),
        _ => String::new(),
    }
}

/// SQS quotes a handle that it refuses, and the log must not contain it.
pub(super) fn without_handle(failure: Failure, receipt: &ReceiptHandle) -> Failure {
    let hide = |text: String| text.replace(receipt.expose(), "(the receipt handle)");
    match failure {
        Failure::Refused { code, message, status } => {
            Failure::Refused { code, message: message.map(hide), status }
        }
        Failure::Misconfigured(why) => Failure::Misconfigured(hide(why)),
        Failure::Unanswered(why) => Failure::Unanswered(hide(why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALE: &str = "Value AQEBsecret+/handle== for parameter ReceiptHandle is invalid. Reason: Message does not \
                         exist or is not available for visibility timeout change.";
    const EXPIRED: &str = "Value AQEBsecret+/handle== for parameter ReceiptHandle is invalid. Reason: The receipt \
                           handle has expired.";
    const CEILING: &str = "Value 43200 for parameter VisibilityTimeout is invalid. Reason: Total VisibilityTimeout for \
                           the message is beyond the limit [43200 seconds]";

    #[test]
    fn a_refusal_is_classified_by_code_and_text() {
        let table = [
            ("AWS.SimpleQueueService.MessageNotInflight", "", ErrorClass::NotInFlight),
            ("MessageNotInflight", "", ErrorClass::NotInFlight),
            ("ReceiptHandleIsInvalid", "", ErrorClass::NotInFlight),
            ("InvalidParameterValue", STALE, ErrorClass::NotInFlight),
            ("InvalidParameterValueException", STALE, ErrorClass::NotInFlight),
            ("InvalidParameterValue", EXPIRED, ErrorClass::NotInFlight),
            ("InvalidParameterValue", CEILING, ErrorClass::AtCeiling),
            ("InvalidParameterValue", "Must be >= 0 and <= 20", ErrorClass::MayPass),
            (
                "AWS.SimpleQueueService.NonExistentQueue",
                "The specified queue does not exist",
                ErrorClass::Hopeless,
            ),
            ("QueueDoesNotExist", "", ErrorClass::Hopeless),
            ("InvalidAddress", "", ErrorClass::Hopeless),
            ("AccessDenied", "", ErrorClass::Hopeless),
            ("AccessDeniedException", "", ErrorClass::Hopeless),
            ("InvalidClientTokenId", "", ErrorClass::Hopeless),
            ("UnrecognizedClientException", "", ErrorClass::Hopeless),
            ("SignatureDoesNotMatch", "", ErrorClass::Hopeless),
            ("InvalidSignatureException", "", ErrorClass::Hopeless),
            (
                "ExpiredToken",
                "The security token included in the request is expired",
                ErrorClass::MayPass,
            ),
            ("RequestThrottled", "", ErrorClass::MayPass),
            ("ThrottlingException", "", ErrorClass::MayPass),
            ("OverLimit", "", ErrorClass::MayPass),
            ("KmsAccessDenied", "", ErrorClass::MayPass),
            ("KMS.AccessDeniedException", "", ErrorClass::MayPass),
            ("InternalError", "", ErrorClass::MayPass),
            ("", "", ErrorClass::MayPass),
        ];
        for (code, message, meaning) in table {
            assert_eq!(ErrorClass::of_refusal(code, message), meaning, "{code}: {message}");
        }
    }
}
