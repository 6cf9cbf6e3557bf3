"use strict";
// The explorer's state: what is chosen, in the controls, in the drawing and in the address.
(() => {
  const { at, html, data } = report;
  const DRAWN_FIRST = 60, STEPS = 100;
  const chosen = { task: null, by: null, prompt: 0, node: null, count: DRAWN_FIRST, hidden: new Set() };
  let drawing = null;

  const task = () => data.tasks[chosen.task];
  const pair = () => task().circuits[chosen.by];
  const hasArcs = () => pair()[report.SIDES[0]].prompts !== undefined;

  report.counted = (size) => {
    const unit = data.units[chosen.by];
    return `${report.sized(size)} ${size === 1 ? unit.slice(0, -1) : unit}`;
  };
  // Whether what the size counts is not the edges that are drawn.
  report.countsOther = () => chosen.by !== "edge";

  const fill = (select, values, labels) =>
    select.replaceChildren(...values.map((value) => html("option", { value }, labels(value))));

  // The slider is logarithmic: the strongest few of many matter most.
  const countAt = (step) => Math.max(1, Math.round(drawing.most ** (step / STEPS)));
  const stepAt = (count) => (drawing.most === 1 ? STEPS : Math.round((STEPS * Math.log(Math.min(count, drawing.most))) / Math.log(drawing.most)));

  const showCount = () => {
    const shown = Math.min(chosen.count, drawing.most);
    at("counted").textContent = `${report.sized(shown)} of ${report.sized(drawing.most)}`;
    at("count").setAttribute("aria-valuetext", `${report.sized(shown)} of at most ${report.sized(drawing.most)}`);
  };

  const remember = () => {
    const { task, by, prompt, node, count, hidden } = chosen;
    const words = new URLSearchParams({ task, by, prompt });
    if (node !== null) words.set("node", node);
    if (count !== DRAWN_FIRST) words.set("n", count);
    if (hidden.size) words.set("hide", [...hidden].join(" "));
    history.replaceState(null, "", `#${words}`);
  };

  const say = () => {
    at("said").textContent = `${chosen.task}, ${data.units[chosen.by]}` +
      (chosen.node === null ? "; nothing chosen" : `; ${chosen.node} chosen`);
  };

  const show = () => {
    drawing.light(chosen.node, chosen.hidden);
    report.showDetail(at("detail"), { task: task(), pair: pair(), prompt: chosen.prompt, node: chosen.node }, chooseNode);
    at("node").value = chosen.node ?? "";
    say();
    remember();
  };

  const chooseNode = (node) => {
    if (node === chosen.node) return;
    chosen.node = node;
    show();
  };

  const drawCount = () => {
    drawing.draw(chosen.count, chosen.hidden, chosen.node);
    showCount();
  };

  const showLegend = () => {
    at("legend").classList.toggle("of-arcs", hasArcs());
    at("legend").replaceChildren(...drawing.legend.map(([key, kind, text]) =>
      html("button", { class: `entry ${kind} ${key}`, "data-key": key, "aria-pressed": !chosen.hidden.has(key), click: (event) => {
        if (!chosen.hidden.delete(key)) chosen.hidden.add(key);
        event.currentTarget.setAttribute("aria-pressed", !chosen.hidden.has(key));
        drawCount();
        show();
      } }, html("i"), text)));
  };

  // All anew: another task, kind of component or prompt, or another width of the window.
  const redraw = () => {
    const nodes = report.allNodes(pair(), chosen.prompt).map(({ name }) => name);
    const ends = hasArcs() ? [] : ["input", "logits"];
    if (chosen.node !== null && ![...nodes, ...ends].includes(chosen.node)) chosen.node = null;
    drawing = hasArcs()
      ? report.drawArcs(at("graphs"), pair(), chosen.prompt, task().examples[chosen.prompt], chooseNode)
      : report.drawGraphs(at("graphs"), pair(), chooseNode);
    fill(at("node"), ["", ...nodes, ...ends], (name) => name || "none");
    at("count").value = stepAt(chosen.count);
    at("reading").textContent = drawing.reading;
    showLegend();
    drawCount();
    show();
  };

  const known = (value, values) => (values.includes(value) ? value : values[0]);

  const choose = (wanted) => {
    chosen.task = known(wanted.task ?? chosen.task, Object.keys(data.tasks));
    const kinds = Object.keys(task().circuits);
    chosen.by = known(wanted.by ?? chosen.by, kinds);
    const { examples } = task();
    chosen.prompt = Number(known(String(wanted.prompt ?? chosen.prompt), ["0", ...examples.keys()].map(String)));
    if ("node" in wanted) chosen.node = wanted.node;
    if (wanted.count >= 1) chosen.count = Math.floor(wanted.count);
    if (wanted.hidden) chosen.hidden = new Set(wanted.hidden);
    fill(at("granularity"), kinds, (kind) => data.units[kind]);
    fill(at("prompt"), [...examples.keys()], (number) =>
      `${number + 1}: ${report.cut(examples[number].tokens.join(" "), 90)} … ${examples[number].answer}`);
    at("task").value = chosen.task;
    at("granularity").value = chosen.by;
    at("prompt").value = chosen.prompt;
    at("prompt").parentElement.hidden = examples.length === 0;
    redraw();
  };

  // What the address says, as far as the page knows it.
  const fromAddress = () => {
    const words = new URLSearchParams(location.hash.slice(1));
    if (!words.has("task")) return {};
    return { task: words.get("task"), by: words.get("by"), prompt: words.get("prompt"), node: words.get("node"),
      count: Number(words.get("n") ?? DRAWN_FIRST), hidden: (words.get("hide") ?? "").split(" ").filter(Boolean) };
  };

  const search = (text, go) => {
    const wanted = text.trim().toLowerCase();
    drawing.mark(wanted);
    const names = [...at("node").options].map((option) => option.value).filter(Boolean);
    const hits = names.filter((name) => name.includes(wanted));
    const best = names.find((name) => name === wanted) ?? (go ? hits[0] : undefined);
    if (wanted && best) chooseNode(best);
    else if (wanted) at("said").textContent = `${hits.length} nodes match ${wanted}`;
  };

  const start = () => {
    at("task").addEventListener("change", (event) => choose({ task: event.target.value, prompt: 0 }));
    at("granularity").addEventListener("change", (event) => choose({ by: event.target.value }));
    at("prompt").addEventListener("change", (event) => choose({ prompt: event.target.value }));
    at("node").addEventListener("change", (event) => chooseNode(event.target.value || null));
    at("search").addEventListener("input", (event) => search(event.target.value, false));
    at("search").addEventListener("keydown", (event) => { if (event.key === "Enter") search(event.target.value, true); });
    at("count").addEventListener("input", (event) => {
      chosen.count = countAt(Number(event.target.value));
      drawCount();
      drawing.light(chosen.node, chosen.hidden);
      remember();
    });
    at("save").addEventListener("click", () => report.saveDrawings(drawing.drawings(), "circuits.svg"));
    at("explorer").addEventListener("keydown", (event) => { if (event.key === "Escape") chooseNode(null); });
    window.addEventListener("hashchange", () => choose(fromAddress()));
    let width = window.innerWidth;
    window.addEventListener("resize", () => {
      if (window.innerWidth === width) return; // A phone's address bar changes the height alone.
      width = window.innerWidth;
      redraw();
    });
    choose({ ...fromAddress() });
  };

  const showPicture = () => {
    if (!data.picture) return;
    const { task: name, head } = data.picture;
    const room = at("picture");
    room.replaceChildren(...[report.patternPair(head, data.tasks[name].examples[0], Math.min(640, report.widthOf(room)))].filter(Boolean));
    at("open-picture").addEventListener("click", () => {
      choose({ task: name, prompt: 0, node: head });
      at("explorer").scrollIntoView();
    });
  };

  showPicture();
  if (at("explorer")) start();
})();
