/**
 * Ask the credential broker for tokens. One file, no packages, Node 18 or newer.
 *
 * Ask for every call to the API and keep nothing: the broker keeps tokens fresh, an application cannot.
 *
 *     import { Broker } from "./credential-broker.mjs";
 *
 *     const broker = new Broker();
 *     const answer = await broker.fetch("vdab", url, { signal: AbortSignal.timeout(30_000) });
 *
 * fetch() and axios() do what each call needs: they add the headers that the API wants and, if the API answers 401,
 * tell the broker and repeat the call once if there is another token. token(), headers() and reject() are the same by
 * hand. A 503 or 429 of the broker is waited for as its Retry-After says, within `patience`; every other refusal is a
 * BrokerError at once: its code is for the program, its detail says what to do.
 *
 * Redirects are not followed unless the call says so: to another host, the API key would go along.
 */

import { existsSync } from "node:fs";
import http from "node:http";
import { setTimeout as sleep } from "node:timers/promises";

const ENVIRONMENT = "CREDENTIAL_BROKER_SOCKET";
const MAX_ANSWER = 8 << 20; // bytes
const MAX_MORE = 2000; // characters of moreInformation; the broker takes 2048

/** What the broker refused (an error document of RFC 9457), or that it did not answer (code "unreachable"). */
export class BrokerError extends Error {
  constructor(code, detail, status = 0, retryAfter = 0) {
    super(`${code}: ${detail}`);
    this.name = "BrokerError";
    this.code = code; // see docs/errors.md; "quarantined", "not_allowed", …
    this.detail = detail; // a sentence that says what to do
    this.status = status; // HTTP; 0: there was no answer
    this.retryAfter = retryAfter; // seconds; 0: it is not known when trying again may help
  }
}

/** $CREDENTIAL_BROKER_SOCKET, the broker that this user has started by hand, or the system's. */
export function defaultSocket() {
  if (process.env[ENVIRONMENT]) return process.env[ENVIRONMENT];
  const dir = process.env.XDG_RUNTIME_DIR;
  const own = `${dir}/credential-broker/broker.sock`;
  return dir && process.geteuid() !== 0 && existsSync(own) ? own : "/run/credential-broker/broker.sock";
}

/** The broker behind one socket. It holds no connection and no secret. */
export class Broker {
  #socket;
  #timeout;
  #patience;

  /** socket: its path; alone, it may stand for the options. timeout: seconds for each answer. patience: seconds to spend, in all, on waiting as Retry-After says; 0: none. */
  constructor(options = {}) {
    const { socket = defaultSocket(), timeout = 10, patience = 10 } = typeof options === "string" ? { socket: options } : options;
    this.#socket = socket;
    this.#timeout = timeout;
    this.#patience = patience;
  }

  /** A token as in RFC 6749, section 5.1. Options: scope, audience, resource, minTTL (seconds). */
  token(client, options = {}) {
    return this.#json("GET", client, "token" + query(options));
  }

  /** All headers that a call to the client's API needs, by name. Options as of token(). */
  headers(client, options = {}) {
    return this.#json("GET", client, "headers" + query(options));
  }

