// One page: its address taken apart, every entry on the way with its bits decoded, in both dimensions.

const LEVEL = ["", "PT", "PD", "PDPT", "PML4", "PML5"];
const bigHex = (number) => "0x" + number.toString(16);
const hex16 = (number) => "0x" + number.toString(16).padStart(16, "0");
const lowestBit = (mask) => {
  let bit = 0n;
  while (!((mask >> bit) & 1n)) bit++;
  return bit;
};

/// The entries from the root to the leaf for an address; the leaf's is put together from its flags and its frame.
function walkOf(tables, address, leaf, frame) {
  const { format } = tables;
  tables.index ??= new Map(
    tables.upper.map(([level, at, table, entry]) => [
      `${level}:${at}`,
      { level, table, entry: BigInt(entry) },
    ]),
  );
  const steps = [];
  let next = null;
  const index = (level) => Number((address >> BigInt(format.shifts[level - 1])) & BigInt(format.entries - 1));
  for (let level = format.levels; level > leaf.level; level--) {
    const found = tables.index.get(`${level}:${bigHex(address >> BigInt(format.shifts[level - 1]))}`);
    if (!found) continue;
    const mask = BigInt(format.fields[level - 1][0].find(([name]) => name === "frame")[1]);
    next = found.entry & mask;
    steps.push({ level, table: found.table, index: index(level), entry: found.entry, leaf: false });
  }
  const size = 1n << BigInt(format.shifts[leaf.level - 1]);
  const entry = BigInt(leaf.flags) | (frame & ~(size - 1n));
  steps.push({
    level: leaf.level,
    table: next === null ? null : bigHex(next),
    index: index(leaf.level),
    entry,
    leaf: true,
  });
  return steps;
}

const MEMORY_TYPES = ["UC", "WC", "reserved", "reserved", "WT", "WP", "WB", "reserved"];

/// The fields of an entry: those that are set, and those that are not.
function decode(format, { level, entry, leaf }) {
  return format.fields[level - 1][leaf ? 1 : 0].map(([name, bits]) => {
    const mask = BigInt(bits),
      value = entry & mask,
      low = lowestBit(mask),
      number = value >> low;
    const single = mask >> low === 1n;
    if (name === "frame") return h("span", { class: "bit on" }, `frame ${bigHex(value)}`);
    if (name === "memory type")
      return h("span", { class: "bit on" }, `type ${number} ${MEMORY_TYPES[Number(number)]}`);
    if (name === "software")
      return value ? h("span", { class: "bit free" }, `software ${bigHex(value)}`) : null;
    if (name === "key") return number ? h("span", { class: "bit on" }, `key ${number}`) : null;
    if (!single) return value ? h("span", { class: "bit on" }, `${name} ${bigHex(number)}`) : null;
    return value ? h("span", { class: "bit on" }, name) : h("span", { class: "bit off" }, h("s", {}, name));
  });
}

function walkRows(tables, steps) {
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { class: "walk" },
      h(
        "tbody",
        {},
        steps.map((step) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, LEVEL[step.level]),
            h("td", { class: "mono" }, `${step.table ?? "?"} [${step.index}]`),
            h("td", { class: "mono" }, hex16(step.entry)),
            h("td", {}, decode(tables.format, step)),
          ),
        ),
      ),
    ),
  );
}

/// The address as indexes, the highest level first.
function takenApart(format, address, leaf) {
  const parts = [];
  for (let level = format.levels; level >= leaf.level; level--) {
    const low = BigInt(format.shifts[level - 1]);
    parts.push([LEVEL[level], Number((address >> low) & BigInt(format.entries - 1))]);
  }
  const low = BigInt(format.shifts[leaf.level - 1]);
  parts.push(["offset", bigHex(address & ((1n << low) - 1n))]);
  return h(
    "ul",
    { class: "parts" },
    parts.map(([name, value]) => h("li", {}, h("small", {}, name), " ", String(value))),
  );
}

const link = (from, to, detail) =>
  h(
    "h4",
    {},
    `${from} `,
    h("span", { class: "arrow" }, "→"),
    ` ${to}`,
    detail && h("small", {}, ` ${detail}`),
  );

/// The chain of a page, or null where the guest has none.
function drawWalk(run, page) {
  const pieces = piecesOf(run);
  let i = 0;
  while (i < pieces.count && !(page >= pieces.gva[i] && page < pieces.gva[i] + pieces.pages[i])) i++;
  if (i === pieces.count) return null;
  const offset = page - pieces.gva[i],
    kind = pieces.kinds[pieces.kind[i]];
  const address = (key) => (pieces[key][i] < 0 ? null : BigInt(pieces[key][i] + offset) << 12n);
  const [gva, gpa, hva, hpa] = ["gva", "gpa", "hva", "hpa"].map(address);
  const range = kind.range === null ? null : run.memory.ranges[kind.range];
  const parts = [];
  if (kind.guest) {
    parts.push(
      link(
        `GVA ${bigHex(gva)}`,
        `GPA ${bigHex(gpa)}`,
        `by the guest's tables: a ${kind.guest.size} page, ${kind.guest.rights}`,
      ),
      takenApart(run.memory.guest.format, gva, kind.guest),
      walkRows(run.memory.guest, walkOf(run.memory.guest, gva, kind.guest, gpa)),
    );
  } else {
    parts.push(link(`GVA ${bigHex(gva)}`, `GPA ${bigHex(gpa)}`, "paging is off"));
  }
  const slot = range && range.slot !== null ? `slot ${range.slot}` : "no slot";
  parts.push(
    link(
      `GPA ${bigHex(gpa)}`,
      hva === null ? "no HVA" : `HVA ${bigHex(hva)}`,
      range
        ? `by the flat view: region ${range.name}, ${range.kind}${range.readonly && range.kind !== "rom" ? ", read-only" : ""}, ${slot}`
        : "no memory is there",
    ),
  );
  if (hva !== null) {
    const detail =
      hpa === null
        ? "the page was never touched, or the host does not show it"
        : kind.differs
          ? "WRONG: the host has another frame there than the leaf"
          : "by the host's page map";
    parts.push(link(`HVA ${bigHex(hva)}`, hpa === null ? "no HPA" : `HPA ${bigHex(hpa)}`, detail));
  }
  if (kind.second) {
    const { second, shadow } = run.memory,
      input = shadow ? gva : gpa;
    parts.push(
      link(
        `${shadow ? "GVA" : "GPA"} ${bigHex(input)}`,
        `HPA ${bigHex(hpa)}`,
        `by the second level (${shadow ? "shadow" : second.format.kind}): a ${kind.second.size} leaf, ${kind.second.rights}`,
      ),
      takenApart(second.format, input, kind.second),
      walkRows(second, walkOf(second, input, kind.second, hpa)),
    );
  } else if (!kind.shown) {
    parts.push(h("p", { class: "note" }, "The second level is not shown here."));
  } else if (hva !== null) {
    parts.push(h("p", { class: "note" }, "No leaf of the second level maps it: the next access is a fault."));
  }
  const broken = run.broken.filter((check) => BigInt(check.gva) >> 12n === BigInt(page));
  if (broken.length) {
    parts.push(
      h(
        "ul",
        { class: "reasons" },
        broken.map((check) =>
          h("li", {}, `${check.wrong ? "WRONG" : "not checked"}: ${check.link}, ${check.what}: ${check.how}`),
        ),
      ),
    );
  }
  return h("div", { class: "chain" }, parts);
}
