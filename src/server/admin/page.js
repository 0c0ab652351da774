"use strict";
// Shows /stats and /stats/history. Text is inserted as text, never as markup, which the policy of
// the page forbids.

const at = (id) => document.getElementById(id);
const show = (id, text) => {
  if (at(id).textContent !== text) at(id).textContent = text;
};
const NONE = "–";

const grouped = new Intl.NumberFormat("en");
const rounded = (value) =>
  new Intl.NumberFormat("en", { maximumSignificantDigits: 3 }).format(value);
const percent = (value) =>
  `${new Intl.NumberFormat("en", { maximumFractionDigits: 1 }).format(100 * value)} %`;
const bytes = (value) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit += 1) value /= 1024;
  return `${rounded(value)} ${units[unit]}`;
};
const took = (seconds) => {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds < 0.001) return `${rounded(seconds * 1e6)} µs`;
  return seconds < 1 ? `${rounded(seconds * 1e3)} ms` : `${rounded(seconds)} s`;
};
const span = (seconds) => {
  const parts = [
    [86400, "d"],
    [3600, "h"],
    [60, "min"],
    [1, "s"],
  ];
  const first = parts.findIndex(([size]) => seconds >= size);
  if (first < 0) return "0 s";
  return parts
    .slice(first, first + 2)
    .map(([size, unit], index) => [
      Math.floor((index === 0 ? seconds : seconds % parts[first][0]) / size),
      unit,
    ])
    .filter(([count], index) => index === 0 || count > 0)
    .map(([count, unit]) => `${count} ${unit}`)
    .join(" ");
};
// Log lines are in UTC too.
const clock = (date) => `${date.toISOString().slice(11, 19)} UTC`;

// Charts.

const WIDTH = 400,
  TOP = 12,
  LEFT = 60,
  RIGHT = 394,
  BOTTOM = 118;
const make = (name, attributes, text) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
};

