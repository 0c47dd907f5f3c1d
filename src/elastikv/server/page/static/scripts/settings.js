// How replies are sampled: what is kept, the dialog that changes it, and what a request gets of it.

import { post } from "./api.js";
import { keep, recall } from "./kept.js";
import { ofModel, server } from "./server.js";

/** Members of a request that are numbers, as the dialog groups them: name, label, least, step. */
const NUMBERS = {
  basic: [
    ["temperature", "Temperature", 0, 0.1],
    ["max_tokens", "Tokens at most", 0, 1],
    ["seed", "Seed", -1, 1],
    ["reasoning_budget_tokens", "Tokens for thoughts", -1, 1],
  ],
  cuts: [
    ["top_k", "Top k", 0, 1],
    ["top_p", "Top p", 0, 0.01],
    ["min_p", "Min p", 0, 0.01],
    ["typical_p", "Typical p", 0, 0.01],
    ["top_n_sigma", "Top n sigma", -1, 0.1],
    ["xtc_probability", "XTC probability", 0, 0.05],
    ["xtc_threshold", "XTC threshold", 0, 0.05],
  ],
  repetitions: [
    ["repeat_penalty", "Repeat penalty", 0, 0.05],
    ["presence_penalty", "Presence penalty", -2, 0.1],
    ["frequency_penalty", "Frequency penalty", -2, 0.1],
    ["repeat_last_n", "Over the last tokens", -1, 1],
    ["dry_multiplier", "DRY multiplier", 0, 0.1],
    ["dry_base", "DRY base", 1, 0.05],
    ["dry_allowed_length", "DRY allowed length", 0, 1],
    ["dry_penalty_last_n", "DRY over the last tokens", -1, 1],
  ],
};
const FIELDS = Object.values(NUMBERS).flat();
const TEXTS = ["system", "thinking", "stop", "samplers", "further"];

const byId = (id) => document.getElementById(id);

/** Texts by name, as they were typed; one that is absent leaves the server's default. */
let settings = recall("settings", {});

/** The first message of every conversation, if there is one. */
export function instructions() {
  return settings.system ? [{ role: "system", content: settings.system }] : [];
}

/** The members of a request that the settings make; `further` goes over all. */
export function requestMembers() {
  const members = {};
  for (const [name] of FIELDS) if (settings[name]) members[name] = Number(settings[name]);
  if (settings.thinking) members.enable_thinking = settings.thinking === "on";
  if (settings.stop) members.stop = settings.stop.split("\n").filter(Boolean);
  if (settings.samplers) members.samplers = settings.samplers.split(/[\s,;]+/).filter(Boolean);
  return { ...members, ...(settings.further && JSON.parse(settings.further)) };
}

export function installSettings() {
  for (const [group, fields] of Object.entries(NUMBERS)) byId(`settings-${group}`).append(...fields.map(numberField));
  const form = byId("settings").querySelector("form");
  byId("open-settings").addEventListener("click", () => open(form));
  byId("reset-settings").addEventListener("click", () => fill(form, {}));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    save(form);
  });
}

function numberField([name, text, min, step]) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  Object.assign(input, { type: "number", name, min, step: step === 1 ? 1 : "any" });
  label.append(text, input);
  return label;
}

function open(form) {
  fill(form, settings);
  form.elements.budget.value = "";
  for (const [name] of FIELDS) form.elements[name].placeholder = shownDefault(server.defaults[name]);
  form.elements.samplers.placeholder = (server.defaults.samplers ?? []).join(", ");
  showProblem("");
  byId("settings").showModal();
}

/** Numbers as people write them, though JSON may have had them as float32. */
function shownDefault(value) {
  return typeof value === "number" ? String(Number(value.toPrecision(6))) : "default";
}

function fill(form, values) {
  for (const name of [...TEXTS, ...FIELDS.map(([field]) => field)]) form.elements[name].value = values[name] ?? "";
}

async function save(form) {
  const names = [...TEXTS, ...FIELDS.map(([name]) => name)];
  const given = names.map((name) => [name, form.elements[name].value.trim()]).filter(([, value]) => value);
  const wish = Object.fromEntries(given);
  const { budget } = Object.fromEntries(new FormData(form));
  try {
    checkFurther(wish.further);
    if (budget) await post(ofModel("/memory"), { budget });
  } catch (error) {
    showProblem(error.message);
    return;
  }
  settings = wish;
  if (keep("settings", settings)) byId("settings").close();
  else showProblem("This browser keeps no settings: they hold until the page is closed.");
}

function checkFurther(text) {
  if (!text) return;
  let members = null;
  try {
    members = JSON.parse(text);
  } catch (error) {
    throw new Error(`Further parameters are not JSON: ${error.message}`);
  }
  if (members === null || typeof members !== "object" || Array.isArray(members)) {
    throw new Error('Further parameters must be a JSON object, such as {"logit_bias": {"15": -100}}');
  }
}

function showProblem(text) {
  byId("settings-error").textContent = text;
  byId("settings-error").hidden = !text;
}
