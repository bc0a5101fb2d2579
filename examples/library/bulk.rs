//! A batch handler: one insert for up to ten orders, and a result for each of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use leasehold::{BatchHandler, Error, Failure, Job};

/// A table whose rows have numbers; stands for a database.
pub type Table = Arc<Mutex<BTreeMap<u64, String>>>;

/// Inserts the orders of all jobs at once. A file that is not an order is a permanent failure of its
/// own message only.
pub fn import(table: Table) -> impl BatchHandler {
    move |jobs: Vec<Job>| {
        let table = table.clone();
        async move {
            let mut rows = Vec::new();
            let mut results = Vec::new();
            for job in &jobs {
                let order = read(job).await;
                results.push(order.map(|order| rows.push(order)));
            }
            table.lock().unwrap_or_else(PoisonError::into_inner).extend(rows);
            results
        }
    }
}

/// `17;two chairs`
async fn read(job: &Job) -> Result<(u64, String), Error> {
    let text = job.text().await?;
    let (number, order) =
        text.split_once(';').ok_or_else(|| Failure::permanent("the file has no ;"))?;
    Ok((number.parse().map_err(Failure::permanent)?, order.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leasehold::testing::TestWorker;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_broken_file_fails_alone() {
        let table = Table::default();
        let worker = TestWorker::batch(import(table.clone())).batch_window(Duration::from_secs(1));
        let worker = worker.object("a", "1;a chair").object("b", "?").object("c", "3;a table");
        let run = worker.max_receive_count(1).run().await;
        assert_eq!(run.dead_letters(), ["b"]);
        let rows: Vec<u64> = table.lock().unwrap().keys().copied().collect();
        assert_eq!(rows, [1, 3]);
    }
}
