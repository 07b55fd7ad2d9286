// An authorization server: oidc-provider over TLS, with the client credentials
// grant, opaque access tokens, and JWTs of several algorithms for APIs, whose
// URLs end in the algorithm's name. An API has the scope "read" alone.
//
// Arguments: host:port, and a directory with cert.pem, key.pem and setup.json:
// the clients, and the signing keys, one an algorithm. OIDC_MODULES names the
// directory that oidc-provider is installed in.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { pathToFileURL } from 'node:url';

const { default: Provider, errors } = await import(pathToFileURL(`${process.env.OIDC_MODULES}/oidc-provider/lib/index.js`));
const [addr, dir] = process.argv.slice(2);
const [host, port] = addr.split(':');
const { clients, keys } = JSON.parse(readFileSync(`${dir}/setup.json`, 'utf8'));

const provider = new Provider(`https://${addr}`, {
  clients: clients.map((c) => ({ grant_types: ['client_credentials'], redirect_uris: [], response_types: [], scope: 'read write', ...c })),
  jwks: { keys },
  scopes: ['read', 'write'],
  ttl: { ClientCredentials: (ctx, token) => token.resourceServer?.accessTokenTTL ?? 600 },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => undefined,
      getResourceServerInfo: (ctx, resource) => {
        const alg = resource.split('/').pop();
        if (!keys.some((k) => k.alg === alg)) throw new errors.InvalidTarget();
        return { scope: 'read', audience: resource, accessTokenFormat: 'jwt', accessTokenTTL: 300, jwt: { sign: { alg } } };
      },
    },
  },
});

createServer({ cert: readFileSync(`${dir}/cert.pem`), key: readFileSync(`${dir}/key.pem`) }, provider.callback()).listen(Number(port), host);
