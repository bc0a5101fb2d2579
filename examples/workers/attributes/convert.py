"""Converts a text as the message attribute `operation` asks."""
import json
import os
import sys

OPERATIONS = {"upper": str.upper, "lower": str.lower}

with open(os.environ["JOB_FILE"], encoding="utf-8") as file:
    attributes = json.load(file).get("attributes", {})
convert = OPERATIONS.get(attributes.get("operation"))
if convert is None:
    sys.exit(65)  # the same message will never work
with open(os.environ["JOB_INPUT"], encoding="utf-8") as file:
    text = convert(file.read())
with open(os.path.join(os.environ["JOB_OUTPUT_DIR"], "text"), "w", encoding="utf-8") as file:
    file.write(text)
print("converted for", attributes.get("tenant", "no tenant"))
