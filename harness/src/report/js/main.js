// What is shown: a guest on a machine and maybe a page of it, as the address's fragment says, so that a link leads there:
// #first_touch/ept/0x101000.

const state = { guest: null, mmu: null, part: null, page: null, scheme: "size", rows: 60, select: null };

/// A name that may go on in the next line behind an underscore.
const breakable = (name) => name.split(/(?<=_)/).flatMap((part) => [part, h("wbr")]);

function drawGuests() {
  const wanted = document.getElementById("filter").value.trim().toLowerCase();
  const rows = GUESTS.filter((guest) => {
    const runs = RUNS.filter((each) => each.guest === guest);
    const verdicts = runs.map((run) => run.verdict).join(" ");
    return `${runs[0].area} ${guest} ${runs[0].summary} ${verdicts}`.toLowerCase().includes(wanted);
  }).map((guest) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, breakable(guest)),
      MACHINES.map((mmu) => {
        const run = runOf(guest, mmu);
        if (!run) return h("td");
        const here = guest === state.guest && mmu === state.mmu;
        return h(
          "td",
          {},
          h(
            "a",
            {
              href: `#${encodeURIComponent(guest)}/${mmu}`,
              class: `verdict ${run.verdict}`,
              "aria-current": here ? "true" : null,
              title: `${guest} on ${mmu}: ${run.verdict}`,
              "aria-label": `${guest} on ${mmu}: ${run.verdict}`,
            },
            VERDICT_SIGN[run.verdict],
          ),
        );
      }),
    ),
  );
  document.getElementById("guests").replaceChildren(
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("td"),
        MACHINES.map((mmu) => h("th", { scope: "col" }, mmu)),
      ),
    ),
    h("tbody", {}, rows),
  );
}

function drawTotals() {
  const counts = new Map();
  RUNS.forEach((run) => counts.set(run.verdict, (counts.get(run.verdict) ?? 0) + 1));
  document
    .getElementById("totals")
    .replaceChildren(
      `${plural(GUESTS.length, "guest")} on ${plural(MACHINES.length, "machine")}: `,
      ...[...counts].flatMap(([verdict, number]) => [badge(verdict), ` ${number} `]),
    );
}

/// The ranges as a table: what the map says, for who does not see it.
function drawRanges(run) {
  const pieces = clip(piecesOf(run), state.part),
    rows = [];
  const range = (page, pages) => `${hexPage(page)} – ${hexLast(page, pages)}`;
  // The number of pages says how long it is; the pointer, where it ends.
  const from = (page, pages) =>
    page < 0 ? "–" : h("span", { class: "mono", title: range(page, pages) }, hexPage(page));
  let i = 0,
    more = 0;
  while (i < pieces.count) {
    const kind = pieces.kind[i],
      gva = pieces.gva[i],
      gpa = pieces.gpa[i],
      hva = pieces.hva[i];
    let pages = 0,
      joined = 0,
      first = i;
    while (
      i < pieces.count &&
      pieces.kind[i] === kind &&
      pieces.gva[i] === gva + pages &&
      pieces.gpa[i] === gpa + pages &&
      (hva < 0 ? pieces.hva[i] < 0 : pieces.hva[i] === hva + pages)
    ) {
      pages += pieces.pages[i++];
      joined++;
    }
    if (rows.length >= state.rows) {
      more++;
      continue;
    }
    const { guest, second, range: at } = pieces.kinds[kind],
      place = at === null ? null : run.memory.ranges[at];
    const frames =
      pieces.hpa[first] < 0
        ? "–"
        : joined === 1
          ? from(pieces.hpa[first], pages)
          : `${plural(joined, "run")} of frames`;
    rows.push([
      h(
        "button",
        {
          type: "button",
          class: "link mono",
          title: range(gva, pages),
          onclick: () => {
            zoomTo([gva, gva + pages - 1]);
            showPage(gva);
          },
        },
        hexPage(gva),
      ),
      from(gpa, pages),
      place ? place.name : "no memory",
      from(hva, pages),
      frames,
      guest ? `${guest.size} ${guest.rights}` : "–",
      second ? `${second.size} ${second.rights}` : noLeaf(pieces.kinds[kind]),
      count(pages),
    ]);
  }
  return h(
    "div",
    {},
    table(["GVA from", "GPA from", "region", "HVA from", "HPA from", "guest page", "leaf", "#pages"], rows, { class: "ranges" }),
    more
      ? h(
          "button",
          {
            type: "button",
            onclick: () => {
              state.rows *= 4;
              drawMain();
            },
          },
          `${count(more)} more ranges`,
        )
      : null,
  );
}

function zoomTo(part) {
  state.part = part;
  state.rows = 60;
  drawMain();
}
function showPage(page) {
  state.page = page;
  history.replaceState(null, "", `#${encodeURIComponent(state.guest)}/${state.mmu}/${hexPage(page)}`);
  state.select(page);
  const walk = document.getElementById("walk");
  walk.replaceWith(drawWalkSection(runOf(state.guest, state.mmu)));
  document.getElementById("walk").scrollIntoView({ block: "nearest" });
}

/// The page of an address in text; null if that is none.
function pageOf(text) {
  return /^0x[0-9a-f]{1,16}$/i.test(text ?? "") ? Number(BigInt(text) >> 12n) : null;
}

