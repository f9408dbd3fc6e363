// Checks dashboards against Grafana's own types: node grafana.mjs FOLDER
//
// A dashboard is written out as a TypeScript value of the type `Dashboard`, and each panel's options as
// those of its kind, so that the compiler finds what Grafana would silently ignore: a misspelled option,
// a width that is a text. Queries are Prometheus's own business: their shape is given here.

import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const folder = process.argv[2];
const types = './node_modules/@grafana/schema/dist/types/raw/composable';
// Panels of these kinds may be drawn; `custom` has a type of its own for those marked so.
const kinds = {
  bargauge: { module: 'bargauge' },
  heatmap: { module: 'heatmap', custom: true },
  stat: { module: 'stat' },
  'state-timeline': { module: 'statetimeline', custom: true },
  table: { module: 'table', custom: true },
  timeseries: { module: 'timeseries', custom: true },
};

const lines = [
  `import type { Dashboard } from '@grafana/schema';`,
  ...Object.values(kinds).map(({ module }) => `import type * as ${module} from '${types}/${module}/panelcfg/x/types.gen';`),
  // In JSON an enumeration's member is its text.
  'type Json<T> = T extends string ? (string extends T ? string : `${T}`)',
  '  : T extends number | boolean | null | undefined ? T',
  '  : T extends readonly (infer U)[] ? Json<U>[]',
  '  : T extends object ? { [K in keyof T]: Json<T[K]> } : T;',
  'interface Target {',
  `  refId: string; datasource: { type: 'prometheus'; uid: '\${datasource}' }; editorMode: 'code'; expr: string;`,
  `  legendFormat?: string; range?: boolean; instant?: boolean; format?: 'table' | 'heatmap';`,
  '}',
];
let number = 0;
const declare = (type, value) => lines.push(`export const v${(number += 1)}: ${type} = ${JSON.stringify(value)};`);

for (const file of readdirSync(folder).filter((name) => name.endsWith('.json'))) {
  const board = JSON.parse(readFileSync(join(folder, file), 'utf8'));
  lines.push(`// ${file}`);
  declare('Json<Dashboard>', board);
  for (const panel of board.panels.filter(({ type }) => type !== 'row')) {
    const { module, custom } = kinds[panel.type];
    lines.push(`// ${file}: ${panel.title}`);
    declare(`Json<Partial<${module}.Options>>`, panel.options);
    if (custom) declare(`Json<Partial<${module}.FieldConfig>>`, panel.fieldConfig.defaults.custom ?? {});
    panel.targets.forEach((target) => declare('Target', target));
  }
}
if (number === 0) throw new Error(`there is no dashboard in ${folder}`);
writeFileSync('dashboards.ts', lines.join('\n'));
const compiler = ['--noEmit', '--strict', '--skipLibCheck', '--module', 'esnext', '--moduleResolution', 'bundler', '--target', 'es2022'];
try {
  execFileSync('node_modules/.bin/tsc', [...compiler, 'dashboards.ts'], { stdio: 'inherit' });
} catch {
  process.exit(1);
}
