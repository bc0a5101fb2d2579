"""Runs `leasehold run` as a pod would, on an SQS and an S3 that this script starts on this machine.

An upload notifies the queue, leasehold processes the message, and the result is in another bucket.
"""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import boto3

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent


def main():
    leasehold = os.environ.get("LEASEHOLD") or shutil.which("leasehold") or str(EXAMPLES.parent / "target/debug/leasehold")
    ministack = os.environ.get("MINISTACK") or str(pathlib.Path(sys.executable).with_name("ministack"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    os.environ.update(AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", AWS_REGION="us-east-1", AWS_DEFAULT_REGION="us-east-1",
                      AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test")
    server = subprocess.Popen([ministack], env=os.environ | {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port)},
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(server, port)
        sys.exit(process(leasehold))
    finally:
        server.kill()
        server.wait()


def wait_for(server, port):
    for _ in range(600):
        if server.poll() is not None:
            sys.exit("ministack did not start")
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.1)
    sys.exit("ministack does not listen")


def process(leasehold):
    sqs, s3 = boto3.client("sqs"), boto3.client("s3")
    arn = lambda url: sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    dead_letters = sqs.create_queue(QueueName="orders-dlq")["QueueUrl"]
    redrive = json.dumps({"deadLetterTargetArn": arn(dead_letters), "maxReceiveCount": "3"})
    queue = sqs.create_queue(QueueName="orders", Attributes={"RedrivePolicy": redrive})["QueueUrl"]
    s3.create_bucket(Bucket="orders")
    s3.create_bucket(Bucket="results")
    s3.put_bucket_notification_configuration(Bucket="orders", NotificationConfiguration={
        "QueueConfigurations": [{"QueueArn": arn(queue), "Events": ["s3:ObjectCreated:*"]}]})
    for file in ("monday.csv", "tuesday.csv"):
        s3.upload_file(str(EXAMPLES / "inbox" / file), "orders", f"in/{file}")
    ended = subprocess.run([leasehold, "run", "--queue-url", queue, "--max-messages", "10", "--wait", "1s", "--output", "s3://results/{stem}",
                            "--log-format", "text", "--", "python3", str(EXAMPLES / "summarize.py")])
    for found in s3.list_objects_v2(Bucket="results").get("Contents", []):
        text = s3.get_object(Bucket="results", Key=found["Key"])["Body"].read().decode()
        print(f"s3://results/{found['Key']}: {text.strip()}")
    return ended.returncode


if __name__ == "__main__":
    main()
