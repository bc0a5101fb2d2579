//! The last error of a retried call, reported if time runs out during the retries.

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

tokio::task_local! {
    static LAST_ERROR: RefCell<Option<String>>;
}

/// Does the work; also returns its last error that no success followed.
pub async fn with_last_error<T>(work: impl Future<Output = T>) -> (T, Option<String>) {
    LAST_ERROR
        .scope(RefCell::default(), async { (work.await, LAST_ERROR.with(RefCell::take)) })
        .await
}

/// Records an error that will be retried.
pub fn retrying(why: impl Into<String>) {
    // Outside of `with_last_error`, the error is only in the log.
    let _ = LAST_ERROR.try_with(|last| last.replace(Some(why.into())));
}

/// Does the work, and records `why` as the error once it takes longer than a service usually does.
/// An error recorded within it is more specific and stays.
pub async fn watched<T>(work: impl Future<Output = T>, why: impl FnOnce() -> String) -> T {
    let mut work = pin!(work);
    if let Ok(done) = tokio::time::timeout(SLOW, &mut work).await {
        return done;
    }
    let _ = LAST_ERROR.try_with(|last| {
        last.borrow_mut().get_or_insert_with(why);
    });
    work.await
}

const SLOW: Duration = Duration::from_secs(5);

/// Clears the error after a success.
pub fn recovered() {
    let _ = LAST_ERROR.try_with(RefCell::take);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_error_is_returned_unless_a_success_followed() {
        assert_eq!(with_last_error(async { retrying("a") }).await.1, Some("a".to_owned()));
        assert_eq!(
            with_last_error(async {
                retrying("a");
                recovered();
            })
            .await
            .1,
            None
        );
        retrying("not reported");
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_has_just_started_has_not_failed() {
        let halted_after = |time: Duration, failing: Option<&'static str>| {
            with_last_error(tokio::time::timeout(time, async move {
                failing.into_iter().for_each(retrying);
                watched(std::future::pending::<()>(), || "no answer yet".to_owned()).await;
            }))
        };
        assert_eq!(halted_after(Duration::from_millis(200), None).await.1, None);
        assert_eq!(
            halted_after(Duration::from_mins(1), None).await.1,
            Some("no answer yet".to_owned())
        );
        assert_eq!(
            halted_after(Duration::from_mins(1), Some("HTTP 503")).await.1,
            Some("HTTP 503".to_owned())
        );
        assert_eq!(watched(async { 7 }, || "it is done".to_owned()).await, 7);
    }
}
