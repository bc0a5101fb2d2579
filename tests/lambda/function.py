"""A function in the form of AWS's samples for SQS events."""

import json
import signal

print("loading")


def lambda_handler(event, context):
    batch_item_failures = []
    for record in event["Records"]:
        try:
            process(record, context)
        except KeyError:
            batch_item_failures.append({"itemIdentifier": record["messageId"]})
    return {"batchItemFailures": batch_item_failures}


def process(record, context):
    body = record["body"]
    if body == "raise":
        raise ValueError("bad row")
    if body == "fail":
        raise KeyError("id")
    if body == "describe":
        print(json.dumps({
            "function": context.function_name,
            "arn": context.invoked_function_arn,
            "time_is_left": context.get_remaining_time_in_millis() > 1000,
            "memory": int(context.memory_limit_in_mb),
        }))
    print(f"Processed message {body}")


def stop(*_):
    print("stopping", flush=True)
    raise SystemExit(0)


signal.signal(signal.SIGTERM, stop)
