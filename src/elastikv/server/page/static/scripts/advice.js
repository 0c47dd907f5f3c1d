// What went wrong, and what to do, in one line.

const WHAT_TO_DO = {
  unreachable: "Send it again when the server is back.",
  broken: "What has come is kept; Continue goes on from there.",
  context_length_exceeded: "Shorten the message, begin a new chat, or start the server with a larger -c.",
  cache_full: "Delete a conversation, give back spare memory, or raise the memory budget in the settings.",
  unavailable: "Try again in a moment.",
};

/** A line for a failure of a reply. */
export function advice(error) {
  const what = sentence(error.message);
  if (error.code === "queue_full") return `${what} Try again in ${error.retryAfter ?? "a few"} seconds.`;
  if (error.status === 413) return `${what} Attach less.`;
  return [what, WHAT_TO_DO[error.code] ?? (error.status >= 500 ? "Try again." : "")].filter(Boolean).join(" ");
}

function sentence(text) {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}
