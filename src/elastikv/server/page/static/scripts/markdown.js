// What a model says, by marked: pictures become links, and markup that was written out stays text.

import { Marked } from "../vendor/marked.esm.js";
import { frameCode, highlight } from "./code.js";
import { sanitized } from "./sanitize.js";

const escaped = (text) => text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => (/^<br\s*\/?>$/i.test(text) ? "<br>" : escaped(text)),
    image: ({ href, text }) => `<a href="${escaped(href)}" class="image">${escaped(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    // The page itself has the first two levels.
    heading({ tokens, depth }) {
      const level = Math.min(depth + 2, 6);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
  },
});

/** A text that may still be growing: only blocks that have changed are made anew. */
export class MarkdownView {
  constructor(element) {
    this.element = element;
    this.blocks = [];
  }

  /** isWhole: nothing follows, and the last block, too, may be highlighted. */
  show(text, isWhole = true) {
    const tokens = blocksOf(text);
    tokens.forEach((token, index) => {
      const isDone = isWhole || index < tokens.length - 1;
      const block = this.blocks[index];
      if (block?.raw === token.raw && block.isDone === isDone) return;
      const element = made(token, isDone);
      if (block) block.element.replaceWith(element);
      else this.element.append(element);
      this.blocks[index] = { raw: token.raw, isDone, element };
    });
    for (const { element } of this.blocks.splice(tokens.length)) element.remove();
  }
}

/** A text that marked gives up on (nested too deeply) is one paragraph, as it is. */
function blocksOf(text) {
  try {
    return marked.lexer(text).filter((token) => token.type !== "space");
  } catch {
    return [{ type: "plain", raw: text }];
  }
}

function made(token, isDone) {
  const block = document.createElement("div");
  block.className = "block";
  try {
    block.append(sanitized(marked.parser([token])));
  } catch {
    block.textContent = token.raw;
  }
  for (const table of block.querySelectorAll("table")) table.replaceWith(scrolling(table.cloneNode(true)));
  for (const pre of block.querySelectorAll("pre")) {
    const code = frameCode(pre);
    if (isDone) highlight(code);
  }
  return block;
}

/** Wider than the page it scrolls by itself, with the keyboard, too. */
function scrolling(table) {
  const box = document.createElement("div");
  Object.assign(box, { className: "table", tabIndex: 0 });
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", "Table");
  box.append(table);
  return box;
}
