"""Runs the `fetch` example of README in a page of another origin, against gateways that serve,
refuse and fail. The example calls `signIn` and `sleep`, which are replaced here: a wait ends the
fault."""

import json
import pathlib
import re

README = pathlib.Path(__file__).resolve().parent.parent.parent / "README.md"

HARNESS = """(async () => {
  let gateway = %(first)s
  const waits = []
  const sleep = async (milliseconds) => { waits.push(milliseconds); gateway = %(good)s }
  const signIn = (message) => ({ signedOut: message })
  %(example)s
  const result = await customerName(%(customer)s, %(token)s).catch((error) => `${error}`)
  return { result, waits }
})()"""


def example():
    return re.search(r"^```js\n(.*?)^```", README.read_text(), re.M | re.S)[1]


def works(that, tab, gateways, customer, tokens):
    """`gateways` are URLs by name, `tokens` by access level. `that(name, holds, seen)` records."""

    def run(first, token):
        values = {"first": gateways[first], "good": gateways["good"], "customer": customer}
        values = {name: json.dumps(value) for name, value in values.items()}
        values |= {"token": json.dumps(token), "example": example()}
        return tab.value(HARNESS % values)

    seen = run("good", tokens["viewer"])
    that("200 is the document", seen["result"]["_id"] == customer and not seen["waits"], seen)
    seen = run("good", "unknown")
    that("401 leads to the sign-in", "signedOut" in seen["result"], seen)
    seen = run("good", tokens["no_login"])
    that("403 is an error with a message", seen["result"].startswith("Error: "), seen)
    seen = run("dead", tokens["viewer"])
    that("502 waits and tries again", len(seen["waits"]) == 1 and "_id" in seen["result"], seen)
    run("limited", "unknown-1")
    seen = run("limited", "unknown-2")
    waited = len(seen["waits"]) == 1 and 0 < seen["waits"][0] <= 60_000
    that("429 waits for Retry-After", waited and "signedOut" in seen["result"], seen)
    for _ in range(8):
        run("dead", tokens["viewer"])
    seen = run("dead", tokens["viewer"])
    that("503 waits for Retry-After", seen["waits"] == [1000] and "_id" in seen["result"], seen)
