// Talking to the server: the key, JSON, and streams of events.

const KEY = "elastikv-key";
let askForKey = null;

/** What the server refuses. code: of OpenAI's errors, or "unreachable", or "broken" for a reply that stops midway. */
export class ServerError extends Error {
  constructor(message, { status = 0, code = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

/** `ask(wasWrong)` shows the dialog and resolves to a key. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

let asking = null;

/** fetch with the key; asks for one on 401 and tries again. Other failures throw the server's message. */
async function request(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    const response = await reach(path, { ...options, headers });
    if (response.status === 401) {
      // Several requests may meet the 401 at once: one dialog serves them all.
      if (key === sessionStorage.getItem(KEY)) {
        asking ??= askForKey(key !== null).finally(() => { asking = null; });
        sessionStorage.setItem(KEY, await asking);
      }
      continue;
    }
    if (!response.ok) throw await refusal(response);
    return response;
  }
}

/** fetch, with words for a server that is not there. */
async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer.", { code: "unreachable" });
  }
}

async function refusal(response) {
  const { error } = await response.json().catch(() => ({}));
  const message = error?.message ?? `the server answered ${response.status}`;
  const retryAfter = response.headers.get("Retry-After");
  return new ServerError(message, { status: response.status, code: error?.code ?? null, retryAfter });
}

export async function get(path) {
  return (await request(path)).json();
}

function posting(body, signal) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
}

export async function post(path, body) {
  return (await request(path, posting(body))).json();
}

/** The events of a streamed reply, parsed; ends with [DONE]. */
export async function* streamEvents(path, body, signal) {
  const response = await request(path, posting(body, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { value, done } = await reader.read().catch(brokenUnless(signal));
    if (done) throw new ServerError("The connection broke.", { code: "broken" });
    const blocks = (pending + value).split("\n\n");
    pending = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(event.error.message, event.error);
      yield event;
    }
  }
}

function brokenUnless(signal) {
  return (error) => {
    if (signal.aborted) throw error;
    return { done: true };
  };
}
