"""A client of Lambda's Runtime API that does what the body of each message says.

It keeps its files in the directory that its argument names. The text of the file `start` says what it does at its start.
"""

import http.client
import json
import os
import signal
import sys
import time
import urllib.parse

HOME = sys.argv[1]
BASE = "/2018-06-01/runtime/"


def write(name, line):
    with open(os.path.join(HOME, name), "a") as file:
        file.write(line + "\n")


def call(method, path, body=None, headers={}):
    connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response.status, response.headers, response.read()


def post(request_id, kind, value, headers={}):
    body = value if isinstance(value, str) else json.dumps(value)
    return call("POST", f"{BASE}invocation/{request_id}/{kind}", body, headers)[0]


def wait_for(name):
    while not os.path.exists(os.path.join(HOME, name)):
        time.sleep(0.02)


def start():
    path = os.path.join(HOME, "start")
    how = open(path).read().strip() if os.path.exists(path) else ""
    if how == "init-error":
        call("POST", BASE + "init/error", json.dumps({"errorType": "ImportError", "errorMessage": "no module"}))
        sys.exit(1)
    if how == "exit":
        sys.exit(0)


def respond_at_sigterm(request_id):
    """Posts a success, which must not count, and ends with exit code 0."""

    def answer(*_):
        post(request_id, "response", {})
        os._exit(0)

    signal.signal(signal.SIGTERM, answer)
    write("waits", "")
    while True:
        time.sleep(0.02)


def work(request_id, records, answered):
    bodies = [record["body"] for record in records]
    body, own_id = bodies[0], records[0]["messageId"]
    if "fail" in bodies:
        failures = [{"itemIdentifier": it["messageId"]} for it in records if it["body"] == "fail"]
        return post(request_id, "response", {"batchItemFailures": failures})
    if "wait" in bodies:
        write("waits", "")
        wait_for("go")
    if body.endswith(" s"):
        time.sleep(int(body.split()[0]))
    if body == "error":
        error = {"errorType": "ValueError", "errorMessage": "bad row", "stackTrace": ["  in handler\n"]}
        return post(request_id, "error", error)
    if body == "crash":
        os._exit(0)
    if body == "exit65":
        os._exit(65)
    if body == "report":
        base = urllib.parse.urlsplit(os.environ["JOB_PROGRESS_URL"])
        statuses = []
        for about in [request_id, answered or "unknown"]:
            connection = http.client.HTTPConnection(base.netloc)
            connection.request("PUT", f"{base.path}/{about}", json.dumps({"progress": 0.5, "metrics": {"rows": 5}}))
            statuses.append(connection.getresponse().status)
        write("statuses", json.dumps(statuses))
        write("waits", "")
        wait_for("go")
    if body == "hang":
        time.sleep(3600)
    if body == "sigterm":
        respond_at_sigterm(request_id)
    if body == "no answer":
        return 0
    if body == "large":
        return post(request_id, "response", json.dumps("x" * (7 << 20)))
    if body == "not json":
        return post(request_id, "response", "{")
    if body == "unknown item":
        return post(request_id, "response", {"batchItemFailures": [{"itemIdentifier": "other"}]})
    if body == "encoded twice":
        return post(request_id, "response", json.dumps(json.dumps({"batchItemFailures": []})))
    if body == "stream":
        return post(request_id, "response", {}, {"Lambda-Runtime-Function-Response-Mode": "streaming"})
    if body == "late":
        # A success of the last event, once more, does not answer this one.
        late = [post(answered, "response", {}), post("00000000-unknown", "response", {})]
        extension = call("POST", "/2020-01-01/extension/register", "{}")[0]
        write("statuses", json.dumps(late + [extension]))
        return post(request_id, "error", {"errorMessage": "after a late answer", "messageId": own_id})
    return post(request_id, "response", {"statusCode": 200})


def main():
    start()
    write("env", json.dumps(dict(os.environ)))
    answered = ""
    while True:
        status, headers, event = call("GET", BASE + "invocation/next")
        records = json.loads(event)["Records"]
        request_id = headers["Lambda-Runtime-Aws-Request-Id"]
        deadline = int(headers["Lambda-Runtime-Deadline-Ms"]) / 1000 - time.time()
        write("calls", json.dumps({"pid": os.getpid(), "records": records, "deadline": deadline}))
        print("working on", len(records), flush=True)
        work(request_id, records, answered)
        answered = request_id


main()
