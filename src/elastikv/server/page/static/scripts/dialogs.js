// The dialogs that ask for one thing.

const byId = (id) => document.getElementById(id);

export function installDialogs() {
  // Not buttons that submit: the first of these is what Enter presses.
  for (const button of document.querySelectorAll("dialog .cancel")) {
    button.addEventListener("click", () => button.closest("dialog").close(""));
  }
}

/** Resolves to the key; it cannot be put off, since nothing works without. */
export function askForKey(wasWrong) {
  const dialog = byId("key");
  const input = dialog.querySelector("input");
  byId("key-error").hidden = !wasWrong;
  input.value = "";
  dialog.showModal();
  dialog.oncancel = (event) => event.preventDefault();
  return new Promise((resolve) => {
    dialog.onclose = () => (input.value ? resolve(input.value) : dialog.showModal());
  });
}

/** Resolves to the new title, or to null. */
export function askForTitle(title) {
  const dialog = byId("rename");
  const input = dialog.querySelector("input");
  input.value = title;
  dialog.returnValue = "";
  dialog.showModal();
  input.select();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "save" ? input.value.trim() || null : null);
  });
}
