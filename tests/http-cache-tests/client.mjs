// The package's own client, unchanged, in a process of its own, since it keeps its results for as long as it lives.
// Tells its parent each test's kind and result.
//
//   client.mjs FOLDER URL [ID...]     FOLDER: where the package is installed; URL: of what is tested; ID: only these tests

import { createRequire } from 'node:module'
import path from 'node:path'
import process from 'node:process'
import { pathToFileURL } from 'node:url'

// Marked for browsers by the package, and true of every private cache: they can be asked without a browser.
const ALSO_WITHOUT_BROWSER = [
  'cc-resp-private-private',
  'freshness-max-age-s-maxage-private',
  'freshness-max-age-s-maxage-private-multiple'
]

// Tests at a time. Most of them wait for most of theirs; but what some ask within a second must come within it.
const AT_ONCE = 40

const [folder, url, ...ids] = process.argv.slice(2)
const load = name => import(pathToFileURL(path.join(folder, 'http-cache-tests', name)))
const fetch = createRequire(path.join(folder, 'http-cache-tests', 'cli.mjs'))('node-fetch')
const { runTests, getResults } = await load('client/runner.mjs')
const suites = [...(await load('tests/index.mjs')).default, (await load('tests/surrogate-control.mjs')).default]

for (const suite of suites) {
  for (const test of suite.tests.filter(test => ALSO_WITHOUT_BROWSER.includes(test.id))) {
    delete test.browser_only
  }
  suite.tests = suite.tests.filter(test => !test.browser_only && (ids.length === 0 || ids.includes(test.id)))
}
await runTests(suites, fetch, false, url, AT_ONCE)
const results = getResults()
process.send(suites.flatMap(suite => suite.tests.map(({ id, kind = 'required' }) => ({ id, kind, result: results[id] }))))
process.disconnect()
