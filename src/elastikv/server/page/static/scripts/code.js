// Blocks of code: a line with the language and a button above, and colours from highlight.js, loaded with the first block.

import { copyButton } from "./clipboard.js";
import { sanitized } from "./sanitize.js";

const LONGEST = 50_000; // characters; colours for more would stop the page

let loading = null;

/** Puts a `pre` into its frame; returns its `code`. */
export function frameCode(pre) {
  const code = pre.querySelector("code") ?? pre;
  const frame = document.createElement("div");
  frame.className = "code";
  const head = document.createElement("div");
  head.className = "code-head";
  const name = document.createElement("span");
  name.textContent = languageOf(code) || "text";
  head.append(name, copyButton("Copy code", () => code.textContent));
  pre.replaceWith(frame);
  pre.tabIndex = 0;
  pre.setAttribute("role", "region");
  pre.setAttribute("aria-label", `Code, ${name.textContent}`);
  frame.append(head, pre);
  return code;
}

export async function highlight(code) {
  const language = languageOf(code);
  if (!language || code.textContent.length > LONGEST) return;
  loading ??= import("../vendor/highlight.min.js");
  const hljs = (await loading).default;
  if (!hljs.getLanguage(language)) return;
  code.replaceChildren(sanitized(hljs.highlight(code.textContent, { language, ignoreIllegals: true }).value));
}

function languageOf(code) {
  return code.className.match(/\blanguage-([\w+#-]+)/)?.[1]?.toLowerCase() ?? "";
}
