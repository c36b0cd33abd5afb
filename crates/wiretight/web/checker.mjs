// The checker of verify.html as a module: the part of its script that does not touch the page. As a program, it judges the
// vectors of the files that it is given, and prints what came out, and vectors of its own.

import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { make, run } from './vectors.mjs';

const page = await readFile(new URL('verify.html', import.meta.url), 'utf8'), start = '<script type="module">';
export const source = page.slice(page.indexOf(start) + start.length, page.indexOf('// ==== The page.'));
const folder = await mkdtemp(join(tmpdir(), 'checker-'));
await writeFile(join(folder, 'checker.mjs'), source);
const checker = await import(pathToFileURL(join(folder, 'checker.mjs')));
await rm(folder, { recursive: true });
export default checker;

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
    const results = [];
    for (const file of process.argv.slice(2)) results.push(await run(checker, JSON.parse(await readFile(file, 'utf8'))));
    process.stdout.write(JSON.stringify({ source, results, made: await make(checker) }));
}
