// What programs of others make of a file, as JSON: node others.mjs NODE_MODULES VERB ...
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [modules, verb, ...rest] = process.argv.slice(2);
const FIELDS = ['positions', 'scales', 'rotations', 'alphas', 'colors', 'sh'];
// The library talks on stdout.
console.log = console.error;

const niantic = async () => (await import(pathToFileURL(join(modules, '@adobe/spz/dist/spz.js')))).default();

const verbs = {
    async 'read-spz'(file) {
        const spz = await niantic();
        const cloud = await spz.loadSpzFromBuffer(readFileSync(file), { to: spz.CoordinateSystem.RUB });
        const { numPoints, shDegree } = cloud;
        return { numPoints, shDegree, ...Object.fromEntries(FIELDS.map((name) => [name, [...cloud[name]]])) };
    },
    async 'write-spz'(from, file, version) {
        const spz = await niantic();
        const given = JSON.parse(readFileSync(from, 'utf-8'));
        for (const name of FIELDS) given[name] = new Float32Array(given[name]);
        const options = { version: Number(version), from: spz.CoordinateSystem.RUB, sh1Bits: 5, shRestBits: 4 };
        writeFileSync(file, spz.saveSpzToBuffer({ ...given, antialiased: false, extensions: [] }, options));
        return {};
    },
    async validate(file) {
        const validator = createRequire(join(modules, 'x.js'))('gltf-validator');
        const report = await validator.validateBytes(new Uint8Array(readFileSync(file)));
        return { issues: report.issues.messages, info: report.info };
    },
};

process.stdout.write(JSON.stringify(await verbs[verb](...rest)));
