// Counts the words of a text. Exit code 65 for a binary file.
import { appendFileSync, createReadStream, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";

const { JOB_INPUT, JOB_KEY, JOB_OUTPUT_DIR, JOB_RESULT_FILE } = process.env;
const report = (values) => appendFileSync(JOB_RESULT_FILE, JSON.stringify(values) + "\n");

const words = new Map();
for await (const line of createInterface({ input: createReadStream(JOB_INPUT, "utf8") })) {
  if (line.includes("\0")) {
    report({ reason: "this is not a text" });
    process.exit(65);
  }
  for (const word of line.toLowerCase().match(/\p{L}+/gu) ?? []) {
    words.set(word, (words.get(word) ?? 0) + 1);
  }
}
writeFileSync(join(JOB_OUTPUT_DIR, "words.json"), JSON.stringify(Object.fromEntries([...words].sort()), null, 2));
console.log(`${JOB_KEY}: ${words.size} words`);
