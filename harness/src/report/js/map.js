// The four columns. What is smaller than a pixel is drawn one pixel tall; all shapes of one colour are one path, so that
// a million pages draw as fast as ten.

/// Rectangles of one style in one column: rows that any of its pages touches.
function boxes(pieces, key, scaled, ofKind, style) {
  const rows = new Uint8Array((HEIGHT + TOP + 40) * ROWS_PER_PIXEL);
  for (let i = 0; i < pieces.count; i++) {
    if (ofKind[pieces.kind[i]] !== style || pieces[key][i] < 0) continue;
    const first = Math.floor(scaled.y(pieces[key][i]) * ROWS_PER_PIXEL);
    const last = Math.max(
      first + 1,
      Math.ceil(scaled.end(pieces[key][i], pieces.pages[i]) * ROWS_PER_PIXEL) - 1,
    );
    rows.fill(1, first, last + 1);
  }
  const x = boxAt(COLUMNS.findIndex((column) => column.key === key));
  let d = "";
  for (let y = 0; y < rows.length; y++) {
    if (!rows[y]) continue;
    let end = y;
    while (rows[end]) end++;
    d += `M${x} ${y / ROWS_PER_PIXEL}h${BOX}V${end / ROWS_PER_PIXEL}h${-BOX}z`;
    y = end;
  }
  return d;
}

/// What joins two columns, for one style: bands where a run is tall enough, lines elsewhere.
function joins(pieces, column, scales, ofKind, style) {
  const [from, to] = [COLUMNS[column].key, COLUMNS[column + 1].key];
  const left = boxAt(column) + BOX,
    right = boxAt(column + 1),
    middle = (left + right) / 2;
  const seen = new Set(),
    bands = [],
    lines = [];
  const draw = (a, b, pages) => {
    const round = (y) => Math.round(y * ROWS_PER_PIXEL) / ROWS_PER_PIXEL;
    const [a1, a2] = [round(scales[column].y(a)), round(scales[column].end(a, pages))];
    const [b1, b2] = [round(scales[column + 1].y(b)), round(scales[column + 1].end(b, pages))];
    const key = ((a1 * 4096 + b1) * 1024 + (a2 - a1)) * 1024 + b2 - b1;
    if (seen.has(key)) return;
    seen.add(key);
    if (a2 - a1 < 1 && b2 - b1 < 1)
      lines.push(`M${left} ${a1}C${middle} ${a1} ${middle} ${b1} ${right} ${b1}`);
    else
      bands.push(
        `M${left} ${a1}C${middle} ${a1} ${middle} ${b1} ${right} ${b1}V${b2}` +
          `C${middle} ${b2} ${middle} ${a2} ${left} ${a2}z`,
      );
  };
  let open = null;
  for (let i = 0; i < pieces.count; i++) {
    const a = pieces[from][i],
      b = pieces[to][i];
    if (ofKind[pieces.kind[i]] !== style || a < 0 || b < 0) continue;
    if (open && open.a + open.pages === a && open.b + open.pages === b) {
      open.pages += pieces.pages[i];
      continue;
    }
    if (open) draw(open.a, open.b, open.pages);
    open = { a, b, pages: pieces.pages[i] };
  }
  if (open) draw(open.a, open.b, open.pages);
  const step = Math.ceil(lines.length / MOST_LINES) || 1;
  // Many lines are thin ones.
  const opacity = Math.max(0.15, Math.min(0.8, 200 / lines.length)).toFixed(2);
  return {
    bands: bands.slice(0, MOST_LINES).join(""),
    lines: lines.filter((_, at) => at % step === 0).join(""),
    step,
    opacity,
  };
}

/// The texts of a column: its name, where each cluster begins and ends, how much is folded, the names of ranges.
function labels(run, column, scaled, part) {
  const { key, name, note } = COLUMNS[column],
    x = boxAt(column);
  const texts = [
    s("text", { class: "column-name", x, y: 16 }, name),
    s("text", { class: "column-note", x: x + 38, y: 16 }, note),
  ];
  for (const { first, end, gap, y, height } of scaled.clusters) {
    texts.push(s("text", { class: "address", x, y: y - 3 }, hexPage(first)));
    if (gap) texts.push(s("text", { class: "gap", x: x + BOX, y: y - 3 }, `⋮ ${sizeOf(gap)}`));
    if (height > 40)
      texts.push(
        s("text", { class: "address inside", x: x + 4, y: y + height - 4 }, hexLast(first, end - first)),
      );
    texts.push(s("rect", { class: "cluster", x, y, width: BOX, height }));
  }
  if (!part) {
    for (const { range, first, pages } of context(run.memory, key)) {
      const y = scaled.y(first),
        height = Math.max(2, scaled.end(first, pages) - y);
      texts.push(
        s(
          "rect",
          { class: `range ${range.kind}`, x, y, width: BOX, height },
          tip(`${range.name}: ${range.kind}, ${bytes(Number(range.bytes))}`),
        ),
      );
      if (height >= 11) {
        const slot = range.slot === null ? "" : `, slot ${range.slot}`;
        texts.push(
          s(
            "text",
            { class: "range-name", x: x + BOX - 5, y: y + Math.min(height / 2 + 4, 15) },
            `${range.name} (${range.kind}${slot})`,
          ),
        );
      }
    }
  }
  return texts;
}

