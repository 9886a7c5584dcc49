// Elements from plain values. Text is always set as text: nothing that a guest has written is read as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

/// An HTML element: h("td", {class: "x"}, "text", other).
const h = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
/// The same for SVG.
const s = (name, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, name), attributes, children);
/// The tip of an SVG shape.
const tip = (text) => s("title", {}, text);

const VERDICT_SIGN = { pass: "✓", fail: "✗", timeout: "⏱", crash: "✗", "no-verdict": "?", skip: "–" };
const badge = (verdict) =>
  h("span", { class: `verdict ${verdict}` }, `${VERDICT_SIGN[verdict] ?? ""} ${verdict}`);

/// A section with its heading.
const section = (title, note, ...children) =>
  h("section", {}, h("h3", {}, title), note && h("p", { class: "note" }, note), children);

/// A table: `head` is a list of names, `rows` lists of cells; a name that starts with # is of a column of numbers.
function table(head, rows, attributes = {}) {
  const isNumber = head.map((name) => name.startsWith("#"));
  const cells = (row) => row.map((cell, at) => h("td", { class: isNumber[at] ? "number" : null }, cell));
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      attributes,
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          head.map((name, at) =>
            h("th", { class: isNumber[at] ? "number" : null, scope: "col" }, name.replace(/^#/, "")),
          ),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map((row) => h("tr", {}, cells(row))),
      ),
    ),
  );
}
