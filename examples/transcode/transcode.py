"""Transcodes a film in segments, and continues after an interruption with the first segment that is missing.

The encoder is a stand-in that needs no codecs: it compresses 16 bytes, and takes a moment for it. A real one is started in
encode(), for example ffmpeg with -ss and -t.
"""

import json
import os
import signal
import sys
import time
import zlib
from pathlib import Path

SEGMENT = 16
SECONDS_EACH = float(os.environ.get("SECONDS_EACH", "0.2"))
stopping = False


def stop(_signal: int, _frame: object) -> None:
    global stopping
    stopping = True


def encode(segment: bytes) -> bytes:
    time.sleep(SECONDS_EACH)
    return zlib.compress(segment)


def report(**values: object) -> None:
    with open(os.environ["JOB_RESULT_FILE"], "a", encoding="utf-8") as result:
        result.write(json.dumps(values) + "\n")


def main() -> int:
    signal.signal(signal.SIGTERM, stop)
    film = Path(os.environ["JOB_INPUT"]).read_bytes()
    done = Path(os.environ["JOB_CHECKPOINT_DIR"])
    count = -(-len(film) // SEGMENT)
    for number in range(count):
        segment = done / f"{number:05}.segment"
        if segment.exists():
            print(f"segment {number + 1} of {count} already exists")
            continue
        if stopping:
            report(reason=f"stopped after {number} of {count} segments")
            return 1
        # A checkpoint can be saved at any moment: a segment gets its name only when it is complete.
        unfinished = done / "unfinished"
        unfinished.write_bytes(encode(film[number * SEGMENT : (number + 1) * SEGMENT]))
        unfinished.rename(segment)
        report(progress=(number + 1) / count, text=f"segment {number + 1} of {count}")

    with open(Path(os.environ["JOB_OUTPUT_DIR"], "film.out"), "wb") as film_out:
        for number in range(count):
            film_out.write((done / f"{number:05}.segment").read_bytes())
    print(f"{count} segments joined")
    return 0


if __name__ == "__main__":
    sys.exit(main())
