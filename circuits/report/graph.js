"use strict";
// The circuits as layered graphs: one layout for all, so that a node has one place.
// Edges of one look are one path, which keeps thousands of them quick; nodes are elements of their
// own, which can be clicked and reached by keyboard.
(() => {
  const { svg, html, SIDES, scored } = report;
  const WIDTHS = [0.5, 0.8, 1.2, 1.8, 2.6, 3.6];
  const GUTTER = 26;
  const READS = { q: -0.28, k: 0, v: 0.28, "-": 0 }; // Where an edge ends, in widths of its node.
  const MOST_COLUMNS = 16;
  const MANY = 1000;

  const layerOf = (name) => Number(/^[am](\d+)/.exec(name)?.[1]);
  const headOf = (name) => Number(/h(\d+)$/.exec(name)?.[1]);
  const isInner = (name) => name !== "input" && name !== "logits";

  // Places of all nodes of any circuit; layers and heads that none uses take no room.
  const placed = (pair, width) => {
    const names = [...new Set(SIDES.flatMap((side) => pair[side].nodes))].filter(isInner);
    const layers = [...new Set(names.map(layerOf))].sort((a, b) => a - b);
    const rows = layers.map((layer) =>
      names.filter((name) => name[0] === "a" && layerOf(name) === layer).sort((a, b) => headOf(a) - headOf(b)));
    const heads = [...new Set(rows.flat().map(headOf))].sort((a, b) => a - b);
    // A head's number is its column, unless that would take more columns than there is room for.
    const aligned = heads.length <= MOST_COLUMNS;
    const columns = Math.max(1, aligned ? heads.length : Math.max(...rows.map((row) => row.length)));
    const slot = (width - GUTTER) / (columns + 1.7);
    const pitch = Math.min(92, Math.max(32, 640 / (layers.length + 1)));
    const w = Math.min(52, slot * 0.92), h = Math.min(20, pitch * 0.45, Math.max(8, slot * 0.8));
    const height = (layers.length + 1) * pitch + 2 * h + 8;
    const places = new Map();
    const middle = GUTTER + (columns * slot) / 2;
    const wide = Math.max(w, Math.min(60, width / 4));
    places.set("input", { x: middle, y: height - h / 2 - 2, w: wide, h });
    places.set("logits", { x: middle, y: h / 2 + 2, w: wide, h });
    layers.forEach((layer, row) => {
      const y = height - h - 2 - (row + 0.7) * pitch;
      const shift = slot * (0.5 + 0.2 * (row % 3)); // Or edges between equal heads would coincide.
      rows[row].forEach((name, number) => {
        const column = aligned ? heads.indexOf(headOf(name)) : (columns - rows[row].length) / 2 + number;
        places.set(name, { x: GUTTER + shift + column * slot, y, w, h });
      });
      places.set(`m${layer}`, { x: GUTTER + shift + (columns + 0.25) * slot, y: y - pitch / 2, w, h });
    });
    return { places, height, marks: layers.map((layer, row) => ({ layer, y: height - h - 2 - (row + 0.7) * pitch })) };
  };

  const tenth = (value) => Math.round(value * 10) / 10;
  const curve = (from, to, read) => {
    const x0 = from.x, y0 = from.y - from.h / 2, x1 = to.x + READS[read] * to.w, y1 = to.y + to.h / 2;
    const rise = (y0 - y1) * 0.45, bend = Math.abs(x1 - x0) < from.w ? Math.min(60, (y0 - y1) * 0.12) : 0;
    return `M${tenth(x0)} ${tenth(y0)}C${tenth(x0 + bend)} ${tenth(y0 - rise)} ${tenth(x1 + bend)} ${tenth(y1 + rise)} ${tenth(x1)} ${tenth(y1)}`;
  };

  // How opaque is drawn what so many halves of the prompts have in their circuits; all, if unknown.
  const shadeOf = (circuit, count) => (count === undefined ? 1 : 0.25 + (0.75 * Math.round((4 * count) / circuit.halves)) / 4);

  // A circuit's edges, the strongest first, and those of each node; paths are made when needed.
  const prepared = (circuit, places, kindOf) => {
    const own = new Map(circuit.nodes.map((name) => [name, []]));
    const strongest = Math.abs(circuit.score[0] ?? 0) || 1;
    const edges = circuit.src.map((src, number) => {
      const [from, to] = [circuit.nodes[src], circuit.nodes[circuit.dest[number]]];
      const read = circuit.read[number], score = circuit.score[number];
      const level = Math.min(5, Math.floor(6 * Math.sqrt(Math.abs(score) / strongest)));
      const kind = to === "logits" ? "logits" : to[0] === "m" ? "mlp" : read;
      const sign = score < 0 ? "counters" : "supports";
      // What it is in the legend: an edge is hidden with any of these, its ends' entries included.
      const entries = [sign, kind, kindOf(from), kindOf(to)];
      const shade = shadeOf(circuit, circuit.edges_in?.[number]);
      const edge = { from, to, look: `${sign} ${kind} ${shade} ${level}`, entries, read, path: null };
      own.get(from).push(edge);
      own.get(to).push(edge);
      return edge;
    });
    return { edges, own, pathOf: (edge) => (edge.path ??= curve(places.get(edge.from), places.get(edge.to), edge.read)) };
  };
  const shownOf = (edges, hidden) =>
    (hidden.size ? edges.filter((edge) => !edge.entries.some((entry) => hidden.has(entry))) : edges);

  // One path for each look of the given edges, the strongest last.
  const pathsOf = (edges, pathOf, thinnest = 0) => {
    const looks = new Map();
    for (const edge of edges) {
      if (looks.has(edge.look)) looks.get(edge.look).push(pathOf(edge));
      else looks.set(edge.look, [pathOf(edge)]);
    }
    const order = [...looks].sort(([a], [b]) => a.slice(-1) - b.slice(-1));
    return order.map(([look, paths]) => {
      const [sign, kind, shade, level] = look.split(" ");
      return svg("path", { d: paths.join(""), class: `edge ${sign} ${kind}`, "stroke-width": Math.max(thinnest, WIDTHS[level]), opacity: tenth(10 * (0.4 + 0.1 * level) * shade) / 10 });
    });
  };

  const nodeElement = (name, place, edges, total, side, kind, circuit) => {
    const own = edges !== undefined;
    // Of a circuit's nodes only: others have a mark of their own.
    const count = own && isInner(name) ? circuit.nodes_in?.[circuit.nodes.indexOf(name)] : undefined;
    const shade = shadeOf(circuit, count);
    const outgoing = own ? edges.filter((edge) => edge.from === name).length : 0;
    const described = own
      ? `${name}, ${report.isPair ? `${side} model, ${kind === "shared" ? "in both circuits" : "in this circuit only"}; ` : ""}` +
        `${edges.length - outgoing} edges in, ${outgoing} out${name === "logits" ? "" : `; score ${scored(total)}`}` +
        (count === undefined ? "" : `; in ${count} of ${circuit.halves} halves of the prompts`)
      : `${name}, ${side} model, not in this circuit`;
    const label = place.w >= 36 || !isInner(name) ? name : place.w >= 17 ? name.replace(/^a\d+\./, "") : "";
    const size = Math.min(11, place.h * 0.75, (1.7 * place.w) / Math.max(2, label.length));
    return svg("g",
      { class: `node ${own ? kind : "absent"}${shade < 1 ? " shaded" : ""}${shade < 0.6 ? " pale" : ""}`, "data-node": name, tabindex: -1, role: "button", "aria-label": described,
        style: shade < 1 ? `--shade: ${Math.round(100 * shade)}%` : null,
        transform: `translate(${tenth(place.x)} ${tenth(place.y)})` },
      svg("title", {}, described),
      own
        ? svg("rect", { x: -place.w / 2, y: -place.h / 2, width: place.w, height: place.h, rx: Math.min(5, place.h / 3) })
        : svg("circle", { r: Math.min(3.5, place.h / 4) }),
      own && label ? svg("text", { y: size * 0.36, "font-size": size, "text-anchor": "middle" }, label) : null,
    );
  };

  // The nearest node in the direction of an arrow key.
  const neighbour = (nodes, from, key) => {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
    let best = null, least = Infinity;
    for (const node of nodes) {
      const x = node.place.x - from.place.x, y = node.place.y - from.place.y;
      const along = x * dx + y * dy, aside = Math.abs(x * dy) + Math.abs(y * dx);
      if (along > 1 && along + 2.5 * aside < least) [best, least] = [node, along + 2.5 * aside];
    }
    return best;
  };

  const panelOf = (side, circuit, layout, width, kindOf, choose) => {
    const { places, height, marks } = layout;
    const size = { viewBox: `0 0 ${width} ${height}`, width, height };
    const { edges, own, pathOf } = prepared(circuit, places, kindOf);
    const totals = new Map(circuit.nodes.map((name, number) => [name, circuit.totals[number]]));
    const base = svg("svg", { ...size, class: "edges", "aria-hidden": "true" });
    const lit = svg("g", { class: "lit" });
    const nodes = [...places].filter(([name]) => kindOf(name)).map(([name, place]) =>
      ({ name, place, kind: kindOf(name), element: nodeElement(name, place, own.get(name), totals.get(name), side, kindOf(name), circuit) }));
    const top = svg("svg", { ...size, class: "nodes", role: "group", "aria-label": `Circuit of the ${report.isPair ? `${side} model` : side}; arrow keys go from node to node` },
      svg("g", { class: "layers", "aria-hidden": "true" },
        svg("text", { x: 0, y: 10, class: "axis-name" }, "layer"),
        marks.map(({ layer, y }) => svg("text", { x: 2, y: y + 4 }, layer))),
      lit, nodes.map(({ element }) => element));
    nodes[0].element.setAttribute("tabindex", 0);
    const caption = html("figcaption", { class: side });
    // Chromium takes an SVG with listeners of its own as one thing to focus: the frame listens.
    const frame = html("div", { class: "layers-of-drawing" }, base, top);
    const nameOf = (event) => event.target.closest("[data-node]")?.dataset.node;
    frame.addEventListener("click", (event) => { if (nameOf(event)) choose(nameOf(event)); });
    frame.addEventListener("keydown", (event) => {
      const from = nodes.find(({ element }) => element === document.activeElement);
      if (!from) return;
      if (event.key === "Enter" || event.key === " ") choose(from.name);
      else if (event.key.startsWith("Arrow")) {
        const shown = nodes.filter(({ element }) => element.getAttribute("display") !== "none");
        neighbour(shown, from, event.key)?.element.focus();
      } else return;
      event.preventDefault();
    });
    frame.addEventListener("focusin", (event) => {
      if (!nameOf(event)) return;
      choose(nameOf(event));
      for (const { element } of nodes) element.setAttribute("tabindex", element === event.target ? 0 : -1);
    });

    return {
      element: html("figure", { class: "graph" }, caption, frame),
      drawings: [base, top],
      drawEdges(count, hidden) {
        const drawn = shownOf(edges.slice(0, count), hidden);
        base.replaceChildren(...pathsOf(drawn, pathOf));
        // Dashes of thousands of edges cannot be told apart, and take most of the time to draw.
        base.classList.toggle("many", drawn.length > MANY);
        const touched = new Set(drawn.flatMap((edge) => [edge.from, edge.to]));
        for (const { name, kind, element } of nodes) {
          element.classList.toggle("faint", !touched.has(name));
          if (hidden.has(kind)) element.setAttribute("display", "none");
          else element.removeAttribute("display");
        }
      },
      light(chosen, hidden) {
        const its = shownOf(own.get(chosen) ?? [], hidden);
        lit.replaceChildren(...pathsOf(its, pathOf, 1));
        base.classList.toggle("dimmed", chosen !== null);
        const near = new Set(its.flatMap((edge) => [edge.from, edge.to]));
        for (const { name, element } of nodes) {
          element.classList.toggle("chosen", name === chosen);
          element.classList.toggle("far", chosen !== null && name !== chosen && !near.has(name));
          element.setAttribute("aria-pressed", name === chosen);
        }
      },
      mark(text) {
        for (const { name, element } of nodes) element.classList.toggle("marked", text !== "" && name.includes(text));
      },
      say(text) { caption.textContent = text; },
    };
  };

  // Draws the circuits into a container; what is returned changes them without a new layout.
  report.drawGraphs = (container, pair, choose) => {
    const members = Object.fromEntries(SIDES.map((side) => [side, new Set(pair[side].nodes)]));
    const kindOf = (name) => {
      const having = SIDES.filter((side) => members[side].has(name));
      if (!isInner(name)) return "shared";
      return report.isPair && having.length === 2 ? "shared" : having[0] ?? null;
    };
    container.className = report.isPair ? "two" : "one";
    container.replaceChildren(...SIDES.map(() => html("div")));
    const width = report.widthOf(container.firstChild);
    const layout = placed(pair, width);
    const panels = SIDES.map((side) => panelOf(side, pair[side], layout, width, kindOf, choose));
    container.replaceChildren(...panels.map((panel) => panel.element));
    return {
      most: Math.max(1, ...SIDES.map((side) => pair[side].score.length)),
      reading: (SIDES.some((side) => pair[side].halves) ? "Nodes and edges are the paler, the fewer halves of the prompts have them in a circuit found again. " : "") +
        `Layers run from the bottom to the top. A node ${report.isPair ? "stands at the same place in both models, and " : ""}is pale where ` +
        "none of its edges is drawn. An edge is the wider the larger its share of its circuit's strongest score. Click a " +
        "node, or Tab to it and use the arrow keys.",
      legend: [
        ...(report.isPair ? [["shared", "node", "in both"], ...SIDES.map((side) => [side, "node", `only ${side}`])] : []),
        ["supports", "line", "supports"], ["counters", "line", "counters"],
        ["q", "line", "into a query"], ["k", "line", "into a key"], ["v", "line", "into a value"],
        ["mlp", "line", "into an MLP"], ["logits", "line", "into the logits"],
      ],
      drawings: () => panels.flatMap((panel) => panel.drawings),
      draw: (count, hidden) => panels.forEach((panel, index) => {
        const circuit = pair[SIDES[index]];
        panel.drawEdges(count, hidden);
        const drawn = Math.min(count, circuit.score.length);
        panel.say(`${report.prefix(SIDES[index])}${report.counted(circuit.size)}` + (
          drawn === circuit.n_edges && !report.countsOther() ? ", all drawn"
            : `; ${report.sized(drawn)} of ${report.sized(circuit.n_edges)} edges drawn` +
              (circuit.n_edges > circuit.score.length ? ` (the page holds the ${report.sized(circuit.score.length)} strongest)` : "")));
      }),
      light: (chosen, hidden) => panels.forEach((panel) => panel.light(chosen, hidden)),
      mark: (text) => panels.forEach((panel) => panel.mark(text)),
    };
  };
})();
