//! What keeps failing while it is tried again: for the case that time runs out meanwhile.

use std::cell::RefCell;
use std::future::Future;

tokio::task_local! {
    static LAST_ERROR: RefCell<Option<String>>;
}

/// Does the work; also says what failed last in it and was not done since.
pub async fn with_last_error<T>(work: impl Future<Output = T>) -> (T, Option<String>) {
    LAST_ERROR.scope(RefCell::default(), async { (work.await, LAST_ERROR.with(RefCell::take)) }).await
}

/// Something failed, and will be tried again.
pub fn retrying(why: impl Into<String>) {
    // Without anybody to report it to, it is only in the log.
    let _ = LAST_ERROR.try_with(|last| last.replace(Some(why.into())));
}

/// What failed was done.
pub fn recovered() {
    let _ = LAST_ERROR.try_with(RefCell::take);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_failed_last_is_known_unless_it_was_done_since() {
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
        retrying("nobody hears it");
    }
}
