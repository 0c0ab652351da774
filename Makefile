# Every target works on a new machine that has Rust 1.95, gcc, cmake, make, git and python3. What else a target needs,
# scripts/setup installs where it may (root, or sudo without a password; NO_INSTALL=1 forbids) and names where it may not.
#
# No linker is chosen here: rustc links with its own lld on x86_64 Linux since 1.90, and RUSTFLAGS that differ from those
# of a plain `cargo build` would build every dependency twice.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo h2spec chaos test check bench bench-instructions fuzz hostile fleet differential-tests network-tests cache-tests deb try-deb try-image sbom

help: ## What can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' Makefile

# The dev profile: it is the quickest from nothing, and most of what it builds, `make test` uses again. Not for measuring.
demo: ## Gateway and a sandbox of the API on 127.0.0.1:8080, no network needed; prints curl lines
	cargo run --locked -- demo

test: ## Everything that shows behaviour: unit, integration, documentation, client and cache tests
	@scripts/setup test
	@scripts/test

check: ## Everything that reads the code: format, lints, docs, dependencies, shipped configurations
	@scripts/setup check deploy
	@scripts/check
	@scripts/check-deploy

bench: ## Side by side with nginx, Varnish, HAProxy and plain pingora (QUICK=1: two minutes; CASES=hit,miss), in the release profile
	@scripts/setup bench
	@scripts/bench

bench-instructions: ## Counts instructions of key, lookup, redact and reply; fails when one grew by more than 5 % (ACCEPT=1 keeps them)
	@scripts/setup bench
	@scripts/bench instructions

fuzz: ## Each fuzz target for FUZZ_SECONDS (60), or FUZZ_TARGET alone
	@scripts/setup fuzz
	@scripts/fuzz

hostile: ## slowhttptest, h2load and smugglex against the gateway in front of the sandbox, with verdicts
	@scripts/setup hostile
	@scripts/hostile

h2spec: ## h2spec against the gateway, over cleartext and TLS, on stored and forwarded responses (H2SPEC: the program)
	@scripts/setup h2spec
	cargo build --locked --workspace --lib --bins --tests
	@scripts/h2spec.py target/debug/telecomx-gateway

chaos: ## Under load 100 reloads, 20 changes of the certificate, 5 upgrades and a TERM; counts what was lost
	@scripts/setup chaos
	cargo build --locked --release
	@scripts/chaos.py target/release/telecomx-gateway

fleet: ## Three gateways with one Redis: how late changes are, what a hit costs, what holds while something is down (as root)
	@scripts/setup fleet
	cargo build --locked --release
	@scripts/fleet.py target/release/telecomx-gateway spread
	@scripts/fleet.py target/release/telecomx-gateway cost
	@scripts/fleet.py target/release/telecomx-gateway bound
	@scripts/fleet.py target/release/telecomx-gateway restart

differential-tests: ## 10,000 random exchanges (EXCHANGES) through gateway, nginx and HAProxy: what arrives is equal (SEED, EXCHANGE repeat)
	@scripts/setup test
	EXCHANGES=$${EXCHANGES:-10000} SEED=$${SEED:-$$RANDOM} \
		cargo test --locked --test it -- --exact --nocapture differential::random_exchanges_equal_those_of_nginx_and_haproxy

network-tests: ## Share of failed requests and longest waits while addresses of the API and DNS fail, in network namespaces
	@scripts/setup network
	cargo build --locked --workspace --lib --bins --tests
	@tests/network/run --assert

cache-tests: ## The npm package http-cache-tests against the gateway, compared with expected.json; nginx's score (needs node and npm)
	@scripts/setup cache-tests
	@scripts/cache-tests

deb: ## The Debian package of a release build, in target/debian
	@scripts/setup package
	@scripts/deb

try-deb: ## Installs that package on a Debian with a systemd of its own, and runs, reloads, upgrades, removes it (as root)
	@scripts/setup try-deb
	@scripts/try-deb

try-image: ## Builds the image of the Dockerfile and runs it read-only, as its user, in namespaces of its own (as root)
	@scripts/setup try-image
	@scripts/try-image

sbom: ## What the binary is made of: target/sbom.cdx.json (CycloneDX)
	@scripts/setup package
	@scripts/sbom