/// Patterns make each style known without its colour.
const PATTERNS = [
  [],
  [["circle", { cx: 2, cy: 2, r: 1 }]],
  [["path", { d: "M-2 2L2 -2M0 8L8 0M6 10L10 6" }]],
  [["path", { d: "M0 0L8 8M8 0L0 8" }]],
  [["path", { d: "M0 4H8" }]],
  [["path", { d: "M4 0V8" }]],
  [["path", { d: "M0 4H8M4 0V8" }]],
];
const patterns = () =>
  s(
    "defs",
    {},
    PATTERNS.map((shapes, style) =>
      s(
        "pattern",
        {
          id: `style-${style}`,
          class: `style-${style}`,
          width: 8,
          height: 8,
          patternUnits: "userSpaceOnUse",
        },
        s("rect", { class: "ground", width: 8, height: 8 }),
        shapes.map(([name, attributes]) => s(name, { class: "mark", ...attributes })),
      ),
    ),
  );
const swatch = (style) =>
  s(
    "svg",
    { class: "swatch", viewBox: "0 0 22 14", "aria-hidden": "true" },
    s("rect", {
      x: 0.5,
      y: 0.5,
      width: 21,
      height: 13,
      fill: `url(#style-${style})`,
      class: `box style-${style}`,
    }),
  );

