//! Typed JSON: an order as the object, and its result as a file.

use leasehold::{Error, Failure, Job};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Order {
    quantity: u32,
    price_in_cents: u32,
}

#[derive(Serialize)]
struct Total {
    cents: u64,
}

pub async fn total(job: Job) -> Result<(), Error> {
    // Text that is not an order is a permanent failure.
    let order: Order = job.json().await?;
    if order.quantity == 0 {
        return Err(Failure::permanent("the order is empty").into());
    }
    let total = Total { cents: u64::from(order.quantity) * u64::from(order.price_in_cents) };
    tokio::fs::write(job.output_dir().await?.join("total.json"), serde_json::to_vec(&total)?)
        .await?;
    job.metric("items", order.quantity.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use leasehold::Outcome;
    use leasehold::testing::TestWorker;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_order_has_a_total() {
        let order = r#"{"quantity": 3, "price_in_cents": 250}"#;
        let run = TestWorker::new(total).object("1.json", order).run().await;
        assert_eq!(run.output("1.json", "total.json").unwrap(), br#"{"cents":750}"#);
        assert_eq!(run.attempts()[0].metrics, [("items".to_owned(), 3.0)].into());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_an_order_is_a_dead_letter() {
        let run = TestWorker::new(total).object("2.json", "{}").max_receive_count(1).run().await;
        assert_eq!(run.outcomes(), [Outcome::Permanent]);
        let error = run.attempts()[0].error.as_deref().unwrap();
        assert!(error.contains("missing field `quantity`"), "{error}");
        assert_eq!(run.dead_letters(), ["2.json"]);
    }
}
