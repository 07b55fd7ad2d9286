// Google's own client, as a second opinion on the server and on the adapter.
// Usage: client.js read|write NAME; the address, the authority and the token
// come from the environment, values and answers pass as JSON over standard
// input and output.
'use strict';
const fs = require('fs');
const {createRequire} = require('module');
const fromInstall = createRequire(process.env.GCP_INSTALL + '/package.json');
const {SecretManagerServiceClient} = fromInstall('@google-cloud/secret-manager');
const {OAuth2Client} = fromInstall('google-auth-library');

const [, , verb, name] = process.argv;
const [host, port] = process.env.GCP_ADDR.split(':');
const authClient = new OAuth2Client();
authClient.setCredentials({access_token: process.env.GCP_TOKEN});
const client = new SecretManagerServiceClient({apiEndpoint: host, port: Number(port), authClient, projectId: 'test-project'});
const parent = 'projects/test-project';

async function main() {
  if (verb === 'read') {
    const [r] = await client.accessSecretVersion({name: `${parent}/secrets/${name}/versions/latest`});
    const [meta] = await client.getSecretVersion({name: r.name});
    return {version: r.name.split('/').pop(), value: r.payload.data.toString('base64'), state: meta.state};
  }
  const value = Buffer.from(fs.readFileSync(0, 'utf8'), 'base64');
  try {
    await client.createSecret({parent, secretId: name, secret: {replication: {automatic: {}}}});
  } catch (e) {
    if (e.code !== 6) throw e; // ALREADY_EXISTS
  }
  const [v] = await client.addSecretVersion({parent: `${parent}/secrets/${name}`, payload: {data: value}});
  return {version: v.name.split('/').pop()};
}

main().then(
  (out) => console.log(JSON.stringify(out)),
  (e) => console.log(JSON.stringify({code: e.code, reason: e.reason}))
).finally(() => client.close());
