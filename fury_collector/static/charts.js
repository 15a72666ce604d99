/* Charts over time from embedded JSON, drawn by uPlot. Every <div data-chart="id"> is drawn from the object `id` of
 * <script type="application/json" id="fury-charts">. One of those objects:
 *
 *   { "unit": "B/s" | "B" | "s" | "ratio" | "count" | any other word, "scale": "linear" | "log",
 *     "x": [first, step],                            seconds since the start; the middle of the first bin, and their width
 *     "series": [ { "label": "alecto", "values": [1.5, null, …], "color": "fleet" | 0…7, "fill": true, "dash": true,
 *                   "x": [first, step] } ],          null is a gap; `x` only where it is another one than the chart's
 *     "bands": [ { "low": [..], "high": [..], "label": "p10–p90 of all agents" } ],
 *     "marks": [ { "x": 12.5, "label": "megaera lost", "level": "error" | "warning" } ],
 *     "shades": [ { "from": 0, "to": 3, "label": "ramp" } ],
 *     "until": 60, "min": 0, "max": 1, "height": 220 }   `until`: the end of the axis of time
 *
 * fury.chart(element, spec) draws one, fury.draw(root) all below `root`; fury.text(value, unit) is a value with its unit.
 * The live page, whose chart changes, makes its own of the same parts: digits, clock, css, timeAxis, valueAxis.
 * Colours are the page's CSS variables, so a chart follows light, dark and print. */
