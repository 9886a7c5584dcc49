// The machines side by side: what a guest costs on each of them.

function drawComparison(guest) {
  const runs = MACHINES.map((mmu) => runOf(guest, mmu)).filter((run) => run && run.verdict !== "skip");
  if (!runs.length) return null;
  const total = (run) => run.exits?.counts.reduce((sum, [, number]) => sum + number, 0);
  const exits = (name) => (run) => run.exits && (run.exits.counts.find(([kind]) => kind === name)?.[1] ?? 0);
  // What, of which run, in what unit; and whether it is left out where no machine has any.
  const rows = [
    ["second level", (run) => run.tables?.kind, null],
    ["tables' memory", (run) => run.tables?.bytes, bytes],
    ["4K leaves", (run) => run.tables?.leaves[0], count],
    ["2M leaves", (run) => run.tables?.leaves[1], count, true],
    ["1G leaves", (run) => run.tables?.leaves[2], count, true],
    ["faults", (run) => run.faults, count],
    ["exits", total, count],
    ["MMIO exits", exits("mmio"), count, true],
    // What a lab takes is its emulator's count of instructions.
    ["run time", (run) => (run.mmu.startsWith("lab-") ? undefined : run.elapsed_ns), time],
    ["checks", (run) => run.checks.ok, count],
    ["not checked", (run) => run.checks.unchecked, count],
  ];
  const body = rows.map(([name, of, text, rare]) => {
    const values = runs.map(of);
    if (rare && !values.some((value) => value)) return null;
    const most = Math.max(1, ...values.filter((value) => typeof value === "number"));
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, name),
      values.map((value) => {
        if (value === null || value === undefined) return h("td", { class: "absent" }, "not shown");
        if (!text) return h("td", {}, value);
        return h("td", {}, h("span", { class: "value" }, text(value)), bar(value / most));
      }),
    );
  });
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { class: "compare" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("td"),
          runs.map((run) => h("th", { scope: "col" }, run.mmu, " ", badge(run.verdict))),
        ),
      ),
      h("tbody", {}, body),
    ),
  );
}
