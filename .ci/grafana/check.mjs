// Compares a dashboard with Grafana's own types: misspelt fields, wrong kinds of values.
import { readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";

const here = dirname(fileURLToPath(import.meta.url));
const composable = "@grafana/schema/dist/esm/raw/composable";
// Of each type of panel: where its options are declared, and those of its fields, if it has any.
const PANELS = {
  stat: ["stat/panelcfg/x/StatPanelCfg_types.gen", false],
  timeseries: ["timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen", true],
  bargauge: ["bargauge/panelcfg/x/BarGaugePanelCfg_types.gen", false],
  table: ["table/panelcfg/x/TablePanelCfg_types.gen", true],
};
// Grafana writes them, and its types do not know them.
const UNDECLARED = `{
  templating?: { list?: { definition?: string }[] };
  annotations?: { list?: { step?: string; titleFormat?: string; textFormat?: string; tagKeys?: string }[] };
}`;

function source(dashboard) {
  const imports = Object.entries(PANELS).map(
    ([type, [path]]) => `import type * as ${type} from "${composable}/${path}";`,
  );
  const panels = dashboard.panels.flatMap((panel) => [panel, ...(panel.panels ?? [])]);
  const details = panels.filter(({ type }) => type !== "row").map(({ id, type, options, fieldConfig }) => {
    if (!(type in PANELS)) throw new Error(`panel ${id}: add its type ${type} to PANELS`);
    const custom = PANELS[type][1] ? `Json<Partial<${type}.FieldConfig>>` : "Record<string, never>";
    return `
export const options_of_${id} = ${JSON.stringify(options)} satisfies Json<Partial<${type}.Options>>;
export const fields_of_${id} = ${JSON.stringify(fieldConfig.defaults.custom ?? {})} satisfies ${custom};`;
  });
  return `import type { Dashboard } from "@grafana/schema";
${imports.join("\n")}
// As JSON has it: the value of an enum is a string, and what has a default may be missing.
type Json<T> = T extends string ? \`\${T}\` : T extends (infer E)[] ? Json<E>[]
  : T extends object ? { [K in keyof T]: Json<T[K]> } : T;
const dashboard: Json<Dashboard> & ${UNDECLARED} = ${JSON.stringify(dashboard, null, 1)};
${details.join("\n")}
`;
}

const file = join(here, "dashboard.ts");
const text = source(JSON.parse(readFileSync(process.argv[2], "utf8")));
const options = {
  noEmit: true, strict: true, skipLibCheck: true, types: [],
  module: ts.ModuleKind.NodeNext, moduleResolution: ts.ModuleResolutionKind.NodeNext,
};
const host = ts.createCompilerHost(options);
const onDisk = host.getSourceFile.bind(host);
host.fileExists = ((exists) => (path) => resolve(path) === file || exists(path))(host.fileExists);
host.getSourceFile = (path, ...rest) =>
  resolve(path) === file ? ts.createSourceFile(path, text, ...rest) : onDisk(path, ...rest);
const program = ts.createProgram([file], options, host);
const findings = ts.getPreEmitDiagnostics(program);
for (const { file: at, start, messageText } of findings) {
  const line = at ? at.text.split("\n")[at.getLineAndCharacterOfPosition(start).line].trim() : "";
  console.error(`${process.argv[2]}: ${line.slice(0, 150)}: ${ts.flattenDiagnosticMessageText(messageText, "\n  ")}`);
}
process.exitCode = findings.length > 0 ? 1 : 0;
