"""Counts the words of a text. The rare words stand for a model: they are loaded once, for all texts."""
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RARE = set(os.environ.get("RARE_WORDS", "zyzzyva").split())


class Worker(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            with open(job["input"], encoding="utf-8") as file:
                words = file.read().split()
        except UnicodeDecodeError as error:
            return self.answer(422, f"not UTF-8: {error}")
        counts = {"words": len(words), "rare": sum(word in RARE for word in words)}
        with open(os.path.join(job["output_dir"], "words.json"), "w", encoding="utf-8") as file:
            json.dump(counts, file)
        return self.answer(200, "")

    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Worker).serve_forever()
