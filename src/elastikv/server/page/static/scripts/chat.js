// The conversation that is shown: its messages, and what is done with them.

import { announce } from "./announce.js";
import { arrange } from "./arrange.js";
import { MessageView } from "./message.js";
import { emptyReply, isEmpty } from "./replies.js";
import { Scroller } from "./scroller.js";
import { append, path, remove, show, versions } from "./thread.js";

const LONGEST_TITLE = 80;
const byId = (id) => document.getElementById(id);

export class Chat {
  constructor(conversations, replies, composer) {
    this.conversations = conversations;
    this.replies = replies;
    this.composer = composer;
    this.conversation = null;
    this.views = new WeakMap();
    this.problems = new WeakMap();
    this.scroller = new Scroller(byId("messages"), byId("to-end"));
    this.frame = null;
    composer.onSend = (text, files) => this.send(text, files);
    composer.onStop = () => replies.stop(this.conversation);
    for (const type of ["start", "text", "end"]) replies.addEventListener(type, ({ detail }) => this.follow(type, detail));
  }

  open(conversation) {
    this.conversation = conversation;
    this.conversations.shown = conversation.id;
    this.composer.open(conversation);
    this.render();
    this.scroller.toEnd();
  }

  /** Brings what is shown in line with the conversation; elements that stay are not touched. */
  render() {
    const { conversation } = this;
    const isBusy = this.replies.isRunning(conversation);
    const shown = path(conversation);
    const views = shown.map((message) => this.viewOf(message));
    this.scroller.keep(() => {
      views.forEach((view, index) => view.update({
        versions: versions(conversation, view.message), isBusy, isLast: index === views.length - 1,
      }));
      arrange(byId("messages"), views.map((view) => view.element));
    });
    byId("problem").textContent = this.problems.get(conversation) ?? "";
    byId("welcome").hidden = shown.length > 0;
    this.composer.setBusy(isBusy);
  }

  viewOf(message) {
    if (!this.views.has(message)) this.views.set(message, new MessageView(message, this));
    return this.views.get(message);
  }

  /** With a reply that is being written; in steps of a frame, however fast it comes. */
  follow(type, { conversation, message }) {
    if (type === "start") announce("The reply begins.");
    if (type === "end") announce(message.problem ? `The reply has failed. ${message.problem}` : "The reply has ended.");
    if (conversation !== this.conversation) return;
    if (type !== "text") {
      this.render();
      return;
    }
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (conversation === this.conversation && this.replies.isRunning(conversation)) {
        this.scroller.keep(() => this.viewOf(message).showText());
      }
    });
  }

  // What the buttons do

  async send(text, files) {
    const { conversation } = this;
    if (!conversation.messages.length && !conversation.isNamed) conversation.title = titleOf(text || files[0].name);
    const question = append(conversation, { role: "user", content: text, files });
    if (await this.answer(conversation, question)) return;
    // A turn that was refused never was, or every later one would be refused with it: it is back in the box.
    remove(conversation, question);
    conversation.draft = [text, conversation.draft].filter(Boolean).join("\n");
    conversation.files = [...files, ...conversation.files];
    if (!conversation.messages.length && !conversation.isNamed) conversation.title = "New chat";
    this.settle(conversation);
    if (conversation === this.conversation) this.composer.open(conversation);
  }

  async edit(message, text) {
    const { conversation } = this;
    const question = append(conversation, { ...message, content: text }, message.parent);
    if (await this.answer(conversation, question)) return;
    remove(conversation, question);
    show(conversation, message);
    this.settle(conversation);
    if (conversation === this.conversation) this.viewOf(message).edit(text);
  }

  async regenerate(reply) {
    const { conversation } = this;
    if (await this.answer(conversation, { id: reply.parent })) return;
    show(conversation, reply);
    this.settle(conversation);
  }

  resume(reply) {
    this.write(this.conversation, reply);
  }

  async sendResults(reply, results) {
    const { conversation } = this;
    reply.results = results;
    const [first, ...others] = reply.calls.map(({ id }, index) => (
      append(conversation, { role: "tool", callId: id, content: results[index] })
    ));
    if (await this.answer(conversation, others.at(-1) ?? first)) return;
    remove(conversation, first);
    this.settle(conversation);
  }

  show(message, step) {
    show(this.conversation, message);
    this.settle(this.conversation);
    const tools = this.viewOf(message).tools;
    (tools.querySelector(step < 0 ? ".back:enabled" : ".next:enabled") ?? tools.querySelector(".versions button:enabled"))?.focus();
  }

  /** Writes a reply to a message; false, and the reply is gone, if it ended before its first word. */
  async answer(conversation, question) {
    const reply = append(conversation, emptyReply(), question.id);
    this.scroller.toEnd();
    await this.write(conversation, reply);
    if (!isEmpty(reply) || !["failed", "stopped"].includes(reply.end)) return true;
    this.problems.set(conversation, reply.problem);
    remove(conversation, reply);
    return false;
  }

  async write(conversation, reply) {
    this.problems.delete(conversation);
    // The button that was pressed goes; who uses keys is still among the messages.
    if (byId("messages").contains(document.activeElement)) byId("messages").focus({ preventScroll: true });
    this.conversations.save(conversation, { isUse: true });
    await this.replies.write(conversation, reply);
  }

  settle(conversation) {
    this.conversations.save(conversation, { isUse: true });
    if (conversation === this.conversation) this.render();
  }
}

function titleOf(text) {
  const [line] = text.split("\n");
  return line.length > LONGEST_TITLE ? `${line.slice(0, LONGEST_TITLE)}…` : line;
}
