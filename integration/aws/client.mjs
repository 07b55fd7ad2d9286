// Amazon's own client: node client.mjs put|get ENDPOINT NAME, the value on
// standard input or output. The access key is in the environment.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
const { SecretsManagerClient, CreateSecretCommand, PutSecretValueCommand, GetSecretValueCommand } =
  createRequire(process.env.CLIENT_MODULES + "/")("@aws-sdk/client-secrets-manager");

const [, , action, endpoint, name] = process.argv;
const client = new SecretsManagerClient({ endpoint, region: "eu-west-1" });
if (action === "put") {
  const SecretString = readFileSync(0, "utf8");
  try {
    await client.send(new CreateSecretCommand({ Name: name, SecretString }));
  } catch (e) {
    if (e.name !== "ResourceExistsException") throw e;
    await client.send(new PutSecretValueCommand({ SecretId: name, SecretString }));
  }
} else {
  const out = await client.send(new GetSecretValueCommand({ SecretId: name, VersionStage: "AWSCURRENT" }));
  process.stdout.write(JSON.stringify({ value: out.SecretString, version: out.VersionId }));
}