/// The map, and how it answers the pointer. `show(page)` is called for a page that is clicked, `zoom(part)` for a part
/// that is dragged over; `part` is the pair of the first and the last page of GVAs that is shown, or null for all. Gives the
/// element, and what marks a page for as long as the pointer is at no other: `select(page)`, or null for none.
function drawMap(run, view, { show, zoom }) {
  const all = piecesOf(run),
    pieces = clip(all, view.part);
  const { labels: names, styleOf, ofKind } = styles(all.kinds, view.scheme);
  const scales = COLUMNS.map(({ key }) => scaleOf(run, pieces, key, view.part));
  const drawn = [...new Set(styleOf.values())].sort();
  const shapes = [];
  let step = 1;
  for (const style of drawn) {
    for (let column = 0; column < 3; column++) {
      const joined = joins(pieces, column, scales, ofKind, style);
      step = Math.max(step, joined.step);
      shapes.push(
        s("path", { class: `band style-${style}`, d: joined.bands }),
        s("path", { class: `line style-${style}`, "stroke-opacity": joined.opacity, d: joined.lines }),
      );
    }
  }
  for (const style of drawn) {
    COLUMNS.forEach(({ key }, column) => {
      shapes.push(
        s("path", {
          class: `box style-${style}`,
          fill: `url(#style-${style})`,
          d: boxes(pieces, key, scales[column], ofKind, style),
        }),
      );
    });
  }
  const mark = s("path", { class: "mark-line" }),
    drag = s("rect", { class: "drag", width: BOX });
  const svg = s(
    "svg",
    {
      class: "map",
      viewBox: `0 0 1000 ${TOP + HEIGHT + 8}`,
      role: "img",
      "aria-label": "The guest's pages in four columns; the table below says the same",
    },
    patterns(),
    shapes,
    COLUMNS.map((_, column) => labels(run, column, scales[column], view.part)),
    drag,
    mark,
  );
  const status = h("p", { class: "status", "aria-live": "polite" });

  const at = (event) => {
    const box = svg.getBoundingClientRect(),
      unit = 1000 / box.width;
    const x = (event.clientX - box.left) * unit,
      y = (event.clientY - box.top) * unit;
    const column = COLUMNS.findIndex((_, index) => x >= boxAt(index) && x <= boxAt(index) + BOX);
    return { column, y };
  };
  /// The piece that a column has at `y`, and which of its pages; the nearest within two pixels.
  const pageAt = ({ column, y }) => {
    if (column < 0) return null;
    const page = scales[column].page(y);
    if (page === undefined) return null;
    const list = pieces[COLUMNS[column].key];
    let best = null,
      distance = 2;
    for (let i = 0; i < pieces.count; i++) {
      if (list[i] < 0) continue;
      if (page >= list[i] && page < list[i] + pieces.pages[i]) return { i, offset: page - list[i] };
      const away = Math.abs(scales[column].y(list[i]) - y);
      if (away < distance) {
        distance = away;
        best = { i, offset: 0 };
      }
    }
    return best;
  };
  const trace = ({ i, offset }) => {
    let d = "",
      before = null;
    COLUMNS.forEach(({ key }, column) => {
      if (pieces[key][i] < 0) return;
      const y = scales[column].y(pieces[key][i] + offset + 0.5),
        x = boxAt(column);
      d += before === null ? `M${x} ${y}` : `C${x - 46} ${before} ${x - 46} ${y} ${x} ${y}`;
      d += `h${BOX}`;
      before = y;
    });
    mark.setAttribute("d", d);
  };
  const tell = (found) => {
    status.classList.toggle("mono", found !== null);
    if (found) {
      trace(found);
      status.textContent = describe(run, pieces, found);
    } else {
      mark.removeAttribute("d");
      status.textContent =
        "Point at a page; click for its walk; drag to look closer. Gaps in a column are folded where ⋮ says how much.";
    }
  };
  let selected = null;
  const select = (page) => {
    const i = page === null ? -1 : pieces.gva.findIndex((gva, i) => gva <= page && page < gva + pieces.pages[i]);
    selected = i < 0 ? null : { i, offset: page - pieces.gva[i] };
    tell(selected);
  };
  svg.addEventListener("pointerleave", () => tell(selected));
  let from = null;
  svg.addEventListener("pointerdown", (event) => {
    from = at(event);
  });
  svg.addEventListener("pointermove", (event) => {
    const here = at(event);
    if (from && from.column >= 0 && Math.abs(here.y - from.y) > 4) {
      fill(
        drag,
        { x: boxAt(from.column), y: Math.min(from.y, here.y), height: Math.abs(here.y - from.y) },
        [],
      );
      return;
    }
    const found = pageAt(here);
    if (found) tell(found);
  });
  svg.addEventListener("pointerup", (event) => {
    const here = at(event),
      start = from;
    from = null;
    drag.setAttribute("height", 0);
    if (start && start.column >= 0 && Math.abs(here.y - start.y) > 4) {
      const part = spanned(
        pieces,
        COLUMNS[start.column].key,
        scales[start.column],
        Math.min(start.y, here.y),
        Math.max(start.y, here.y),
      );
      if (part) zoom(part);
      return;
    }
    const found = pageAt(here);
    if (found) show(pieces.gva[found.i] + found.offset);
  });

  const counts = new Map();
  for (let i = 0; i < pieces.count; i++) {
    const label = SCHEMES[view.scheme].of(pieces.kinds[pieces.kind[i]]);
    counts.set(label, (counts.get(label) ?? 0) + pieces.pages[i]);
  }
  const legend = h(
    "ul",
    { class: "legend" },
    names
      .filter((name) => counts.has(name))
      .map((name) => h("li", {}, swatch(styleOf.get(name)), ` ${name}: ${plural(counts.get(name), "page")}`)),
  );
  const sampled = step > 1 && h("p", { class: "note" }, `One of ${step} of the thinnest lines is drawn.`);
  select(view.page);
  return { map: h("div", {}, legend, h("div", { class: "scroll" }, svg), status, sampled), select };
}

/// The GVAs of what a column has between two heights.
function spanned(pieces, key, scaled, top, bottom) {
  let first = Infinity,
    last = -Infinity;
  for (let i = 0; i < pieces.count; i++) {
    if (pieces[key][i] < 0) continue;
    const y1 = scaled.y(pieces[key][i]),
      y2 = Math.max(y1 + 0.5, scaled.end(pieces[key][i], pieces.pages[i]));
    if (y2 <= top || y1 >= bottom) continue;
    const part = (y) =>
      Math.max(0, Math.min(pieces.pages[i], Math.floor((pieces.pages[i] * (y - y1)) / (y2 - y1))));
    first = Math.min(first, pieces.gva[i] + part(top));
    last = Math.max(last, pieces.gva[i] + Math.max(part(bottom), 1) - 1);
  }
  return first <= last ? [first, last] : null;
}

/// A page in one line.
function describe(run, pieces, { i, offset }) {
  const kind = pieces.kinds[pieces.kind[i]],
    range = kind.range === null ? null : run.memory.ranges[kind.range];
  const place = (key) => (pieces[key][i] < 0 ? "–" : hexPage(pieces[key][i] + offset));
  const leaf = kind.second ? `leaf ${kind.second.size} ${kind.second.rights}` : noLeaf(kind);
  return `GVA ${place("gva")} → GPA ${place("gpa")} (${range ? range.name : "no memory"}) → HVA ${place("hva")} → HPA ${place("hpa")}, ${leaf}`;
}
