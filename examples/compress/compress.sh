#!/bin/bash
# Compresses the object. Exit codes: 65 for an object that will never work, 75 if the disk is full for now.
set -euo pipefail

fail() {
    local code=$1 reason=$2
    printf '{"reason": "%s"}\n' "$reason" >>"$JOB_RESULT_FILE"
    exit "$code"
}

[[ -s $JOB_INPUT ]] || fail 65 'the object is empty'

# Twice the object, in KiB.
needed=$(($(stat --format %s "$JOB_INPUT") / 512 + 1))
free=$(df --output=avail "$JOB_OUTPUT_DIR" | tail -n 1)
((free >= needed)) || fail 75 'no space for the result'

name=${JOB_KEY##*/}
gzip --no-name --stdout "$JOB_INPUT" >"$JOB_OUTPUT_DIR/$name.gz"
(cd "$JOB_OUTPUT_DIR" && sha256sum -- "$name.gz" >"$name.gz.sha256")
echo "$JOB_KEY: $(stat --format %s "$JOB_INPUT") bytes, compressed $(stat --format %s "$JOB_OUTPUT_DIR/$name.gz")"
