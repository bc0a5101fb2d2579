#!/bin/sh
# Counts the words of an object. leasehold reads it from the other store and writes the result there.
set -eu
tr -s '[:space:]' '\n' < "$JOB_INPUT" | sort | uniq -c > "$JOB_OUTPUT_DIR/words.txt"
