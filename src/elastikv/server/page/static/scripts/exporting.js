// Conversations as files, and back.

import { withFiles } from "./replies.js";
import { path } from "./thread.js";

const FORMAT = "elastikv-conversations";
const HEADINGS = { user: "You", assistant: "Reply", tool: "Result of a call" };

export function exportJson(conversations) {
  const text = JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
  download(`${fileName(conversations)}.json`, "application/json", text);
}

/** The versions that are shown, with thoughts as quotes. */
export function exportMarkdown(conversation) {
  const parts = path(conversation).map((message) => [
    `## ${HEADINGS[message.role]}`,
    message.thoughts && message.thoughts.trim().replace(/^/gm, "> "),
    message.role === "user" ? withFiles(message) : message.content.trim(),
    ...(message.calls ?? []).map(({ name, args }) => `Call of ${name}:\n\n\`\`\`json\n${args}\n\`\`\``),
  ].filter(Boolean).join("\n\n"));
  download(`${fileName([conversation])}.md`, "text/markdown", `# ${conversation.title}\n\n${parts.join("\n\n")}\n`);
}

function fileName(conversations) {
  const [{ title }] = conversations;
  const name = conversations.length > 1 ? "conversations" : title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  return `${name.slice(0, 60) || "conversation"}-${new Date().toISOString().slice(0, 10)}`;
}

function download(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** The conversations of an exported file, each like `create()` gives them. Throws one line about what it is not. */
export function importJson(text, create) {
  let file = null;
  try {
    file = JSON.parse(text);
  } catch {
    // said below
  }
  if (file?.format !== FORMAT || !Array.isArray(file.conversations)) {
    throw new Error("This is not a file of conversations that this page has exported as JSON.");
  }
  return file.conversations.map((given) => checked(given, create()));
}

/** Only members that the page knows, of the types that it gives them: a file may come from anybody. */
function checked(given, conversation) {
  const messages = Array.isArray(given?.messages) ? given.messages.map(checkedMessage) : [];
  const ids = new Set();
  for (const message of messages) {
    // A parent comes before its children, so that no path goes in circles.
    const isSound = Number.isInteger(message.id) && !ids.has(message.id) && (message.parent === null || ids.has(message.parent));
    if (!isSound || !(message.role in HEADINGS)) throw new Error("The messages of this file do not follow each other.");
    ids.add(message.id);
  }
  const leaf = ids.has(given?.leaf) ? given.leaf : messages.at(-1)?.id ?? null;
  return { ...conversation, title: textOf(given?.title) || "Imported chat", isNamed: true, messages, leaf };
}

function checkedMessage(given) {
  const { id, parent = null, role } = given ?? {};
  const content = textOf(given?.content);
  if (role === "user") return { id, parent, role, content, files: listOf(given.files, ["name", "text"]) };
  if (role === "tool") return { id, parent, role, content, callId: textOf(given.callId) };
  return {
    id, parent, role, content,
    thoughts: textOf(given?.thoughts),
    thoughtSeconds: numberOf(given?.thoughtSeconds),
    calls: listOf(given?.calls, ["id", "name", "args"]),
    end: textOf(given?.end) || "stop",
    problem: textOf(given?.problem) || null,
  };
}

const textOf = (value) => (typeof value === "string" ? value : "");
const numberOf = (value) => (Number.isFinite(value) ? value : undefined);
const listOf = (value, names) => (Array.isArray(value) ? value : []).map((item) => (
  Object.fromEntries(names.map((name) => [name, textOf(item?.[name])]))
));
