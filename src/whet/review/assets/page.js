"use strict";
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const touch = window.matchMedia("(pointer: coarse)");
  const hover = window.matchMedia("(hover: hover)");
  const settings = {
    responsive: true, displaylogo: false, displayModeBar: hover.matches ? "hover" : false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  let printing = false;

  // ------------------------------------------------ charts

  function look(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function theme() {
    const black = printing ? "#1c2530" : look("--ink");
    const line = printing ? "#dde3e9" : look("--line");
    const axis = {
      gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true, ticks: "outside", tickcolor: line,
      title: { standoff: 8 },
    };
    return {
      layout: {
        font: { color: black, family: look("--sans"), size: 12 },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        xaxis: axis, yaxis: axis, margin: { l: 8, r: 12, t: 18, b: 8 },
        hoverlabel: { bgcolor: printing ? "#ffffff" : look("--card"), font: { color: black }, align: "left" },
        legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: line, activecolor: look("--soft") },
        dragmode: touch.matches ? false : "zoom",
      },
    };
  }

  function draw(plot) {
    if (plot.dataset.drawn || !plot.offsetParent) return;
    plot.dataset.drawn = "yes";
    const figure = JSON.parse(plot.closest("figure").querySelector("script").textContent);
    figure.layout.template = theme();
    Plotly.newPlot(plot, figure.data, figure.layout, settings);
  }

  function drawAll() {
    document.querySelectorAll(".plot").forEach(draw);
  }

  function restyle() {
    document.querySelectorAll(".plot[data-drawn]").forEach((plot) => {
      Plotly.relayout(plot, { template: theme() });
    });
  }

  function print(on) {
    printing = on;
    document.body.style.width = on ? "180mm" : "";
    restyle();
    document.querySelectorAll(".plot[data-drawn]").forEach((plot) => Plotly.Plots.resize(plot));
  }

  // ------------------------------------------------ tables

  function key(row, column) {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return [0, Number(cell.dataset.value)];
    const text = cell.textContent.trim();
    return text ? [1, text.toLowerCase()] : [2, ""];
  }

  function compare(one, other, way) {
    // numbers before texts before empty cells, whichever way
    if (one[0] !== other[0]) return one[0] - other[0];
    return way * (one[1] < other[1] ? -1 : one[1] > other[1] ? 1 : 0);
  }

  function sort(head) {
    const table = head.closest("table");
    const up = head.getAttribute("aria-sort") !== "ascending";
    const body = table.tBodies[0];
    const rows = Array.from(body.rows).map((row) => [key(row, head.cellIndex), row]);
    rows.sort(([a], [b]) => compare(a, b, up ? 1 : -1));
    table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    rows.forEach(([, row]) => body.appendChild(row));
  }

  // ------------------------------------------------ commands

  function select(code) {
    const range = document.createRange();
    range.selectNodeContents(code);
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
  }

  async function copy(button) {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      select(code); // no clipboard here: at least it is selected
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  // ------------------------------------------------ start

  document.querySelectorAll(".copy").forEach((button) => button.addEventListener("click", () => copy(button)));
  document.querySelectorAll("table.sortable th").forEach((head) => head.addEventListener("click", () => sort(head)));
  document.querySelectorAll("details").forEach((details) => details.addEventListener("toggle", drawAll));
  dark.addEventListener("change", restyle);
  window.addEventListener("beforeprint", () => print(true));
  window.addEventListener("afterprint", () => print(false));
  drawAll();
})();
