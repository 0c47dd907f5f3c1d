// The box at the bottom: the draft of the conversation that is shown, its files, send and stop.

import { chip, readText } from "./attachments.js";
import { fit, sendOnEnter } from "./editor.js";
import { iconButton } from "./icons.js";

const byId = (id) => document.getElementById(id);

export class Composer {
  constructor(conversations) {
    this.conversations = conversations;
    this.conversation = null;
    this.isBusy = false;
    this.area = byId("draft");
    byId("composer").addEventListener("submit", (event) => { event.preventDefault(); this.send(); });
    sendOnEnter(this.area, () => this.send());
    this.area.addEventListener("input", () => {
      this.conversation.draft = this.area.value;
      conversations.save(this.conversation);
    });
    byId("stop").addEventListener("click", () => { this.onStop(); this.area.focus(); });
    byId("attach").addEventListener("click", () => byId("attach-files").click());
    byId("attach-files").addEventListener("change", async ({ target }) => {
      await this.attach([...target.files]);
      target.value = "";
    });
    this.area.addEventListener("paste", (event) => this.takeFiles(event, event.clipboardData));
    byId("chat").addEventListener("dragover", (event) => event.dataTransfer.types.includes("Files") && event.preventDefault());
    byId("chat").addEventListener("drop", (event) => this.takeFiles(event, event.dataTransfer));
  }

  /** Files that are dropped or pasted; text is the browser's own business. */
  takeFiles(event, { files }) {
    if (!files.length) return;
    event.preventDefault();
    this.attach([...files]);
  }

  open(conversation) {
    this.conversation = conversation;
    this.area.value = conversation.draft;
    fit(this.area);
    this.showFiles();
    this.complain([]);
  }

  setBusy(isBusy) {
    this.isBusy = isBusy;
    const hadFocus = document.activeElement === byId(isBusy ? "send" : "stop");
    byId("send").hidden = isBusy;
    byId("stop").hidden = !isBusy;
    if (hadFocus) byId(isBusy ? "stop" : "send").focus();
  }

  send() {
    const { conversation } = this;
    const text = this.area.value.trim();
    const { files } = conversation;
    if (this.isBusy || (!text && !files.length)) return;
    Object.assign(conversation, { draft: "", files: [] });
    this.open(conversation);
    this.onSend(text, files);
  }

  async attach(files) {
    const { conversation } = this;
    const problems = [];
    for (const file of files) {
      try {
        conversation.files.push(await readText(file));
      } catch (error) {
        problems.push(error.message);
      }
    }
    this.conversations.save(conversation);
    if (conversation !== this.conversation) return;
    this.showFiles();
    this.complain(problems);
    this.area.focus();
  }

  showFiles() {
    const { conversation } = this;
    byId("files").replaceChildren(...conversation.files.map((file) => chip(file, iconButton("close", `Remove ${file.name}`, () => {
      conversation.files = conversation.files.filter((other) => other !== file);
      this.conversations.save(conversation);
      this.showFiles();
      this.area.focus();
    }))));
  }

  complain(problems) {
    byId("attach-problem").textContent = problems.join(" ");
  }
}
