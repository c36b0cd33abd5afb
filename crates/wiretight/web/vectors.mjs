// Test vectors, both ways: `run` judges those of wiretight-tlog with the checker of verify.html, and `make` makes others, which
// the Rust code judges (tests/proof/vectors.rs). Runs under node and in a browser. Numbers are texts, for they can be large.
//
//   notes        {note, ok}                          signed notes
//   keys         {vkey, kind: log|witness, ok}
//   signed       {vkey, note, ok}                    whether this log key signed the note
//   checkpoints  {note, ok}                          signed notes whose text is a checkpoint
//   policies     {policy, line}                      line: of the error; 0 if there is none
//   judged       {policy, note, signed, time, browser}  time: when the quorum was complete, or ""; browser: the same without the
//                                                    signatures that a browser cannot check
//   inclusion    {leaf, index, size, root, proof, result}   result: "", or range, length or root
//   consistency  {from: {size, root}, to: {size, root}, proof, result}
//   periods      {body, ok}                          entries of the log, without their type; publications likewise
//   days         {start, hours, day}                 the bodies of hours, and of the day that they make

const RESULTS = { 'index or size is out of range': 'range', 'the proof has the wrong number of hashes': 'length', 'the proof does not lead to the root hash': 'root' };

/** Whether it is accepted. An error that is no refusal is thrown. */
async function accepted(c, run) {
    try { await run(); return true; } catch (error) { if (error instanceof c.Wrong) return false; throw error; }
}

const judges = {
    notes: (c, v) => accepted(c, () => c.readNote(v.note)),
    keys: (c, v) => accepted(c, () => c.readKey(v.vkey, v.kind)),
    signed: async (c, v) => c.signedBy(await c.readKey(v.vkey, 'log'), c.readNote(v.note)),
    checkpoints: (c, v) => accepted(c, () => c.readSigned(v.note)),
    policies: async (c, v) => {
        try { await c.readPolicy(v.policy); return 0; } catch (error) { return Number(/^line (\d+): /.exec(error.message)?.[1]); }
    },
    judged: async (c, v) => {
        const { signed, time, possible, witnesses } = await c.judge(await c.readPolicy(v.policy), await c.readSigned(v.note));
        // What a browser cannot check must be open, not false, if the quorum is complete with it.
        const open = !v.time || time !== undefined || possible;
        return { signed, browser: signed ? String(time ?? '') : '', open, unchecked: witnesses.some((w) => w.unchecked && w.time !== undefined) };
    },
    inclusion: async (c, v) => {
        const [leaf, root, ...proof] = [v.leaf, v.root, ...v.proof].map(c.hashOf);
        return RESULTS[await c.inclusion(leaf, BigInt(v.index), { size: BigInt(v.size), root }, proof)] ?? '';
    },
    consistency: async (c, v) => {
        const [from, to] = [v.from, v.to].map(({ size, root }) => ({ size: BigInt(size), root: c.hashOf(root) }));
        return RESULTS[await c.consistency(from, to, v.proof.map(c.hashOf))] ?? '';
    },
    periods: (c, v) => accepted(c, () => c.readPeriod(v.body)),
    publications: (c, v) => accepted(c, () => c.readPublication(v.body)),
    days: (c, v) => c.write(c.dayOf(BigInt(v.start), v.hours.map(c.readPeriod))),
};

const expected = {
    policies: (v) => v.line, inclusion: (v) => v.result, consistency: (v) => v.result, days: (v) => v.day,
    judged: (v) => ({ signed: v.signed, browser: v.browser, open: true, unchecked: false }),
};

/** Judges vectors. Returns how many of each kind there were, and what came out otherwise than expected. */
export async function run(c, vectors) {
    const counts = {}, wrong = [];
    for (const [kind, all] of Object.entries(vectors)) {
        counts[kind] = all.length;
        for (const v of all) {
            const [got, right] = [await judges[kind](c, v), (expected[kind] ?? ((one) => one.ok))(v)].map((x) => JSON.stringify(x));
            if (got !== right) wrong.push(`${kind}: ${got} instead of ${right}: ${JSON.stringify(v).slice(0, 500)}`);
        }
    }
    return { counts, wrong };
}

// ---- A log, witnesses and proofs, written a second time: by the recursive definitions of RFC 6962.

const base64 = (bytes) => btoa(String.fromCharCode(...bytes));
const utf8 = new TextEncoder();
const sha256 = async (...parts) => new Uint8Array(await crypto.subtle.digest('SHA-256', Uint8Array.from(parts.flatMap((part) => [...part]))));
export const leaf = (entry) => sha256([0], typeof entry === 'string' ? utf8.encode(entry) : entry);

/** The largest power of two below n. */
const half = (n) => 2 ** Math.ceil(Math.log2(n) - 1);

export async function root(leaves) {
    if (leaves.length <= 1) return leaves[0] ?? sha256();
    const k = half(leaves.length);
    return sha256([1], await root(leaves.slice(0, k)), await root(leaves.slice(k)));
}

