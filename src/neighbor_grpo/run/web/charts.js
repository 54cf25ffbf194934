// Draw a chart for each panel: {title, across, lines: [{label, tone, faint, x, y, low, high}]}.  across: what x is, if not iterations;
// low and high, the edges of a band, may be null.  Charts against the same share the cursor and the zoom: drag to zoom,
// double-click to see everything again.
// Returns {set(panels), append(panels)}: other panels, and more points at the ends of lines, for pages that go on.
function drawCharts(place, panels) {
  const TONES = 8, colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const tone = line => colour(`--tone${line.tone % TONES}`);
  const axis = () => ({ stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } });
  const short = value => Number(value.toPrecision(4));
  const number = value => value == null ? "–" : value && Math.abs(value) < 1e-3 ? short(value).toExponential() : String(short(value));
  const charts = new Map();  // title -> {panel, cell, plot}

  const columns = line => [line.x, line.y, ...(line.low ? [line.high, line.low] : [])];
  const across = panel => panel.across ?? "iteration";
  const data = panel => uPlot.join(panel.lines.map(columns));
  const end = values => number(values.findLast(value => value != null));
  const begin = values => number(values.find(value => value != null));
  const words = panel => panel.lines.map(line => `${line.label} from ${begin(line.y)} to ${end(line.y)}`).join(", ");

  // The cursor stands between the points of most lines: each shows its nearest one, none before its first and after its last.
  function nearest({ data }, n, at) {
    const [x, y] = [data[0], data[n]];
    let [low, high] = [at, at];
    while (low >= 0 && y[low] == null) low--;
    while (high < y.length && y[high] == null) high++;
    return low < 0 || high === y.length ? null : x[at] - x[low] < x[high] - x[at] ? low : high;
  }

  function options(panel, cell) {
    const series = [{ label: across(panel), value: (_, x) => number(x) }], bands = [];
    for (const line of panel.lines) {
      const stroke = tone(line) + (line.faint ? "80" : ""), dash = line.tone < TONES ? undefined : [6, 3];
      const sparse = line.y.filter(y => y != null).length < 50;
      const value = (_, y) => number(y);
      series.push({ label: line.label, stroke, dash, width: line.faint ? 1 : 1.5, spanGaps: true, points: { show: sparse, size: 5 }, value });
      if (!line.low) continue;
      const edge = { stroke: "transparent", spanGaps: true, points: { show: false }, value, class: "edge" };
      series.push({ label: "+ spread", ...edge }, { label: "− spread", ...edge });
      bands.push({ series: [series.length - 2, series.length - 1], fill: tone(line) + (line.faint ? "14" : "2e") });
    }
    const one = new Set(panel.lines.flatMap(line => line.x)).size < 2;  // of a single point uPlot would not know the scale
    const x = one ? { time: false, range: (_, low, high) => [Math.min(low ?? 0, 0), Math.max(high ?? 1, 1)] } : { time: false };
    return {
      title: panel.title, width: cell.clientWidth, height: 220, series, bands, axes: [axis(), { ...axis(), size: 60, values: (_, ticks) => ticks.map(number) }],
      scales: { x }, cursor: { sync: { key: across(panel) }, dataIdx: nearest },
    };
  }

  function draw(chart) {
    chart.plot?.destroy();
    chart.cell.replaceChildren();
    chart.plot = new uPlot(options(chart.panel, chart.cell), data(chart.panel), chart.cell);
    describe(chart);
  }

  function describe({ panel, plot }) {
    const canvas = plot.ctx.canvas;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${panel.title} against ${across(panel)}: ${words(panel)}`);
  }

  const sizes = new ResizeObserver(entries => {
    for (const { target } of entries) [...charts.values()].find(chart => chart.cell === target)?.plot.setSize({ width: target.clientWidth, height: 220 });
  });

  function add(panel) {
    const chart = { panel, cell: place.appendChild(document.createElement("div")) };
    chart.cell.classList.toggle("many", panel.lines.some(line => line.faint));
    charts.set(panel.title, chart);
    draw(chart);
    sizes.observe(chart.cell);
  }

  function set(panels) {
    charts.forEach(({ plot }) => plot.destroy());
    charts.clear();
    sizes.disconnect();
    place.replaceChildren();
    panels.forEach(add);
  }

  function extend(line, more) {
    for (const edge of ["low", "high"]) {
      if (line[edge] || more[edge]) (line[edge] ??= line.x.map(() => null)).push(...(more[edge] ?? more.x.map(() => null)));
    }
    line.x.push(...more.x);
    line.y.push(...more.y);
  }

  function grow(chart, panel) {
    const { x } = chart.plot.scales, before = chart.plot.data[0], kinds = chart.plot.series.length;
    const whole = x.min <= before[0] && x.max >= before[before.length - 1];  // not zoomed
    for (const more of panel.lines) {
      const line = chart.panel.lines.find(one => one.label === more.label);
      line ? extend(line, more) : chart.panel.lines.push(more);
    }
    const table = data(chart.panel);
    if (table.length !== kinds || before.length < 50) draw(chart);
    else {
      chart.plot.setData(table, false);
      chart.plot.setScale("x", whole ? { min: table[0][0], max: table[0][table[0].length - 1] } : { min: x.min, max: x.max });
      describe(chart);
    }
  }

  const append = panels => panels.forEach(panel => charts.has(panel.title) ? grow(charts.get(panel.title), panel) : add(panel));

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach(draw));
  set(panels);
  return { set, append };
}
