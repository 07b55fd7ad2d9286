// An authorization server: oidc-provider over TLS, with every method of client
// authentication, opaque access tokens, and JWTs of several algorithms for
// APIs, whose URLs end in the algorithm's name. An API has the scope "read"
// alone. A person logs in with any name, and refresh tokens serve once.
//
// The issuer is there twice: at the root, where its metadata are at both of
// the well-known places, and at /op, where they are at that of OpenID Connect
// alone. A second port, which the metadata name, asks for client certificates.
//
// Arguments: two times host:port, and a directory with cert.pem, key.pem,
// client-ca.pem and setup.json: the clients, and the signing keys, one an
// algorithm. OIDC_MODULES names the directory that oidc-provider is in.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { pathToFileURL } from 'node:url';

const load = (path) => import(pathToFileURL(`${process.env.OIDC_MODULES}/${path}`));
const { default: Provider, errors } = await load('oidc-provider/lib/index.js');
const { createLocalJWKSet, jwtVerify } = await load('jose/dist/webapi/index.js');
const [addr, mtls, dir] = process.argv.slice(2);
const read = (name) => readFileSync(`${dir}/${name}`);
const { clients, keys } = JSON.parse(read('setup.json'));
const jwtBearer = 'urn:ietf:params:oauth:grant-type:jwt-bearer';

const certificate = (ctx) => ctx.socket.getPeerX509Certificate?.();
const subject = (cert) => cert.subject.split('\n').reverse().join(','); // RFC 4514
const own = (ctx, client, token) => token.clientId === client.clientId;

function provider(issuer) {
  const p = new Provider(issuer, {
    clients: structuredClone(clients).map((c) => ({ grant_types: ['client_credentials'], redirect_uris: [], response_types: [], scope: 'read write', ...c })),
    jwks: structuredClone({ keys }),
    scopes: ['read', 'write'],
    ttl: { AuthorizationCode: 30, AccessToken: 600, RefreshToken: 86400, Grant: 86400, Interaction: 600, Session: 600,
      ClientCredentials: (ctx, token) => token.resourceServer?.accessTokenTTL ?? 600 },
    clientAuthMethods: ['client_secret_basic', 'client_secret_post', 'client_secret_jwt', 'private_key_jwt', 'tls_client_auth', 'self_signed_tls_client_auth', 'none'],
    clockTolerance: 0,
    // Clients publish their keys on loopback, where it would not go by itself.
    fetch: (url, { dispatcher: _, ...options }) => globalThis.fetch(url, options),
    pkce: { required: () => true },
    issueRefreshToken: (ctx, client) => client.grantTypeAllowed('refresh_token'),
    rotateRefreshToken: true,
    findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    discovery: { mtls_endpoint_aliases: Object.fromEntries(Object.entries({ token: '', revocation: '/revocation', introspection: '/introspection' })
      .map(([name, path]) => [`${name}_endpoint`, `${issuer.replace(addr, mtls)}/token${path}`])) },
    features: {
      devInteractions: { enabled: true },
      clientCredentials: { enabled: true },
      introspection: { enabled: true, allowedPolicy: () => true }, // for APIs
      revocation: { enabled: true, allowedPolicy: own },
      mTLS: {
        enabled: true,
        certificateBoundAccessTokens: true,
        tlsClientAuth: true,
        selfSignedTlsClientAuth: true,
        getCertificate: certificate,
        certificateAuthorized: (ctx) => ctx.socket.authorized,
        certificateSubjectMatches: (ctx, property, expected) => property === 'tls_client_auth_subject_dn' && subject(certificate(ctx)) === expected,
      },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => undefined,
        useGrantedResource: () => true,
        getResourceServerInfo: (ctx, resource) => {
          const alg = resource.split('/').pop();
          if (!keys.some((k) => k.alg === alg)) throw new errors.InvalidTarget();
          return { scope: 'read', audience: resource, accessTokenFormat: 'jwt', accessTokenTTL: 300, jwt: { sign: { alg } } };
        },
      },
    },
  });
  // RFC 7523 §2.1 is none of its grants: its own parts, and jose, make it one.
  p.registerGrantType(jwtBearer, async (ctx) => {
    const { client, params } = ctx.oidc;
    try {
      const { payload } = await jwtVerify(params.assertion, createLocalJWKSet(client.jwks), { issuer: client.clientId, audience: issuer, requiredClaims: ['exp', 'iat', 'jti', 'sub'] });
      if (!await p.ReplayDetection.unique(payload.iss, payload.jti, payload.exp)) throw new Error('replayed');
    } catch (e) {
      throw new errors.InvalidGrant(e.message);
    }
    const token = new p.ClientCredentials({ client, scope: params.scope });
    ctx.oidc.entity('ClientCredentials', token);
    ctx.body = { access_token: await token.save(), expires_in: token.expiration, token_type: token.tokenType, scope: token.scope };
  }, ['assertion', 'scope']);
  for (const event of ['grant.error', 'server_error']) p.on(event, (_, e) => console.error(e));
  return p.callback();
}

const [root, below] = [provider(`https://${addr}`), provider(`https://${addr}/op`)];
function serve(req, res) {
  if (req.url.startsWith('/op/.well-known/oauth-')) {
    res.writeHead(404).end();
  } else if (req.url.startsWith('/op/')) {
    req.originalUrl = req.url;
    req.url = req.url.slice('/op'.length);
    below(req, res);
  } else {
    root(req, res);
  }
}

const tls = { cert: read('cert.pem'), key: read('key.pem') };
const listen = (server, at) => server.listen(Number(at.split(':')[1]), at.split(':')[0]);
listen(createServer({ ...tls, ca: read('client-ca.pem'), requestCert: true, rejectUnauthorized: false }, serve), mtls);
listen(createServer(tls, serve), addr);
