// What is known of the server: its model, its bounds and defaults, and which life of it this is.

import { get } from "./api.js";

/** started: when it was; a session's id says nothing after a restart. Null until it has answered. */
export const server = Object.assign(new EventTarget(), { model: null, nCtx: null, started: null, defaults: {} });

const PAUSE = 700; // milliseconds

/** Asks until it answers; `onWait` is told why it does not yet. */
export async function meet(onWait) {
  for (;;) {
    try {
      const [model] = (await get("/v1/models")).data;
      const props = await get("/props");
      Object.assign(server, {
        model: model.id, nCtx: model.meta.n_ctx, started: model.created,
        defaults: props.default_generation_settings?.params ?? {},
      });
      server.dispatchEvent(new Event("change"));
      return;
    } catch (error) {
      onWait(error.message);
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
  }
}
