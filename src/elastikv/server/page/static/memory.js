// The panel beside the conversations: totals, chart, sessions and events, polled while the page is seen.

import { get, post } from "./api.js";
import { KINDS, MemoryChart } from "./chart.js";
import { ago, bytes, count, times } from "./format.js";

const POLL = 400; // milliseconds
const N_EVENTS = 8;
const N_SESSIONS = 10;

const byId = (id) => document.getElementById(id);

export class MemoryPanel {
  constructor() {
    this.chart = new MemoryChart(byId("chart"), byId("chart-tip"));
    this.rows = new Map();
    this.events = [];
    this.lastEvent = 0;
    byId("legend").append(...KINDS.map(legendEntry));
    byId("to-scale").addEventListener("change", (event) => {
      this.chart.toScale = event.target.checked;
      this.chart.draw();
    });
    byId("shrink").addEventListener("click", async () => {
      await post("/memory", { shrink: true });
      await this.refresh();
    });
  }

  async run() {
    for (;;) {
      if (!document.hidden) {
        const isLive = await this.refresh().then(() => true, () => false);
        // What is shown may be old while the server restarts; the next look will tell.
        document.body.classList.toggle("stale", !isLive);
      }
      await new Promise((resolve) => setTimeout(resolve, POLL));
    }
  }

  async refresh() {
    const memory = await get(`/memory?since=${this.lastEvent}`);
    this.lastEvent = memory.events.at(-1)?.number ?? this.lastEvent;
    this.showTotals(memory);
    this.showSessions(memory);
    this.showEvents(memory);
    const { committed_bytes: committed, used_bytes: used, static_bytes, budget_bytes: budget } = memory;
    this.chart.add({ t: memory.clock, committed, used, static: static_bytes, budget }, memory.events);
    this.chart.draw();
  }

  showTotals(memory) {
    byId("committed").textContent = bytes(memory.committed_bytes);
    byId("used").textContent = bytes(memory.used_bytes);
    byId("static").textContent = bytes(memory.static_bytes);
    byId("budget").textContent = memory.budget_bytes === null ? "none" : bytes(memory.budget_bytes);
    byId("process").textContent = bytes(memory.process_bytes);
    const ratio = document.createElement("b");
    ratio.textContent = memory.committed_bytes ? times(memory.static_bytes / memory.committed_bytes) : "all free";
    byId("ratio").replaceChildren(ratio, memory.committed_bytes ? "less than static" : "nothing is held");
  }

  showSessions({ sessions, n_ctx: nCtx }) {
    const holding = sessions.filter((session) => session.state !== "parked");
    const shown = mostInteresting(holding);
    const largest = Math.max(...shown.map((session) => session.committed_bytes), 1);
    for (const session of shown) {
      if (!this.rows.has(session.id)) this.rows.set(session.id, newRow(session.id));
      fillRow(this.rows.get(session.id), session, largest, nCtx);
    }
    const ids = new Set(shown.map((session) => session.id));
    for (const [id, row] of this.rows) {
      if (!ids.has(id)) {
        row.remove();
        this.rows.delete(id);
      }
    }
    byId("no-sessions").hidden = holding.length > 0;
    byId("more-sessions").textContent = moreSessions(holding.length - shown.length, sessions.length - holding.length);
  }

  showEvents(memory) {
    this.events = [...memory.events.reverse(), ...this.events].slice(0, N_EVENTS);
    byId("events").replaceChildren(...this.events.map((event) => eventRow(event, memory.clock)));
    byId("no-events").hidden = this.events.length > 0;
  }
}

function legendEntry(kind) {
  const entry = document.createElement("span");
  entry.textContent = kind;
  entry.style.setProperty("--kind", `var(--${kind})`);
  return entry;
}

/** The running ones, then those used last; in the order of their ids, so that rows keep their places. */
function mostInteresting(sessions) {
  const rank = { running: 0, waiting: 1, idle: 2 };
  return [...sessions]
    .sort((a, b) => rank[a.state] - rank[b.state] || b.last_used - a.last_used)
    .slice(0, N_SESSIONS)
    .sort((a, b) => a.id - b.id);
}

function moreSessions(nHidden, nParked) {
  const parts = [];
  if (nHidden) parts.push(`${count(nHidden)} more not shown`);
  if (nParked) parts.push(`${count(nParked)} parked on disk`);
  return parts.join(", ");
}

function newRow(id) {
  const row = byId("session").content.firstElementChild.cloneNode(true);
  row.querySelector(".id").textContent = `Session ${id}`;
  byId("sessions").append(row);
  return row;
}

function fillRow(row, session, largest, nCtx) {
  const set = (name, text) => { row.querySelector(name).textContent = text; };
  const state = row.querySelector(".state");
  state.textContent = session.state;
  state.className = `state ${session.state}`;
  set(".bytes", bytes(session.committed_bytes));
  set(".of", `${count(session.used_cells)} of ${count(session.capacity_cells)} cells, limit ${count(nCtx)}`);
  set(".saved", `static ${bytes(session.static_bytes)}`);
  const share = (part, whole) => `${whole ? Math.min(100, (100 * part) / whole) : 0}%`;
  row.querySelector(".capacity").style.width = share(session.committed_bytes, largest);
  // By cells: a fixed state is all in use from the first token on, and says nothing about what is left to fill.
  row.querySelector(".fill").style.width = share(session.used_cells, session.capacity_cells);
}

function eventRow(event, clock) {
  const row = document.createElement("li");
  const when = document.createElement("time");
  when.textContent = ago(Math.max(clock - event.t, 0));
  const kind = document.createElement("span");
  kind.className = "kind";
  kind.textContent = event.kind;
  kind.style.setProperty("--kind", `var(--${event.kind})`);
  const what = document.createElement("span");
  what.textContent = description(event);
  row.append(when, kind, what);
  return row;
}

function description({ session, n_cells: cells, n_bytes: size }) {
  const parts = [];
  if (session !== null) parts.push(`session ${session}`);
  if (cells) parts.push(`${count(cells)} cells`);
  if (size) parts.push(bytes(size));
  return parts.join(", ");
}
