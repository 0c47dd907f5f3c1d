// Calls of tools that a reply makes, and the form in which a person gives what they return.

/** A call: its name, and its arguments, indented where they are JSON already. */
export function callView({ name, args }) {
  const element = document.createElement("details");
  element.className = "call";
  element.open = true;
  const summary = document.createElement("summary");
  summary.textContent = `Call of ${name}`;
  const pre = document.createElement("pre");
  pre.tabIndex = 0;
  pre.textContent = indented(args);
  element.append(summary, pre);
  return element;
}

function indented(args) {
  try {
    return JSON.stringify(JSON.parse(args), null, 2);
  } catch {
    return args;
  }
}

/** A field for what each call of `message` returns; `send(results)` gets them in order. */
export function resultForm(message, send) {
  const form = document.createElement("form");
  form.className = "results";
  const fields = message.calls.map(({ name }, index) => {
    const label = document.createElement("label");
    const field = document.createElement("textarea");
    field.rows = 2;
    field.value = message.results?.[index] ?? "";
    label.append(`What ${name} returns`, field);
    form.append(label);
    return field;
  });
  const button = document.createElement("button");
  button.className = "primary";
  button.textContent = fields.length > 1 ? "Send results" : "Send result";
  form.append(button);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(fields.map((field) => field.value));
  });
  return form;
}
