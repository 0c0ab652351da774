"""httpx, as an application would use it: only the base URL is the gateway's.

    httpx_client.py BASE_URL CUSTOMER VIEWER_TOKEN RESELLER_TOKEN

The cache of the gateway is empty at the start.
"""

import asyncio
import sys

import httpx

from checks import Checks

# Members with secrets in the API's documentation; all of them are under `integrations`.
SECRET_NAMES = {"agreementGrantToken", "bearerToken", "username", "password", "clientSecret"}


def secrets(value, name=None):
    """Returns every string below `value` with a secret name."""
    if isinstance(value, dict):
        return {s for key, inner in value.items() for s in secrets(inner, key)}
    if isinstance(value, list):
        return {s for inner in value for s in secrets(inner, name)}
    return {value} if name in SECRET_NAMES and isinstance(value, str) else set()


def main():
    base, customer, viewer, reseller = sys.argv[1:]
    path = f"/customer/{customer}/name"
    checks = Checks("httpx")

    with httpx.Client(
        base_url=base, headers={"Authorization": f"Bearer {viewer}"}, timeout=30
    ) as client:
        first = client.get(path)
        checks.that(
            "a first request gets a 200", first.status_code == 200, (first.status_code, first.text)
        )
        status = first.headers.get("Cache-Status", "")
        checks.that(
            "and is a miss that is stored", "fwd=uri-miss" in status and "stored" in status, status
        )

        second = client.get(path)
        status = second.headers.get("Cache-Status", "")
        checks.that("a second one is a hit", "; hit" in status and "fwd=" not in status, status)
        checks.that("with the same bytes", second.content == first.content, second.text)
        checks.that("and an age", second.headers.get("Age", "").isdigit(), dict(second.headers))

        etag = first.headers.get("ETag", "")
        checks.that("the validator is strong", etag.startswith('"') and len(etag) > 2, etag)
        same = client.get(path, headers={"If-None-Match": etag})
        checks.that("a known validator gets 304", same.status_code == 304, same.status_code)
        checks.that("without a body", same.content == b"", same.content)
        checks.that("and with the validator", same.headers.get("ETag") == etag, dict(same.headers))
        other = client.get(path, headers={"If-None-Match": '"another"'})
        checks.that("an unknown validator gets 200", other.status_code == 200, other.status_code)

        head = client.head(path)
        length = head.headers.get("Content-Length")
        checks.that(
            "HEAD has the length of GET",
            (head.status_code, length) == (200, str(len(first.content))),
            length,
        )

    # The same token at the API's other places.
    for name, request in {
        "X-API-Key": {"headers": {"X-API-Key": viewer}},
        "the query": {"params": {"token": viewer}},
    }.items():
        response = httpx.get(base + path, **request)
        status = response.headers.get("Cache-Status", "")
        same = response.content == first.content and "; hit" in status
        checks.that(f"a token in {name} is the same caller", same, (status, response.text))

    # Many at once with an empty cache: one of them fetches, all receive the response.
    async def together(count):
        async with httpx.AsyncClient(base_url=base, timeout=30) as client:
            requests = (
                client.get(path, headers={"Authorization": f"Bearer {reseller}"})
                for _ in range(count)
            )
            return await asyncio.gather(*requests)

    responses = asyncio.run(together(20))
    seen = {(response.status_code, response.content) for response in responses}
    checks.that("twenty at once get one response", len(seen) == 1, seen)
    statuses = [response.headers.get("Cache-Status", "") for response in responses]
    checks.that(
        "which was fetched once", sum("stored" in status for status in statuses) == 1, statuses
    )

    whole = responses[0]
    hidden = secrets(whole.json())
    checks.that("a RESELLER sees secrets", whole.status_code == 200 and bool(hidden), whole.text)
    checks.that(
        "a VIEWER sees none of them",
        bool(hidden) and not any(s in first.text for s in hidden),
        first.text,
    )
    checks.that("nor their names", not secrets(first.json()), first.text)
    public = [(d.get("_id"), d.get("name")) for d in (first.json(), whole.json())]
    checks.that(
        "but both see public members", public[0] == public[1] and None not in public[0], public
    )

    anonymous = httpx.get(base + path)
    code = anonymous.json().get("error", {}).get("code")
    checks.that(
        "a request without a token gets the API's 401",
        (anonymous.status_code, code) == (401, "credentials_invalid"),
        anonymous.text,
    )
    stranger = httpx.get(base + path, headers={"Authorization": "Bearer unknown"})
    checks.that("an unknown token gets 401", stranger.status_code == 401, stranger.text)

    checks.close()


main()
