// The icons are symbols of index.html, `<symbol id="i-NAME">`.

const SVG = "http://www.w3.org/2000/svg";

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("glyph");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows an icon and is called by its label. */
export function iconButton(name, label, act) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", className: `icon ${name}`, title: label });
  button.setAttribute("aria-label", label);
  button.append(icon(name));
  button.addEventListener("click", act);
  return button;
}
