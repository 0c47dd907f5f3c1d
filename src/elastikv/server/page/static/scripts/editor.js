// Typing: Enter sends, Shift+Enter begins a line, Escape gives up; and the field in which a message is edited.

/** Makes a textarea send on Enter, but not while an input method is composing. */
export function sendOnEnter(area, send) {
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  area.addEventListener("input", () => fit(area));
}

/** As high as its text, where CSS cannot say so. */
export function fit(area) {
  if (CSS.supports("field-sizing", "content")) return;
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

export class Editor {
  constructor(text, { send, cancel }) {
    this.element = document.getElementById("editor").content.firstElementChild.cloneNode(true);
    this.area = this.element.querySelector("textarea");
    this.area.value = text;
    const sendText = () => this.area.value.trim() && send(this.area.value.trim());
    sendOnEnter(this.area, sendText);
    this.element.addEventListener("submit", (event) => { event.preventDefault(); sendText(); });
    this.element.querySelector(".cancel").addEventListener("click", cancel);
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      cancel();
    });
  }

  focus() {
    this.area.focus();
    this.area.setSelectionRange(this.area.value.length, this.area.value.length);
  }
}
