// Light, dark, or as the system has it. Not a module: it runs before anything is painted.

(() => {
  const THEMES = ["system", "light", "dark"];
  const root = document.documentElement;
  const kept = () => {
    try {
      return localStorage.getItem("elastikv-theme") ?? "system";
    } catch {
      return "system";
    }
  };
  const changed = () => document.dispatchEvent(new Event("themechange"));

  root.dataset.theme = kept();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const name = () => {
      button.title = `Theme: ${root.dataset.theme}`;
      button.setAttribute("aria-label", button.title);
    };
    name();
    button.addEventListener("click", () => {
      root.dataset.theme = THEMES[(THEMES.indexOf(root.dataset.theme) + 1) % THEMES.length];
      name();
      changed();
      try {
        localStorage.setItem("elastikv-theme", root.dataset.theme);
      } catch {
        // It holds until the page is closed.
      }
    });
  });
})();
