"use strict";
// What all scripts of the report share: elements made from text only, and attention patterns.
// Whatever comes from data becomes a text node or an attribute, never markup.
const report = {};
(() => {
  const SVG = "http://www.w3.org/2000/svg";

  const filled = (element, attributes, children) => {
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") element.addEventListener(name, value);
      else if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children.flat().filter((child) => child !== null));
    return element;
  };
  report.html = (name, attributes = {}, ...children) => filled(document.createElement(name), attributes, children);
  report.svg = (name, attributes = {}, ...children) => filled(document.createElementNS(SVG, name), attributes, children);
  report.at = (id) => document.getElementById(id);
  report.data = JSON.parse(report.at("explorer-data").textContent);
  // The models side by side; of a model alone one, which nothing has to tell from another.
  report.SIDES = report.data.sides;
  report.isPair = report.SIDES.length === 2;
  report.prefix = (side) => (report.isPair ? `${side}: ` : "");

  report.scored = (score) => (score === undefined ? "–" : (score > 0 ? "+" : "") + Number(score.toPrecision(3)));
  // As circuits.numbers.sized writes it.
  report.sized = (size) => (Math.abs(size) >= 999.95 ? Math.round(size).toLocaleString("en") : String(Number(size.toPrecision(4))));
  report.cut = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

  // How wide a drawing may be; a window that is being made or hidden may have no width for a moment.
  report.widthOf = (element) => Math.max(240, Math.floor(element.getBoundingClientRect().width));

  // One head's attention as a square: rows look at columns. `shares` are thousandths.
  const square = (side, shares, tokens, cell, say) => {
    const size = cell * tokens.length;
    const cells = shares.flatMap((row, query) =>
      row.map((share, key) =>
        share < 5 ? null : report.svg("rect", {
          x: key * cell, y: query * cell, width: cell, height: cell, "fill-opacity": share / 1000,
        })
      )
    );
    const over = report.svg("rect", { class: "over", width: size, height: size });
    const drawing = report.svg("g", { class: `pattern ${side}` }, report.svg("rect", { class: "ground", width: size, height: size }), cells, over);
    over.addEventListener("pointermove", (event) => {
      const box = over.getBoundingClientRect();
      const query = Math.floor(((event.clientY - box.top) / box.height) * tokens.length);
      const key = Math.floor(((event.clientX - box.left) / box.width) * tokens.length);
      const share = shares[query]?.[key];
      say(share === undefined ? "" : `${report.prefix(side)}${tokens[query]} → ${tokens[key]}: ${(share / 1000).toFixed(3)}`);
    });
    return drawing;
  };

  // The patterns of one head in each model, side by side, with the tokens at the left and below.
  report.patternPair = (head, example, width) => {
    const { tokens } = example;
    const patterns = report.SIDES.map((side) => example.patterns[side][head]);
    if (patterns.some((one) => !one)) return null;
    const longest = Math.min(12, Math.max(...tokens.map((token) => token.length)));
    const room = (width > 400 ? 6.6 : 5.2) * longest + 8; // As much as the longest name takes.
    const gap = 12 * (patterns.length - 1);
    const cell = Math.min(26, Math.max(4, (width - room - gap) / patterns.length / tokens.length));
    const size = cell * tokens.length;
    const step = Math.ceil(9 / cell); // Where rows are lower than a letter some names are left out.
    const font = Math.min(width > 400 ? 12 : 9, Math.max(8.5, cell * step - 1));
    const names = (place) =>
      tokens.map((token, number) => (number % step ? null : report.svg("text", place(number), report.cut(token, 12))));
    const said = report.html("p", { class: "readout" }, " ");
    const say = (text) => { said.textContent = text || "\u00a0"; };
    const panels = report.SIDES.map((side, index) => {
      const left = room + index * (size + 12);
      return report.svg("g", { transform: `translate(${left} 18)` },
        report.isPair ? report.svg("text", { y: -6, class: `title ${side}` }, side) : null,
        square(side, patterns[index], tokens, cell, say),
        names((number) => ({
          transform: `translate(${(number + 0.5) * cell + font / 3} ${size + 4}) rotate(-90)`, "text-anchor": "end", "font-size": font,
        })),
      );
    });
    const whole = { width: room + patterns.length * size + gap, height: size + room + 18 };
    const drawing = report.svg("svg",
      { viewBox: `0 0 ${whole.width} ${whole.height}`, width: whole.width, height: whole.height, class: "patterns", role: "img",
        "aria-label": `Attention of ${head}${report.isPair ? `, ${report.SIDES.join(" and ")},` : ""} on: ${tokens.join(" ")}` },
      report.svg("g", { transform: "translate(0 18)" },
        names((number) => ({ x: room - 4, y: (number + 0.5) * cell + font / 3, "text-anchor": "end", "font-size": font }))),
      panels,
    );
    return report.html("div", { class: "pattern-pair" }, drawing, said);
  };

  // A drawing as a file of its own: colours are written out, since the page's style stays behind.
  report.saveDrawings = (drawings, name) => {
    const box = drawings.map((one) => one.getBoundingClientRect());
    const left = Math.min(...box.map((one) => one.left)), top = Math.min(...box.map((one) => one.top));
    const parts = drawings.map((drawing, index) => {
      const copy = drawing.cloneNode(true);
      const originals = [drawing, ...drawing.querySelectorAll("*")];
      [copy, ...copy.querySelectorAll("*")].forEach((element, number) => {
        const style = getComputedStyle(originals[number]);
        for (const key of ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-family", "display"]) {
          element.style.setProperty(key, style.getPropertyValue(key));
        }
      });
      copy.setAttribute("x", box[index].left - left);
      copy.setAttribute("y", box[index].top - top);
      return copy;
    });
    const ground = getComputedStyle(document.body).backgroundColor;
    const whole = report.svg("svg", {
      width: Math.max(...box.map((one) => one.right)) - left, height: Math.max(...box.map((one) => one.bottom)) - top,
    }, report.svg("rect", { width: "100%", height: "100%", fill: ground }), parts);
    report.saveFile(new XMLSerializer().serializeToString(whole), "image/svg+xml", name);
  };

  report.saveFile = (text, type, name) => {
    const address = URL.createObjectURL(new Blob([text], { type }));
    report.html("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  };
})();
