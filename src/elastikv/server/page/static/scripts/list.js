// The list of conversations: which is shown, which is being answered, what can be done with each.

import { arrange } from "./arrange.js";
import { iconButton } from "./icons.js";

const byId = (id) => document.getElementById(id);

export class ConversationList {
  /** open(conversation), openMenu(button, conversation) */
  constructor(conversations, replies, { open, openMenu }) {
    Object.assign(this, { conversations, replies, open, openMenu });
    this.shown = null;
    this.rows = new Map();
    byId("search").addEventListener("input", () => this.render());
    conversations.addEventListener("change", () => this.render());
    for (const type of ["start", "end"]) replies.addEventListener(type, () => this.render());
  }

  show(conversation) {
    this.shown = conversation;
    this.render();
  }

  render() {
    const wanted = byId("search").value.trim().toLowerCase();
    const found = this.conversations.list().filter((conversation) => !wanted || mentions(conversation, wanted));
    const rows = found.map((conversation) => this.fill(this.rowOf(conversation), conversation));
    for (const [id, row] of this.rows) {
      if (this.conversations.get(id)) continue;
      row.remove();
      this.rows.delete(id);
    }
    arrange(byId("list"), rows);
    byId("export-all").disabled = !this.conversations.byId.size;
    byId("no-conversations").hidden = rows.length > 0;
    byId("no-conversations").textContent = wanted ? "None of them says that." : "What you say is kept in this browser.";
  }

  rowOf(conversation) {
    const { id } = conversation;
    if (!this.rows.has(id)) {
      const row = document.createElement("li");
      const opener = document.createElement("button");
      Object.assign(opener, { type: "button", className: "opener" });
      opener.addEventListener("click", () => this.open(this.conversations.get(id)));
      row.append(opener, iconButton("more", "", (event) => this.openMenu(event.currentTarget, this.conversations.get(id))));
      this.rows.set(id, row);
    }
    return this.rows.get(id);
  }

  fill(row, conversation) {
    const [opener, more] = row.children;
    opener.textContent = conversation.title;
    opener.title = conversation.title;
    if (conversation === this.shown) opener.setAttribute("aria-current", "true");
    else opener.removeAttribute("aria-current");
    more.setAttribute("aria-label", `What to do with ${conversation.title}`);
    more.title = "More";
    more.setAttribute("aria-haspopup", "menu");
    row.classList.toggle("busy", this.replies.isRunning(conversation));
    return row;
  }
}

function mentions({ title, messages }, wanted) {
  return [title, ...messages.map(({ content }) => content)].some((text) => text.toLowerCase().includes(wanted));
}
