// The list and the memory beside the chat: columns where there is room, which can be put away, and drawers where not.

import { keep, recall } from "./kept.js";

const byId = (id) => document.getElementById(id);

export class Panel {
  /** name: of the element, of its button `toggle-NAME` and its `.close`; it is a drawer while `narrow` matches. */
  constructor(name, narrow) {
    this.name = name;
    this.element = byId(name);
    this.button = byId(`toggle-${name}`);
    this.query = matchMedia(narrow);
    this.isOut = false;
    this.button.addEventListener("click", () => this.toggle());
    this.element.querySelector(".close").addEventListener("click", () => this.close());
    this.element.addEventListener("keydown", (event) => event.key === "Escape" && this.isDrawer && this.close());
    byId("shade").addEventListener("click", () => this.close());
    this.query.addEventListener("change", () => { this.isOut = false; this.apply(); });
    this.apply();
  }

  get isDrawer() {
    return this.query.matches;
  }

  get isShown() {
    return this.isDrawer ? this.isOut : recall(`${this.name}-column`, true);
  }

  toggle() {
    if (!this.isShown) this.open();
    else if (this.isDrawer) this.close();
    else {
      keep(`${this.name}-column`, false);
      this.apply();
    }
  }

  open() {
    if (this.isDrawer) this.isOut = true;
    else keep(`${this.name}-column`, true);
    this.apply();
    if (this.isDrawer) this.element.querySelector(".close").focus();
  }

  /** Puts a drawer away; a column stays. */
  close() {
    if (!this.isDrawer || !this.isOut) return;
    this.isOut = false;
    this.apply();
    this.button.focus();
  }

  apply() {
    this.element.hidden = !this.isShown;
    this.button.setAttribute("aria-expanded", this.isShown);
    document.body.classList.toggle(`without-${this.name}`, !this.isDrawer && !this.isShown);
    const isCovering = this.isDrawer && this.isOut;
    this.element.classList.toggle("drawer", isCovering);
    // Behind a drawer nothing can be reached.
    for (const other of document.querySelectorAll("body > header, main > :not([popover])")) {
      if (other !== this.element) other.inert = isCovering;
    }
    byId("shade").hidden = !isCovering;
  }
}
