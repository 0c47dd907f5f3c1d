// All conversations: made, renamed, removed, and written to storage soon after each change.

import { keep, recall } from "./kept.js";
import * as storage from "./storage.js";

const PAUSE = 400; // milliseconds between a change and its writing
const LEFT = "left"; // the name of what a page that was closed has left

export class Conversations extends EventTarget {
  constructor() {
    super();
    this.byId = new Map();
    this.unwritten = new Set();
    this.inFlight = new Map(); // what storage has been given, and has not confirmed: the last write of each
    this.held = new Set(); // those that this tab writes a reply to, whatever others do
    this.shown = null; // the one whose draft is this tab's
    this.removed = new WeakSet();
    this.timer = null;
    this.isKept = true;
    // Another tab's changes, or two tabs would overwrite each other's.
    this.channel = new BroadcastChannel("elastikv");
    this.channel.onmessage = ({ data: id }) => this.take(id);
    addEventListener("pagehide", () => this.leave());
    addEventListener("pageshow", ({ persisted }) => persisted && keep(LEFT, [])); // it goes on, and writes itself
    document.addEventListener("visibilitychange", () => document.hidden && this.flush());
  }

  async load() {
    try {
      for (const record of await storage.readAll()) this.byId.set(record.id, record);
      for (const record of recall(LEFT, [])) this.save(record);
      keep(LEFT, []);
    } catch (error) {
      this.isKept = false;
      this.tell(`This browser keeps no conversations (${error.message}): export what you want to keep.`);
    }
    this.changed();
  }

  /** Last used first. */
  list() {
    return [...this.byId.values()].sort((a, b) => b.updated - a.updated);
  }

  get(id) {
    return this.byId.get(id);
  }

  /** A new one; it is kept from its first word on. */
  create() {
    const now = Date.now();
    return {
      id: now.toString(36) + crypto.getRandomValues(new Uint32Array(1))[0].toString(36),
      title: "New chat", isNamed: false, created: now, updated: now,
      messages: [], leaf: null, draft: "", files: [], session: null,
    };
  }

  /** Has it written; `isUse`: it is the one used last, and the list shows it so. */
  save(conversation, { isUse = false } = {}) {
    if (this.removed.has(conversation)) return;
    if (isUse) conversation.updated = Date.now();
    const isNew = !this.byId.has(conversation.id);
    const isEmpty = !conversation.messages.length && !conversation.draft && !conversation.files.length;
    if (isEmpty && isNew) return;
    this.byId.set(conversation.id, conversation);
    this.unwritten.add(conversation.id);
    this.timer ??= setTimeout(() => this.flush(), PAUSE);
    if (isUse || isNew) this.changed();
  }

  rename(conversation, title) {
    Object.assign(conversation, { title, isNamed: true });
    this.save(conversation);
    this.changed();
  }

  /** Takes it away at once, whatever a reply that has not ended yet says. */
  remove(conversation) {
    this.removed.add(conversation);
    this.byId.delete(conversation.id);
    this.unwritten.add(conversation.id);
    this.flush();
    this.changed();
  }

  /** What storage, which takes its time, may not get any more is kept at once, and written at the next visit. */
  leave() {
    const ids = new Set([...this.inFlight.keys(), ...this.unwritten]);
    const records = [...ids].map((id) => this.byId.get(id)).filter(Boolean);
    if (records.length) keep(LEFT, records);
    this.flush();
  }

  restore(conversation) {
    this.removed.delete(conversation);
    this.save(conversation);
  }

  flush() {
    clearTimeout(this.timer);
    this.timer = null;
    const ids = [...this.unwritten];
    this.unwritten.clear();
    if (!this.isKept) return null;
    return Promise.all(ids.map(async (id) => {
      const write = {};
      this.inFlight.set(id, write);
      try {
        await (this.byId.has(id) ? storage.write(this.byId.get(id)) : storage.erase(id));
        this.channel.postMessage(id);
      } catch (error) {
        this.unwritten.add(id); // with the next change there may be room
        this.tell(error.name === "QuotaExceededError"
          ? "The browser's storage is full: export and delete conversations, or the last words are lost at a reload."
          : `This conversation could not be kept (${error.message}): export it before you leave.`);
      } finally {
        if (this.inFlight.get(id) === write) this.inFlight.delete(id);
      }
    }));
  }

  /** Reads what another tab has written, unless this one has changed it since. */
  async take(id) {
    if (this.unwritten.has(id) || this.held.has(id)) return;
    const record = await storage.read(id).catch(() => undefined);
    const mine = this.byId.get(id);
    const draft = id === this.shown ? { draft: mine?.draft ?? "", files: mine?.files ?? [] } : {};
    if (record && mine) Object.assign(mine, record, draft);
    else if (record) this.byId.set(id, record);
    else this.byId.delete(id);
    this.changed();
    this.dispatchEvent(new CustomEvent("taken", { detail: id }));
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }

  tell(text) {
    this.dispatchEvent(new CustomEvent("notice", { detail: text }));
  }
}
