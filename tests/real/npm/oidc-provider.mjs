// A certified authorization server for tests/real: panva's oidc-provider, with some endpoints of its own.
//
//   GET  /control/counts               requests so far, by path
//   POST /control/faults               { "path": "/token", "status": 503, "delay": 0, "times": 2 }
//   POST /control/keys                 sign with new keys from now on, and publish no others
//   POST /control/reset                forget counts and faults
//
// It prints its issuer and listens until standard input ends. JWKS names a file of signing keys: starting
// it again with another file, on the same PORT, is a key rotation too. All state is in memory.

import { createServer } from 'node:http';
import { readFileSync } from 'node:fs';
import { generateKeyPairSync } from 'node:crypto';
import Provider from 'oidc-provider';
import { createMemoryAdapter } from 'oidc-provider/lib/adapters/memory_adapter.js';

const people = { alice: 'wonderland', bob: 'builder' };
const resources = {
  'https://api.test/jwt': { scope: 'orders:read orders:write', accessTokenFormat: 'jwt', jwt: { sign: { alg: 'RS256' } } },
  'https://api.test/es256': { scope: 'orders:read', accessTokenFormat: 'jwt', jwt: { sign: { alg: 'ES256' } } },
  'https://api.test/opaque': { scope: 'orders:read partners:read', accessTokenFormat: 'opaque' },
};

const server = createServer();
await new Promise((listening) => server.listen(Number(process.env.PORT ?? 0), '127.0.0.1', listening));
const issuer = `http://127.0.0.1:${server.address().port}`;

const settings = {
  adapter: createMemoryAdapter(),
  clients: [
    // The gateway as itself: introspection, password grant, revocation.
    client('gateway', ['password', 'refresh_token', 'client_credentials']),
    // The gateway as a web application.
    client('web', ['authorization_code', 'refresh_token', 'password'], {
      redirect_uris: (process.env.REDIRECT_URIS ?? 'http://127.0.0.1:8080/auth/callback').split(' '),
      post_logout_redirect_uris: (process.env.LOGOUT_URIS ?? 'http://127.0.0.1:8080/').split(' '),
      response_types: ['code'],
    }),
    // A machine that calls the API.
    client('machine', ['client_credentials']),
  ],
  jwks: process.env.JWKS ? JSON.parse(readFileSync(process.env.JWKS, 'utf8')) : keys(),
  scopes: ['openid', 'offline_access', 'orders:read', 'orders:write', 'partners:read'],
  rotateRefreshToken: true,
  // A session's refresh token, whenever it asks for one: no consent page stands in the way.
  issueRefreshToken: async (_, c, code) => c.grantTypeAllowed('refresh_token') && code.scopes.has('offline_access'),
  findAccount: async (_, id) => (id in people ? { accountId: id, claims: async () => ({ sub: id }) } : undefined),
  pkce: { required: () => true },
  acrValues: ['gold'],
  ttl: { AccessToken: Number(process.env.ACCESS_TOKEN_TTL ?? 300), RefreshToken: 3600, ClientCredentials: 300, Grant: 3600, IdToken: 300, Interaction: 300, Session: 3600 },
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: true },
    pushedAuthorizationRequests: { enabled: true },
    introspection: { enabled: true, allowedPolicy: async (_, c) => c.clientId === 'gateway' },
    revocation: { enabled: true },
    rpInitiatedLogout: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: async () => process.env.DEFAULT_RESOURCE ?? undefined,
      useGrantedResource: async () => true,
      getResourceServerInfo: async (_, resource) => {
        if (!(resource in resources)) throw new Error('unknown resource');
        return { audience: resource, accessTokenTTL: Number(process.env.ACCESS_TOKEN_TTL ?? 300), ...resources[resource] };
      },
    },
  },
};

let provider = build(settings);

// They share their memory: another one with new keys is a rotation that ends no session.
function build(settings) {
  const built = new Provider(issuer, settings);
  // A user who is asked to log in in some way does so.
  const finished = built.interactionFinished;
  built.interactionFinished = async (request, response, result, options) => {
    if (result.login) {
      const { params } = await built.interactionDetails(request, response);
      result.login.acr = params.acr_values?.split(' ')[0];
    }
    return finished.call(built, request, response, result, options);
  };
  built.registerGrantType('password', password, ['username', 'password', 'scope', 'resource'], ['resource']);
  return built;
}

// RFC 6749 §4.3, which oidc-provider leaves to its users.
async function password(ctx) {
  const { username, password, scope = '', resource = process.env.DEFAULT_RESOURCE } = ctx.oidc.params;
  if (people[username] === undefined || people[username] !== password) {
    ctx.status = 400;
    ctx.body = { error: 'invalid_grant', error_description: 'grant request is invalid' };
    return;
  }
  const { client } = ctx.oidc;
  const grant = new provider.Grant({ accountId: username, clientId: client.clientId });
  grant.addOIDCScope(scope);
  const asked = scope.split(' ');
  const allowed = resource ? resources[resource].scope.split(' ').filter((one) => asked.includes(one)) : [];
  if (resource) grant.addResourceScope(resource, allowed.join(' '));
  const grantId = await grant.save();
  const common = { accountId: username, client, grantId, gty: 'password', scope };
  const access = new provider.AccessToken({ ...common, scope: resource ? allowed.join(' ') : scope });
  if (resource) {
    access.resourceServer = new provider.ResourceServer(resource, { audience: resource, ...resources[resource] });
    access.setAudience?.(resource);
  }
  ctx.body = { access_token: await access.save(), token_type: 'Bearer', expires_in: access.expiration, scope: access.scope };
  if (asked.includes('offline_access')) {
    const refresh = new provider.RefreshToken({ ...common, rotations: 0, iiat: Math.floor(Date.now() / 1000), resource });
    ctx.body.refresh_token = await refresh.save();
  }
}

let serve = provider.callback();
let counts = {};
let faults = [];
server.on('request', async (request, response) => {
  const path = new URL(request.url, issuer).pathname;
  if (path.startsWith('/control/')) return control(path, request, response);
  counts[path] = (counts[path] ?? 0) + 1;
  const fault = faults.find((one) => one.path === path && one.times > 0);
  if (!fault) return serve(request, response);
  fault.times -= 1;
  await new Promise((later) => setTimeout(later, fault.delay ?? 0));
  if (!fault.status) return serve(request, response);
  response.writeHead(fault.status, { 'content-type': 'application/json' }).end('{"error":"server_error"}');
});

async function control(path, request, response) {
  let body = '';
  for await (const part of request) body += part;
  if (path === '/control/faults') faults.push({ times: 1, ...JSON.parse(body) });
  if (path === '/control/keys') {
    provider = build({ ...settings, jwks: keys() });
    serve = provider.callback();
  }
  if (path === '/control/reset') { counts = {}; faults = []; }
  response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(counts));
}

function client(client_id, grant_types, more = {}) {
  return { client_id, client_secret: `${client_id}-secret`, grant_types, redirect_uris: [], response_types: [], ...more };
}

function keys() {
  return { keys: [key('rsa'), key('ec')] };
}

function key(type) {
  const pair = type === 'rsa' ? generateKeyPairSync('rsa', { modulusLength: 2048 }) : generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return { ...pair.privateKey.export({ format: 'jwk' }), use: 'sig', alg: type === 'rsa' ? 'RS256' : 'ES256', kid: `${type}-${Date.now()}` };
}

console.log(issuer);
// The test that started it holds its standard input: no orphan outlives a test that was killed.
process.stdin.resume().on('end', () => process.exit(0));
