"use strict";
// The page of a comparison: sorting, copying, and charts that share one row of toggles.
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // --- tables ----------------------------------------------------------------------------------
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const first = head.dataset.first; // the direction that a first click gives
        const other = first === "ascending" ? "descending" : "ascending";
        const direction = before === first ? other : first;
        heads.forEach((h) => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", direction);
        sort(table.tBodies[0], column, head.dataset.kind, direction === "ascending" ? 1 : -1);
      });
    });
  }

  function sort(body, column, kind, sign) {
    const key = (row) => row.cells[column].dataset.key;
    const compare = (a, b) => {
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      return sign * (kind === "number" ? Number(a) - Number(b) : a.localeCompare(b));
    };
    body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
  }

  // --- the command -----------------------------------------------------------------------------
  for (const button of all("button.copy")) {
    const text = document.getElementById(button.dataset.of);
    button.addEventListener("click", async () => {
      let done = true;
      try {
        await navigator.clipboard.writeText(text.textContent);
      } catch {
        const range = document.createRange();
        range.selectNodeContents(text);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        done = document.execCommand("copy");
      }
      button.textContent = done ? "Copied" : "Press Ctrl-C to copy";
      setTimeout(() => (button.textContent = "Copy"), 3000);
    });
  }

  // --- charts ----------------------------------------------------------------------------------
  const held = document.getElementById("charts-data");
  if (!held || typeof Plotly === "undefined") {
    document.documentElement.dataset.ready = "pictures";
    return;
  }
  const charts = JSON.parse(held.textContent);
  const boxes = all("input[data-rule]");
  const ranges = document.getElementById("ranges");
  const touch = matchMedia("(pointer: coarse)").matches;
  const UNIFIED = 10; // lines whose values fit into one label

  const chosen = () => new Set(boxes.filter((b) => b.checked).map((b) => b.dataset.rule));
  const visible = (chart) => {
    const rules = chosen();
    return chart.traces.map((t) => rules.has(t.meta.rule) && (ranges.checked || t.meta.role !== "range"));
  };
  const axisOf = (chart, div) => {
    const box = div.closest("figure").querySelector("input.log");
    return box && !box.checked ? chart.linear : chart.log;
  };
  const hovermode = (chart, div) =>
    chart.unified && chosen().size <= UNIFIED && div.clientWidth > 480 ? "x unified" : "closest";

  function layout(chart, div) {
    return {
      ...chart.layout,
      yaxis: { ...chart.layout.yaxis, ...axisOf(chart, div) },
      hovermode: hovermode(chart, div),
      dragmode: touch ? false : "zoom",
    };
  }

  function draw(chart) {
    const div = document.getElementById(chart.id);
    const traces = chart.traces.map((t, i) => ({ ...t, visible: visible(chart)[i] }));
    div.classList.add("live");
    Plotly.newPlot(div, traces, layout(chart, div), { displayModeBar: false, responsive: true });
    const log = div.closest("figure").querySelector("input.log");
    if (log) log.addEventListener("change", () => Plotly.relayout(div, { ...flat(axisOf(chart, div)) }));
    div.addEventListener("keydown", (event) => step(chart, div, event));
    div.addEventListener("blur", () => Plotly.Fx.unhover(div));
  }

  const flat = (axis) =>
    Object.fromEntries(Object.entries(axis).map(([name, value]) => [`yaxis.${name}`, value]));

  // Arrow keys move over the points of a chart, and what is there is said.
  function step(chart, div, event) {
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const forward = by > 0 === (div.layout.xaxis.autorange !== "reversed");
    const lines = div.data
      .map((trace, i) => ({ trace, i }))
      .filter(({ trace }) => trace.visible && trace.meta.role === "line");
    const stops = chart.unified
      ? [...new Set(lines.flatMap(({ trace }) => trace.x))].sort((a, b) => a - b)
      : lines.flatMap(({ trace, i }) => trace.x.map((_, n) => [i, n]));
    if (!stops.length) return;
    const before = div.stop ?? (forward ? -1 : stops.length);
    const at = Math.min(Math.max(before + (forward ? 1 : -1), 0), stops.length - 1);
    div.stop = at;
    const points = chart.unified
      ? lines.map(({ trace, i }) => [i, trace.x.indexOf(stops[at])]).filter(([, n]) => n >= 0)
      : [stops[at]];
    const unified = div.layout.hovermode === "x unified";
    const shown = points.map(([i, n]) => ({ curveNumber: i, pointNumber: n }));
    Plotly.Fx.hover(div, unified ? { xval: stops[at], yval: 0 } : shown);
    const where = chart.unified ? `${chart.x} ${Number(stops[at].toPrecision(6))}: ` : "";
    const values = points.map(([i, n]) => `${div.data[i].meta.rule} ${div.data[i].meta.said[n]}`);
    div.closest("figure").querySelector(".said").textContent = where + values.join(", ");
  }

  function refresh() {
    for (const chart of charts) {
      const div = document.getElementById(chart.id);
      delete div.stop;
      Plotly.update(div, { visible: visible(chart) }, { hovermode: hovermode(chart, div) });
    }
  }
  for (const box of [...boxes, ranges]) box.addEventListener("change", refresh);
  for (const button of all("button[data-choose]")) {
    button.addEventListener("click", () => {
      const n = Number(button.dataset.choose);
      boxes.forEach((box, i) => (box.checked = i < n));
      refresh();
    });
  }

  // Paper has its own width, and no window that is resized.
  const PAPER = 660;
  addEventListener("beforeprint", () => {
    for (const chart of charts) Plotly.relayout(chart.id, { width: PAPER });
  });
  addEventListener("afterprint", () => {
    for (const chart of charts) Plotly.relayout(chart.id, { width: null, autosize: true });
  });

  // One chart a frame: the words above are there at once, and can be scrolled.
  const waiting = [...charts];
  (function next() {
    if (waiting.length) {
      draw(waiting.shift());
      setTimeout(next);
    } else {
      document.documentElement.dataset.ready = "charts";
    }
  })();
})();
