"use strict";
// The evidence: tables that sort, explain their columns and download; figures that follow the theme.
(() => {
  const { at, html } = report;
  const data = JSON.parse(at("evidence-data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  // Each head sorts its column, a second time the other way round.
  const valueOf = (row, column) => {
    const text = row.cells[column].dataset.value;
    const number = { inf: Infinity, "-inf": -Infinity, True: 1, False: 0 }[text] ?? Number(text);
    return text === "" || Number.isNaN(number) ? text : number;
  };
  const compared = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
  for (const table of document.querySelectorAll("figure.table table")) {
    table.querySelectorAll("thead th").forEach((head, column) => {
      head.firstChild.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows].sort((one, other) =>
          compared(valueOf(one, column), valueOf(other, column)) * (down ? -1 : 1));
        table.tBodies[0].append(...rows);
      });
    });
  }
  for (const button of document.querySelectorAll("[data-csv]")) {
    const name = button.dataset.csv;
    button.addEventListener("click", () => report.saveFile(data.csv[name], "text/csv", `${name}.csv`));
  }

  // What a column means, to whoever points at its head or comes to it by keyboard.
  const tip = at("tip");
  const explain = (event) => {
    const head = event.target.closest?.("[data-tip]");
    tip.hidden = !head?.dataset.tip;
    if (tip.hidden) return;
    tip.textContent = head.dataset.tip;
    head.setAttribute("aria-describedby", "tip");
    const box = head.getBoundingClientRect();
    tip.style.top = `${box.bottom + 6}px`;
    tip.style.left = `${Math.max(8, Math.min(box.left, window.innerWidth - tip.offsetWidth - 8))}px`;
  };
  document.addEventListener("pointerover", explain);
  document.addEventListener("focusin", explain);
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  // Figures: plotly's, with the page's ink; drawn when they come into view.
  const inked = (isDark) => {
    const [ink, grid] = isDark ? ["#dcdcdc", "#3a3a3a"] : ["#222222", "#e6e6e6"];
    const axis = { linecolor: ink, gridcolor: grid, zerolinecolor: grid };
    return { ink, look: { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink }, xaxis: axis, yaxis: axis } };
  };
  // Plotly, which is half of a page if it is not packed.
  const unpacked = async () => {
    const packed = Uint8Array.from(atob(at("plotly").textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    document.head.append(html("script", {}, await new Response(stream).text()));
  };
  let plotly = null;
  const drawn = new Set();
  const withInk = ({ data: traces, layout }, isDark) => {
    const { ink, look } = inked(isDark);
    const figure = structuredClone({ data: traces, layout });
    const template = figure.layout.template.layout;
    for (const [part, values] of Object.entries(look))
      template[part] = typeof values === "string" ? values : { ...template[part], ...values };
    for (const trace of figure.data) if (trace.error_y) trace.error_y.color = ink;
    return figure;
  };
  const paint = (room, isDark) => {
    const { data: traces, layout } = withInk(data.figures[room.parentElement.dataset.figure], isDark);
    return Plotly.react(room, traces, layout, data.config);
  };
  const draw = async (element) => {
    if (drawn.has(element)) return;
    drawn.add(element);
    try {
      await plotly;
    } catch (error) {
      element.append(html("p", { class: "note" }, `This browser cannot unpack the figures (${error.message}); they are in the folder figures beside this page.`));
      return;
    }
    // Titles and legends are as wide as they are: on a narrow screen the figure scrolls.
    const room = html("div", { class: "plot" });
    element.append(room);
    await paint(room, dark.matches);
    const name = element.dataset.figure.replace(/[^\w.]/g, "_");
    element.append(html("button", { click: () => Plotly.downloadImage(room, { format: "svg", filename: name }) }, "Download as SVG"));
  };
  report.drawFigures = () => {
    plotly = unpacked();
    plotly.catch(() => {}); // Said where a figure would stand.
    const figures = document.querySelectorAll("[data-figure]");
    const seen = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) if (isIntersecting) draw(target);
    }, { rootMargin: "600px" });
    figures.forEach((figure) => seen.observe(figure));
    const inkAll = (isDark) => document.querySelectorAll(".plot.js-plotly-plot").forEach((room) => paint(room, isDark));
    dark.addEventListener("change", () => inkAll(dark.matches));
    // On paper everything is there, in dark ink.
    window.addEventListener("beforeprint", () => {
      document.querySelectorAll("details").forEach((one) => { one.open = true; });
      figures.forEach(draw);
      inkAll(false);
    });
    window.addEventListener("afterprint", () => inkAll(dark.matches));
  };
})();
