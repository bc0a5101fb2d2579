#!/bin/sh
# Reads the beginning of an object that is too large for a disk. Only these bytes leave S3.
set -eu
head -c 4096 "$JOB_INPUT" > "$JOB_OUTPUT_DIR/first-page"
echo "4096 of $JOB_SIZE bytes of $JOB_INPUT"
