// What is known of the server: its models and the chosen one, its bounds and defaults, and which life of it this is.

import { get } from "./api.js";
import { keep, recall } from "./kept.js";

/** started: when it was; a session's id says nothing after a restart. nCtx: null until the chosen model has answered. */
export const server = Object.assign(new EventTarget(), { models: [], model: null, nCtx: null, started: null, defaults: {} });

const PAUSE = 700; // milliseconds

/** Asks until the chosen model answers; `onWait` is told why it does not yet. */
export async function meet(onWait) {
  for (;;) {
    try {
      const { data: models } = await get("/v1/models");
      const chosen = models.find(({ id }) => id === recall("model")) ?? models[0];
      Object.assign(server, { models, model: chosen.id, started: chosen.created });
      server.dispatchEvent(new Event("models"));
      const { default_generation_settings: { n_ctx: nCtx, params } } = await get(ofModel("/props"));
      if (server.model !== chosen.id) continue; // another was chosen meanwhile
      Object.assign(server, { nCtx, defaults: params ?? {} });
      server.dispatchEvent(new Event("change"));
      return;
    } catch (error) {
      onWait(error.message);
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
  }
}

/** Talk to another of its models from now on; whoever watches it has to meet it. */
export function choose(model) {
  keep("model", model);
  Object.assign(server, { model, nCtx: null });
  server.dispatchEvent(new Event("models"));
}

/** A path that asks about the chosen model, or about `model`. */
export function ofModel(path, model = server.model) {
  if (server.models.length < 2) return path;
  return `${path}${path.includes("?") ? "&" : "?"}model=${encodeURIComponent(model)}`;
}

/** The member of a request that names the chosen model. */
export function modelMember() {
  return server.models.length < 2 ? {} : { model: server.model };
}
