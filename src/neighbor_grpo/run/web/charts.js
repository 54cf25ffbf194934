// Draw a chart for each panel: {title, x: [...], lines: [{label, y: [...]}], band: {low: [...], high: [...]} or null}.
// All charts share the cursor; drag to zoom, double-click to see everything again.
function drawCharts(place, panels) {
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = () => ({ stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } });
  const number = value => value == null ? "–" : String(Number(value.toPrecision(4)));

  const all = panels.flatMap(panel => panel.x), first = all.reduce((a, b) => Math.min(a, b), 0), last = all.reduce((a, b) => Math.max(a, b), 1);

  function chart(panel) {
    const cell = place.appendChild(document.createElement("div"));
    const colours = [colour("--first"), colour("--second")];
    const series = [{ label: "iteration" }], data = [panel.x], bands = [];
    panel.lines.forEach((line, n) => {
      const sparse = line.y.filter(y => y != null).length < 50;
      series.push({ label: line.label, stroke: colours[n], width: 1.5, spanGaps: true, points: { show: sparse, size: 5 }, value: (_, y) => number(y) });
      data.push(line.y);
    });
    if (panel.band) {
      const edge = { stroke: "transparent", spanGaps: true, points: { show: false }, value: (_, y) => number(y) };
      series.push({ label: "+ spread", ...edge }, { label: "− spread", ...edge });
      data.push(panel.band.high, panel.band.low);
      bands.push({ series: [data.length - 2, data.length - 1], fill: colours[0] + "2e" });
    }
    const values = { ...axis(), size: 60, values: (_, ticks) => ticks.map(number) };
    const options = {
      title: panel.title, width: cell.clientWidth, height: 220, series, bands, axes: [axis(), values],
      scales: { x: panel.x.length > 1 ? { time: false } : { time: false, range: [first, last] } }, cursor: { sync: { key: "iteration" } },
    };
    const drawn = new uPlot(options, data, cell);
    new ResizeObserver(() => drawn.setSize({ width: cell.clientWidth, height: 220 })).observe(cell);
  }

  function draw() {
    place.replaceChildren();
    panels.forEach(chart);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
}
