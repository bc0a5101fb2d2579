"""Drains a queue with boto3: drain.py QUEUE_URL CONCURRENCY MESSAGES [COMMAND...]"""

import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import unquote_plus

import boto3

queue, concurrency, command = sys.argv[1], int(sys.argv[2]), sys.argv[4:]


def work(room):
    session = boto3.session.Session()
    sqs, s3 = session.client("sqs"), session.client("s3")
    while messages := sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=1).get("Messages"):
        for record in json.loads(messages[0]["Body"])["Records"]:
            bucket, key = record["s3"]["bucket"]["name"], unquote_plus(record["s3"]["object"]["key"])
            file = Path(room) / messages[0]["MessageId"]
            file.write_bytes(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
            if command:
                subprocess.run(command, check=True)
            file.unlink()
        sqs.delete_message(QueueUrl=queue, ReceiptHandle=messages[0]["ReceiptHandle"])


with tempfile.TemporaryDirectory() as room:
    threads = [threading.Thread(target=work, args=(room,)) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