(function () {
  "use strict";

  const charts = [];
  // CSS pixels between the margins of an A4 page, and what a panel and a gap take of them.
  const PAPER = 710, PANEL = 18, GAP = 8;
  const LEVELS = { error: "--bad", warning: "--warn" };

  function css(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function color(series, index) {
    if (series.color === "fleet") return css("--accent");
    return css("--c" + ((series.color === undefined ? index : series.color) % 8));
  }

  /* The step that fits a value: [divisor, unit]. */
  function prefix(value, unit) {
    const size = Math.abs(value);
    if (unit === "s") {
      if (size >= 1 || size === 0) return [1, "s"];
      return size >= 1e-3 ? [1e-3, "ms"] : size >= 1e-6 ? [1e-6, "µs"] : [1e-9, "ns"];
    }
    if (unit === "ratio") return [0.01, "%"];
    if (unit === "count") return size >= 1e6 ? [1e6, "M"] : size >= 1e4 ? [1e3, "k"] : [1, ""];
    if (unit !== "B" && unit !== "B/s") return [1, unit];
    for (const [power, letter] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (size >= power) return [power, letter + unit];
    }
    return [1, unit];
  }

  function digits(value) {
    const size = Math.abs(value);
    if (size === 0) return "0";
    return value.toFixed(size >= 99.95 ? 0 : size >= 9.995 ? 1 : size >= 0.9995 ? 2 : 3);
  }

  function text(value, unit) {
    if (value === null || value === undefined) return "–";
    const [divisor, name] = prefix(value, unit);
    return (digits(value / divisor) + " " + name).trim();
  }

  function clock(seconds, step) {
    const s = Math.round(seconds * 1000) / 1000;
    const two = (n) => String(n).padStart(2, "0");
    if (s < 120 && (step === undefined || step < 60)) return step >= 1 || Number.isInteger(s) ? String(Math.round(s)) + " s" : s.toFixed(1) + " s";
    const whole = Math.round(s);
    const h = Math.floor(whole / 3600), m = Math.floor((whole % 3600) / 60), rest = whole % 60;
    if (h >= 48 && step >= 3600) return Math.floor(h / 24) + " d " + two(h % 24) + " h";
    return h ? h + ":" + two(m) + (rest || step < 60 ? ":" + two(rest) : " h") : m + ":" + two(rest);
  }

  function axisAt(first, step, count) {
    return Array.from({ length: count }, (_, i) => Math.round((first + i * step) * 1e6) / 1e6);
  }

  /* uPlot's table: the common x first. */
  function table(spec, rows) {
    const shared = spec.x || [0, 1];
    const parts = rows.map((row) => {
      const [first, step] = row.x || shared;
      return [axisAt(first, step, row.values.length), row.values];
    });
    const same = rows.every((row) => !row.x) && new Set(rows.map((row) => row.values.length)).size <= 1;
    if (same) return [parts.length ? parts[0][0] : [], ...parts.map((part) => part[1])];
    return uPlot.join(parts, parts.map((part) => part.slice(1).map(() => 2)));
  }

  /* What lies behind and before the curves: shaded spans, vertical marks with their words. */
  function overlay(spec) {
    return {
      hooks: {
        drawClear: [(u) => {
          const { ctx, bbox } = u, ratio = ctx.canvas.width / u.width;
          for (const shade of spec.shades || []) {
            const from = Math.max(bbox.left, u.valToPos(shade.from, "x", true));
            const to = Math.min(bbox.left + bbox.width, u.valToPos(shade.to, "x", true));
            if (to <= from) continue;
            ctx.save();
            ctx.fillStyle = css("--shade");
            ctx.fillRect(from, bbox.top, to - from, bbox.height);
            ctx.fillStyle = css("--muted");
            ctx.font = 11 * ratio + "px " + css("--sans");
            ctx.textAlign = "left";
            ctx.textBaseline = "top";
            if (shade.label) ctx.fillText(shade.label, from + 4 * ratio, bbox.top + 3 * ratio);
            ctx.restore();
          }
        }],
        draw: [(u) => {
          const { ctx, bbox } = u, ratio = ctx.canvas.width / u.width;
          let free = -Infinity; // how far the last word goes: words that would cover it are left out
          for (const mark of spec.marks || []) {
            const x = Math.round(u.valToPos(mark.x, "x", true));
            if (x < bbox.left || x > bbox.left + bbox.width) continue;
            ctx.save();
            ctx.strokeStyle = css(LEVELS[mark.level] || "--muted");
            ctx.lineWidth = ratio;
            ctx.setLineDash([4 * ratio, 3 * ratio]);
            ctx.beginPath();
            ctx.moveTo(x, bbox.top);
            ctx.lineTo(x, bbox.top + bbox.height);
            ctx.stroke();
            if (mark.label) {
              ctx.font = 11 * ratio + "px " + css("--sans");
              ctx.textAlign = "left";
              const wide = ctx.measureText(mark.label).width, left = x + wide + 4 * ratio > bbox.left + bbox.width;
              const from = left ? x - wide - 4 * ratio : x + 4 * ratio;
              if (from > free) {
                ctx.fillStyle = ctx.strokeStyle;
                ctx.textBaseline = "top";
                ctx.fillText(mark.label, from, bbox.top + 2 * ratio);
                free = from + wide;
              }
            }
            ctx.restore();
          }
        }],
      },
    };
  }

  function timeAxis() {
    return {
      stroke: () => css("--muted"),
      font: "11px " + css("--sans"),
      grid: { stroke: () => css("--grid"), width: 1 },
      ticks: { stroke: () => css("--grid"), size: 4 },
      size: 28,
      space: 70,
      incrs: [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800],
      values: (u, splits, axis, space, increment) => splits.map((value) => clock(value, increment)),
    };
  }

  /* Every unit's round steps; those of logarithmic scales are uPlot's own. */
  function valueAxis(spec, divisor, name) {
    const log = spec.scale === "log";
    return {
      size: (u, values) => 14 + 7 * Math.max(3, ...(values || []).map((value) => (value === null ? 0 : String(value).length))),
      stroke: () => css("--muted"),
      font: "11px " + css("--sans"),
      grid: { stroke: () => css("--grid"), width: 1 },
      ticks: { show: false },
      space: 28,
      filter: (u, splits) => splits,
      splits: log ? (u, axis, low, high) => {
        const at = [], decades = Math.log10(high / low);
        const factors = decades > 3.2 ? [1] : decades > 1.8 ? [1, 3] : [1, 2, 5];
        for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
          for (const factor of factors) {
            const value = Number(factor + "e" + power);
            if (value >= low && value <= high) at.push(value);
          }
        }
        return at;
      } : (u, axis, low, high, increment) => {
        const step = Math.pow(10, Math.floor(Math.log10(increment / divisor)));
        const nice = [1, 2, 5, 10].map((n) => n * step).find((n) => n >= increment / divisor - 1e-12) * divisor;
        const at = [];
        for (let i = Math.ceil(low / nice - 1e-9); i * nice <= high + nice * 1e-9; i++) at.push(i * nice);
        return at;
      },
      values: (u, splits) => splits.map((value) => {
        if (value === null) return null;
        if (!log) return String(Math.round((value / divisor) * 1e6) / 1e6) + (name === "%" ? " %" : "");
        return text(value, spec.unit).replace(/\.?0+(?= )/, (zeros) => (zeros[0] === "." ? "" : zeros));
      }),
    };
  }

  function bounds(spec, rows) {
    let low = Infinity, high = -Infinity;
    for (const row of rows) {
      for (const value of row.values) {
        if (value === null || (spec.scale === "log" && value <= 0)) continue;
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
    return low > high ? [0, 1] : [low, high];
  }

  function chart(element, spec) {
    const bands = [], rows = [];
    for (const band of spec.bands || []) {
      rows.push({ label: band.label, values: band.high, band: true }, { label: null, values: band.low, band: true });
      bands.push({ series: [rows.length - 1, rows.length], fill: () => css("--band") });
    }
    spec.series.forEach((series, index) => rows.push({ ...series, index }));
    const [low, high] = bounds(spec, rows);
    const log = spec.scale === "log";
    const [divisor, name] = prefix(spec.max === undefined ? high : spec.max, spec.unit);
    const data = table(spec, rows);
    const drawn = log ? data.map((row, i) => (i ? row.map((value) => (value > 0 ? value : null)) : row)) : data;
    const step = spec.x ? spec.x[1] : 1;
    const first = drawn[0].length ? drawn[0][0] - step / 2 : 0;
    const last = spec.until || (drawn[0].length ? drawn[0][drawn[0].length - 1] + step / 2 : 1);
    const few = drawn[0].length <= 24;

    element.textContent = "";
    const label = document.createElement("div");
    label.className = "unit";
    label.textContent = log ? "" : name === "%" ? "" : name;
    const plot = document.createElement("div");
    element.append(label, plot);
    const outputs = legend(element, spec, rows, () => self);

    const options = {
      width: Math.max(200, element.clientWidth),
      height: spec.height || 220,
      legend: { show: false },
      padding: [8, 22, 0, 0],
      cursor: {
        sync: { key: "fury", scales: ["x", null] },
        drag: { x: true, y: false },
        y: false,
        points: { size: 6, fill: (u, i) => u.series[i]._stroke || css("--accent") },
      },
      scales: {
        x: { time: false, range: (u, from, to) => (from === null || (from <= first + step && to >= last - step) ? [first, last] : [from, to]) },
        y: {
          distr: log ? 3 : 1,
          range: log
            ? () => [(low > 0 ? low : 1e-6) * 0.75, (high > 0 ? high : 1) * 1.3]
            : () => [spec.min === undefined ? 0 : spec.min, spec.max === undefined ? (high > 0 ? high * 1.08 : 1) : spec.max],
        },
      },
      axes: [
        timeAxis(),
        valueAxis(spec, divisor, name),
      ],
      series: [{}].concat(rows.map((row) => {
        if (row.band) return { stroke: "transparent", width: 0, points: { show: false } };
        return {
          label: row.label,
          stroke: () => color(row, row.index),
          width: row.color === "fleet" ? 1.75 : 1.25,
          dash: row.dash ? [6, 4] : undefined,
          fill: row.fill ? () => css("--fill") : undefined,
          points: { show: few, size: 4, fill: () => color(row, row.index) },
        };
      })),
      bands,
      plugins: [overlay(spec)],
      hooks: {
        setCursor: [(u) => {
          const at = u.cursor.idx;
          rows.forEach((row, i) => {
            if (!outputs[i]) return;
            const value = at === null || at === undefined ? undefined : data[i + 1][at];
            let told = value === undefined ? "" : text(value, spec.unit);
            if (row.band && value !== undefined) told = text(data[i + 2][at], spec.unit) + " to " + told;
            outputs[i].textContent = told;
          });
          const where = outputs.where;
          where.textContent = at === null || at === undefined ? "" : "at " + clock(data[0][at], step);
        }],
      },
    };
    const self = new uPlot(options, drawn, plot);
    self.over.parentNode.setAttribute("aria-hidden", "true"); // the figure's caption says what it shows
    charts.push({ plot: self, element });
    element.dataset.drawn = String(rows.length);
    return self;
  }

  /* Below a chart: a button for each curve, which hides it, and the value under the pointer. */
  function legend(element, spec, rows, plot) {
    const outputs = [];
    const list = document.createElement("ul");
    list.className = "legend";
    rows.forEach((row, i) => {
      if (row.label === null) return;
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      const swatch = document.createElement("span");
      swatch.className = row.band ? "swatch band" : row.color === "fleet" ? "swatch fleet" : "swatch c" + ((row.color === undefined ? row.index : row.color) % 8);
      if (row.dash) swatch.className += " dash";
      const word = document.createElement("span");
      word.className = "word";
      word.textContent = row.label;
      button.append(swatch, word);
      button.addEventListener("click", () => {
        const shown = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(shown));
        plot().setSeries(i + 1, { show: shown });
        if (row.band) plot().setSeries(i + 2, { show: shown });
      });
      const output = document.createElement("span");
      output.className = "value";
      outputs[i] = output;
      item.append(button, output);
      list.append(item);
    });
    const where = document.createElement("li");
    where.className = "where";
    outputs.where = where;
    list.append(where);
    element.append(list);
    return outputs;
  }

  function resize(paper) {
    for (const one of charts) {
      const share = one.element.closest(".grid4") ? 4 : one.element.closest(".grid2, .pairs") ? 2 : 1;
      const wanted = paper ? Math.floor((PAPER - GAP * (share - 1)) / share) - PANEL : Math.max(200, one.element.clientWidth);
      if (wanted !== one.plot.width) one.plot.setSize({ width: wanted, height: one.plot.height });
      else one.plot.redraw(false, true);
    }
  }

  /* Paper is light, and as wide as it is: charts are drawn again for it, before the browser lays the pages out. */
  function print(on) {
    if (on === ("print" in document.documentElement.dataset)) return;
    if (on) {
      document.documentElement.dataset.print = "";
      resize(true);
    } else {
      delete document.documentElement.dataset.print;
      resize();
    }
  }

  function draw(root) {
    const source = document.getElementById("fury-charts");
    const specs = source ? JSON.parse(source.textContent) : {};
    for (const element of (root || document).querySelectorAll("[data-chart]")) {
      const spec = specs[element.dataset.chart];
      if (spec && !element.dataset.drawn) chart(element, spec);
    }
  }

  window.fury = { chart, draw, text, clock, digits, css, timeAxis, valueAxis };
  draw(document);

  let waiting = 0;
  window.addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => "print" in document.documentElement.dataset || resize());
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => resize());
  window.addEventListener("beforeprint", () => print(true));
  window.addEventListener("afterprint", () => print(false));
  window.matchMedia("print").addEventListener("change", (event) => print(event.matches));
})();
