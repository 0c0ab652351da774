"""A frontend under development: pages of other loopback origins use `demo` and the sandbox as their
backend in a browser. `run` starts them."""

import json
import re
import urllib.request

PAGE = "<!doctype html><meta charset=utf-8><title>frontend</title>"
# A name that the browser resolves to this machine; its origin is not a loopback origin.
PUBLIC_HOST = "app.example"
# Customers whose names a page requests; most do not exist, which needs a preflight just the same.
CUSTOMERS = [f"{number:024x}" for number in range(1, 51)]

SESSION = """(async () => {
  const call = async (path, options = {}) => {
    const response = await fetch(BASE + path, options);
    const text = await response.text();
    return { status: response.status, cache: response.headers.get("Cache-Status"),
             id: response.headers.get("X-Request-Id"), body: text && JSON.parse(text) };
  };
  const post = (body, fields = {}) => ({
    method: "POST", body: JSON.stringify(body),
    headers: { "Content-Type": "application/json", ...fields },
  });
  const name = `/customer/${CUSTOMER}/name`;
  const login = await call("/auth/login", post({ username: LOGIN, password: PASSWORD }));
  const headers = { Authorization: `Bearer ${login.body.token}` };
  const list = await call("/customer", { headers });
  const before = await call(name, { headers });
  const write = await call(`/customer/${CUSTOMER}`, post({ name: NEW_NAME }, headers));
  const after = await call(name, { headers });
  const logout = await call("/auth/logout", { headers });
  const ended = await call(name, { headers });
  return { login, list, before, write, after, logout, ended };
})()"""

WITH_COOKIE = """(async () => {
  const call = async (path, options = {}) => {
    const response = await fetch(BASE + path, { credentials: "include", ...options });
    return { status: response.status, cache: response.headers.get("Cache-Status") };
  };
  const name = `/customer/${CUSTOMER}/name`;
  const anonymous = await call(name);
  const login = await call("/auth/login", {
    method: "POST", headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ username: LOGIN, password: PASSWORD }),
  });
  const first = await call(name);
  const second = await call(name);
  const logout = await call("/auth/logout");
  const ended = await call(name);
  return { anonymous, login, first, second, logout, ended };
})()"""

NAMES = """(async () => Promise.all(CUSTOMERS.map(async (id) => {
  const headers = { Authorization: `Bearer ${TOKEN}` };
  return (await fetch(`${BASE}/customer/${id}/name`, { headers })).status;
})))()"""

REFUSED = "fetch(BASE + PATH).then((response) => response.status, (error) => error.name)"


def with_values(script, **values):
    """The script with constants in place of its words in capitals."""
    for word, value in values.items():
        script = re.sub(rf"\b{word}\b", lambda _: json.dumps(value), script)
    return script


def open_page(tab, origin):
    tab.open(f"{origin}/page.html")
    tab.wait(f"document.title === 'frontend' && location.origin === {json.dumps(origin)}")


def session(that, tab, backend, base, customer, login, password):
    """Logs in, lists, reads, writes and logs out."""
    values = {"BASE": base, "CUSTOMER": customer, "LOGIN": login, "PASSWORD": password}
    new_name = f"Renamed through {backend}"
    seen = tab.value(with_values(SESSION, NEW_NAME=new_name, **values))
    origin = tab.value("location.origin")
    statuses = {step: response["status"] for step, response in seen.items()}
    expected = dict.fromkeys(seen, 200) | {"ended": 401}
    that(f"{origin} uses {backend}: login, list, read, write, logout", statuses == expected, seen)
    listed = json.dumps(seen["list"]["body"])
    that(f"{origin} reads the list of {backend}", customer in listed, listed)
    read = seen["after"]["body"].get("name")
    that(f"{origin} reads its own write through {backend}", read == new_name, seen["after"])


def cookie_session(that, tab, backend, base, customer, login, password):
    values = {"BASE": base, "CUSTOMER": customer, "LOGIN": login, "PASSWORD": password}
    seen = tab.value(with_values(WITH_COOKIE, **values))
    statuses = {step: response["status"] for step, response in seen.items()}
    expected = dict.fromkeys(seen, 200) | {"anonymous": 401, "ended": 401}
    origin = tab.value("location.origin")
    that(f"{origin} with the cookie of a login through {backend}", statuses == expected, seen)
    if backend != "sandbox":
        caches = [seen[step]["cache"] or "" for step in ("first", "second")]
        is_hit = "fwd=uri-miss" in caches[0] and "; hit" in caches[1]
        that(f"the second request with the cookie is a hit of {backend}", is_hit, caches)


def uses_http2(that, tab, base):
    protocols = {protocol for url, protocol in tab.protocols if url.startswith(base)}
    that("each response of a gateway with TLS came over HTTP/2", protocols == {"h2"}, protocols)


def preflights(admin):
    """Preflights that reached the gateway."""
    with urllib.request.urlopen(f"{admin}/metrics") as response:
        lines = response.read().decode().splitlines()
    counted = [line for line in lines if "requests_total{" in line and 'method="OPTIONS"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in counted)


def loads(that, tab, origin, base, admin, token):
    """Loads a page with 50 names twice: the preflights of the first load serve the second one."""
    names = with_values(NAMES, CUSTOMERS=CUSTOMERS, BASE=base, TOKEN=token)
    counts = [preflights(admin)]
    for _ in range(2):
        open_page(tab, origin)
        statuses = tab.value(names)
        that("a page of 50 names gets a readable response for each", all(statuses), statuses)
        counts.append(preflights(admin))
    first, second = counts[1] - counts[0], counts[2] - counts[1]
    that("the first load of 50 names sends 50 preflights", first == len(CUSTOMERS), first)
    that("the second load sends no preflight", second == 0, second)


def refused(that, tab, backend, base, path):
    """A page that is not of this machine; without a preflight, and the answer is not readable."""
    seen = tab.value(with_values(REFUSED, BASE=base, PATH=path))
    origin = tab.value("location.origin")
    that(f"{origin} cannot read {backend}", seen == "TypeError", seen)
