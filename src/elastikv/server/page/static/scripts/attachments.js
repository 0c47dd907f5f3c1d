// Text files that go with a message.

import { bytes } from "./format.js";

const MOST_BYTES = 1024 ** 2;

/** `{name, text}` of a file; throws one line for what is too large or not text. */
export async function readText(file) {
  if (file.size > MOST_BYTES) {
    throw new Error(`${file.name} has ${bytes(file.size)}; attach at most ${bytes(MOST_BYTES)} a file.`);
  }
  const raw = new Uint8Array(await file.arrayBuffer());
  try {
    if (raw.includes(0)) throw new TypeError("a zero byte");
    return { name: file.name, text: new TextDecoder("utf-8", { fatal: true }).decode(raw) };
  } catch {
    throw new Error(`${file.name} is not text in UTF-8; only text can be attached.`);
  }
}

/** A chip with a file's name; `onRemove` gives it a button. */
export function chip({ name, text }, onRemove) {
  const element = document.createElement(onRemove ? "span" : "details");
  element.className = "chip";
  const label = document.createElement(onRemove ? "span" : "summary");
  label.textContent = `${name} · ${bytes(new Blob([text]).size)}`;
  element.append(label);
  if (onRemove) {
    element.append(onRemove);
  } else {
    const pre = document.createElement("pre");
    pre.textContent = text;
    pre.tabIndex = 0;
    element.append(pre);
  }
  return element;
}