// Joins points that follow each other in time; the line has a gap where samples are missing.
const line = (points, gap) =>
  points
    .map(([x, y, when], index) => {
      const before = points[index - 1];
      return `${before && when - before[2] <= gap ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    })
    .join("");

// The shortest of these spans, in seconds, that contains every sample: soon after a start the
// charts are not mostly empty.
const spanned = ({ samples, every_seconds, kept }) =>
  [120, 300].find((width) => samples.length * every_seconds <= width) ?? every_seconds * kept;

const draw = (id, history, { lines, ticks, place, label, summary, filled = true }) => {
  const chart = at(id);
  const width = spanned(history);
  const newest = history.samples.at(-1)?.at ?? 0;
  const x = (when) => RIGHT - ((newest - when) / width) * (RIGHT - LEFT);
  // The line at the highest value keeps a margin to the edge.
  const y = (value) => BOTTOM - 0.97 * place(value) * (BOTTOM - TOP);
  const parts = ticks.flatMap((tick) => [
    make("line", { class: "grid", x1: LEFT, x2: RIGHT, y1: y(tick), y2: y(tick) }),
    make("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, label(tick)),
  ]);
  parts.push(make("text", { x: LEFT, y: BOTTOM + 17 }, `${width / 60} min ago`));
  parts.push(make("text", { x: RIGHT, y: BOTTOM + 17, "text-anchor": "end" }, "now"));
  for (const [kind, value] of lines) {
    const known = history.samples.filter((sample) => value(sample) !== null);
    const points = known.map((sample) => [x(sample.at), y(value(sample)), sample.at]);
    if (points.length === 0) continue;
    const joined = line(points, 2.5 * history.every_seconds);
    if (kind === "a" && filled && !joined.includes("M", 1)) {
      const end = points.at(-1)[0].toFixed(1),
        start = points[0][0].toFixed(1);
      parts.push(
        make("path", { class: "area", d: `${joined}L${end} ${BOTTOM}L${start} ${BOTTOM}Z` }),
      );
    }
    parts.push(make("path", { class: kind, d: joined }));
  }
  if (history.samples.length < 2) {
    parts.push(make("text", { x: WIDTH / 2, y: 66, "text-anchor": "middle" }, "collecting…"));
  }
  chart.replaceChildren(...parts);
  chart.setAttribute("aria-label", summary);
};

// The next 1, 2 or 5 times a power of ten.
const ceiling = (value) => {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((step) => step * power >= value * 0.999) * power;
};
const sum = (samples, key) => samples.reduce((total, sample) => total + sample[key], 0);

const markBad = (id, isBad) => {
  at(id).dataset.bad = isBad;
  at("tiles").dataset.bad = document.querySelector("#tiles [data-bad=true]") !== null;
};

const ROUTES = {
  customer_name: "customer names",
  forward: "forwarded requests",
  blocked: "blocked paths",
  none: "rejected requests",
};

const showFailures = ({ count, requests, share, most_frequent: top }, when) => {
  show("errors-span", when);
  show("errors", count === 0 ? "none" : grouped.format(count));
  const total = `${grouped.format(requests)} ${requests === 1 ? "request" : "requests"}`;
  const frequent =
    top &&
    `; most frequent: ${top.status} of ${ROUTES[top.route] ?? top.route} ` +
      `(${grouped.format(top.count)})`;
  show(
    "errors-more",
    count === 0 ? `of ${total}` : `${percent(share)} of ${total} got a 5xx response${frequent}`,
  );
  markBad("errors-card", count > 0);
};

const showHistory = (history) => {
  const { samples } = history;
  const minute = samples.slice(-Math.round(60 / history.every_seconds));
  const last = minute.findLast((sample) => sample.p50_seconds !== null);
  const rate = (sample) => sample.requests / sample.seconds;
  const highest = Math.max(0, ...samples.map(rate));
  const most = ceiling(Math.max(highest, 1));
  const rateNow =
    minute.length > 0 ? `${rounded(sum(minute, "requests") / sum(minute, "seconds"))} /s` : NONE;
  show("rate", rateNow);
  show("rate-now", samples.length > 0 ? `${rounded(rate(samples.at(-1)))} /s` : NONE);
  draw("rate-chart", history, {
    lines: [
      ["a", rate],
      ["bad", (sample) => (sum(samples, "failed") > 0 ? sample.failed / sample.seconds : null)],
    ],
    ticks: [0, most / 2, most],
    place: (value) => value / most,
    label: rounded,
    summary: `Requests per second: ${rateNow} in the last minute, at most ${rounded(highest)}`,
  });

  const asked = sum(minute, "hits") + sum(minute, "misses");
  const ratio = asked > 0 ? percent(sum(minute, "hits") / asked) : NONE;
  show("ratio", ratio);
  draw("ratio-chart", history, {
    lines: [["a", ({ hits, misses }) => (hits + misses > 0 ? hits / (hits + misses) : null)]],
    ticks: [0, 0.5, 1],
    place: (value) => value,
    label: (value) => `${100 * value} %`,
    summary: `Hit ratio: ${ratio} in the last minute`,
  });

  const quick = last?.p50_seconds ?? null;
  show("latency", quick === null ? NONE : `${took(quick)} median`);
  // Hits and misses differ by some powers of ten.
  const scale = (value) => Math.min(1, Math.max(0, (Math.log10(value) + 5) / 6));
  draw("latency-chart", history, {
    lines: [
      ["a", (sample) => sample.p50_seconds],
      ["b", (sample) => sample.p99_seconds],
    ],
    ticks: [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 10],
    place: scale,
    label: took,
    filled: false,
    summary: `Response time: median ${took(quick)}, 99th percentile ${took(last?.p99_seconds)}`,
  });

  const { recent } = history;
  const recentSpan =
    recent.seconds > 0 ? `in the last ${span(recent.seconds)}` : "in the last 5 minutes";
  show("recent-span", recentSpan);
  showFailures(recent.failures, recentSpan);
  const rows = [
    ["Hits", "hit"],
    ["Misses", "miss"],
    ["Forwards", "forwarded"],
    ["Requests of the gateway to the API", "upstream"],
  ];
  at("durations").replaceChildren(
    ...rows.map(([name, key]) => {
      const row = document.createElement("tr");
      const title = document.createElement("th");
      title.scope = "row";
      title.textContent = name;
      const { count, p50_seconds, p90_seconds, p99_seconds } = recent[key];
      const cells = [
        grouped.format(count),
        took(p50_seconds),
        took(p90_seconds),
        took(p99_seconds),
      ].map((text) => {
        const cell = document.createElement("td");
        cell.textContent = text;
        return cell;
      });
      row.replaceChildren(title, ...cells);
      return row;
    }),
  );

  const allSpan = `in the last ${span(Math.max(1, Math.round(sum(samples, "seconds"))))}`;
  const refused = sum(samples, "redaction_failures");
  show("redaction", refused === 0 ? "no failures" : `${grouped.format(refused)} failed`);
  show("redaction-span", allSpan);
  markBad("redaction-card", refused > 0);
  return `${grouped.format(sum(samples, "upstream_errors"))} exchanges failed ${allSpan}`;
};

// Now.

const showStats = (stats, upstreamErrors, resident) => {
  show("host", stats.host);
  show("api", stats.upstream.url);
  show("version", stats.version);
  show("uptime", span(stats.uptime_seconds));
  show("asof", clock(new Date()));
  const { cache, upstream } = stats;
  show("entries", grouped.format(cache.entries));
  const used = cache.bytes / cache.capacity_bytes;
  const meter = at("memory-meter");
  meter.firstElementChild.style.width = `${(100 * used).toFixed(2)}%`;
  meter.setAttribute("aria-valuenow", (100 * used).toFixed(1));
  const process = resident ? `; process ${bytes(resident)}` : "";
  const share = used > 0 && used < 0.001 ? "under 0.1 %" : percent(used);
  show("memory", `${bytes(cache.bytes)} of ${bytes(cache.capacity_bytes)}, ${share}${process}`);
  show("identities", grouped.format(stats.identities.entries));
  const { connections, requests } = stats;
  show("connections", grouped.format(connections.open));
  show(
    "load",
    `of ${grouped.format(connections.limit)}; ${grouped.format(requests.in_flight)} of ` +
      `${grouped.format(requests.limit)} requests under way now`,
  );
  markBad(
    "load-card",
    connections.open > 0.9 * connections.limit || requests.in_flight > 0.9 * requests.limit,
  );
  show("circuit", upstream.circuit.replace("_", " "));
  const failing = upstream.addresses.filter(({ state }) => state !== "healthy");
  markBad(
    "api-card",
    upstream.circuit !== "closed" || failing.length > 0 || upstream.addresses.length === 0,
  );
  const probing =
    upstream.circuit === "closed" ? "" : "the API is failing; single requests probe it; ";
  show(
    "upstream",
    `${probing}${grouped.format(upstream.in_flight)} requests under way now; ${upstreamErrors}`,
  );
  const named = ({ address, state }) => `${address} ${state}`;
  show(
    "addresses",
    upstream.addresses.map(named).join(", ") || "no address of the API is resolved",
  );
  at("addresses").classList.toggle(
    "failing",
    failing.length > 0 || upstream.addresses.length === 0,
  );
  show("failing-addresses", `Failing address of the API: ${failing.map(named).join(", ")}`);
  at("failing-addresses").hidden = failing.length === 0;
  const reload = stats.last_reload;
  show("reload", reload === null ? "none yet" : reload.successful ? "applied" : "rejected");
  markBad("reload-card", reload !== null && !reload.successful);
  const more =
    reload === null
      ? "since the start"
      : [
          new Date(1000 * reload.at).toISOString().slice(0, 19).replace("T", " ") + " UTC",
          ...(reload.problems ?? []),
          ...(reload.restart_needed_for?.length
            ? [`needs a restart: ${reload.restart_needed_for.join(", ")}`]
            : []),
        ].join("; ");
  show("reload-more", more);
  show("generation", `(revision ${stats.config_generation} since the start)`);
};

let host = "";
const showState = (level, text) => {
  at("state").dataset.state = level;
  show("state", text);
  document.title = [text, host, "telecomx-gateway"].filter(Boolean).join(" – ");
};

// Without credentials that the address of the page may contain, which fetch refuses.
const base = location.origin + location.pathname;

const ask = async (path, options = {}) => {
  const answer = await fetch(new URL(path, base), {
    cache: "no-store",
    signal: AbortSignal.timeout(10000),
    ...options,
  });
  return { ok: answer.ok, status: answer.status, text: await answer.text() };
};
const numbers = async (path) => {
  const { ok, status, text } = await ask(path);
  if (!ok) throw new Error(`${path} returned ${status}`);
  return JSON.parse(text);
};

let shown; // generation of the configuration in the page
let lastAnswer;
const look = async () => {
  try {
    const [stats, history] = await Promise.all([numbers("stats"), numbers("stats/history")]);
    showStats(stats, showHistory(history), history.resident_bytes);
    host = stats.host;
    showState(stats.service.level, stats.service.summary);
    lastAnswer = clock(new Date());
    if (shown !== stats.config_generation) {
      const { ok, text } = await ask("config");
      if (ok) {
        at("configuration-text").textContent = text;
        shown = stats.config_generation;
      }
    }
  } catch {
    showState("silent", lastAnswer ? `no response since ${lastAnswer}` : "no response");
  }
  setTimeout(look, document.hidden ? 30000 : 5000);
};

// The purge of a customer.

const report = (kind, text) => {
  at("purge-said").dataset.said = kind;
  show("purge-said", text);
};
at("purge").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = at("customer").value.trim();
  const right = /^[0-9a-f]{24}$/i.test(id);
  at("customer").setAttribute("aria-invalid", !right);
  if (!right) {
    report(
      "bad",
      `A customer id has 24 hexadecimal digits; found ${id.length} characters` +
        `${/^[0-9a-f]*$/i.test(id) ? "" : ", not all of them hexadecimal"}.`,
    );
    at("customer").focus();
    return;
  }
  report("", "");
  at("confirm-id").textContent = id;
  at("confirm").showModal();
});
at("confirm-no").addEventListener("click", () => at("confirm").close());
at("confirm-yes").addEventListener("click", async () => {
  const id = at("confirm-id").textContent;
  at("confirm").close();
  try {
    const { ok, status, text } = await ask(`cache/customers/${id}`, { method: "DELETE" });
    if (!ok) throw new Error(JSON.parse(text).error?.message ?? `status ${status}`);
    report("good", `Purged customer ${id} at ${clock(new Date())}.`);
  } catch (failure) {
    report("bad", `Purge failed: ${failure.message}`);
  }
});

look();
