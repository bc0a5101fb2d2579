"""A function in the form of AWS's samples for SQS events. The body of a message names what it does."""

import json
import os
import signal
import time
import urllib.parse
import urllib.request

print("loading", os.getpid())
if os.path.exists("broken"):
    raise RuntimeError("no model")


def lambda_handler(event, context):
    print("event of", len(event["Records"]))
    batch_item_failures = []
    for record in event["Records"]:
        if record["body"] == "fail":
            batch_item_failures.append({"itemIdentifier": record["messageId"]})
        else:
            process(record["body"], context)
    return {"batchItemFailures": batch_item_failures}


def process(body, context):
    if body == "raise":
        raise ValueError("bad row")
    if body == "crash":
        os._exit(0)
    if body == "wait":
        open("waits", "w").close()
        time.sleep(3600)
    if body == "slow":
        time.sleep(9)
    if body == "describe":
        print(json.dumps({
            "function": context.function_name,
            "arn": context.invoked_function_arn,
            "memory": int(context.memory_limit_in_mb),
            "seconds_left": context.get_remaining_time_in_millis() / 1000,
        }))
    if body == "report":
        report(context, progress=0.5, text="half of it", metrics={"rows": 5})
    print("processed", body)


def report(context, **fields):
    """As in docs/warm-workers.md."""
    if url := os.environ.get("JOB_PROGRESS_URL"):
        body = json.dumps(fields).encode()
        request = urllib.request.Request(f"{url}/{context.aws_request_id}", body, method="PUT")
        urllib.request.urlopen(request, timeout=5).close()


def of_s3(event, context):
    """For S3 events."""
    [record] = event["Records"]
    key = urllib.parse.unquote_plus(record["s3"]["object"]["key"], encoding="utf-8")
    print(f"{record['eventName']} s3://{record['s3']['bucket']['name']}/{key}")


def stop(*_):
    print("stopping", flush=True)
    raise SystemExit(0)


signal.signal(signal.SIGTERM, stop)