  /**
   * Tell that the API refused a token. Ask again afterwards, and repeat the call once if the token is another.
   * moreInformation is the text of that name in API Connect's answer: by it the broker tells a refused API key
   * (BrokerError "api_key_rejected") from a refused token.
   */
  reject(client, { accessToken, status = 401, moreInformation } = {}) {
    return this.#json("POST", client, "reject", JSON.stringify({
      access_token: accessToken || undefined, status, more_information: moreInformation?.slice(0, MAX_MORE) || undefined,
    }));
  }

  /** fetch() with the client's headers. A body that is a stream cannot be sent twice: then the API's 401 is the answer. */
  async fetch(client, url, init = {}, options = {}) {
    const call = (ours) => {
      const headers = new Headers(init.headers);
      for (const [name, value] of Object.entries(ours)) headers.set(name, value);
      return fetch(url, { redirect: "manual", ...init, headers });
    };
    const sent = await this.headers(client, options);
    const answer = await call(sent);
    const body = init.body ?? (url instanceof Request ? url.body : null);
    if (answer.status !== 401 || body instanceof ReadableStream || body?.[Symbol.asyncIterator]) return answer;
    const now = await this.#refused(client, options, sent, await answer.clone().text());
    if (!now) return answer;
    await answer.body?.cancel();
    return call(now);
  }

  /** Makes an instance of axios send the client's headers, and gives the instance. */
  axios(client, instance, options = {}) {
    instance.interceptors.request.use(async (config) => {
      config.broker = { ours: config.broker?.next ?? await this.headers(client, options), again: !!config.broker };
      for (const [name, value] of Object.entries(config.broker.ours)) config.headers.set(name, value);
      config.maxRedirects ??= 0;
      return config;
    });
    instance.interceptors.response.use(undefined, async (error) => {
      const { config, response } = error;
      if (response?.status !== 401 || !config?.broker || config.broker.again || typeof config.data?.pipe === "function") throw error;
      const body = typeof response.data === "string" ? response.data : JSON.stringify(response.data ?? null);
      const next = await this.#refused(client, options, config.broker.ours, body);
      if (!next) throw error;
      return instance.request({ ...config, broker: { next } });
    });
    return instance;
  }

  /** Other headers, after the API has refused those that were sent; nothing if there are none. */
  async #refused(client, options, sent, body) {
    await this.reject(client, { accessToken: tokenIn(sent), moreInformation: moreInformation(body) });
    const now = await this.headers(client, options);
    return JSON.stringify(now) === JSON.stringify(sent) ? undefined : now;
  }

  async #json(method, client, what, body) {
    const path = `/v1/clients/${encodeURIComponent(client)}/${what}`;
    const until = performance.now() + this.#patience * 1000;
    for (;;) {
      try {
        return await this.#once(method, path, body);
      } catch (e) {
        const wait = e.retryAfter * 1000;
        if (![429, 503].includes(e.status) || !wait || performance.now() + wait > until) throw e;
        await sleep(wait);
      }
    }
  }

  async #once(method, path, body) {
    const signal = AbortSignal.timeout(this.#timeout * 1000);
    for (;;) {
      try {
        return read(...await this.#exchange(method, path, body, signal));
      } catch (e) {
        if (e instanceof BrokerError) throw e;
        // EAGAIN: the kernel's queue of connections is full for a moment.
        if (e.code !== "EAGAIN" || signal.aborted) {
          const said = signal.aborted ? `no answer within ${this.#timeout} seconds` : e.code ?? "its answer broke off";
          throw new BrokerError("unreachable", `no broker answers on ${this.#socket}: ${said}; is it running? (${ENVIRONMENT} names another socket)`);
        }
        await sleep(10);
      }
    }
  }

  #exchange(method, path, body, signal) {
    return new Promise((resolve, reject) => {
      const headers = { Accept: "application/json", "User-Agent": "credential-broker-client", Connection: "close" };
      if (body !== undefined) Object.assign(headers, { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(body) });
      const request = http.request({ socketPath: this.#socket, host: "broker", agent: false, method, path, headers, signal }, async (answer) => {
        try {
          const parts = [];
          let size = 0;
          for await (const part of answer) {
            if ((size += part.length) > MAX_ANSWER) throw new Error("the answer is too long");
            parts.push(part);
          }
          resolve([answer.statusCode, Buffer.concat(parts).toString()]);
        } catch (e) {
          reject(e);
        }
      });
      request.on("error", reject);
      request.end(body);
    });
  }
}

/** The JSON object of an answer; a refusal is thrown. */
function read(status, text) {
  const document = parsed(text);
  if (document === null || typeof document !== "object" || Array.isArray(document) || (status !== 200 && typeof document.code !== "string")) {
    throw new BrokerError("unreachable", `the answer, with status ${status}, is not the broker's`, status);
  }
  if (status === 200) return document;
  throw new BrokerError(document.code, detailOf(document), status, Number.isInteger(document.retry_after) ? document.retry_after : 0);
}

/** What to do, and whom the broker sees. */
function detailOf({ detail = "", identity, clients }) {
  if (!identity) return String(detail);
  return `${detail} (you are seen as: ${identity}${clients?.length ? `; you may use: ${clients.join(", ")}` : ""})`;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch { // not its message: it may quote the answer
    return null;
  }
}

function query({ scope, audience, resource, minTTL }) {
  const asked = Object.entries({ scope, audience, resource, min_ttl: minTTL && `${minTTL}s` }).filter(([, value]) => value);
  return asked.length ? "?" + new URLSearchParams(asked) : "";
}

function tokenIn(headers) {
  const value = Object.entries(headers).find(([name]) => name.toLowerCase() === "authorization")?.[1];
  return value?.slice(value.indexOf(" ") + 1);
}

function moreInformation(body) {
  const more = parsed(body)?.moreInformation;
  return typeof more === "string" ? more : undefined;
}
