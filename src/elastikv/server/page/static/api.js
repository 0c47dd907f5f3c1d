// Talking to the server: the key, JSON, and streams of events.

const KEY = "elastikv-key";
let askForKey = null;

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
    if (!response.ok) throw new Error(await errorMessage(response));
    return response;
  }
}

/** fetch, with words for a server that is not there. */
async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer.");
  }
}

async function errorMessage(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
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
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (pending + value).split("\n\n");
    pending = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}
