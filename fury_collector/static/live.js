/* The live page: asks api/v1/live every two seconds and puts the answer into the page, as text and never as markup.
 * Rows and messages are kept and changed in place, so that focus, selection and scrolling stay where they are. */
(function () {
  "use strict";

  const EVERY_MS = 2000, PATIENCE_MS = 8000, SLOWEST_MS = 15000, TYPING_MS = 250, LIMIT = 100;
  const KINDS = { green: "pass", finished: "plain", waiting: "plain", late: "warn", suspect: "warn", lost: "fail" };
  const STATES = { arming: "plain", starting: "plain", running: "pass", draining: "warn", finished: "plain", aborted: "fail" };
  const OVER = ["finished", "aborted"];
  const query = { sort: "worst", direction: "ascending", text: "", health: "", offset: 0 };
  const rows = new Map(), messages = new Map(), healths = new Map();
  let timer = 0, asking = null, failures = 0, heardAt = Date.now(), last = null, plot = null, drawn = 0;

  const by = (id) => document.getElementById(id);
  const css = window.fury.css;
  const heads = Array.from(document.querySelectorAll("#agent-table thead th"));

  function put(node, text) {
    if (node.textContent !== text) node.textContent = text; // an unchanged live region stays silent
  }

  function make(tag, name, text) {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  /* Three significant digits, but no whole number is rounded, as everywhere in Fury. */
  function digits(value) {
    if (value === null || value === undefined) return "–";
    return Math.abs(value) >= 9999.5 ? count(Math.round(value)) : window.fury.digits(value);
  }

  const over = (value, divisor) => digits(value === null ? null : value / divisor);
  const count = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, "\u202f");
  const plural = (number, word) => count(number) + " " + word + (number === 1 ? "" : "s");

  function time(date) {
    return [date.getHours(), date.getMinutes(), date.getSeconds()].map((n) => String(n).padStart(2, "0")).join(":");
  }

  function lasting(seconds) {
    const whole = Math.max(0, Math.round(seconds));
    if (whole < 120) return whole + " s";
    const parts = [[Math.floor(whole / 86400), "d"], [Math.floor(whole / 3600) % 24, "h"], [Math.floor(whole / 60) % 60, "min"], [whole % 60, "s"]];
    return parts.filter(([n]) => n).slice(0, 2).map(([n, unit]) => n + " " + unit).join(" ");
  }

  // The state in words: they depend on nothing that changes by itself, so that a screen reader says each of them once.

  function words(state) {
    const agents = plural(state.fleet.agents_expected, "agent");
    if (state.state === "arming") return "not all of " + agents + " are ready";
    if (state.state === "starting") return "all of " + agents + " are ready and start together";
    if (state.state === "running") return state.reason ? "the run is being stopped: " + state.reason : "agents are writing";
    if (state.state === "draining") return "no agent writes any more: their last events are awaited";
    if (state.state === "aborted") return "the run is over: " + (state.reason || "it was aborted");
    const lost = state.health.lost ? plural(state.health.lost, "agent") + " lost" : agents + " delivered everything";
    return "the run is over: " + lost + (state.reason ? "; it was stopped: " + state.reason : "");
  }

  function showState(state) {
    put(by("state-name"), state.state);
    by("state-name").className = "verdict " + STATES[state.state];
    put(by("state-words"), words(state));
    const before = state.state === "arming" || state.state === "starting" || (state.state === "aborted" && !state.elapsed_s);
    put(by("elapsed"), before ? "–" : lasting(state.elapsed_s));
    const left = state.total_s - state.elapsed_s;
    let told = "of " + lasting(state.total_s);
    if (before && state.missing_count) {
      const more = state.missing_count - state.missing.length;
      told = "waiting for " + state.missing.join(", ") + (more > 0 ? " and " + count(more) + " more" : "");
    } else if (!before && !OVER.includes(state.state)) {
      told += left > 0 ? ", " + lasting(left) + " left" : ", done";
    }
    put(by("left"), told);
    by("bar-done").style.width = Math.min(100, Math.max(0, (100 * state.elapsed_s) / state.total_s)) + "%";
    put(by("rate"), digits(state.fleet.bytes_per_second / 1e6));
    put(by("writing"), plural(state.writing, "agent") + (state.writing === 1 ? " writes" : " write"));
    put(by("written"), window.fury.text(state.fleet.written_bytes, "B"));
    put(by("rollovers"), count(state.fleet.rollovers));
    put(by("expected"), count(state.fleet.agents_expected));
    for (const [name, number] of Object.entries(state.health)) {
      if (!healths.has(name)) {
        const item = make("li"), value = make("span");
        item.append(make("span", "verdict small " + KINDS[name], name), " ", value);
        by("healths").append(item);
        healths.set(name, { item, value });
      }
      put(healths.get(name).value, count(number));
      healths.get(name).item.hidden = !number;
    }
    document.title = state.state + " · Fury run " + state.run_id;
  }

  // The curve

  function showCurve(state) {
    const step = state.curve.step_s, values = state.curve.bytes_per_second.map((value) => (value === null ? null : value / 1e6));
    const xs = values.map((_, i) => (i + 0.5) * step);
    const until = Math.max(state.total_s, values.length * step);
    const known = values.filter((value) => value !== null);
    const top = Math.max(0, ...known);
    if (!plot) {
      plot = new window.uPlot({
        width: Math.max(200, by("plot").clientWidth), height: 200, legend: { show: false }, padding: [8, 22, 0, 0],
        cursor: { drag: { x: false, y: false }, y: false, points: { size: 6, fill: () => css("--accent") } },
        scales: { x: { time: false, range: () => [0, plot ? plot.until : until] }, y: { range: () => [0, plot && plot.top ? plot.top * 1.08 : 1] } },
        axes: [window.fury.timeAxis(), window.fury.valueAxis({ unit: "MB/s" }, 1, "MB/s")],
        series: [{}, { stroke: () => css("--accent"), width: 1.75, fill: () => css("--fill"), points: { show: false } }],
        hooks: { setCursor: [() => summarize()] },
      }, [[], []], by("plot"));
    }
    Object.assign(plot, { until, top, known });
    plot.setData([xs, values]);
    drawn = values.length;
    by("plot").dataset.drawn = String(drawn);
    summarize();
  }

  function summarize() {
    const at = plot ? plot.cursor.idx : null;
    if (!plot || !plot.known || !plot.known.length) return;
    if (at !== null && at !== undefined && plot.data[1][at] !== undefined) {
      put(by("fleet-summary"), "at " + window.fury.clock(plot.data[0][at], 1) + ": " + digits(plot.data[1][at]) + " MB/s");
      return;
    }
    const mean = plot.known.reduce((a, b) => a + b, 0) / plot.known.length;
    put(by("fleet-summary"), "Between " + digits(Math.min(...plot.known)) + " and " + digits(plot.top) + " MB/s, in the mean " + digits(mean) + "; the sum of what the agents' heartbeats say.");
  }

  // Agents

  const CELLS = [
    (row) => row.host,
    null, // health, below
    (row) => over(row.bytes_per_second, 1e6),
    (row) => over(row.mean_bytes_per_second, 1e6),
    (row) => count(row.rollovers),
    (row) => over(row.write_p99_s, 1e-3),
    (row) => over(row.agent_cpu_ratio, 0.01),
    (row) => over(row.host_cpu_ratio, 0.01),
    (row) => over(row.agent_rss_bytes, 1e6),
    (row) => over(row.host_memory_ratio, 0.01),
    (row) => over(row.disk_free_bytes, 1e9),
  ];

  function newRow(name) {
    const line = make("tr"), head = make("th", "", name);
    head.scope = "row";
    head.title = name;
    const cells = CELLS.map((cell, i) => make("td", i > 1 ? "num" : i ? "" : "host"));
    const badge = make("span"), more = make("span", "muted");
    cells[1].append(badge, " ", more);
    line.append(head, ...cells);
    return { line, cells, badge, more };
  }

  function showRow(one, row) {
    CELLS.forEach((text, i) => text && put(one.cells[i], text(row)));
    one.cells[0].title = row.host;
    const done = row.verdict !== null;
    put(one.badge, row.verdict === null || row.verdict === "PASS" ? row.health : row.verdict);
    one.badge.className = "verdict small " + (done && row.verdict !== "PASS" ? "fail" : row.verdict === "PASS" && row.health === "finished" ? "pass" : KINDS[row.health]);
    const silent = ["late", "suspect", "lost"].includes(row.health) && row.silent_s !== null;
    put(one.more, silent ? lasting(row.silent_s) + " silent" : done ? (row.verdict === "PASS" ? "PASS" : "") : row.phase || "");
  }

  function showAgents(state) {
    const { found, offset, rows: list } = state.agents, body = by("rows"), present = new Set();
    list.forEach((row, i) => {
      present.add(row.name);
      if (!rows.has(row.name)) rows.set(row.name, newRow(row.name));
      const one = rows.get(row.name);
      showRow(one, row);
      if (body.rows[i] !== one.line) body.insertBefore(one.line, body.rows[i] || null);
    });
    for (const [name, one] of rows) {
      if (present.has(name)) continue;
      one.line.remove();
      rows.delete(name);
    }
    by("nobody").hidden = list.length > 0;
    const total = state.fleet.agents_expected, last = offset + list.length;
    const shown = found > list.length && list.length ? count(offset + 1) + "–" + count(last) + " of " : "";
    put(by("found"), shown + (found === total ? plural(total, "agent") : count(found) + " of " + plural(total, "agent")));
    by("previous").disabled = offset === 0;
    by("next").disabled = last >= found;
    by("previous").parentNode.hidden = found <= LIMIT && offset === 0;
    if (!list.length && found) ask({ offset: 0 }); // agents went from the filter and this page is past its end
  }

  function showMessages(state) {
    const list = by("messages"), present = new Set();
    for (const message of state.messages) {
      present.add(message.n);
      if (messages.has(message.n)) continue;
      const item = make("li", message.level), at = make("time", "muted", time(new Date(message.t_wall * 1000)));
      at.dateTime = new Date(message.t_wall * 1000).toISOString();
      item.append(at, " ");
      if (message.level !== "info") item.append(make("span", "verdict small " + (message.level === "error" ? "fail" : "warn"), message.level), " ");
      item.append(make("span", "isolate", message.text));
      messages.set(message.n, item);
      list.prepend(item); // the newest first
    }
    for (const [n, item] of messages) {
      if (present.has(n)) continue;
      item.remove();
      messages.delete(n);
    }
  }

  function show(state) {
    last = state;
    showState(state);
    showCurve(state);
    showAgents(state);
    showMessages(state);
    const seconds = Math.min(state.elapsed_s, state.total_s);
    put(by("mean"), seconds > 1 && state.fleet.written_bytes ? "in the mean " + digits(state.fleet.written_bytes / 1e6 / seconds) + " MB/s" : "");
    document.body.dataset.state = state.state;
    document.body.dataset.answers = String(Number(document.body.dataset.answers || 0) + 1);
  }

  // Asking

  function address() {
    const parameters = new URLSearchParams({ sort: query.sort, direction: query.direction, limit: LIMIT, offset: query.offset });
    if (query.text) parameters.set("text", query.text);
    if (query.health) parameters.set("health", query.health);
    return "api/v1/live?" + parameters;
  }

  function gone() {
    const since = "the collector does not answer since " + time(new Date(heardAt));
    const ended = last && (last.state === "draining" || last.elapsed_s >= last.total_s);
    put(by("gone"), since + (ended ? "; the time of the run is over, and the collector ends with its run" : "; what is shown is as of then"));
    document.body.classList.add("stale");
  }

  async function answer() {
    const mine = (asking = new AbortController());
    const patience = setTimeout(() => mine.abort(), PATIENCE_MS);
    try {
      const response = await fetch(address(), { signal: mine.signal, cache: "no-store", credentials: "same-origin" });
      const told = await response.json();
      if (asking !== mine) return;
      failures = 0;
      heardAt = Date.now();
      put(by("gone"), "");
      document.body.classList.remove("stale");
      if (response.ok) show(told);
      by("query-error").className = response.ok ? "hidden" : "note";
      put(by("query-error"), response.ok ? "" : String(told.error));
    } catch (error) {
      if (asking !== mine) return; // a newer question has taken its place
      failures += 1;
      if (failures > 1) gone();
    } finally {
      clearTimeout(patience);
    }
    asking = null;
    plan();
  }

  function plan() {
    clearTimeout(timer);
    if (document.hidden || (last && OVER.includes(last.state) && !failures)) return;
    // Slower and slower while nobody answers: each failure is a line in the browser's console.
    timer = setTimeout(answer, failures > 1 ? Math.min(SLOWEST_MS, EVERY_MS * failures) : EVERY_MS);
  }

  function ask(changes) {
    Object.assign(query, changes);
    clearTimeout(timer);
    if (asking) asking.abort();
    answer();
  }

  // What people do

  function marks() {
    for (const head of heads) {
      const button = head.querySelector("button");
      if (button && button.dataset.sort === query.sort) head.setAttribute("aria-sort", query.direction);
      else head.removeAttribute("aria-sort");
    }
    by("worst").setAttribute("aria-pressed", String(query.sort === "worst"));
  }

  for (const head of heads) {
    const button = head.querySelector("button");
    if (!button) continue;
    button.addEventListener("click", () => {
      const same = query.sort === button.dataset.sort;
      const down = same ? query.direction === "ascending" : head.classList.contains("num");
      ask({ sort: button.dataset.sort, direction: down ? "descending" : "ascending", offset: 0 });
      marks();
    });
  }
  by("worst").addEventListener("click", () => {
    ask({ sort: "worst", direction: "ascending", offset: 0 });
    marks();
  });
  let typing = 0;
  by("text").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => ask({ text: by("text").value.trim(), offset: 0 }), TYPING_MS);
  });
  by("health").addEventListener("change", () => ask({ health: by("health").value, offset: 0 }));
  by("previous").addEventListener("click", () => ask({ offset: Math.max(0, query.offset - LIMIT) }));
  by("next").addEventListener("click", () => ask({ offset: query.offset + LIMIT }));

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) clearTimeout(timer);
    else if (!asking && !(last && OVER.includes(last.state))) ask({});
  });
  window.addEventListener("resize", () => plot && plot.setSize({ width: Math.max(200, by("plot").clientWidth), height: plot.height }));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot && plot.redraw(false, true));
  answer();
})();
