// The sessions of the server as bars: those of conversations here and those that run; idle ones of others are folded away.

import { arrange } from "./arrange.js";
import { bytes, count } from "./format.js";
import { server } from "./server.js";

const MOST = 10; // rows of a list

const byId = (id) => document.getElementById(id);

export class Sessions extends EventTarget {
  /** open(conversation): of a row whose name is pressed. */
  constructor(conversations, open) {
    super();
    this.conversations = conversations;
    this.open = open;
    this.rows = new Map();
    this.current = null;
    this.latest = { sessions: [], n_ctx: 0 };
  }

  /** The conversation that is shown; its bar is marked. */
  mark(conversation) {
    this.current = conversation;
    this.show(this.latest);
  }

  /** What a conversation's session was at the last look; undefined if it holds none. */
  of(conversation) {
    const { session } = conversation;
    if (!session || session.started !== server.started || session.model !== server.model) return undefined;
    return this.latest.sessions.find(({ id }) => id === session.id);
  }

  show(memory) {
    this.latest = memory;
    const owners = new Map(this.conversations.list().map((conversation) => [this.of(conversation)?.id, conversation]));
    const holding = memory.sessions.filter(({ state }) => state !== "parked");
    const isFolded = ({ id, state }) => state === "idle" && !owners.has(id);
    const shown = lastUsed(holding.filter((session) => !isFolded(session)));
    const folded = lastUsed(holding.filter(isFolded));
    const largest = Math.max(...shown.map(({ committed_bytes: size }) => size), 1);
    const rows = (sessions) => sessions.map((session) => this.fill(session, owners.get(session.id), largest, memory.n_ctx));
    arrange(byId("sessions"), rows(shown.slice(0, MOST)));
    arrange(byId("idle-sessions"), rows(folded.slice(0, MOST)));
    byId("idle").hidden = !folded.length;
    byId("idle-summary").textContent = summary(folded);
    byId("no-sessions").hidden = holding.length > 0;
    byId("more-sessions").textContent = more(
      Math.max(shown.length - MOST, 0) + Math.max(folded.length - MOST, 0), memory.sessions.length - holding.length,
    );
    const ids = new Set(holding.map(({ id }) => id));
    for (const id of this.rows.keys()) if (!ids.has(id)) this.rows.delete(id);
    this.dispatchEvent(new Event("change"));
  }

  fill(session, owner, largest, nCtx) {
    if (!this.rows.has(session.id)) this.rows.set(session.id, byId("session").content.firstElementChild.cloneNode(true));
    const row = this.rows.get(session.id);
    const set = (name, text) => { row.querySelector(name).textContent = text; };
    const name = row.querySelector(".name");
    name.hidden = !owner;
    if (owner) {
      name.textContent = owner.title;
      name.title = `Show ${owner.title}`;
      name.onclick = () => this.open(owner);
    }
    row.classList.toggle("current", owner !== undefined && owner === this.current);
    const state = row.querySelector(".state");
    state.textContent = session.state;
    state.className = `state ${session.state}`;
    set(".id", `Session ${session.id}`);
    set(".bytes", bytes(session.committed_bytes));
    set(".of", `${count(session.used_cells)} of ${count(session.capacity_cells)} cells, limit ${count(nCtx)}`);
    set(".saved", `static ${bytes(session.static_bytes)}`);
    const share = (part, whole) => `${whole ? Math.min(100, (100 * part) / whole) : 0}%`;
    row.querySelector(".capacity").style.width = share(session.committed_bytes, largest);
    // By cells: a fixed state is all in use from the first token on, and says nothing about what is left to fill.
    row.querySelector(".fill").style.width = share(session.used_cells, session.capacity_cells);
    return row;
  }
}

/** The most interesting: the running ones, then those used last; in the order of their ids, so that rows keep their places. */
function lastUsed(sessions) {
  const rank = { running: 0, waiting: 1, idle: 2 };
  const sorted = [...sessions].sort((a, b) => rank[a.state] - rank[b.state] || b.last_used - a.last_used);
  return [...sorted.slice(0, MOST).sort((a, b) => a.id - b.id), ...sorted.slice(MOST)];
}

function summary(folded) {
  const size = folded.reduce((sum, { committed_bytes: held }) => sum + held, 0);
  return `${count(folded.length)} other idle ${folded.length === 1 ? "session" : "sessions"} · ${bytes(size)}`;
}

function more(nHidden, nParked) {
  const parts = [];
  if (nHidden) parts.push(`${count(nHidden)} more not shown`);
  if (nParked) parts.push(`${count(nParked)} parked on disk`);
  return parts.join(", ");
}
