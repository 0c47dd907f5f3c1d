// A list that scrolls along with what is added, unless the reader has scrolled up.

const NEAR = 48; // pixels

export class Scroller {
  /** button: brings a reader who has scrolled up back to the end. */
  constructor(box, button) {
    this.box = box;
    this.button = button;
    box.addEventListener("scroll", () => this.note());
    new ResizeObserver(() => this.keep(() => {})).observe(box);
    button.addEventListener("click", () => { this.toEnd(); box.focus({ preventScroll: true }); });
    this.isAtEnd = true;
  }

  note() {
    const { scrollHeight, scrollTop, clientHeight } = this.box;
    this.isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR;
    this.button.hidden = this.isAtEnd;
  }

  keep(change) {
    const wasAtEnd = this.isAtEnd;
    change();
    if (wasAtEnd) this.toEnd();
    else this.note();
  }

  toEnd() {
    this.box.scrollTop = this.box.scrollHeight;
    this.isAtEnd = true;
    this.button.hidden = true;
  }
}
