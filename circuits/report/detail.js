"use strict";
// What stands beside the drawing: all nodes with their roles, or one node with its attention
// pattern and its edges in each model.
(() => {
  const { html, SIDES, scored } = report;
  const FEW = 30;
  const HEADS = report.isPair ? SIDES : ["score"]; // Of the columns of scores.
  const strength = (row) => Math.max(...SIDES.map((side) => Math.abs(row[side] ?? 0)));
  const byStrength = (rows) => rows.sort((a, b) => strength(b) - strength(a));
  const words = (role) => (role ?? "").replaceAll("_", " ");

  const nodeButton = (name, choose) => html("button", { class: "link", click: () => choose(name) }, name);

  // A table of at most FEW rows, and a button that brings the others.
  const listed = (title, heads, rows, cells) => {
    const body = html("tbody");
    const add = (some) => body.append(...some.map((row) => html("tr", {}, cells(row).map((cell) => html("td", {}, cell)))));
    add(rows.slice(0, FEW));
    const rest = rows.slice(FEW);
    const more = html("button", { click: () => { add(rest); more.remove(); } }, `Show ${report.sized(rest.length)} more`);
    return html("section", {},
      html("h4", {}, title),
      rows.length
        ? html("table", {}, html("thead", {}, html("tr", {}, heads.map((head) => html("th", { scope: "col" }, head)))), body)
        : html("p", { class: "note" }, "none"),
      rest.length ? more : null);
  };

  const scores = (row) => SIDES.map((side) => scored(row[side]));

  // Rows by name, with a number for each side.
  const joined = (entries) => {
    const rows = new Map();
    for (const { name, side, score, ...others } of entries) {
      if (!rows.has(name)) rows.set(name, { name, ...others });
      rows.get(name)[side] = score;
    }
    return byStrength([...rows.values()]);
  };

  const allNodes = (pair, prompt) =>
    joined(SIDES.flatMap((side) => {
      const circuit = pair[side];
      if (circuit.nodes)
        return circuit.nodes.map((name, number) => ({ name, side, score: circuit.totals[number] })).filter(({ name }) => name !== "logits" && name !== "input");
      const sums = new Map();
      for (const [name, , , score] of circuit.prompts[prompt]) sums.set(name, (sums.get(name) ?? 0) + score);
      return [...sums].map(([name, score]) => ({ name, side, score }));
    }));
  report.allNodes = allNodes;

  const overview = ({ task, pair, prompt }, choose) => {
    const roleOf = (side, name) => words(task.roles[side][name]?.[0]);
    const role = (name) => {
      const roles = SIDES.map((side) => roleOf(side, name));
      return new Set(roles).size === 1 ? roles[0] : roles.map((one) => one || "–").join(" / ");
    };
    return [
      html("h3", {}, "All nodes"),
      html("p", { class: "note" }, "Choose a node, here or in the drawing, to see its edges, its role and its attention. A score is the sum over a node's edges."),
      listed("The strongest first", ["node", ...HEADS, report.isPair ? `role, ${SIDES.join(" / ")}` : "role"], allNodes(pair, prompt),
        (row) => [nodeButton(row.name, choose), ...scores(row), role(row.name)]),
    ];
  };

  const edgesOf = (pair, node, end) =>
    joined(SIDES.flatMap((side) => {
      const { nodes, src, dest, read, score } = pair[side];
      const number = nodes.indexOf(node);
      const [own, far] = end === "in" ? [dest, src] : [src, dest];
      return own.flatMap((one, edge) => {
        if (one !== number) return [];
        const other = nodes[far[edge]], letter = read[edge] === "-" ? "" : read[edge];
        return [{ name: `${other} ${letter}`, other, letter, side, score: score[edge] }];
      });
    }));

  const edgeLists = (pair, node, choose) => {
    const list = (end, title) => {
      const rows = edgesOf(pair, node, end);
      return listed(`${title} (${report.sized(rows.length)})`, [end === "in" ? "from" : "to", ...HEADS], rows, (row) =>
        [html("span", {}, nodeButton(row.other, choose), row.letter ? html("span", { class: "read" }, ` ${{ q: "query", k: "key", v: "value" }[row.letter]}`) : ""), ...scores(row)]);
    };
    return [node === "input" ? null : list("in", "Edges in"), node === "logits" ? null : list("out", "Edges out")];
  };

  const arcLists = (pair, node, prompt, tokens) => {
    const rows = joined(SIDES.flatMap((side) =>
      pair[side].prompts[prompt].filter(([name]) => name === node)
        .map(([, query, key, score]) => ({ name: `${query} ${key}`, query, key, side, score }))));
    return listed(`Attention edges on this prompt (${report.sized(rows.length)})`, ["query → key", ...HEADS], rows,
      (row) => [`${tokens[row.query]} → ${tokens[row.key]}`, ...scores(row)]);
  };

  const facts = (task, pair, node, prompt) => {
    const known = SIDES.filter((side) => task.roles[side][node]);
    const row = allNodes(pair, prompt).find(({ name }) => name === node) ?? {};
    const line = (title, values) => html("tr", {}, html("th", { scope: "row" }, title), values.map((value) => html("td", {}, value)));
    return html("table", { class: "facts" },
      report.isPair ? html("thead", {}, html("tr", {}, html("th"), SIDES.map((side) => html("th", { scope: "col", class: side }, side)))) : null,
      html("tbody", {},
        line("in the circuit", SIDES.map((side) => (row[side] === undefined ? "no" : "yes"))),
        line("score", scores(row)),
        known.length ? line("role", SIDES.map((side) => words(task.roles[side][node]?.[0]) || "–")) : null,
        known.length && report.isPair ? line("most like", SIDES.map((side) => {
          const role = task.roles[side][node];
          return role ? `${role[1]} of the other (${role[2].toFixed(2)})` : "–";
        })) : null));
  };

  report.showDetail = (container, view, choose) => {
    const { task, pair, prompt, node } = view;
    if (node === null) return container.replaceChildren(...overview(view, choose));
    const example = task.examples[prompt];
    const pattern = example && /^a/.test(node) ? report.patternPair(node, example, report.widthOf(container) - 28) : null;
    container.replaceChildren(...[
      html("h3", {}, node, " ", html("button", { class: "close", click: () => choose(null), "aria-label": `Let go of ${node}` }, "×")),
      node === "input" || node === "logits" ? null : facts(task, pair, node, prompt),
      pattern ? html("h4", {}, "Attention after the gate: rows look at columns") : null,
      pattern,
      ...[pair[SIDES[0]].nodes ? edgeLists(pair, node, choose) : arcLists(pair, node, prompt, example.tokens)].flat(),
    ].filter(Boolean));
    container.scrollTop = 0;
  };
})();
