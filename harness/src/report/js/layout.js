// Where things are in the four columns: each to scale, its largest gaps folded.

const COLUMNS = [
  { key: "gva", name: "GVA", note: "the guest's program" },
  { key: "gpa", name: "GPA", note: "the guest's memory" },
  { key: "hva", name: "HVA", note: "the VMM's process" },
  { key: "hpa", name: "HPA", note: "frames of the host" },
];
const HEIGHT = 560;
const TOP = 40;
const BOX = 176;
const STEP = 268;
const HEADER = 16;
const LEAST = 15;
const ROWS_PER_PIXEL = 2;
const MOST_LINES = 3000;
const MOST_GAPS = 9;
const boxAt = (column) => 10 + column * STEP;

/// What is not shown may be there all the same.
const noLeaf = (kind) => (kind.shown ? "no leaf" : "leaf not shown");

/// What shapes can be coloured by: from a kind of piece to a label.
const SCHEMES = {
  size: { name: "leaf size", of: (k) => (k.second ? k.second.size : noLeaf(k)) },
  rights: { name: "rights", of: (k) => (k.second ? k.second.rights : noLeaf(k)) },
  guest: { name: "guest page", of: (k) => (k.guest ? `${k.guest.size} ${k.guest.rights}` : "no paging") },
};
const FIXED_STYLE = {
  "no leaf": 0,
  "leaf not shown": 0,
  "4K": 1,
  "2M": 2,
  "1G": 3,
  rwx: 1,
  "rw-": 4,
  "r-x": 2,
  "r--": 3,
  "no paging": 0,
};

/// Labels and styles of a scheme; style 0 is that of what is not there.
function styles(kinds, scheme) {
  const labels = [...new Set(kinds.map(SCHEMES[scheme].of))].sort();
  const styleOf = new Map(),
    taken = new Set(labels.map((label) => FIXED_STYLE[label]));
  for (const label of labels) {
    let style = FIXED_STYLE[label];
    for (let free = 1; style === undefined; free++)
      if (!taken.has(free) || free > 6) style = Math.min(free, 6);
    taken.add(style);
    styleOf.set(label, style);
  }
  return { labels, styleOf, ofKind: kinds.map((kind) => styleOf.get(SCHEMES[scheme].of(kind))) };
}

/// The pieces that a part of the guest's addresses has, clipped to it.
function clip(pieces, part) {
  if (!part) return pieces;
  const [first, last] = part;
  const keep = [];
  for (let i = 0; i < pieces.count; i++) {
    if (pieces.gva[i] <= last && pieces.gva[i] + pieces.pages[i] > first) keep.push(i);
  }
  const clipped = { ...pieces, count: keep.length };
  for (const key of ["kind", "pages", "gva", "gpa", "hva", "hpa"])
    clipped[key] = Float64Array.from(keep, (i) => pieces[key][i]);
  for (let i = 0; i < keep.length; i++) {
    const skip = Math.max(0, first - clipped.gva[i]);
    for (const { key } of COLUMNS) if (clipped[key][i] >= 0) clipped[key][i] += skip;
    clipped.pages[i] = Math.min(clipped.pages[i] - skip, last - clipped.gva[i] + 1);
  }
  return clipped;
}

/// Where a column's addresses are drawn: clusters to scale, the largest gaps between them folded.
function scale(starts, ends) {
  starts.sort();
  ends.sort();
  const covered = [];
  for (let s = 0, e = 0, depth = 0; e < ends.length;) {
    if (s < starts.length && starts[s] <= ends[e]) {
      if (depth++ === 0) {
        const last = covered[covered.length - 1];
        if (last && last[1] >= starts[s]) {
          covered.pop();
          covered.push([last[0], starts[s]]);
        } else covered.push([starts[s], starts[s]]);
      }
      s++;
    } else {
      if (--depth === 0) covered[covered.length - 1][1] = ends[e];
      e++;
    }
  }
  const total = covered.reduce((sum, [first, end]) => sum + end - first, 0);
  const gaps = [];
  for (let i = 1; i < covered.length; i++) gaps.push([covered[i][0] - covered[i - 1][1], i]);
  const folded = gaps
    .filter(([gap]) => gap > total * 0.08)
    .sort((a, b) => b[0] - a[0])
    .slice(0, MOST_GAPS);
  const breaks = new Set(folded.map(([, i]) => i));
  const clusters = [];
  covered.forEach(([first, end], i) => {
    if (i === 0 || breaks.has(i)) clusters.push({ first, end, gap: i ? first - covered[i - 1][1] : 0 });
    else clusters[clusters.length - 1].end = end;
  });
  const span = clusters.reduce((sum, cluster) => sum + cluster.end - cluster.first, 0);
  const room = HEIGHT - clusters.length * (HEADER + LEAST);
  let y = TOP;
  for (const cluster of clusters) {
    y += HEADER;
    cluster.y = y;
    cluster.height = LEAST + (span ? (room * (cluster.end - cluster.first)) / span : 0);
    y += cluster.height;
  }
  const clusterOf = (page) => {
    let low = 0,
      high = clusters.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (clusters[middle].first <= page) low = middle;
      else high = middle - 1;
    }
    return clusters[low];
  };
  return {
    clusters,
    y(page) {
      const c = clusterOf(page);
      return c.y + c.height * Math.max(0, Math.min(1, (page - c.first) / (c.end - c.first)));
    },
    /// The end of a run that begins at `first`: in the same cluster, whatever comes after.
    end(first, pages) {
      const c = clusterOf(first);
      return c.y + c.height * Math.max(0, Math.min(1, (first + pages - c.first) / (c.end - c.first)));
    },
    page(y) {
      const c = clusters.find((cluster) => y >= cluster.y && y <= cluster.y + cluster.height);
      return c && Math.min(c.end - 1, Math.floor(c.first + ((c.end - c.first) * (y - c.y)) / c.height));
    },
  };
}

/// What a column shows beside the pages: what the guest sees as memory and devices, and where it is in the process.
function context(memory, key) {
  if (key !== "gpa" && key !== "hva") return [];
  return memory.ranges
    .filter((range) => key === "gpa" || range.hva !== null)
    .map((range) => {
      const first = Number(BigInt(key === "gpa" ? range.gpa : range.hva) >> 12n);
      return { range, first, pages: Math.max(1, Number((BigInt(range.bytes) + 0xfffn) >> 12n)) };
    });
}

function scaleOf(run, pieces, key, part) {
  const around = part ? [] : context(run.memory, key);
  const here = [];
  for (let i = 0; i < pieces.count; i++) if (pieces[key][i] >= 0) here.push(i);
  const starts = new Float64Array(here.length + around.length),
    ends = new Float64Array(starts.length);
  here.forEach((i, at) => {
    starts[at] = pieces[key][i];
    ends[at] = pieces[key][i] + pieces.pages[i];
  });
  around.forEach(({ first, pages }, at) => {
    starts[here.length + at] = first;
    ends[here.length + at] = first + pages;
  });
  return scale(starts, ends);
}
