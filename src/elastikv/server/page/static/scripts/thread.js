// The messages of a conversation are a tree: another try, or an edited question, is a sibling, and nothing is lost.
// What is shown is the path from the root to `leaf`.

const byId = (conversation, id) => conversation.messages.find((message) => message.id === id);
const childrenOf = (conversation, id) => conversation.messages.filter((message) => message.parent === id);

/** The messages that are shown, first to last. */
export function path(conversation) {
  const found = [];
  for (let at = byId(conversation, conversation.leaf); at; at = byId(conversation, at.parent)) found.unshift(at);
  return found;
}

/** The messages before one, without it. */
export function before(conversation, message) {
  const shown = path({ ...conversation, leaf: message.id });
  return shown.slice(0, -1);
}

/** The versions of a message, itself among them. */
export function versions(conversation, message) {
  return childrenOf(conversation, message.parent);
}

/** Adds a message after the one with the id `parent`, and shows it. */
export function append(conversation, message, parent = conversation.leaf) {
  const id = Math.max(0, ...conversation.messages.map((other) => other.id)) + 1;
  const added = { ...message, id, parent };
  conversation.messages.push(added);
  conversation.leaf = id;
  return added;
}

/** Shows a version, with what was last said after it. */
export function show(conversation, message) {
  let at = message;
  for (let next = at; next; next = childrenOf(conversation, at.id).at(-1)) at = next;
  conversation.leaf = at.id;
}

/** Takes a message and all that follows it away; shows the version before it, or what it followed. */
export function remove(conversation, message) {
  const gone = new Set([message.id]);
  for (const other of conversation.messages) if (gone.has(other.parent)) gone.add(other.id);
  conversation.messages = conversation.messages.filter((other) => !gone.has(other.id));
  const other = versions(conversation, message).at(-1);
  if (other) show(conversation, other);
  else conversation.leaf = message.parent;
}
