// The package's own client, unchanged, in a separate process, since it keeps its results for as
// long as it lives. Sends each test's kind and result to its parent.
//
//   client.mjs FOLDER URL AT_ONCE [ID...]
//
// FOLDER: where the package is installed. URL: of what is tested. AT_ONCE: tests at a time. ID:
// only these tests.

import { createRequire } from 'node:module'
import path from 'node:path'
import process from 'node:process'
import { pathToFileURL } from 'node:url'

// Marked for browsers by the package, but they hold for every private cache and need no browser.
const ALSO_WITHOUT_BROWSER = [
  'cc-resp-private-private',
  'freshness-max-age-s-maxage-private',
  'freshness-max-age-s-maxage-private-multiple',
]

const [folder, url, atOnce, ...ids] = process.argv.slice(2)
const load = name => import(pathToFileURL(path.join(folder, 'http-cache-tests', name)))
const fetch = createRequire(path.join(folder, 'http-cache-tests', 'cli.mjs'))('node-fetch')
const { runTests, getResults } = await load('client/runner.mjs')
const suites = [
  ...(await load('tests/index.mjs')).default,
  (await load('tests/surrogate-control.mjs')).default,
]

for (const suite of suites) {
  for (const test of suite.tests.filter(test => ALSO_WITHOUT_BROWSER.includes(test.id))) {
    delete test.browser_only
  }
  suite.tests = suite.tests.filter(
    test => !test.browser_only && (ids.length === 0 || ids.includes(test.id)),
  )
}

// Similar tests follow each other: those in which the origin fails would run at once and open the
// circuit breaker for all. So each round takes tests from the whole list.
const tests = suites.flatMap(suite => suite.tests)
const rounds = Math.ceil(tests.length / Number(atOnce))
const inRound = round => tests.filter((_, i) => i % rounds === round)
const spread = Array.from({ length: rounds }, (_, round) => inRound(round)).flat()
await runTests([{ tests: spread }], fetch, false, url, Math.ceil(tests.length / rounds))
const results = getResults()
process.send(tests.map(({ id, kind = 'required' }) => ({ id, kind, result: results[id] })))
process.disconnect()
