"""The status page in a browser: its content for a gateway with traffic, its use by keyboard, and
attempts of other pages. `run` starts the gateway and its traffic."""

import http.server
import json
import pathlib
import threading
import urllib.error
import urllib.request

import chromium

PAGE_TEXT = "document.body.innerText"


def request(url, method="GET", **fields):
    """Sends a request as a program does; returns status and body."""
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, method=method, headers=headers)
        ) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


class Stranger(http.server.ThreadingHTTPServer):
    """A web page of another origin."""

    daemon_threads = True

    def __init__(self):
        class Blank(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(b"<!doctype html><title>elsewhere</title>")

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Blank)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        threading.Thread(target=self.serve_forever, daemon=True).start()


def focus_by_keyboard(tab, wanted):
    """Presses Tab until the element with that id has the focus; False if it never gets it."""
    for _ in range(30):
        tab.press("Tab")
        if tab.value("document.activeElement.id") == wanted:
            return True
    return False


def works(that, tab, admin, url, customer, token):
    """`that(name, holds, seen)` takes each check."""
    stored = lambda: json.loads(request(f"{admin}/stats")[1])["cache"]["entries"]
    name = f"{url}/customer/{customer}/name"
    bearer = {"Authorization": f"Bearer {token}"}
    for _ in range(40):
        request(name, **bearer)
    tab.open(f"{admin}/")
    tab.wait("document.getElementById('state')?.textContent === 'serving'")
    # The gateway takes a sample every few seconds.
    tab.wait("document.querySelector('#ratio-chart path') !== null")
    text = tab.value(PAGE_TEXT)
    stats = json.loads(request(f"{admin}/stats")[1])
    that("the page shows state and version", "serving" in text and stats["version"] in text, text)
    that(
        "entries and callers",
        tab.value("document.getElementById('entries').textContent") == "1",
        text,
    )
    that(
        "the breaker", tab.value("document.getElementById('circuit').textContent") == "closed", text
    )
    rows = tab.value("[...document.querySelectorAll('#durations tr')].map((row) => row.innerText)")
    answered = next((row for row in rows if row.startswith("Hits")), "")
    that("the duration of hits", "µs" in answered or "ms" in answered, rows)
    pictured = (
        "[...document.querySelectorAll('svg[role=img]')]"
        ".every((chart) => chart.getAttribute('aria-label'))"
    )
    that("each chart has a label", tab.value(pictured), tab.value(pictured))
    tab.value("document.getElementById('configuration').open = true")
    tab.wait("document.getElementById('configuration-text').textContent.length > 1000")
    shown = tab.value("document.getElementById('configuration-text').textContent")
    that(
        "the configuration in force is shown",
        shown == request(f"{admin}/config")[1].decode(),
        shown,
    )

    grounds = []
    for scheme in ("light", "dark"):
        tab.scheme(scheme)
        grounds.append(tab.value("getComputedStyle(document.body).backgroundColor"))
    that("dark is dark", grounds[0] != grounds[1] and grounds[1] == "rgb(18, 21, 26)", grounds)
    tab.size(360, 740)
    wide = tab.value("document.documentElement.scrollWidth")
    that("a telephone needs no scrolling sideways", wide <= 360, wide)
    table = tab.value(
        "(({ scrollWidth, clientWidth }) => [scrollWidth, clientWidth])"
        "(document.querySelector('.scroll'))"
    )
    that("nor does the table of durations", table[0] <= table[1], table)
    tab.size(1280, 900)

    said = lambda: tab.value("document.getElementById('purge-said').textContent")
    asks = "document.getElementById('confirm').open"
    that(
        "the field is reached by keyboard",
        focus_by_keyboard(tab, "customer"),
        tab.value("document.activeElement.id"),
    )
    tab.type("nonsense")
    tab.press("Enter")
    that(
        "a wrong id is an error, without a confirmation",
        "24 hexadecimal" in said() and not tab.value(asks),
        said(),
    )
    tab.value("document.getElementById('customer').value = ''")
    tab.type(customer)
    tab.press("Enter")
    tab.wait(asks)
    named = tab.value("document.getElementById('confirm-id').textContent")
    that("the confirmation names the customer", named == customer, named)
    first = tab.value("document.activeElement.id")
    that("its default is the harmless choice", first == "confirm-no", first)
    tab.press("Escape")
    that("Escape purges nothing", not tab.value(asks) and stored() == 1, stored())
    tab.press("Enter")
    tab.wait(asks)
    tab.press("Tab")
    tab.press("Enter")
    tab.wait("document.getElementById('purge-said').dataset.said === 'good'")
    that("the keyboard purges the entry, and the page reports it", customer in said(), said())
    _, body = request(f"{admin}/metrics")
    purged = b'telecomx_gateway_cache_invalidations_total{scope="customer",trigger="admin"} 1'
    that("once", purged in body, [line for line in body.splitlines() if b"invalidations" in line])

    that("the page has no error and breaks no rule of its policy", tab.errors == [], tab.errors)
    elsewhere = [asked for asked in tab.asked if not asked.startswith((f"{admin}/", "data:"))]
    that("it sends no request elsewhere", elsewhere == [], elsewhere)


