// Puts the page together.

import { get, onKeyNeeded, post } from "./api.js";
import { Conversation } from "./conversation.js";
import { count } from "./format.js";
import { MemoryPanel } from "./memory.js";

const byId = (id) => document.getElementById(id);
const settings = { system: "", temperature: "", maxTokens: "512" };
let n_conversations = 0;

function addConversation() {
  n_conversations += 1;
  const conversation = new Conversation(n_conversations, settings, (closed) => {
    closed.element.remove();
    if (!byId("conversations").children.length) addConversation();
  });
  byId("conversations").append(conversation.element);
  conversation.element.scrollIntoView({ inline: "end", block: "nearest" });
  conversation.input.focus({ preventScroll: true });
}

function askForKey(wasWrong) {
  const dialog = byId("key");
  byId("key-error").hidden = !wasWrong;
  dialog.querySelector("input").value = "";
  dialog.showModal();
  dialog.oncancel = (event) => event.preventDefault();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.querySelector("input").value);
  });
}

function openSettings() {
  const dialog = byId("settings");
  const form = dialog.querySelector("form");
  for (const [name, value] of Object.entries(settings)) form.elements[name].value = value;
  form.elements.budget.value = "";
  byId("settings-error").hidden = true;
  form.onsubmit = async (event) => {
    if (event.submitter?.value !== "save") return;
    event.preventDefault();
    for (const name of Object.keys(settings)) settings[name] = form.elements[name].value;
    try {
      if (form.elements.budget.value) await post("/memory", { budget: form.elements.budget.value });
      dialog.close();
    } catch (error) {
      byId("settings-error").textContent = error.message;
      byId("settings-error").hidden = false;
    }
  };
  dialog.showModal();
}

/** The model's name, once it has been loaded. */
async function showModel() {
  for (;;) {
    try {
      const [model] = (await get("/v1/models")).data;
      byId("model").textContent = `${model.id} · up to ${count(model.meta.n_ctx)} tokens a session`;
      return;
    } catch (error) {
      byId("model").textContent = error.message;
      await new Promise((resolve) => setTimeout(resolve, 700));
    }
  }
}

onKeyNeeded(askForKey);
byId("add-conversation").addEventListener("click", addConversation);
byId("open-settings").addEventListener("click", openSettings);
addConversation();
showModel();
new MemoryPanel().run();
