"use strict";
// Circuits of attention edges: arcs over the tokens of one prompt, dense above and sparse below; that of a model alone
// above.
(() => {
  const { svg, html, SIDES, scored, cut } = report;
  const TALLEST = 190, LOOP = 20;

  const arcPath = (query, key, lift, sign, step) => {
    const x0 = (key + 0.5) * step, x1 = (query + 0.5) * step;
    if (query === key) return { d: `M${x0 - 5} 0C${x0 - 14} ${-sign * (LOOP + lift)} ${x0 + 14} ${-sign * (LOOP + lift)} ${x0 + 5} 0`, x: x0, y: sign * (LOOP + lift) * 0.78 };
    const height = 26 + (TALLEST - 40) * Math.sqrt((query - key) * step / 1400) + lift;
    return { d: `M${x0} 0C${x0} ${-sign * height * 1.33} ${x1} ${-sign * height * 1.33} ${x1} 0`, x: (x0 + x1) / 2, y: sign * height };
  };

  const prepared = (edges, sign, step) => {
    const strongest = Math.max(...edges.map(([, , , score]) => Math.abs(score)), 0) || 1;
    const sharing = new Map(), drawn = new Map();
    const ends = ([, query, key]) => `${query} ${key}`;
    for (const edge of edges) sharing.set(ends(edge), (sharing.get(ends(edge)) ?? 0) + 1);
    return edges.map((edge) => {
      const [name, query, key, score] = edge;
      const before = drawn.get(ends(edge)) ?? 0;
      drawn.set(ends(edge), before + 1);
      // Heads that share a pair of tokens lie over each other, all within a band of 60 pixels.
      const lift = before * Math.min(9, 60 / sharing.get(ends(edge)));
      return { name, query, key, score, sign: score < 0 ? "counters" : "supports", ends: ends(edge),
        width: 1 + 3.5 * Math.sqrt(Math.abs(score) / strongest), ...arcPath(query, key, lift, sign, step) };
    });
  };

  // Names of heads at the tops of their arcs: as many as do not cover each other.
  const labels = (arcs, sign, chosen, choose, width) => {
    const taken = [];
    const groups = new Map();
    for (const arc of arcs) groups.set(arc.ends, [...(groups.get(arc.ends) ?? []), arc]);
    const own = (several) => several.some((arc) => arc.name === chosen);
    return [...groups.values()].sort((a, b) => own(b) - own(a)).map((several) => {
      const first = several.find((arc) => arc.name === chosen) ?? several[0];
      const others = new Set(several.map((arc) => arc.name)).size - 1;
      const text = first.name + (others ? ` +${others}` : "");
      const top = Math.max(...several.map((arc) => sign * arc.y));
      const half = text.length * 3.2, y = -sign * (top + 9);
      const x = Math.min(width - half, Math.max(half, first.x));
      if (taken.some((box) => Math.abs(box.x - x) < box.half + half + 3 && Math.abs(box.y - y) < 12)) return null;
      taken.push({ x, y, half });
      return svg("text", { x, y: y + 4, "text-anchor": "middle", class: `arc-name${own(several) ? " chosen" : ""}`,
        "data-node": first.name, click: () => choose(first.name) }, text);
    });
  };

  report.drawArcs = (container, pair, prompt, example, choose) => {
    container.className = "one";
    container.replaceChildren();
    const { tokens } = example;
    const width = report.widthOf(container);
    const step = width / tokens.length;
    const longest = Math.min(14, Math.max(...tokens.map((token) => token.length)));
    const flat = step > 7 * longest;
    const band = flat ? 26 : 7 * longest + 12;
    const edges = Object.fromEntries(SIDES.map((side) => [side, pair[side].prompts[prompt]]));
    const arcs = SIDES.map((side, index) => prepared(edges[side], index ? -1 : 1, step));
    const reach = arcs.map((several) => 24 + Math.max(0, ...several.map((arc) => Math.abs(arc.y))));
    const height = reach[0] + band + (reach[1] ?? 0);
    const layers = SIDES.map((side, index) => svg("g", { class: `arcs ${side}`, transform: `translate(0 ${reach[0] + (index ? band : 0)})` }));
    const captions = SIDES.map((side) => html("figcaption", { class: side }));
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
        "aria-label": `Attention edges over the tokens: ${tokens.join(" ")}` },
      tokens.map((token, number) => {
        const x = (number + 0.5) * step, y = reach[0] + band / 2;
        return svg("text", flat
          ? { x, y: y + 4, "text-anchor": "middle", class: "token" }
          : { transform: `translate(${x + 4} ${y}) rotate(-90)`, "text-anchor": "middle", class: "token" }, cut(token, 14));
      }),
      layers);
    container.replaceChildren(html("figure", { class: "graph" }, captions[0], drawing, captions.slice(1)));
    let shown = [[], []];
    const relabel = (chosen) => shown.forEach((several, index) => {
      layers[index].querySelectorAll(".arc-name").forEach((label) => label.remove());
      layers[index].append(...labels(several, index ? -1 : 1, chosen, choose, width).filter(Boolean));
    });
    return {
      most: Math.max(1, ...SIDES.map((side) => edges[side].length)),
      reading: "An arc leads from the query at its right end to the key at its left, a loop stays at its token. It is the " +
        "wider the larger its share of its circuit's strongest score. Click an arc or a name for its head.",
      legend: [...(report.isPair ? SIDES.map((side) => [side, "line", side]) : []), ["supports", "line", "supports"], ["counters", "line", "counters"]],
      drawings: () => [drawing],
      draw(count, hidden, chosen) {
        shown = arcs.map((several, index) =>
          several.slice(0, count).filter((arc) => !hidden.has(SIDES[index]) && !hidden.has(arc.sign)));
        shown.forEach((several, index) => {
          const side = SIDES[index], whole = edges[side].length;
          layers[index].replaceChildren(...several.map((arc) =>
            svg("path", { d: arc.d, class: `arc ${arc.sign}`, "stroke-width": arc.width, "data-node": arc.name, click: () => choose(arc.name) },
              svg("title", {}, `${arc.name}: ${tokens[arc.query]} → ${tokens[arc.key]}  ${scored(arc.score)}`))));
          captions[index].textContent = `${report.prefix(side)}${report.counted(whole)} on this prompt` +
            `${several.length < whole ? `, ${report.sized(several.length)} drawn` : ""}; mean over prompts ${report.sized(pair[side].size)}`;
        });
        relabel(chosen);
      },
      light(chosen) {
        for (const layer of layers) {
          layer.classList.toggle("dimmed", chosen !== null);
          for (const path of layer.querySelectorAll(".arc")) path.classList.toggle("chosen", path.dataset.node === chosen);
        }
        relabel(chosen);
      },
      mark(text) {
        for (const path of drawing.querySelectorAll("[data-node]")) path.classList.toggle("marked", text !== "" && path.dataset.node.includes(text));
      },
    };
  };
})();
