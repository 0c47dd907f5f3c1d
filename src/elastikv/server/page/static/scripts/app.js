// Puts the page together.

import { installNotices, notify } from "./announce.js";
import { onKeyNeeded, post } from "./api.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { Conversations } from "./conversations.js";
import { askForKey, askForTitle, installDialogs } from "./dialogs.js";
import { exportJson, exportMarkdown, importJson } from "./exporting.js";
import { bytes, count } from "./format.js";
import { ConversationList } from "./list.js";
import { MemoryPanel } from "./memory.js";
import { Menu } from "./menu.js";
import { Panel } from "./panels.js";
import { Replies } from "./replies.js";
import { choose, ofModel, server } from "./server.js";
import { Sessions } from "./sessions.js";
import { installSettings } from "./settings.js";
import { path } from "./thread.js";

const byId = (id) => document.getElementById(id);

const conversations = new Conversations();
const replies = new Replies(conversations);
const composer = new Composer(conversations);
const chat = new Chat(conversations, replies, composer);
const sessions = new Sessions(conversations, open);
const panels = [new Panel("conversations", "(max-width: 799px)"), new Panel("memory", "(max-width: 1099px)")];
const menu = new Menu(byId("menu"), { rename, remove, markdown: exportMarkdown, json: (conversation) => exportJson([conversation]) });
const list = new ConversationList(conversations, replies, { open, openMenu: (button, subject) => menu.open(button, subject) });

function open(conversation) {
  chat.open(conversation);
  list.show(conversation);
  sessions.mark(conversation);
  // The address names what is shown: it is there again after a reload, and a step back leads to what was before.
  const address = conversations.get(conversation.id) ? `#${conversation.id}` : "#";
  if (location.hash !== address.replace(/^#$/, "")) history.pushState(null, "", address);
  showTitle();
  for (const panel of panels) panel.close();
  // On a phone it would bring up the keyboard.
  if (!matchMedia("(pointer: coarse)").matches) byId("draft").focus();
}

function openNew() {
  open(conversations.create());
}

function openAddressed() {
  const found = conversations.get(location.hash.slice(1));
  if (!found && location.hash) history.replaceState(null, "", "/");
  open(found ?? conversations.create());
}

function showTitle() {
  const { conversation } = chat;
  byId("title").textContent = conversation.title;
  document.title = conversation.messages.length ? `${conversation.title} – elastikv` : "elastikv";
  byId("chat-more").hidden = !conversations.get(conversation.id);
}

async function rename(conversation) {
  const title = await askForTitle(conversation.title);
  if (title) conversations.rename(conversation, title);
}

/** Can be taken back; its session's memory is another matter, and goes at once. */
function remove(conversation) {
  replies.stop(conversation);
  const held = sessions.of(conversation);
  conversations.remove(conversation);
  if (chat.conversation === conversation) openNew();
  if (held) post(ofModel(`/slots/${held.id}?action=erase`)).catch(() => {}); // in use, or gone already: the server takes care of it
  const act = () => { conversations.restore(conversation); open(conversation); };
  notify(`“${conversation.title}” is deleted.`, { label: "Undo", act });
}

async function importFile(file) {
  try {
    const found = importJson(await file.text(), () => conversations.create());
    for (const conversation of found) conversations.save(conversation);
    if (found.length) open(found[0]);
    notify(`${count(found.length)} imported.`);
  } catch (error) {
    notify(error.message);
  }
}

/** What the conversation that is shown holds on the server, in its headline. */
function showHeld() {
  const { conversation } = chat;
  const held = conversation && sessions.of(conversation);
  const total = conversation && path(conversation).findLast(({ usage }) => usage)?.usage.total;
  byId("held").hidden = !held && !total;
  byId("held").textContent = [
    held && held.state !== "parked" && bytes(held.committed_bytes),
    total && server.nCtx && `${count(total)} of ${count(server.nCtx)} tokens`,
  ].filter(Boolean).join(" · ");
}

function showServer() {
  const named = server.models.length < 2 ? [server.model] : [];
  byId("model").textContent = [...named, `up to ${count(server.nCtx)} tokens a session`].join(" · ");
}

function showModels() {
  const names = server.models.map(({ id }) => id);
  byId("models").hidden = names.length < 2;
  if (names.join() !== [...byId("models").options].map(({ value }) => value).join()) {
    byId("models").replaceChildren(...names.map((name) => new Option(name)));
  }
  byId("models").value = server.model;
}

onKeyNeeded(askForKey);
installNotices();
installDialogs();
installSettings();
conversations.addEventListener("notice", ({ detail }) => notify(detail));
conversations.addEventListener("change", () => {
  if (!chat.conversation) return;
  // What another tab has deleted is not shown any longer; what has its first word now has an address.
  const { id } = chat.conversation;
  if (conversations.get(id) && location.hash !== `#${id}`) history.replaceState(null, "", `#${id}`);
  showTitle();
});
conversations.addEventListener("taken", ({ detail: id }) => chat.conversation?.id === id && chat.render());
sessions.addEventListener("change", showHeld);
server.addEventListener("change", showServer);
server.addEventListener("models", showModels);
byId("models").addEventListener("change", ({ target }) => choose(target.value));
byId("add-conversation").addEventListener("click", openNew);
byId("held").addEventListener("click", () => panels[1].open());
byId("chat-more").addEventListener("click", ({ currentTarget }) => menu.open(currentTarget, chat.conversation));
byId("export-all").addEventListener("click", () => exportJson(conversations.list()));
byId("import").addEventListener("click", () => byId("import-file").click());
byId("import-file").addEventListener("change", async ({ target }) => {
  if (target.files.length) await importFile(target.files[0]);
  target.value = "";
});
addEventListener("popstate", openAddressed);

await conversations.load();
byId("draft").disabled = false; // what is typed before would be lost
openAddressed();
new MemoryPanel(sessions, (problem) => { byId("model").textContent = problem; }).run();
