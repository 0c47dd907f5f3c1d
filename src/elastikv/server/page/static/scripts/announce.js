// What a screen reader is told, and lines that everybody sees for a while, one at a time.

const byId = (id) => document.getElementById(id);
const SHOWN = 15_000; // milliseconds

let timer = null;

/** For those who listen: a reply begins or ends. */
export function announce(text) {
  byId("announcement").textContent = text;
}

/** A line at the bottom, with a button if there is something to take back; it stays while it is pointed at. */
export function notify(text, { label, act } = {}) {
  const line = byId("notice");
  line.querySelector("p").textContent = text;
  announce(text);
  const button = line.querySelector(".act");
  button.hidden = !act;
  button.textContent = label ?? "";
  button.onclick = () => {
    dismiss();
    act();
  };
  line.hidden = false;
  wait();
}

export function dismiss() {
  clearTimeout(timer);
  byId("notice").hidden = true;
}

function wait() {
  clearTimeout(timer);
  timer = setTimeout(() => (byId("notice").matches(":hover, :focus-within") ? wait() : dismiss()), SHOWN);
}

export function installNotices() {
  byId("notice").querySelector(".close").addEventListener("click", dismiss);
}
