// The data: JSON in a script element; long lists as base64 VLQ (see columns.rs). Addresses are held as page numbers,
// which a double holds exactly; entries, which need all 64 bits, are BigInts.

const DIGIT = new Uint8Array(128);
[..."ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"].forEach((letter, value) => {
  DIGIT[letter.charCodeAt(0)] = value;
});

/// Calls `each` with every number of a column.
function forColumn(text, each) {
  let at = 0;
  const next = () => {
    let number = 0,
      unit = 1,
      digit;
    do {
      digit = DIGIT[text.charCodeAt(at++)];
      number += (digit & 31) * unit;
      unit *= 32;
    } while (digit & 32);
    return number;
  };
  while (at < text.length) {
    const raw = next();
    const number = raw % 2 ? -(raw + 1) / 2 : raw / 2;
    for (let times = next(); times > 0; times--) each(number);
  }
}

/// A column as it is.
function numbers(text) {
  const list = [];
  forColumn(text, (number) => list.push(number));
  return Float64Array.from(list);
}

/// A column of differences from the number before, as numbers.
function sums(text) {
  let sum = 0;
  return numbers(text).map((difference) => (sum += difference));
}

/// The pieces of a memory: arrays of page numbers, -1 where a column has nothing.
function decodeMemory(memory) {
  const kind = numbers(memory.kind),
    pages = numbers(memory.pages);
  const places = (text, has) => {
    let end = 0,
      index = 0;
    const list = new Float64Array(kind.length);
    forColumn(text, (difference) => {
      end += difference;
      list[index] = has(memory.kinds[kind[index]]) ? end : -1;
      end += pages[index++];
    });
    return list;
  };
  const hasHva = (k) => k.range !== null && memory.ranges[k.range].hva !== null;
  return {
    count: kind.length,
    kind,
    pages,
    kinds: memory.kinds,
    gva: places(memory.gva, () => true),
    gpa: places(memory.gpa, () => true),
    hva: places(memory.hva, hasHva),
    hpa: places(memory.hpa, (k) => k.hpa),
  };
}

const RUNS = JSON.parse(document.getElementById("data").textContent);
const MACHINES = ["ept", "npt", "shadow", "kvm"]
  .concat(
    [...new Set(RUNS.map((run) => run.mmu))].filter((mmu) => !["ept", "npt", "shadow", "kvm"].includes(mmu)),
  )
  .filter((mmu) => RUNS.some((run) => run.mmu === mmu));
const GUESTS = [...new Set(RUNS.map((run) => run.guest))];
const runOf = (guest, mmu) => RUNS.find((run) => run.guest === guest && run.mmu === mmu);

/// The memory of a run, decoded when it is first looked at.
function piecesOf(run) {
  const { memory } = run;
  if (memory && !run.pieces) {
    const shown = memory.second !== null && !memory.not_shown.some((what) => what.startsWith("second level"));
    memory.kinds.forEach((kind) => (kind.shown = shown));
    run.pieces = decodeMemory(memory);
  }
  return run.pieces;
}

const hexPage = (page) => "0x" + (BigInt(page) << 12n).toString(16);
const hexLast = (page, pages) => "0x" + ((BigInt(page + pages) << 12n) - 1n).toString(16);

/// So many bytes, in the unit that fits.
function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
  let unit = 0;
  while (number >= 1024 && unit < units.length - 1) {
    number /= 1024;
    unit++;
  }
  return `${number >= 100 || Number.isInteger(number) ? Math.round(number) : number.toFixed(1)} ${units[unit]}`;
}
const sizeOf = (pages) => bytes(pages * 4096);

/// So many nanoseconds, in three digits; `digits` may want them otherwise.
function time(ns, digits = (number) => number.toPrecision(3)) {
  for (const [unit, name] of [
    [1e9, "s"],
    [1e6, "ms"],
    [1e3, "µs"],
  ]) {
    if (ns >= unit) return `${digits(ns / unit)} ${name}`;
  }
  return `${Math.round(ns)} ns`;
}
const count = (number) => number.toLocaleString("en-US");
const plural = (number, one, many) => `${count(number)} ${number === 1 ? one : (many ?? one + "s")}`;
