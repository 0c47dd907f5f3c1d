// The panel beside the conversations: totals, chart, sessions and events, polled while the page is seen.

import { notify } from "./announce.js";
import { get, post } from "./api.js";
import { KINDS, MemoryChart } from "./chart.js";
import { ago, bytes, count, times } from "./format.js";
import { meet, ofModel, server } from "./server.js";

const POLL = 400; // milliseconds
const N_EVENTS = 8;

const byId = (id) => document.getElementById(id);

export class MemoryPanel {
  /** sessions: shows those of each look; onWait: is told while the server does not answer. */
  constructor(sessions, onWait) {
    this.sessions = sessions;
    this.onWait = onWait;
    this.chart = new MemoryChart(byId("chart"), byId("chart-tip"));
    this.forget();
    server.addEventListener("models", () => {
      if (this.started !== server.started || this.model !== server.model) this.forget();
    });
    byId("legend").append(...KINDS.map(legendEntry));
    byId("to-scale").addEventListener("change", (event) => {
      this.chart.toScale = event.target.checked;
      this.chart.draw();
    });
    byId("shrink").addEventListener("click", async () => {
      await post(ofModel("/memory"), { shrink: true }).catch((error) => notify(error.message));
      await this.refresh().catch(() => {}); // the next look will tell
    });
  }

  /** A server that has been restarted counts its events and seconds anew, and so does each of its models. */
  forget() {
    this.started = server.started;
    this.model = server.model;
    this.events = [];
    this.lastEvent = 0;
    this.chart.clear();
  }

  async run() {
    await meet(this.onWait);
    for (;;) {
      if (!document.hidden) await this.look();
      await new Promise((resolve) => setTimeout(resolve, POLL));
    }
  }

  async look() {
    try {
      if (server.nCtx === null) await meet(this.onWait);
      await this.refresh();
    } catch (error) {
      // What is shown may be old; the server that answers next may be another one.
      document.body.classList.add("stale");
      this.onWait(error.message);
      await meet(this.onWait);
    }
    document.body.classList.remove("stale");
  }

  async refresh() {
    const memory = await get(ofModel(`/memory?since=${this.lastEvent}`));
    this.lastEvent = memory.events.at(-1)?.number ?? this.lastEvent;
    this.showTotals(memory);
    this.sessions.show(memory);
    this.showEvents(memory);
    const { committed_bytes: committed, used_bytes: used, static_bytes, budget_bytes: budget } = memory;
    this.chart.add({ t: memory.clock, committed, used, static: static_bytes, budget }, memory.events);
    this.chart.draw();
  }

  showTotals(memory) {
    byId("committed").textContent = bytes(memory.committed_bytes);
    byId("used").textContent = bytes(memory.used_bytes);
    byId("static").textContent = bytes(memory.static_bytes);
    const others = memory.others_bytes ? `, ${bytes(memory.others_bytes)} held by other models` : "";
    byId("budget").textContent = (memory.budget_bytes === null ? "none" : bytes(memory.budget_bytes)) + others;
    byId("process").textContent = bytes(memory.process_bytes);
    const ratio = document.createElement("b");
    ratio.textContent = memory.committed_bytes ? times(memory.static_bytes / memory.committed_bytes) : "all free";
    byId("ratio").replaceChildren(ratio, memory.committed_bytes ? "less than static" : "nothing is held");
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
