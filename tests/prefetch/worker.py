"""A warm worker: a server on the port of its argument, or else a Lambda function.

It works on a message until the next object is there; and then, while the file `hang` exists.
"""
import glob
import http.client
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def work():
    os.mkdir("running")  # fails if it works on another message
    with open("runs", "a", encoding="utf-8") as runs:
        runs.write("run\n")
    while not os.path.exists("prefetched"):
        if sum(os.path.getsize(path) for path in glob.glob("leasehold-*/input/*")) == 2:
            with open("prefetched", "w", encoding="utf-8") as file:
                file.write("yes\n")
        time.sleep(0.02)
    while os.path.exists("hang"):
        time.sleep(0.02)
    os.rmdir("running")


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        work()
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


def call(method, path, body=None):
    connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    connection.request(method, "/2018-06-01/runtime/invocation/" + path, body)
    response = connection.getresponse()
    response.read()
    return response.headers


if sys.argv[1:]:
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Server).serve_forever()
while True:
    request_id = call("GET", "next")["Lambda-Runtime-Aws-Request-Id"]
    work()
    call("POST", request_id + "/response", json.dumps({}))
