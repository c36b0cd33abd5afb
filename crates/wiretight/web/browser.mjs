// Drives Debian's Chromium for the tests of the pages (tests/proof/browser.rs). Reads a list of visits as JSON from standard
// input, and prints what was seen as JSON. It judges nothing: the tests do.
//
// A visit, all members but `name` optional:
//   name       of the visit; screenshots are OUT/NAME-light.png and so on
//   url        opened as it is; or
//   dir, path  a folder, which is served on a port of 127.0.0.1, and a path in it (index.html); with `file`, it is opened
//              as file:// instead
//   scripts    false: without JavaScript
//   cookie     [NAME, VALUE]: a cookie of the page's host
//   now        what the page's clock says all the time, in seconds since 1970
//   steps      what the visitor does: ["fill", SELECTOR, TEXT], ["click", SELECTOR], ["files", SELECTOR, [PATH]],
//              ["drop", SELECTOR, [PATH]], ["wait", SELECTOR], ["save", SELECTOR, PATH] (clicks, and keeps the download),
//              ["serve", DIR] (the same address has another folder from now on), ["open", PATH] (on the same server),
//              ["read", NAME, SELECTOR] (as below, but now), ["evaluate", SCRIPT] (its value is added to `results`)
//   read       {NAME: SELECTOR}: at the end, the texts of these elements are returned
//   axe        true: axe-core, in light, dark and print colours and on a phone, which needs JavaScript; also whether the
//              page is too wide for 320 px, which is 1280 px at 400 % zoom
//   shots      true: screenshots in light, dark and print colours, and on a phone
//   tab        visits with the same name happen in one tab, one after another. A new tab costs more than a visit
// Every request to another host than the page's is blocked and returned as `foreign`.

import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { mkdir, readFile } from 'node:fs/promises';
import { text } from 'node:stream/consumers';
import { basename, extname, join, normalize } from 'node:path';
import { pathToFileURL } from 'node:url';

const packages = createRequire(join(process.env.WIRETIGHT_NPM, 'package.json'));
const { chromium } = packages('playwright-core');
const axe = await readFile(packages.resolve('axe-core/axe.min.js'), 'utf8');
const types = { '.html': 'text/html', '.json': 'application/json', '.mjs': 'text/javascript', '.css': 'text/css' };
const patience = 60_000;

/** Serves a folder, as any web server would. `served.dir` may change. */
async function serve(dir) {
    const served = { dir };
    const server = createServer(async (request, response) => {
        const path = normalize(decodeURIComponent(new URL(request.url, 'http://x').pathname));
        try {
            const body = await readFile(join(served.dir, path.endsWith('/') ? path + 'index.html' : path));
            response.setHeader('content-type', types[extname(path)] ?? (path.endsWith('/') ? 'text/html' : 'text/plain'));
            response.end(body);
        } catch {
            response.statusCode = path === '/favicon.ico' ? 204 : 404;
            response.end();
        }
    });
    await new Promise((listens) => server.listen(0, '127.0.0.1', listens));
    served.url = `http://127.0.0.1:${server.address().port}/`;
    served.close = () => { server.closeAllConnections(); server.close(); };
    return served;
}

/** Drops files on an element, as the browser does when they are dragged from a file manager. */
async function drop(page, selector, paths) {
    const files = await Promise.all(paths.map(async (path) => [basename(path), (await readFile(path)).toString('base64')]));
    const data = await page.evaluateHandle((files) => {
        const data = new DataTransfer();
        for (const [name, base64] of files) {
            data.items.add(new File([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], name));
        }
        return data;
    }, files);
    await page.dispatchEvent(selector, 'drop', { dataTransfer: data });
}

const textsOf = (page, selector) => page.locator(selector).evaluateAll((all) => all.map((e) => e.innerText));

async function step(page, served, seen, [what, ...more]) {
    switch (what) {
        case 'fill': return page.fill(...more);
        case 'click': return page.click(...more);
        case 'files': return page.setInputFiles(...more);
        case 'drop': return drop(page, ...more);
        case 'wait': return page.waitForSelector(...more);
        case 'open': return page.goto(new URL(more[0], page.url()).href);
        case 'evaluate': seen.results.push(await page.evaluate(more[0])); return;
        case 'read': seen.read[more[0]] = await textsOf(page, more[1]); return;
        case 'serve': served.dir = more[0]; return;
        case 'save': {
            const [download] = await Promise.all([page.waitForEvent('download'), page.click(more[0])]);
            return download.saveAs(more[1]);
        }
        default: throw new Error(`no step ${what}`);
    }
}

