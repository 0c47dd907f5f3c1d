// Copying, also where the page came over plain HTTP and has no clipboard of its own.

import { announce } from "./announce.js";
import { icon } from "./icons.js";

const SHOWN = 1500; // milliseconds

export async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  if (!isCopied) throw new Error("this browser does not let the page copy");
}

/** A button that copies what `text()` gives, and says so. */
export function copyButton(label, text) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", className: "icon copy", title: label });
  button.setAttribute("aria-label", label);
  button.append(icon("copy"));
  button.addEventListener("click", async () => {
    try {
      await copy(text());
      announce("Copied.");
      button.replaceChildren(icon("check"));
    } catch (error) {
      announce(`Not copied: ${error.message}`);
    }
    setTimeout(() => button.replaceChildren(icon("copy")), SHOWN);
  });
  return button;
}
