// Runs the package http-cache-tests against the gateway and, for comparison, nginx, and compares
// the gateway's results with expected.json: each test's result, and the reason for each that does
// not pass (and for a pass that says less than it seems to). Any difference is a failure, an
// unexpected pass included. A test that differs runs a second time, alone, because the tests count
// in seconds and a busy machine is slow; if it is as expected then, it is printed as `unsteady` and
// counts so. The score leaves out the tests whose pass says nothing about the gateway
// (`says_nothing` of expected.json).
//
//   run.mjs --package FOLDER --gateway BINARY [--nginx BINARY] [--results FILE] [ID...]
//
// FOLDER: where the package is installed. FILE: receives all results as JSON. ID: only these tests.
// The last line counts a test as passed if its result is the expected one. Exit code: 0 if all are,
// else 1.

import { fork } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import process from 'node:process'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

import { Adapter } from './adapter.mjs'
import * as caches from './caches.mjs'
import * as report from './report.mjs'

// Tests at a time. Most of them wait most of the time; but some requests must follow within a
// second.
const AT_ONCE = 40

// Rounds in which differing tests run again: each test alone, unless there are more than rounds.
const SECOND_ROUNDS = 10

const HERE = path.dirname(fileURLToPath(import.meta.url))

const { values: options, positionals: only } = parseArgs({
  allowPositionals: true,
  options: {
    package: { type: 'string' },
    gateway: { type: 'string' },
    nginx: { type: 'string' },
    results: { type: 'string' },
  },
})
const installed = path.resolve(options.package)

/** Starts a script in a child process; returns its first message. */
function started(script, args) {
  const child = fork(path.join(HERE, script), [installed, ...args], {
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  })
  const said = new Promise((resolve, reject) => {
    child.once('message', resolve)
    child.once('exit', code => reject(new Error(`${script} ended with ${code} and said nothing`)))
  })
  return { child, said }
}

/** Returns the results of a cache. `again`: which tests of the gateway run a second time. */
async function resultsOf(start, binary, origin, folder, wraps, again = () => []) {
  const adapter = await Adapter.start({ origin, wraps })
  let cache
  try {
    cache = await start(binary, folder, adapter.back)
    adapter.cache = cache.port
    const results = await started('client.mjs', [adapter.url, String(AT_ONCE), ...only]).said
    const doubtful = again(results)
    const atOnce = Math.ceil(doubtful.length / SECOND_ROUNDS)
    const second =
      doubtful.length > 0
        ? await started('client.mjs', [adapter.url, String(atOnce), ...doubtful]).said
        : []
    return { results, second: new Map(second.map(({ id, result }) => [id, result])) }
  } finally {
    await cache?.child.end()
    adapter.close()
  }
}

async function main(folder) {
  const expected = JSON.parse(fs.readFileSync(path.join(HERE, 'expected.json'), 'utf8'))
  if (only.length > 0) {
    expected.tests = Object.fromEntries(
      Object.entries(expected.tests).filter(([id]) => only.includes(id)),
    )
  }
  const origin = started('origin.mjs', [])
  try {
    const { port } = await origin.said
    const doubtful = results => report.differences(results, expected)
    const ours = await resultsOf(caches.gateway, options.gateway, port, folder, true, doubtful)
    const theirs =
      options.nginx && (await resultsOf(caches.nginx, options.nginx, port, folder, false)).results
    const lines = []
    const results = ours.results.map(test => {
      const second = ours.second.get(test.id)
      if (
        second === undefined ||
        report.differences([{ ...test, result: second }], expected).length > 0
      )
        return test
      lines.push(
        `unsteady: ${test.id}: ${report.message(test.result) || 'pass'}; as expected when asked again`,
      )
      return { ...test, result: second }
    })
    if (options.results) {
      fs.writeFileSync(
        options.results,
        JSON.stringify({ gateway: results, nginx: theirs }, null, 2),
      )
    }
    const wrong = [
      ...(only.length > 0 ? [] : report.flaws(expected)),
      ...report.explain(results, expected),
    ]
    console.log(report.table(results, theirs, expected).join('\n'))
    console.log(`\n${report.legend(expected).join('\n')}\n`)
    const left = report.silent(expected)
    lines.push(report.score('gateway', results, left))
    if (theirs) lines.push(report.score('nginx', theirs, left), agreement(theirs))
    lines.push(`left out of the score: ${left.size}, whose pass says nothing about the gateway`)
    lines.push(...wrong.map(line => `not as expected: ${line}`))
    const passed = Math.max(results.length - wrong.length, 0)
    lines.push(`as expected: ${passed} passed, ${wrong.length} failed`)
    console.log(lines.join('\n'))
    return wrong.length === 0 && results.length > 0
  } finally {
    const exit = once(origin.child, 'exit')
    origin.child.disconnect()
    await exit
  }
}

/** Shows that the adapter changes no result: nginx through it, and nginx as published by the package. */
function agreement(theirs) {
  const file = path.join(installed, 'http-cache-tests', 'results', 'nginx.json')
  const published = JSON.parse(fs.readFileSync(file, 'utf8'))
  const both = theirs.filter(({ id }) => id in published)
  const alike = both.filter(({ id, result }) => (result === true) === (published[id] === true))
  const not = both.filter(test => !alike.includes(test)).map(({ id }) => id)
  return (
    `nginx through the adapter is as published with the package in ${alike.length} of ${both.length}` +
    (not.length > 0 ? `; not in ${not.join(', ')}` : '')
  )
}

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'cache-tests-'))
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, () => {
    caches.Child.endAll()
    fs.rmSync(folder, { recursive: true, force: true })
    process.exit(1)
  })
}
try {
  process.exitCode = (await main(folder)) ? 0 : 1
} finally {
  fs.rmSync(folder, { recursive: true, force: true })
}
