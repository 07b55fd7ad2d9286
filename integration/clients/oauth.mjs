// Gets a token with openid-client: oauth.mjs CLIENT.

import http from "node:http";
import { pathToFileURL } from "node:url";

const oauth = await import(pathToFileURL(process.env.OPENID_CLIENT));

// fetch() of Node takes no Unix socket without another package.
function overSocket(url, { method, headers, body }) {
  return new Promise((resolve, reject) => {
    const request = http.request({ socketPath: process.env.CREDENTIAL_BROKER_SOCKET, path: new URL(url).pathname, method,
      headers: Object.fromEntries(new Headers(headers)) }, async (answer) => {
      let text = "";
      for await (const part of answer) text += part;
      resolve(new Response(text, { status: answer.statusCode, headers: answer.headers }));
    });
    request.on("error", reject);
    request.end(body?.toString());
  });
}

const config = new oauth.Configuration({ issuer: "http://localhost", token_endpoint: "http://localhost/oauth2/token" }, process.argv[2], undefined, oauth.None());
oauth.allowInsecureRequests(config); // it is a Unix socket
config[oauth.customFetch] = overSocket;
const said = await oauth.clientCredentialsGrant(config).then((t) => ({ token: t.access_token }), (e) => ({ code: e.error, detail: e.error_description }));
const times = [];
for (let i = 0; i < Number(process.env.REPEAT); i++) {
  const start = performance.now();
  await oauth.clientCredentialsGrant(config);
  times.push((performance.now() - start) * 1000);
}
if (times.length) said.micros = times.sort((a, b) => a - b)[times.length >> 1];
console.log(JSON.stringify(said));
