"""Counts the words of a document. The message names the document and the shortest word that counts."""
import json
import os
import sys

with open(os.environ["JOB_BODY_FILE"], encoding="utf-8") as file:
    message = json.load(file)
if not isinstance(message.get("minLength"), int):
    sys.exit(65)  # the same message will never work
with open(os.environ["JOB_INPUT"], encoding="utf-8") as file:
    words = [word for word in file.read().split() if len(word) >= message["minLength"]]
with open(os.path.join(os.environ["JOB_OUTPUT_DIR"], "words.json"), "w", encoding="utf-8") as file:
    json.dump({"documentId": message["documentId"], "words": len(words)}, file)
