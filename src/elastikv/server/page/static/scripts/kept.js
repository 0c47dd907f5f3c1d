// Small things that a browser keeps between visits: settings, what is open. Conversations are in storage.js.

/** What was kept under a name, or `otherwise`, also where the browser lets nothing be kept. */
export function recall(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`elastikv-${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Whether the browser has kept it. */
export function keep(name, value) {
  try {
    localStorage.setItem(`elastikv-${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
