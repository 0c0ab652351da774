"""Results as text: a row for each scenario and kind of request, and a comparison of two runs."""

from load import POSTS, REPEATABLE

COLUMNS = "{:<22} {:<13} {:>8} {:>6} {:>6} {:>6} {:>8} {:>6} {:>6} {:>6}"
HEADINGS = (
    "scenario", "kind", "requests", "failed", "%", "later", "longest", "p90", "p50", "last"
)  # fmt: skip
LEGEND = """\
Waits in ms. later: failed requests that began after the fault. last: when the last failed request
began, in seconds after the fault; not above 0: it was in flight then.
"""


def print_table(results):
    print(LEGEND)
    print(COLUMNS.format(*HEADINGS))
    for result in results:
        for kind, row in result.get("kinds", {}).items():
            print_row(result["scenario"], kind, row)
        if "kinds" in result:
            errors = ", ".join(f"{kind} {n}" for kind, n in result["upstream_errors"].items())
            runs = "" if result["runs"] == 1 else f" (run {result['runs']}: the machine was busy)"
            print(f"  {result['title']}{runs}")
            print(
                f"  upstream errors: {errors or 'none'}; DNS queries: {result['dns_queries']}, "
                f"{result['dns_queries_at_once']} at once; "
                f"delays of the test itself: up to {1000 * result['lag']:.0f} ms"
            )
        for problem in result["problems"]:
            print(f"  MISSED {problem}")


def print_row(scenario, kind, row):
    last = row["last_failure"]
    print(
        COLUMNS.format(
            scenario,
            kind,
            row["requests"],
            row["failed"],
            f"{100 * row['failed'] / row['requests']:.1f}",
            row["failed_later"],
            *[f"{1000 * row[wait]:.0f}" for wait in ("longest", "p90", "p50")],
            "-" if last is None else f"{last:.1f}",
        )
    )


def print_comparison(before, after):
    """Both runs in a Markdown table: failed requests, and the longest wait of a repeatable one."""
    print(
        "\n| scenario | failed GETs, before | after | failed POSTs, before | after "
        "| longest wait, before | after |"
    )
    print("|---|---|---|---|---|---|---|")
    earlier = {result["scenario"]: result for result in before}
    for result in after:
        runs = (earlier.get(result["scenario"], {}), result)
        cells = [failed(run, kinds) for kinds in (REPEATABLE, POSTS) for run in runs]
        cells += [longest(run) for run in runs]
        print(f"| {result['title']} | {' | '.join(cells)} |")


def rows(result, kinds):
    return [row for kind, row in result.get("kinds", {}).items() if kind in kinds]


def failed(result, kinds):
    requests = sum(row["requests"] for row in rows(result, kinds))
    failures = sum(row["failed"] for row in rows(result, kinds))
    return f"{failures} of {requests} ({100 * failures / requests:.1f} %)" if requests else "–"


def longest(result):
    waits = [row["longest"] for row in rows(result, REPEATABLE)]
    return f"{max(waits):.2f} s" if waits else "–"
