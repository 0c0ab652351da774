// Compares results with the expected ones and returns lines of text.

export const KINDS = ['required', 'optimal', 'check']

/** The package's result: `pass`, `fail`, or `setup` if the test did not reach its check. */
export function outcome(result) {
  if (result === true) return 'pass'
  return result?.[0] === 'Setup' ? 'setup' : 'fail'
}

/** The result of a test in the package's words. */
export const message = result =>
  result === true ? '' : result === undefined ? 'did not run' : result.join(': ')

/** Problems of the list of expected results itself: a reason that is not explained, or explains nothing. */
export function flaws({ reasons, says_nothing: codes, tests }) {
  const used = new Set(Object.values(tests).map(test => test.reason))
  return [
    ...Object.entries(tests)
      .filter(
        ([, test]) =>
          test !== 'pass' &&
          !(['pass', 'fail', 'setup'].includes(test.result) && test.reason in reasons),
      )
      .map(([id]) => `${id}: neither "pass" nor a result with one of the reasons`),
    ...Object.keys(reasons)
      .filter(code => !used.has(code))
      .map(code => `${code}: a reason for nothing`),
    ...codes
      .filter(code => !(code in reasons))
      .map(code => `${code}: in says_nothing, but no reason`),
  ]
}

const expectation = (expected, id) => {
  const test = expected.tests[id]
  return test === 'pass' ? { result: 'pass' } : test
}

/** The ids of tests whose result is not the expected one; a pass that was not expected is one of them. */
export function differences(results, expected) {
  return results
    .filter(({ id, result }) => expectation(expected, id)?.result !== outcome(result))
    .map(({ id }) => id)
}

/** One line for each difference, and for each test that is expected but is not there. */
export function explain(results, expected) {
  const known = new Set(results.map(({ id }) => id))
  const differ = new Set(differences(results, expected))
  return [
    ...results
      .filter(({ id }) => differ.has(id))
      .map(({ id, result }) => {
        const wanted = expectation(expected, id)
        const why = wanted?.reason ? ` (${wanted.reason})` : ''
        return `${id}: expected ${wanted?.result ?? 'nothing'}${why}, came ${outcome(result)} ${message(result)}`
      }),
    ...Object.keys(expected.tests)
      .filter(id => !known.has(id))
      .map(id => `${id}: expected, but there is no such test`),
  ]
}

/** All tests, a line each. `peer`: the results of the other cache, if any. */
export function table(results, peer, expected) {
  const row = (id, kind, ours, theirs, reason) =>
    `${id.padEnd(62)} ${kind.padEnd(9)} ${ours.padEnd(8)} ${theirs.padEnd(6)} ${reason}`.trimEnd()
  const theirs = new Map(peer?.map(({ id, result }) => [id, outcome(result)]))
  return [
    row('test', 'kind', 'gateway', 'nginx', 'reason'),
    ...results.map(({ id, kind, result }) =>
      row(
        id,
        kind,
        outcome(result),
        theirs.get(id) ?? '-',
        expectation(expected, id)?.reason ?? '',
      ),
    ),
  ]
}

/** The tests whose pass would say nothing about the gateway. */
export function silent({ says_nothing: codes, tests }) {
  const says = ([, test]) => test.result === 'pass' && codes.includes(test.reason)
  return new Set(
    Object.entries(tests)
      .filter(says)
      .map(([id]) => id),
  )
}

/** Passed and all, by kind, without the tests in `left`. */
export function score(name, results, left) {
  const counted = results.filter(({ id }) => !left.has(id))
  const parts = KINDS.map(kind => {
    const of = counted.filter(test => test.kind === kind)
    return `${kind} ${of.filter(({ result }) => result === true).length}/${of.length}`
  })
  const passed = counted.filter(({ result }) => result === true).length
  return `${name.padEnd(8)} ${passed}/${counted.length} pass: ${parts.join(', ')}`
}

/** Each reason with the number of tests that it explains, without tests that did not run. */
export function legend({ reasons, tests }) {
  return Object.entries(reasons).flatMap(([code, text]) => {
    const count = Object.values(tests).filter(test => test.reason === code).length
    return count > 0 ? [`${code} (${count}): ${text}`] : []
  })
}
