"""Counts named checks of one client and prints their outcomes as lines for scripts/test:
`passed: NAME`, `failed: NAME: why`, `skipped: NAME: why`."""

import sys


class Checks:
    def __init__(self, client):
        self.client = client
        self.passed = 0
        self.failed = 0

    def that(self, name, holds, seen):
        """`name` states the expectation; `seen` is printed if it does not hold."""
        if holds:
            self.passed += 1
            print(f"passed: {self.client}: {name}", flush=True)
        else:
            self.failed += 1
            print(f"failed: {self.client}: {name}: saw {seen!r}", flush=True)

    def close(self):
        """Prints the count and ends the process."""
        print(f"{self.passed} passed, {self.failed} failed, 0 skipped", flush=True)
        sys.exit(0 if self.passed and not self.failed else 1)