def shows_the_state(that, tab, admin, url, customer, token, configuration):
    """The API of this gateway is down. Then a reload is refused."""
    for _ in range(12):
        request(f"{url}/customer/{customer}/name", Authorization=f"Bearer {token}")
    tab.size(400, 800)
    tab.open(f"{admin}/")
    badge = "document.getElementById('state')"
    tab.wait(f"{badge}?.textContent.includes('API down') === true")
    state = tab.value(f"[{badge}.textContent, {badge}.dataset.state, document.title]")
    that("the badge is red while the API is down", state[1] == "failing", state)
    that("the badge says so", state[0].startswith("serving, API down"), state)
    host = json.loads(request(f"{admin}/stats")[1])["host"]
    that("the title has state and host", state[2].startswith(state[0]) and host in state[2], state)
    colour = tab.value(f"getComputedStyle({badge}).backgroundColor")
    that("in the colour of failures", colour in ("rgb(192, 38, 31)", "rgb(255, 125, 116)"), colour)
    text = tab.value("document.getElementById('errors-card').innerText")
    that("the first card counts the failed requests", "100 % of 12 requests" in text, text)
    that("and names the most frequent", "most frequent: 50" in text, text)
    tops = tab.value(
        "['errors-card', 'api-card', 'rate-chart'].map((id) => "
        "document.getElementById(id).getBoundingClientRect().top)"
    )
    that("failing cards come first on a phone", tops[0] < tops[1] < tops[2], tops)
    that("the errors are on the first screen", tops[0] < 800, tops)
    shown = tab.value("document.getElementById('addresses').innerText")
    that("the failing address is shown", "127.0.0.1:" in shown, shown)
    api = tab.value("document.getElementById('api').innerText")
    that("the head has the address of the API", api.startswith("http://127.0.0.1:"), api)
    configuration.write_text(configuration.read_text() + "\nnonsense = 1\n")
    request(f"{admin}/reload", method="POST")
    tab.open(f"{admin}/")
    tab.wait(f"{badge}?.textContent.startsWith('serving an old configuration') === true")
    that("a refused reload is shown", True, None)
    tab.size(1280, 900)


def asks_for_the_token(that, tab, admin, token):
    """A browser sends the token as the password of Basic authentication."""
    status, _ = request(f"{admin}/")
    that("without the token the page is refused", status == 401, status)
    tab.open(f"{admin.replace('://', f'://operator:{token}@')}/")
    tab.wait("document.getElementById('state')?.textContent === 'serving'")
    outcome = tab.value("ask('cache', { method: 'DELETE' }).then(({ status }) => status)")
    that("the token as password opens the page, which may purge", outcome == 200, outcome)
    with Stranger() as stranger:
        tab.open(stranger.url)
        tab.wait("document.title === 'elsewhere'")
        entries = lambda: request(f"{admin}/stats", Authorization=f"Bearer {token}")[1]
        before = json.loads(entries())["config_generation"]
        post = f"fetch('{admin}/reload', {{method: 'POST', mode: 'no-cors', credentials: 'include'}})"
        tab.value(f"{post}.then(() => 1, () => 0)")
        after = json.loads(entries())["config_generation"]
        that("a page of another origin changes nothing with it", before == after, after)
        stranger.shutdown()


def keeps_others_out(that, tab, admin, url, customer, token):
    """A page of another origin, with all that its script can do."""
    name = f"{url}/customer/{customer}/name"
    bearer = {"Authorization": f"Bearer {token}"}
    request(name, **bearer)
    with Stranger() as stranger:
        tab.open(stranger.url)
        tab.wait("document.title === 'elsewhere'")
        generation = lambda: json.loads(request(f"{admin}/stats")[1])["config_generation"]
        before = generation()
        # These two need no preflight, so they arrive.
        tab.value(f"fetch('{admin}/reload', {{method: 'POST', mode: 'no-cors'}}).then(() => 1)")
        form = (
            "const form = document.createElement('form'); "
            "form.method = 'post'; form.target = 'frame'"
        )
        frame = (
            "const frame = document.createElement('iframe'); "
            "frame.name = 'frame'; document.body.append(frame, form)"
        )
        loaded = "new Promise((done) => { frame.onload = done; form.submit() }).then(() => 1)"
        tab.value(
            f"(() => {{ {form}; form.action = '{admin}/reload'; {frame}; return {loaded} }})()"
        )
        that("a page of another origin reloads nothing", generation() == before, generation())
        outcome = (
            f"fetch('{admin}/cache/customers/{customer}', {{method: 'DELETE'}})"
            ".then(() => 'done', (e) => e.name)"
        )
        seen = tab.value(outcome)
        that("and purges nothing", seen == "TypeError", seen)
        seen = tab.value(
            f"fetch('{admin}/stats').then((answer) => answer.text(), (error) => error.name)"
        )
        that("and reads nothing", seen == "TypeError", seen)
        stranger.shutdown()
    # A name that resolves here, as after DNS rebinding. Chromium does not resolve *.localhost, so
    # the name is in the field.
    status, _ = request(f"{admin}/stats", Host="rebound.example")
    that("another name is refused", status == 421, status)


def pictures(tab, admin, folder):
    """Takes pictures of the page, light and dark."""
    tab.size(1280, 900)
    tab.open(f"{admin}/")
    tab.wait("document.querySelector('#ratio-chart path') !== null")
    for scheme in ("light", "dark"):
        tab.scheme(scheme)
        pathlib.Path(folder, f"status-{scheme}.png").write_bytes(tab.picture())
