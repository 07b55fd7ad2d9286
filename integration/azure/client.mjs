// Microsoft's own client: node client.mjs put|get|list VAULT NAME, the value on
// standard input or output.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
const require = createRequire(process.env.CLIENT_MODULES + "/");
const { SecretClient } = require("@azure/keyvault-secrets");
const { ClientSecretCredential } = require("@azure/identity");

const [, , action, vault, name] = process.argv;
const credential = new ClientSecretCredential(process.env.TENANT, process.env.CLIENT, process.env.CLIENT_SECRET, {
  authorityHost: vault,
  disableInstanceDiscovery: true,
});
const client = new SecretClient(vault, credential, { disableChallengeResourceVerification: true, retryOptions: { maxRetries: 0 } });
if (action === "put") {
  await client.setSecret(name, readFileSync(0, "utf8"));
} else if (action === "get") {
  const s = await client.getSecret(name);
  process.stdout.write(JSON.stringify({ value: s.value, version: s.properties.version }));
} else {
  let n = 0;
  for await (const _ of client.listPropertiesOfSecretVersions(name)) n++;
  process.stdout.write(String(n));
}
