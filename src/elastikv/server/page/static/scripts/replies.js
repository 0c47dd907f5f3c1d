// Replies that are being written, one a conversation at most; they go on while another conversation is shown.

import { streamEvents } from "./api.js";
import { advice } from "./advice.js";
import { instructions, requestMembers } from "./settings.js";
import { modelMember, server } from "./server.js";
import { before } from "./thread.js";

export class Replies extends EventTarget {
  constructor(conversations) {
    super();
    this.conversations = conversations;
    this.running = new Map();
  }

  isRunning(conversation) {
    return this.running.has(conversation.id);
  }

  stop(conversation) {
    this.running.get(conversation.id)?.abort();
  }

  /** Writes into `message`, behind what it says already; resolves to a line about what went wrong, or null. */
  async write(conversation, message) {
    const controller = new AbortController();
    this.running.set(conversation.id, controller);
    this.conversations.held.add(conversation.id);
    Object.assign(message, { end: null, problem: null });
    this.tell("start", conversation, message);
    let failure = null;
    try {
      await this.read(conversation, message, controller.signal);
    } catch (error) {
      failure = error;
    }
    this.running.delete(conversation.id);
    this.conversations.held.delete(conversation.id);
    if (controller.signal.aborted) message.end = "stopped";
    else if (failure) Object.assign(message, { end: "failed", problem: advice(failure) });
    this.conversations.save(conversation, { isUse: true });
    this.tell("end", conversation, message);
    return message.problem;
  }

  async read(conversation, message, signal) {
    const started = performance.now();
    const { model } = server; // another may be chosen while it is written
    const begun = isEmpty(message) ? [] : [message]; // the server goes on with what a last reply says
    const body = {
      ...modelMember(),
      ...requestMembers(),
      messages: [...instructions(), ...[...before(conversation, message), ...begun].map(asSent)],
      stream: true,
      stream_options: { include_usage: true },
    };
    for await (const event of streamEvents("/v1/chat/completions", body, signal)) {
      if (event.id_slot !== undefined) this.claim(conversation, event.id_slot, model);
      if (event.usage) Object.assign(message, { usage: usageOf(event.usage) });
      const [choice] = event.choices;
      if (!choice) continue;
      take(message, choice.delta, (performance.now() - started) / 1000);
      if (event.warning) message.problem = event.warning;
      if (choice.finish_reason) finish(message, choice.finish_reason, event.timings);
      this.conversations.save(conversation);
      this.tell("text", conversation, message);
    }
  }

  /** The session is this conversation's now: the server may have gone on in one that was another's. */
  claim(conversation, id, model) {
    const isOne = ({ session }) => session?.id === id && session.model === model;
    if (isOne(conversation) && conversation.session.started === server.started) return;
    for (const other of this.conversations.list()) if (isOne(other)) other.session = null;
    conversation.session = { id, model, started: server.started };
  }

  tell(type, conversation, message) {
    this.dispatchEvent(new CustomEvent(type, { detail: { conversation, message } }));
  }
}

/** A message as the server takes it. */
function asSent(message) {
  if (message.role === "user") return { role: "user", content: withFiles(message) };
  if (message.role === "tool") return { role: "tool", content: message.content, tool_call_id: message.callId };
  return {
    role: "assistant",
    content: message.content,
    ...(message.thoughts && { reasoning_content: message.thoughts }),
    ...(message.calls.length && {
      tool_calls: message.calls.map(({ id, name, args }) => ({ id, type: "function", function: { name, arguments: args } })),
    }),
  };
}

/** Files stand behind the text, in fences that are longer than any within. */
export function withFiles({ content, files = [] }) {
  const blocks = files.map(({ name, text }) => {
    const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map((run) => run.length));
    const fence = "`".repeat(longest + 1);
    return `${name}:\n${fence}\n${text}\n${fence}`;
  });
  return [content, ...blocks].filter(Boolean).join("\n\n");
}

function take(message, delta, seconds) {
  if (delta.reasoning_content) message.thoughts += delta.reasoning_content;
  if (delta.content && message.thoughts && !message.content) message.thoughtSeconds = seconds;
  message.content += delta.content ?? "";
  for (const { index, id, function: { name, arguments: args } } of delta.tool_calls ?? []) {
    const call = (message.calls[index] ??= { id, name: "", args: "" });
    call.name += name ?? "";
    call.args += args ?? "";
  }
}

function finish(message, reason, timings) {
  message.end = reason;
  if (timings) Object.assign(message, { n: timings.predicted_n, speed: timings.predicted_per_second });
}

function usageOf({ prompt_tokens: prompt, total_tokens: total, prompt_tokens_details: details }) {
  return { prompt, total, cached: details?.cached_tokens ?? 0 };
}

/** Whether nothing of a reply has come. */
export function isEmpty({ content, thoughts, calls }) {
  return !content && !thoughts && !calls.length;
}

/** What a reply is before its first word. */
export function emptyReply() {
  return { role: "assistant", content: "", thoughts: "", calls: [], end: null, problem: null };
}
