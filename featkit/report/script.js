"use strict";
(() => {
  const root = document.documentElement;
  const plots = [...document.querySelectorAll(".plot")];
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  /* ---- colours -------------------------------------------------------------------------------------------- */

  function themeLayout(div) {
    const [ink, soft, line] = [css("--ink"), css("--soft"), css("--line")];
    const clear = "rgba(0,0,0,0)";
    const common = {
      "paper_bgcolor": clear, "plot_bgcolor": clear, "font.color": soft, "font.family": getComputedStyle(document.body).fontFamily,
      "hoverlabel.bgcolor": css("--panel"), "hoverlabel.bordercolor": line, "hoverlabel.font.color": ink,
      "modebar.bgcolor": clear, "modebar.color": soft, "modebar.activecolor": ink,
    };
    if (div.classList.contains("scene")) {
      return { ...common, "scene.bgcolor": css("--scene"), "legend.bgcolor": clear, "legend.font.color": ink };
    }
    return {
      ...common, "colorway": [css("--accent")], "xaxis.gridcolor": clear, "yaxis.gridcolor": line,
      "xaxis.linecolor": line, "xaxis.showline": true,
    };
  }

  function nested(layout, dotted) {
    for (const [key, value] of Object.entries(dotted)) {
      const path = key.split(".");
      const leaf = path.pop();
      path.reduce((inner, part) => (inner[part] ??= {}), layout)[leaf] = value;
    }
    return layout;
  }

  function recolour() {
    return Promise.all(plots.filter((div) => div.data).map((div) => Plotly.relayout(div, themeLayout(div))));
  }

  function show(theme) {
    root.dataset.theme = theme;
    return recolour();
  }

  document.getElementById("theme").addEventListener("click", () => {
    const theme = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("featkit-theme", theme); } catch { /* no storage: it holds until the page closes */ }
    show(theme);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => show(event.matches ? "dark" : "light"));

  const PAPER_WIDTH = 690;  // css px between the margins of A4
  let before = null;
  addEventListener("beforeprint", () => {
    for (const div of plots) {
      div.style.setProperty("--print-height", `${div.clientHeight}px`);
      div.style.setProperty("--print-zoom", Math.min(1, PAPER_WIDTH / div.clientWidth));
    }
    before = root.dataset.theme;
    show("light");
  });
  addEventListener("afterprint", () => { show(before ?? root.dataset.theme); });

  /* ---- figures -------------------------------------------------------------------------------------------- */

  function unpackColours(trace) {
    if (!trace.meta?.rgb) return;
    const bytes = Uint8Array.from(atob(trace.meta.rgb), (c) => c.charCodeAt(0));
    const colours = new Array(bytes.length / 3);
    for (let i = 0; i < colours.length; i++) {
      colours[i] = `rgb(${bytes[3 * i]},${bytes[3 * i + 1]},${bytes[3 * i + 2]})`;
    }
    trace.marker.color = colours;
    delete trace.meta;
  }

  async function draw(div) {
    const spec = JSON.parse(div.nextElementSibling.textContent);
    spec.data.forEach(unpackColours);
    const views = spec.layout.meta?.views;
    if (views) {  // the one that is made for the widest card that is not wider than this one
      const { eye, center } = views.findLast((view) => view.aspect <= div.clientWidth / div.clientHeight) ?? views[0];
      Object.assign(spec.layout.scene.camera, { eye, center });
    }
    // The buttons are named one by one: plotly's default ones include an upload to its makers' server.
    const buttons = views ? ["toImage", "zoom3d", "pan3d", "tableRotation", "resetCameraDefault3d"] : ["toImage"];
    const config = { displaylogo: false, responsive: true, plotlyServerURL: "", modeBarButtons: [buttons] };
    await Plotly.newPlot(div, spec.data, nested(spec.layout, themeLayout(div)), config);
  }

  async function drawAll() {
    for (const div of plots) {
      try {
        await draw(div);
      } catch (error) {
        div.textContent = "This figure cannot be drawn here.";
        console.error(error);
      }
    }
    root.dataset.ready = "true";
  }

  /* ---- tables --------------------------------------------------------------------------------------------- */

  const collator = new Intl.Collator(undefined, { numeric: true });

  function compare(a, b, sign) {
    const [keyA, keyB] = [a.dataset.sort, b.dataset.sort];
    if (keyA === "" || keyB === "") return (keyA === "") - (keyB === "");  // gaps stay at the end either way
    if (keyA !== undefined && keyB !== undefined) return sign * (Number(keyA) - Number(keyB));
    return sign * collator.compare(a.textContent, b.textContent);
  }

  function sortBy(header) {
    const table = header.closest("table");
    const body = table.tBodies[0];
    const column = header.cellIndex;
    const ascending = header.ariaSort !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.ariaSort = "none";
    header.ariaSort = ascending ? "ascending" : "descending";
    const rows = [...body.rows].filter((row) => row.cells.length > column);
    rows.sort((a, b) => compare(a.cells[column], b.cells[column], ascending ? 1 : -1));
    body.append(...rows);
  }

  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => sortBy(button.parentElement));
  }

  drawAll();
})();