/** PATH of RFC 6962, section 2.1.1. */
export async function path(index, leaves) {
    if (leaves.length <= 1) return [];
    const k = half(leaves.length), [left, right] = [leaves.slice(0, k), leaves.slice(k)];
    return index < k ? [...await path(index, left), await root(right)] : [...await path(index - k, right), await root(left)];
}

/** PROOF of RFC 6962, section 2.1.2. */
export async function proof(old, leaves, complete = true) {
    if (old === leaves.length) return complete ? [] : [await root(leaves)];
    const k = half(leaves.length), [left, right] = [leaves.slice(0, k), leaves.slice(k)];
    return old <= k ? [...await proof(old, left, complete), await root(right)] : [...await proof(old - k, right, false), await root(left)];
}

/** A signer with a new Ed25519 key. `type` is 1 for a log and 4 for a witness. */
export async function signer(name, type) {
    const pair = await crypto.subtle.generateKey({ name: 'Ed25519' }, true, ['sign', 'verify']);
    const key = [type, ...new Uint8Array(await crypto.subtle.exportKey('raw', pair.publicKey))];
    const id = (await sha256(utf8.encode(`${name}\n`), key)).slice(0, 4);
    const line = async (text, time = []) => {
        const signature = new Uint8Array(await crypto.subtle.sign({ name: 'Ed25519' }, pair.privateKey, utf8.encode(text)));
        return `— ${name} ${base64([...id, ...time, ...signature])}\n`;
    };
    return {
        vkey: `${name}+${Array.from(id, (b) => b.toString(16).padStart(2, '0')).join('')}+${base64(key)}`,
        sign: (text) => line(text),
        cosign: (text, at) => line(`cosignature/v1\ntime ${at}\n${text}`, new Uint8Array(new BigUint64Array([BigInt(at)]).buffer).reverse()),
    };
}

/** Vectors whose results are those of the checker. */
export async function make(c) {
    const made = { judged: [], inclusion: [], consistency: [], policies: [] };
    const leaves = await Promise.all(Array.from({ length: 40 }, (_, n) => leaf(`entry ${n}`)));
    const roots = await Promise.all(Array.from({ length: 41 }, (_, n) => root(leaves.slice(0, n))));
    const add = async (kind, v, is) => made[kind].push({ ...v, [is]: await judges[kind](c, v) });
    for (const size of [1, 2, 3, 5, 8, 13, 24, 40]) {
        for (let index = 0; index < size; index++) {
            const right = (await path(index, leaves.slice(0, size))).map(base64), v = { leaf: base64(leaves[index]), index: String(index), size: String(size), root: base64(roots[size]), proof: right };
            await add('inclusion', v, 'result');
            for (const other of [{ index: String(index ^ 1) }, { proof: right.slice(1) }, { proof: [...right, v.root] }, { root: v.leaf }]) await add('inclusion', { ...v, ...other }, 'result');
        }
        for (let old = 0; old <= size; old++) {
            const right = old === 0 ? [] : (await proof(old, leaves.slice(0, size))).map(base64), at = (n) => ({ size: String(n), root: base64(roots[n]) });
            const v = { from: at(old), to: at(size), proof: right };
            await add('consistency', v, 'result');
            for (const other of [{ from: at(Math.max(old - 1, 0)) }, { proof: right.slice(1) }, { to: { ...v.to, root: v.from.root } }, { from: v.to, to: v.from }]) await add('consistency', { ...v, ...other }, 'result');
        }
    }
    const log = await signer('log.example/js', 1), witnesses = await Promise.all([0, 1, 2].map((n) => signer(`witness.example/${n}`, 4)));
    const keys = `log ${log.vkey}\n${witnesses.map((w, n) => `witness w${n} ${w.vkey}\n`).join('')}`;
    for (const quorum of ['quorum none', 'quorum w1', 'group g 2 w0 w1 w2\nquorum g', 'group a any w0 w1\ngroup b all a w2\nquorum b']) {
        const policy = `# made by a test\n${keys}\n${quorum}\n`, text = `log.example/js\n40\n${base64(roots[40])}\n`;
        for (let set = 0; set < 8; set++) {
            const lines = await Promise.all(witnesses.map((w, n) => (set >> n & 1 ? w.cosign(text, 1800000000 + n) : '')));
            for (const signed of [await log.sign(text), await witnesses[0].sign(text)]) {
                const v = { policy, note: `${text}\n${signed}${lines.join('')}` }, got = await judges.judged(c, v);
                made.judged.push({ ...v, signed: got.signed, time: got.browser, browser: got.browser });
            }
        }
        for (const other of [policy, policy.replace('quorum', 'Quorum'), policy.replace('w1 ', 'w0 '), policy + quorum, policy.replace('log ', 'log  \t'), policy.replace('# made', '#\r')]) {
            await add('policies', { policy: other }, 'line');
        }
    }
    return made;
}
