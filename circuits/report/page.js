"use strict";
// The report's controls. All data stands in the page; nothing is fetched.
(() => {
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const chosen = { task: null, granularity: null, prompt: 0, head: null };
  const at = (id) => document.getElementById(id);
  const settings = data.config;

  const fill = (select, values, labels) => {
    select.replaceChildren(
      ...values.map((value) => {
        const option = document.createElement("option");
        option.value = value;
        option.textContent = labels(value);
        return option;
      })
    );
  };

  const showPatterns = () => {
    const example = data.tasks[chosen.task].examples[chosen.prompt];
    const known = example && ["dense", "sparse"].every((side) => example.patterns[side][chosen.head]);
    at("pattern-figure").parentElement.hidden = !known;
    if (!known) return Promise.resolve();
    const panels = ["dense", "sparse"].map((side, index) => ({
      type: "heatmap",
      z: example.patterns[side][chosen.head].map((query) => query.map((share) => share / 1000)),
      x: example.tokens,
      y: example.tokens,
      zmin: 0,
      zmax: 1,
      colorscale: [[0, "#FFFFFF"], [1, data.colours[side]]],
      showscale: false,
      xaxis: index ? "x2" : "x",
      yaxis: index ? "y2" : "y",
      hovertemplate: "from %{y}<br>to %{x}<br>%{z:.3f}<extra></extra>",
    }));
    const axis = { tickfont: { size: 10 }, automargin: true, showline: true, mirror: true };
    const layout = {
      title: { text: `${chosen.head}: attention after the gate, dense and sparse`, x: 0, xref: "paper" },
      font: { family: "system-ui, sans-serif", size: 12 },
      height: 220 + 15 * example.tokens.length,
      margin: { t: 60, r: 20 },
      xaxis: { ...axis, domain: [0, 0.49], tickangle: 90 },
      xaxis2: { ...axis, domain: [0.51, 1], tickangle: 90, anchor: "y2" },
      yaxis: { ...axis, autorange: "reversed" },
      yaxis2: { ...axis, autorange: "reversed", anchor: "x2", showticklabels: false },
    };
    return Plotly.react("pattern-figure", panels, layout, settings);
  };

  const chooseHead = (head) => {
    chosen.head = head;
    at("head").value = head;
    return showPatterns();
  };

  const showCircuits = async () => {
    const task = data.tasks[chosen.task];
    const figures = task.diagrams[chosen.granularity];
    const figure = figures[chosen.prompt] ?? figures[0];
    // The figures are copied: plotly writes into what it is given.
    await Plotly.react("circuits-figure", structuredClone(figure.data), structuredClone(figure.layout), settings);
    const heads = task.heads[chosen.granularity];
    fill(at("head"), heads, (head) => head);
    at("said").textContent =
      `${chosen.task}, circuits of ${data.units[chosen.granularity]}: ${heads.length} heads in either circuit. ` +
      "Click a head, or choose one above, to see where it attends.";
    await chooseHead(heads.includes(chosen.head) ? chosen.head : heads[0] ?? null);
  };

  const chooseTask = (name) => {
    chosen.task = name;
    const granularities = Object.keys(data.tasks[name].diagrams);
    fill(at("granularity"), granularities, (one) => data.units[one]);
    if (!granularities.includes(chosen.granularity)) chosen.granularity = granularities[0];
    at("granularity").value = chosen.granularity;
    const examples = data.tasks[name].examples;
    const numbers = examples.map((_, number) => number);
    fill(at("prompt"), numbers, (one) => `${examples[one].text} … ${examples[one].answer.trim()}`);
    chosen.prompt = 0;
    at("prompt").parentElement.hidden = examples.length === 0;
    return showCircuits();
  };

  // What a control last did, for whoever waits for it (and for the tests).
  const then = (work) => { window.lastChange = work; };
  at("task").addEventListener("change", (event) => then(chooseTask(event.target.value)));
  at("granularity").addEventListener("change", (event) => {
    chosen.granularity = event.target.value;
    then(showCircuits());
  });
  at("prompt").addEventListener("change", (event) => {
    chosen.prompt = Number(event.target.value);
    then(showCircuits());
  });
  at("head").addEventListener("change", (event) => then(chooseHead(event.target.value)));
  then(
    chooseTask(Object.keys(data.tasks)[0]).then(() => {
      at("circuits-figure").on("plotly_click", (event) => {
        const name = String(event.points[0].customdata ?? "").split(" ")[0];
        if (/^a\d+\.h\d+$/.test(name)) then(chooseHead(name));
      });
    })
  );

  // Figures: a button for each, that works by keyboard, beside plotly's own.
  for (const figure of document.querySelectorAll(".figure > div")) {
    const button = document.createElement("button");
    button.textContent = "Download as SVG";
    button.addEventListener("click", () =>
      Plotly.downloadImage(figure.querySelector(".js-plotly-plot") ?? figure, { format: "svg", filename: "circuits" })
    );
    figure.parentElement.append(button);
  }

  // Tables: each head sorts its column, numbers as numbers, a second time the other way round.
  const valueOf = (cell) => {
    const text = cell.textContent.trim();
    const number = text === "∞" ? Infinity : parseFloat(text.replace(" %", ""));
    return Number.isNaN(number) ? (text === "-" ? -Infinity : text) : number;
  };
  for (const table of document.querySelectorAll("table")) {
    table.querySelectorAll("thead th").forEach((head, column) => {
      const button = document.createElement("button");
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const rows = [...body.rows].sort((one, other) => {
          const [a, b] = [one, other].map((row) => valueOf(row.cells[column]));
          const order = typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
          return down ? -order : order;
        });
        body.append(...rows);
      });
    });
  }
})();
