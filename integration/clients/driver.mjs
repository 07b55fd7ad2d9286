// Does one thing with clients/credential-broker.mjs: driver.mjs SECONDS ACTION CLIENT [URL]; says in JSON what came of it.

import { createRequire } from "node:module";
import { Broker, BrokerError } from "../../clients/credential-broker.mjs";

const [seconds, action, client, url] = process.argv.slice(2);
const broker = new Broker({ timeout: Number(seconds) });
const body = '{"functie":"bakker"}';

async function answer() {
  if (action === "token") return { token: (await broker.token(client, { minTTL: 30 })).access_token };
  if (action === "headers") return { headers: await broker.headers(client) };
  if (action === "fetch") {
    const a = await broker.fetch(client, url, { method: "POST", body });
    return { status: a.status, body: await a.text() };
  }
  const axios = createRequire(process.env.MODULES)("axios");
  const a = await broker.axios(client, axios.create()).post(url, body).catch((e) => {
    if (!e.response) throw e;
    return e.response;
  });
  return { status: a.status, body: JSON.stringify(a.data) };
}

const said = await answer().catch((e) => {
  if (!(e instanceof BrokerError)) throw e;
  return { code: e.code, detail: e.detail, retry_after: e.retryAfter };
});
const times = [];
for (let i = 0; i < Number(process.env.REPEAT); i++) {
  const start = performance.now();
  await answer();
  times.push((performance.now() - start) * 1000);
}
if (times.length) said.micros = times.sort((a, b) => a - b)[times.length >> 1];
console.log(JSON.stringify(said));
