// One conversation: its messages, its composer, its running reply.

import { streamEvents } from "./api.js";
import { count } from "./format.js";

export class Conversation {
  constructor(number, settings, onClose) {
    this.settings = settings;
    this.history = [];
    this.running = null;
    const template = document.getElementById("conversation");
    this.element = template.content.firstElementChild.cloneNode(true);
    this.title = this.element.querySelector("h2");
    this.name = `Conversation ${number}`;
    this.title.textContent = this.name;
    this.messages = this.element.querySelector(".messages");
    this.input = this.element.querySelector("textarea");
    this.sendButton = this.element.querySelector(".send");
    this.stopButton = this.element.querySelector(".stop");
    this.element.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send();
      }
    });
    this.stopButton.addEventListener("click", () => this.stop());
    this.element.querySelector(".close").addEventListener("click", () => {
      this.stop();
      onClose(this);
    });
  }

  stop() {
    this.running?.abort();
  }

  async send() {
    const text = this.input.value.trim();
    if (!text || this.running) return;
    this.input.value = "";
    if (!this.history.length) this.title.textContent = text;
    this.history.push({ role: "user", content: text });
    const question = this.add("user", text);
    this.setRunning(new AbortController());
    try {
      await this.reply(question, this.running.signal);
    } finally {
      this.setRunning(null);
    }
  }

  async reply(question, signal) {
    const message = this.add("assistant writing", "");
    let text = "";
    let last = null;
    let usage = null;
    let failure = null;
    try {
      for await (const event of streamEvents("/v1/chat/completions", this.body(), signal)) {
        usage = event.usage ?? usage;
        if (!event.choices.length) continue;
        last = event;
        text += event.choices[0].delta.content ?? "";
        this.keepingBottom(() => render(message, text));
      }
    } catch (error) {
      failure = error;
    }
    message.classList.remove("writing");
    // What has been said belongs to the conversation, also when it was stopped.
    if (failure && !text && !signal.aborted) this.takeBack(question, message);
    else this.history.push({ role: "assistant", content: text });
    if (signal.aborted) this.note("stopped");
    else if (failure) this.add("error", failure.message);
    else if (last) this.note(numbers(last, usage));
    if (last?.warning) this.add("error", last.warning);
  }

  /** A turn that was refused never was, or every later one would be refused with it: its text is back in the box. */
  takeBack(question, answer) {
    const { content } = this.history.pop();
    this.input.value = [content, this.input.value].filter(Boolean).join("\n");
    if (!this.history.length) this.title.textContent = this.name;
    question.remove();
    answer.remove();
  }

  body() {
    const { system, temperature, maxTokens } = this.settings;
    const instructions = system ? [{ role: "system", content: system }] : [];
    return {
      messages: [...instructions, ...this.history],
      stream: true,
      stream_options: { include_usage: true },
      ...(temperature !== "" && { temperature: Number(temperature) }),
      ...(maxTokens !== "" && { max_tokens: Number(maxTokens) }),
    };
  }

  add(kind, text) {
    const message = document.createElement("div");
    message.className = `message ${kind}`;
    render(message, text);
    this.keepingBottom(() => this.messages.append(message), true);
    return message;
  }

  note(text) {
    const note = document.createElement("p");
    note.className = "note";
    note.textContent = text;
    this.keepingBottom(() => this.messages.append(note));
  }

  /** Scroll along, unless the reader has scrolled up. */
  keepingBottom(change, always = false) {
    const box = this.messages;
    const atBottom = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    change();
    if (atBottom || always) box.scrollTop = box.scrollHeight;
  }

  setRunning(controller) {
    this.running = controller;
    this.sendButton.hidden = controller !== null;
    this.stopButton.hidden = controller === null;
  }
}

function numbers(event, usage) {
  const { predicted_n: n, predicted_per_second: speed } = event.timings;
  const cached = usage?.prompt_tokens_details.cached_tokens ?? 0;
  const prompt = usage ? `${count(usage.prompt_tokens)} prompt tokens, ${count(cached)} of them cached · ` : "";
  const cut = event.choices[0].finish_reason === "length" ? " · cut at the limit" : "";
  return `${prompt}${count(n)} tokens, ${speed.toFixed(1)} a second${cut}`;
}

/** Text as it is, with ``` fences as code blocks. Never as HTML. */
function render(element, text) {
  const parts = text.split(/^```.*$\n?/m).map((part, index) => {
    if (index % 2 === 0) return document.createTextNode(part);
    const code = document.createElement("pre");
    code.textContent = part.replace(/\n$/, "");
    return code;
  });
  element.replaceChildren(...parts);
}
