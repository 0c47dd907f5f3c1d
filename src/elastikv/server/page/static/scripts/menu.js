// A menu beside the button that opens it: arrows move in it, Escape and a click elsewhere close it (a popover's own).

const GAP = 4; // pixels

export class Menu {
  /** element: a popover with a button for each of `actions`, by its `data-do`. */
  constructor(element, actions) {
    this.element = element;
    this.subject = null;
    this.opener = null;
    element.addEventListener("click", ({ target }) => {
      const button = target.closest("button");
      if (!button) return;
      element.hidePopover();
      actions[button.dataset.do](this.subject);
    });
    element.addEventListener("keydown", (event) => this.move(event));
    element.addEventListener("toggle", ({ newState }) => this.opener?.setAttribute("aria-expanded", newState === "open"));
  }

  open(opener, subject) {
    Object.assign(this, { opener, subject });
    this.element.showPopover();
    const { left, bottom, top } = opener.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.element;
    const below = bottom + GAP + height <= innerHeight;
    this.element.style.left = `${Math.max(GAP, Math.min(left, innerWidth - width - GAP))}px`;
    this.element.style.top = `${below ? bottom + GAP : Math.max(GAP, top - GAP - height)}px`;
    this.element.querySelector("button").focus();
  }

  move(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Tab") this.element.hidePopover();
    if (!step) return;
    event.preventDefault();
    const buttons = [...this.element.querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    buttons.at((at + step) % buttons.length).focus();
  }
}
