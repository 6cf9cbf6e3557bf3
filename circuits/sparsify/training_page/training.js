"use strict";
// Reads the curves: where one points, or where the arrow keys have come to, in all plots at once.
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const figures = [...document.querySelectorAll(".chart")];
  const WRITTEN = {
    nats: (value) => value.toFixed(4),
    percent: (value) => `${Number((100 * value).toPrecision(3))} %`,
    plain: (value) => Number(value.toPrecision(value < 100 ? 3 : 6)).toLocaleString("en", { maximumFractionDigits: value < 100 ? 6 : 0 }),
  };

  const nearest = (points, step) => {
    let low = 0, high = points.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < step) low = middle + 1;
      else high = middle;
    }
    const before = points[Math.max(low - 1, 0)];
    return step - before[0] < points[low][0] - step ? before : points[low];
  };
  const read = (step) => figures.forEach((figure, number) => {
    const { kind, series } = data.charts[number];
    const cursor = figure.querySelector(".cursor");
    cursor.hidden = step === null;
    const readout = figure.querySelector(".readout");
    if (step === null) { readout.textContent = "\u00a0"; return; }
    cursor.style.left = `${(100 * step) / data.steps}%`;
    readout.textContent = series.map(({ name, points }) => {
      const [at, value] = nearest(points, step);
      return `${name}${series.length > 1 || at !== step ? `, step ${at.toLocaleString("en")}` : ""}: ${WRITTEN[kind](value)}`;
    }).join(" · ");
  });

  let chosen = -1;
  figures.forEach((figure) => {
    const plot = figure.querySelector(".plot");
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
      read(Math.max(Math.round(share * data.steps), 1));
    });
    plot.addEventListener("pointerleave", () => read(null));
    figure.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by || !data.stops.length) return;
      event.preventDefault();
      chosen = Math.min(Math.max(chosen + by, 0), data.stops.length - 1);
      read(data.stops[chosen]);
    });
    figure.addEventListener("blur", () => read(null));
  });
})();