// The ways in which a page is seen, and the rules of axe-core that may find something else there than in light colours.
const desktop = { width: 1280, height: 900 };
const colours = ['color-contrast', 'link-in-text-block'];
const ways = {
    light: {},
    dark: { colorScheme: 'dark', rules: colours },
    print: { media: 'print', rules: colours },
    phone: { size: { width: 375, height: 812 }, rules: [...colours, 'scrollable-region-focusable', 'target-size'] },
};

/** What axe-core finds in each way, and by how many pixels the page is too wide for 320. */
async function judge(page, name, { axe: wanted, shots, scripts = true }, seen) {
    if (wanted) {
        if (!scripts) throw new Error('axe-core needs JavaScript');
        seen.axe = [];
        await page.evaluate(axe);
    }
    for (const [way, { colorScheme = 'light', media = 'screen', size = desktop, rules }] of Object.entries(ways)) {
        await page.emulateMedia({ media, colorScheme });
        await page.setViewportSize(size);
        if (wanted) {
            const options = { resultTypes: ['violations'], ...(rules && { runOnly: rules }) };
            const { violations } = await page.evaluate((options) => globalThis.axe.run(options), options);
            seen.axe.push(...violations.map((v) => `${way}: ${v.id}: ${v.help}: ${v.nodes.map((n) => n.html.slice(0, 200)).join(' | ')}`));
        }
        if (shots) await page.screenshot({ path: join(out, `${name}-${way}.png`), fullPage: true });
    }
    await page.setViewportSize({ width: 320, height: 256 });
    seen.wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    await page.emulateMedia({ media: 'screen', colorScheme: 'light' });
    await page.setViewportSize(desktop);
}

const tabs = new Map();
/** The tab of a visit, which may have been used by visits before. */
async function open(browser, { tab, scripts = true }) {
    if (tabs.has(tab)) return tabs.get(tab);
    const context = await browser.newContext({ javaScriptEnabled: scripts, viewport: desktop });
    context.setDefaultTimeout(patience);
    const opened = { context, page: await context.newPage() };
    if (tab) tabs.set(tab, opened);
    return opened;
}

async function visit(browser, options) {
    const { name, url, dir, path = 'index.html', file, tab, scripts = true, cookie, now, steps = [], read = {}, axe, shots } = options;
    const served = dir && !file ? await serve(dir) : undefined;
    const start = url ?? (file ? pathToFileURL(join(dir, path)).href : served.url + path);
    const { context, page } = await open(browser, options);
    const seen = { name, requests: [], foreign: [], problems: [], results: [], read: {} };
    const host = new URL(start).host;
    if (cookie) await context.addCookies([{ name: cookie[0], value: cookie[1], url: new URL('/', start).href }]);
    await context.route('**', (route) => {
        const to = new URL(route.request().url());
        const own = to.protocol === new URL(start).protocol && to.host === host;
        (own ? seen.requests : seen.foreign).push(to.href);
        return own ? route.continue() : route.abort();
    });
    page.on('console', (m) => m.type() === 'error' && seen.problems.push(m.text()));
    page.on('pageerror', (e) => seen.problems.push(String(e)));
    try {
        if (now) await page.clock.setFixedTime(now * 1000);
        const response = await page.goto(start);
        Object.assign(seen, { status: response?.status() ?? 0, headers: response?.headers() ?? {} });
        for (const one of steps) await step(page, served, seen, one);
        seen.title = await page.title();
        for (const [key, selector] of Object.entries(read)) {
            seen.read[key] = await textsOf(page, selector);
        }
        if (axe || shots) await judge(page, name, options, seen);
    } catch (error) {
        seen.error = String(error.stack ?? error);
    }
    seen.cookies = (await context.cookies()).map((c) => c.name);
    page.removeAllListeners();
    await (tab ? context.unrouteAll() : context.close());
    served?.close();
    return seen;
}

// What waits in a page has no time limit of its own.
setTimeout(() => { console.error('the browser takes longer than 10 minutes'); process.exit(1); }, 10 * patience).unref();
const { out, visits } = JSON.parse(await text(process.stdin));
await mkdir(out, { recursive: true });
const browser = await chromium.launch({
    executablePath: process.env.WIRETIGHT_CHROMIUM,
    // The machine may be a container, and we may be root. No name is resolved: what gets past `route` fails.
    args: ['--no-sandbox', '--disable-dev-shm-usage', '--no-proxy-server', '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1'],
});
const seen = [];
for (const one of visits) seen.push(await visit(browser, one));
await browser.close();
process.stdout.write(JSON.stringify(seen));
