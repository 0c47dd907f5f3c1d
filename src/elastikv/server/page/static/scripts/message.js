// One message as it is shown: its text, thoughts, calls and files, and what can be done with it.

import { chip } from "./attachments.js";
import { copyButton } from "./clipboard.js";
import { frameCode } from "./code.js";
import { count } from "./format.js";
import { iconButton } from "./icons.js";
import { MarkdownView } from "./markdown.js";
import { callView, resultForm } from "./calls.js";
import { Editor } from "./editor.js";
import { withFiles } from "./replies.js";

const LABELS = { user: "You", assistant: "Reply", tool: "Result of a call" };

export class MessageView {
  /** actions: what the buttons do, by name, each with the message as its first argument. */
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.element = document.createElement("article");
    this.element.className = `message ${message.role}`;
    this.element.setAttribute("aria-label", LABELS[message.role]);
    this.body = part("div", "body");
    this.tools = part("div", "tools");
    this.element.append(this.body, this.tools);
    if (message.role === "assistant") this.makeReply();
    else if (message.role === "tool") this.body.append(folded("Result", message.content));
    else this.body.append(said(message.content), ...message.files.map((file) => chip(file)));
  }

  makeReply() {
    this.thoughts = document.createElement("details");
    this.thoughts.className = "thoughts";
    const thinking = part("div", "markdown");
    this.thoughts.append(document.createElement("summary"), thinking);
    this.thinking = new MarkdownView(thinking);
    const text = part("div", "markdown text");
    this.text = new MarkdownView(text);
    this.calls = part("div", "calls");
    this.note = part("p", "note");
    this.problem = part("p", "problem");
    this.body.append(this.thoughts, text, this.calls, this.problem, this.note);
  }

  /** Shows what is new. versions: all of this message; isBusy: a reply is being written; isLast: nothing follows. */
  update({ versions, isBusy, isLast }) {
    if (this.message.role === "assistant") this.updateReply(isBusy, isLast);
    this.updateTools(versions, isBusy, isLast);
  }

  updateReply(isBusy, isLast) {
    const { message } = this;
    const isWriting = isBusy && isLast;
    this.element.classList.toggle("writing", isWriting);
    this.showText(!isWriting);
    this.note.textContent = isWriting ? "" : numbers(message);
    this.problem.textContent = message.problem ?? "";
    this.problem.hidden = !message.problem;
    const asked = message.calls.length && isLast && !isBusy;
    const form = asked && resultForm(message, (results) => this.actions.sendResults(message, results));
    this.calls.replaceChildren(...message.calls.map(callView), ...(form ? [form] : []));
  }

  /** The text so far; called with every piece of it. */
  showText(isWhole = false) {
    const { content, thoughts, thoughtSeconds } = this.message;
    this.thoughts.hidden = !thoughts;
    if (thoughts) {
      const seconds = thoughtSeconds ? ` for ${thoughtSeconds.toFixed(thoughtSeconds < 10 ? 1 : 0)} s` : "";
      this.thoughts.firstChild.textContent = content || isWhole ? `Thoughts${seconds}` : "Thinking …";
      this.thinking.show(thoughts, isWhole || Boolean(content));
    }
    this.text.show(content, isWhole);
  }

  updateTools(versions, isBusy, isLast) {
    const { message, actions } = this;
    if (message.role === "tool") return;
    const had = this.tools.contains(document.activeElement) ? document.activeElement.title : null;
    const tools = [copyButton("Copy message", () => withFiles(message))];
    if (message.role === "user") tools.push(iconButton("edit", "Edit and send again", () => this.edit(message.content)));
    else tools.push(iconButton("again", "Another reply", () => actions.regenerate(message)));
    if (message.role === "assistant" && isLast && message.content && !["stop", "tool_calls"].includes(message.end)) {
      tools.push(iconButton("continue", "Continue this reply", () => actions.resume(message)));
    }
    if (versions.length > 1) tools.push(this.versionSwitch(versions));
    for (const button of tools) for (const each of buttonsOf(button)) if (!each.matches(".copy")) each.disabled ||= isBusy;
    this.tools.replaceChildren(...tools);
    this.tools.hidden = isBusy && isLast;
    // Rebuilt below the user's finger: the same button stays the one that keys go to.
    if (had) [...this.tools.querySelectorAll("button")].find((button) => button.title === had)?.focus();
  }

  versionSwitch(versions) {
    const at = versions.indexOf(this.message);
    const flip = (step) => () => this.actions.show(versions[at + step], step);
    const element = part("span", "versions");
    const back = iconButton("back", "Version before", flip(-1));
    const next = iconButton("next", "Version after", flip(1));
    back.disabled = at === 0;
    next.disabled = at === versions.length - 1;
    element.append(back, part("span", "", `${at + 1} of ${versions.length}`), next);
    return element;
  }

  edit(text) {
    if (this.editor) return;
    this.editor = new Editor(text, {
      send: (changed) => { this.endEdit(); this.actions.edit(this.message, changed); },
      cancel: () => { this.endEdit(); this.tools.querySelector(".edit")?.focus(); },
    });
    this.element.classList.add("editing");
    this.body.after(this.editor.element);
    this.editor.focus();
  }

  endEdit() {
    this.element.classList.remove("editing");
    this.editor.element.remove();
    this.editor = null;
  }
}

function part(tag, className, text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

/** What a person has typed: as it is, but for code between fences. */
function said(text) {
  const element = part("div", "said");
  text.split(/^```(.*)\n([^]*?)\n```$/m).forEach((piece, index) => {
    if (index % 3 === 0) element.append(piece);
    if (index % 3 !== 2) return;
    const pre = document.createElement("pre");
    pre.append(part("code", "", piece));
    element.append(pre);
    frameCode(pre);
  });
  return element;
}

function buttonsOf(element) {
  return element.matches("button") ? [element] : element.querySelectorAll("button");
}

export function folded(title, text) {
  const details = document.createElement("details");
  const pre = part("pre", "", text);
  pre.tabIndex = 0;
  details.append(part("summary", "", title), pre);
  return details;
}

/** What a reply has cost, and how it has ended. */
function numbers({ usage, n, speed, end }) {
  const cached = usage?.cached ? `, ${count(usage.cached)} of them cached` : "";
  return [
    usage && `${count(usage.prompt)} prompt tokens${cached}`,
    n && `${count(n)} tokens, ${speed.toFixed(1)} a second`,
    { length: "cut at the limit", stopped: "stopped" }[end],
  ].filter(Boolean).join(" · ");
}
