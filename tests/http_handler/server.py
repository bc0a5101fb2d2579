"""A worker of the tests: it serves until SIGTERM, and the object's name chooses its behaviour."""
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request, urlopen


class Worker(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name, is_first = job["key"], self.headers["X-Aws-Sqsd-Receive-Count"] == "1"
        with open(os.environ["TEST_RUNS"], "a", encoding="utf-8") as runs:
            runs.write(f"{name} {os.getpid()}\n")
        print(f"working on {name}", flush=True)
        if name.startswith("crash-in") and is_first:
            # The end of the connection is the only end of this answer.
            body = b"half of the body" if name == "crash-in-body" else b""
            self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)
            self.wfile.flush()
        if name.startswith("crash") and is_first:
            print("a fatal error", file=sys.stderr, flush=True)
            os._exit(0)
        if name.startswith("hang") and is_first:
            time.sleep(600)
        if name.startswith("slow") and is_first:
            time.sleep(3)
        if "result" in name:
            with open(os.path.join(job["output_dir"], "size"), "w", encoding="utf-8") as size:
                size.write(str(os.path.getsize(job["input"])))
        if name.startswith("progress"):
            assert job["progress_url"] == self.headers["X-Leasehold-Progress-Url"]
            report = b'{"progress": 0.5, "metrics": {"rows_by_put": 7}}'
            urlopen(Request(job["progress_url"], data=report, method="PUT"), timeout=60).close()
            with open(job["result_file"], "a", encoding="utf-8") as report:
                report.write('{"metrics": {"rows_by_file": 8}}\n')
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


time.sleep(float(os.environ.get("TEST_START", "0")))
ThreadingHTTPServer.daemon_threads = True
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Worker).serve_forever()
