//! A function in the form of AWS's samples for SQS events. The body of a message names what it does.

use std::path::Path;
use std::process;
use std::time::Duration;

use aws_lambda_events::event::sqs::{SqsBatchResponse, SqsEvent};
use lambda_runtime::{Context, Error, LambdaEvent, run, service_fn};
use serde_json::json;

async fn function_handler(event: LambdaEvent<SqsEvent>) -> Result<SqsBatchResponse, Error> {
    println!("event of {}", event.payload.records.len());
    let mut response = SqsBatchResponse::default();
    for record in &event.payload.records {
        let body = record.body.as_deref().unwrap_or_default();
        if body == "fail" {
            response.add_failure(record.message_id.clone().unwrap_or_default());
            continue;
        }
        process_message(body, &event.context).await?;
    }
    Ok(response)
}

async fn process_message(body: &str, context: &Context) -> Result<(), Error> {
    match body {
        "raise" => return Err("bad row".into()),
        "crash" => process::exit(0),
        "wait" => {
            std::fs::write("waits", "")?;
            tokio::time::sleep(Duration::from_hours(1)).await;
        }
        "slow" => tokio::time::sleep(Duration::from_secs(9)).await,
        "describe" => println!("{}", description(context)),
        _ => {}
    }
    println!("processed {body}");
    Ok(())
}

fn description(context: &Context) -> serde_json::Value {
    let now = std::time::SystemTime::now();
    let left = context.deadline().duration_since(now).unwrap_or_default();
    json!({
        "function": context.env_config.function_name,
        "arn": context.invoked_function_arn,
        "memory": context.env_config.memory,
        "seconds_left": left.as_secs(),
    })
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    println!("loading {}", process::id());
    if Path::new("broken").exists() {
        return Err("no model".into());
    }
    run(service_fn(function_handler)).await
}