function drawMapSection(run) {
  const schemes = h(
    "span",
    { class: "choice", role: "group", "aria-label": "Colour by" },
    "Colour by ",
    Object.entries(SCHEMES).map(([key, { name }]) =>
      h(
        "button",
        {
          type: "button",
          "aria-pressed": String(key === state.scheme),
          onclick: () => {
            state.scheme = key;
            drawMain();
          },
        },
        name,
      ),
    ),
  );
  const part =
    state.part &&
    h(
      "span",
      { class: "part" },
      `GVA ${hexPage(state.part[0])} – ${hexLast(state.part[0], state.part[1] - state.part[0] + 1)} `,
      h("button", { type: "button", onclick: () => zoomTo(null) }, "show all"),
    );
  const address = h(
    "form",
    {
      class: "address-form",
      onsubmit: (event) => {
        event.preventDefault();
        const page = pageOf(event.target.elements.gva.value.trim());
        if (page !== null) showPage(page);
      },
    },
    h(
      "label",
      {},
      "GVA ",
      h("input", {
        name: "gva",
        placeholder: "0x101000",
        size: 18,
        autocomplete: "off",
        pattern: "0x[0-9a-fA-F]{1,16}",
        required: true,
      }),
    ),
    h("button", {}, "walk"),
  );
  const { map, select } = drawMap(run, state, { show: showPage, zoom: zoomTo });
  state.select = select;
  return [h("div", { class: "tools" }, schemes, address, part), map];
}

function drawWalkSection(run) {
  if (state.page === null) return h("section", { id: "walk" });
  const walk = drawWalk(run, state.page);
  const step = (by, name) =>
    h("button", { type: "button", onclick: () => showPage(Math.max(0, state.page + by)) }, name);
  return h(
    "section",
    { id: "walk" },
    h("h3", {}, `The page at ${hexPage(state.page)} `, step(-1, "← before"), " ", step(1, "next →")),
    walk ?? h("p", { class: "note" }, "The guest's tables map nothing there."),
  );
}

function drawRun(run) {
  const exits = run.exits && run.exits.last.length > 0;
  const failed = run.verdict !== "pass" && run.verdict !== "skip";
  const wrong = run.checks.wrong ? `, ${count(run.checks.wrong)} wrong` : "";
  const facts =
    `${plural(run.checks.ok, "check")} agree${wrong}, ${count(run.checks.unchecked)} not made` +
    `${run.faults === null ? "" : `; ${plural(run.faults, "second-level fault")}`}; ${time(run.elapsed_ns)}.`;
  return [
    h("h2", {}, badge(run.verdict), ` ${run.guest} `, h("small", {}, `on ${run.mmu}`)),
    h("p", { class: "summary" }, run.summary),
    run.verdict !== "skip" && h("p", { class: "note" }, facts),
    run.reasons.length > 0 &&
      h(
        "ul",
        { class: `reasons ${failed ? "" : "mild"}` },
        run.reasons.map((reason) => h("li", {}, reason)),
      ),
    run.unchecked.length > 0 &&
      h(
        "ul",
        { class: "reasons mild" },
        run.unchecked.map((why) => h("li", {}, `not checked: ${why}`)),
      ),
    run.memory &&
      section(
        "Where its memory is",
        null,
        run.memory.not_shown.map((why) => h("p", { class: "note" }, `not shown: ${why}`)),
        drawMapSection(run),
      ),
    run.memory && drawWalkSection(run),
    section("The machines side by side", "What this guest costs on each.", drawComparison(run.guest)),
    run.fault_events || run.exits?.at
      ? section(
          "Faults and exits over time",
          run.fault_events
            ? `Each sign is a fault at its time and guest-${run.fault_events.physical ? "physical" : "virtual"} page.`
            : "This machine does not tell of single faults.",
          drawTimeline(run) ?? h("p", {}, "None."),
        )
      : null,
    run.fault_events &&
      section("How long faults took", null, drawLatencies(run) ?? h("p", {}, noLatencies(run))),
    run.memory &&
      section(
        "Ranges",
        "The same as the map. A range goes on as long as its pages follow each other and are of one kind.",
        drawRanges(run),
      ),
    run.console && section("Console", null, h("pre", {}, run.console)),
    exits &&
      section(
        "The last exits",
        run.ending,
        h(
          "ol",
          { class: "mono" },
          run.exits.last.map((line) => h("li", {}, line)),
        ),
      ),
    failed && run.registers && section("Registers", null, h("pre", {}, run.registers)),
  ];
}

function drawMain() {
  const run = runOf(state.guest, state.mmu);
  const main = document.getElementById("main");
  main.replaceChildren();
  fill(main, {}, [run ? drawRun(run) : h("p", {}, "Nothing was run.")]);
}

/// The run that the fragment names; without one, the first that failed, else the first.
function follow() {
  const [guest, mmu, page] = location.hash.slice(1).split("/");
  const run =
    RUNS.find((each) => encodeURIComponent(each.guest) === guest && each.mmu === mmu) ??
    RUNS.find((each) => !["pass", "skip"].includes(each.verdict)) ??
    RUNS[0];
  Object.assign(state, { guest: run?.guest, mmu: run?.mmu, part: null, page: null, rows: 60 });
  const wrong = run?.broken.find((check) => check.wrong);
  if (run?.memory) state.page = pageOf(page ?? wrong?.gva);
  drawGuests();
  drawMain();
}

document.getElementById("filter").addEventListener("input", drawGuests);
window.addEventListener("hashchange", follow);
drawTotals();
follow();
