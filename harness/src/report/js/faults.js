// Faults and exits over time, and how long faults took.

const CHART = { width: 960, height: 240, left: 120, bottom: 24, top: 10 };
/// So tall is the name of a row.
const ROW_NAME = 11;
/// Only the first command is absolute, so that a sign can be drawn anywhere.
const SIGNS = [
  "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0z",
  "M-3 -3h6v6h-6z",
  "M0 -4l4 7h-8z",
  "M0 -4l4 4l-4 4l-4 -4z",
  "M-3 -3l6 6m0 -6l-6 6",
  "M-4 0h8m-4 -4v8",
  "M-3 -3h6m-3 0v6",
];

/// Marks at their pixels, each pixel once.
function marks(xs, ys, kinds, kind, sign) {
  const seen = new Set();
  let d = "";
  for (let i = 0; i < xs.length; i++) {
    if (kinds[i] !== kind) continue;
    const x = Math.round(xs[i] * 2) / 2,
      y = Math.round(ys[i] * 2) / 2,
      key = x * 4096 + y;
    if (seen.has(key)) continue;
    seen.add(key);
    d += SIGNS[sign].replace("M", `M${x} ${y}m`);
  }
  return d;
}

/// Lines at round times: one, two or five of a power of ten apart, so that there are at most eight.
function axis(last, x) {
  const round = (number) => String(Number(number.toPrecision(3)));
  const power = 10 ** Math.floor(Math.log10(last));
  const step = [0.1, 0.2, 0.5, 1].map((part) => part * power).find((step) => last / step < 8);
  const parts = [];
  for (let at = 0; at * step <= last; at++) {
    const left = x(at * step);
    parts.push(
      s("path", { class: "axis", d: `M${left} ${CHART.top}V${CHART.height - CHART.bottom}` }),
      s("text", { class: "tick", x: left, y: CHART.height - 6 }, at ? time(at * step, round) : "0"),
    );
  }
  return parts;
}

/// The names of rows from above, those left out that would be printed over the one before.
function rowNames(clusters, y) {
  let below = -Infinity;
  return clusters.flatMap(({ first, end }) => {
    const at = y((first + end) / 2) + 3;
    if (at < below) return [];
    below = at + ROW_NAME;
    return [s("text", { class: "tick row", x: CHART.left - 8, y: at }, hexPage(first))];
  });
}

/// Faults by time and page; below them the exits.
function drawTimeline(run) {
  const faults = run.fault_events,
    exits = run.exits;
  const at = faults ? sums(faults.at) : new Float64Array(),
    page = faults ? sums(faults.page) : at,
    kind = faults ? numbers(faults.kind) : at;
  const exitAt = exits ? sums(exits.at) : new Float64Array(),
    exitKind = exits ? numbers(exits.kind) : exitAt;
  if (!at.length && !exitAt.length) return null;
  const last = Math.max(at.length ? at[at.length - 1] : 0, exitAt.length ? exitAt[exitAt.length - 1] : 0, 1);
  const x = (ns) => CHART.left + ((CHART.width - CHART.left - 40) * ns) / last;
  const floor = CHART.height - CHART.bottom - 26;
  const scaled = scale(
    Float64Array.from(page),
    page.map((first) => first + 1),
  );
  const y = (number) => CHART.top + 6 + ((scaled.y(number) - TOP) * (floor - CHART.top - 12)) / (HEIGHT + 8);
  const xs = at.map(x),
    ys = page.map(y);
  // Exits take their signs from the other end.
  const signOf = (index, exit) => (exit ? 6 - (index % 7) : index % 7);
  const svg = s(
    "svg",
    {
      class: "chart",
      viewBox: `0 0 ${CHART.width} ${CHART.height}`,
      role: "img",
      "aria-label": "Faults and exits over time",
    },
    axis(last, x),
    rowNames(scaled.clusters, y),
    (faults?.kinds ?? []).map((_, index) =>
      s("path", { class: `sign mark-${signOf(index)}`, d: marks(xs, ys, kind, index, signOf(index)) }),
    ),
    s("text", { class: "tick row", x: CHART.left - 8, y: floor + 17 }, "exits"),
    s("path", { class: "axis", d: `M${CHART.left} ${floor + 4}H${CHART.width - 40}` }),
    (exits?.counts ?? []).map((_, index) =>
      s("path", {
        class: `sign mark-${signOf(index, true)}`,
        d: marks(
          exitAt.map(x),
          exitAt.map(() => floor + 14),
          exitKind,
          index,
          signOf(index, true),
        ),
      }),
    ),
  );
  const entry = (name, number, index, exit) =>
    h(
      "li",
      {},
      s(
        "svg",
        { class: "swatch", viewBox: "-6 -6 12 12", "aria-hidden": "true" },
        s("path", { class: `sign mark-${signOf(index, exit)}`, d: SIGNS[signOf(index, exit)] }),
      ),
      ` ${name}: ${count(number)}`,
    );
  const legend = h(
    "ul",
    { class: "legend" },
    (faults?.kinds ?? []).map((name, index) =>
      entry(
        name,
        kind.reduce((sum, each) => sum + (each === index), 0),
        index,
        false,
      ),
    ),
    (exits?.counts ?? []).map(([name, number], index) => entry(`exit ${name}`, number, index, true)),
  );
  return h(
    "div",
    {},
    legend,
    h("div", { class: "scroll" }, svg),
    faults?.unkept
      ? h("p", { class: "note" }, `${count(faults.unkept)} more faults are not shown.`)
      : null,
    faults?.lost
      ? h("p", { class: "note" }, `${count(faults.lost)} of KVM's trace events are lost: faults may be missing.`)
      : null,
  );
}

/// Why there are no latencies to draw.
const noLatencies = (run) =>
  run.fault_events.at.length > 0 ? "This machine does not tell." : "None were taken.";

/// How many faults took how long, by powers of two.
function drawLatencies(run) {
  if (!run.fault_events) return null;
  const took = numbers(run.fault_events.took);
  if (!took.length) return null;
  const bucket = (ns) => Math.floor(Math.log2(Math.max(ns, 1)));
  const counts = new Map();
  took.forEach((ns) => counts.set(bucket(ns), (counts.get(bucket(ns)) ?? 0) + 1));
  const first = Math.min(...counts.keys()),
    last = Math.max(...counts.keys()),
    most = Math.max(...counts.values());
  const sorted = Float64Array.from(took).sort(),
    part = (share) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
  const rows = [];
  for (let at = first; at <= last; at++) {
    const number = counts.get(at) ?? 0;
    rows.push([`${time(2 ** at)} – ${time(2 ** (at + 1))}`, bar(number / most), count(number)]);
  }
  return h(
    "div",
    {},
    h(
      "p",
      {},
      `${plural(took.length, "fault")}: half took less than ${time(part(0.5))}, nine of ten less than ${time(part(0.9))}, the longest ${time(sorted[sorted.length - 1])}.`,
    ),
    table(["took", "share", "#faults"], rows, { class: "histogram" }),
  );
}

const bar = (share) =>
  h("div", { class: "bar-track" }, h("div", { class: "bar", style: `width:${(share * 100).toFixed(1)}%` }));
