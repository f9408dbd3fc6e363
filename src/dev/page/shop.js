// The shop's page: calls routes, shows what came back. No library, no markup from strings.

/** An element with attributes and children; a child is a node or text. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const byId = (id) => document.getElementById(id);
const show = (id, ...children) => byId(id).replaceChildren(...children);
const indented = (value) => JSON.stringify(value, null, 2);

/** An answer's body as JSON, or null if it is none. */
async function json(path) {
  const answer = await fetch(path, { headers: { accept: "application/json" } });
  return answer.ok ? answer.json() : null;
}

// Who am I?

async function session(path = "/auth/session", method = "GET") {
  const answer = await fetch(path, { method, headers: { accept: "application/json" } }).catch(() => null);
  if (answer?.ok) loggedIn(await answer.json());
  else if (answer?.status === 401) loggedOut();
  else show("session", element("p", { class: "bad" }, "The gateway cannot say now."));
}

function loggedOut() {
  const login = element("a", { class: "button", href: "/auth/login?return_to=/" }, "Log in");
  const hint = element("span", { class: "faint" }, "alice with wonderland, or bob with builder");
  show("session", element("p", {}, "Logged out: this browser has no session."), element("div", { class: "row" }, login, hint));
}

function loggedIn(known) {
  const name = known.name ?? known.preferred_username ?? known.subject;
  const left = Math.max(0, Math.round(known.access_token_ends_at - Date.now() / 1000));
  const account = element("a", { class: "button", href: "/app" }, "Your account");
  const refresh = element("button", { class: "quiet", onclick: () => session("/auth/refresh", "POST") }, "Refresh now");
  const logout = element("form", { method: "post", action: "/auth/logout" }, element("button", { class: "quiet" }, "Log out"));
  show(
    "session",
    element("p", {}, "You are ", element("strong", {}, name), ". Your tokens are sealed in a cookie that scripts cannot read."),
    element("p", { class: "faint" }, `The access token is good for ${left} seconds; the gateway refreshes it in time.`),
    element("div", { class: "row" }, account, refresh, logout),
    element("details", {}, element("summary", {}, "Your session"), element("pre", {}, indented(known))),
  );
}

// Try every route

const credentials = {
  nothing: { label: "no credentials", header: () => null },
  session: { label: "this browser's session", header: () => null },
  signed: { label: "a signed token", header: (tokens) => `Bearer ${tokens.signed}` },
  narrow: { label: "a signed token without scopes", header: (tokens) => `Bearer ${tokens.narrow}` },
  reference: { label: "a reference token", header: (tokens) => `Bearer ${tokens.reference}` },
  forged: { label: "a forged token", header: (tokens) => `Bearer ${tokens.signed.slice(0, -8)}AAAAAAAA` },
  basic: { label: "alice, by password", header: () => `Basic ${btoa("alice:wonderland")}` },
};

let tokens = null;

/** Fresh tokens, asked for once. */
async function freshTokens() {
  tokens ??= await json("/dev/tokens");
  return tokens;
}

async function routes() {
  const table = await json("/dev/routes");
  if (!Array.isArray(table)) {
    show("routes", element("tr", {}, element("td", { colspan: "6" }, "The routes are not known.")));
    return;
  }
  show("routes", ...table.map(row));
}

function row(route) {
  const options = Object.entries(credentials).map(([key, { label }]) => {
    const chosen = key === route.credential ? { selected: "" } : {};
    return element("option", { value: key, ...chosen }, label);
  });
  const choice = element("select", { "aria-label": `Call ${route.id} as` }, ...options);
  const button = element("button", { onclick: () => call(route, choice.value) }, "Call");
  return element(
    "tr",
    {},
    element("td", {}, route.id),
    element("td", {}, element("code", {}, `${route.method} ${route.pattern}`)),
    element("td", {}, route.who),
    element("td", {}, route.limits.join(", ")),
    element("td", {}, choice),
    element("td", {}, button),
  );
}

async function call(route, as) {
  const headers = { accept: "application/json" };
  const credential = credentials[as].header((await freshTokens()) ?? {});
  if (credential !== null) headers.authorization = credential;
  // Without this the browser's session would come along, and a route may take it.
  const options = { method: route.method, headers, credentials: as === "session" ? "same-origin" : "omit", redirect: "manual" };
  const begun = performance.now();
  try {
    const answer = await fetch(route.sample, options);
    const body = await answer.text();
    await answered(route, as, answer, body, performance.now() - begun);
  } catch (error) {
    shown(element("p", { class: "bad" }, `${route.method} ${route.sample}: no answer (${error.message})`));
  }
}

async function answered(route, as, answer, body, took) {
  const redirected = answer.type === "opaqueredirect";
  const status = redirected ? "a redirect, to log in" : `${answer.status} ${answer.statusText}`;
  const fields = [...answer.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
  const good = answer.ok ? "status good" : "status bad";
  shown(
    element("h3", {}, element("code", {}, `${route.method} ${route.sample}`), ` as ${credentials[as].label}`),
    element("p", {}, element("span", { class: good }, status), ` in ${took.toFixed(1)} ms`),
    element(
      "div",
      { class: "columns" },
      element("div", {}, element("h3", {}, "Header fields"), element("pre", {}, fields || "none that a script may read")),
      element("div", {}, element("h3", {}, "Body"), element("pre", {}, pretty(body) || "empty")),
    ),
  );
}

function shown(...children) {
  byId("answer").hidden = false;
  show("answer", ...children);
}

function pretty(body) {
  try {
    return indented(JSON.parse(body));
  } catch {
    return body;
  }
}

// What does a token say?

function decode(text) {
  const parts = text.trim().split(".");
  if (text.trim() === "") return [];
  if (parts.length !== 3) {
    return [element("p", {}, "A reference token: it says nothing. Only its issuer knows, and the gateway asks it.")];
  }
  try {
    const [header, claims] = parts.slice(0, 2).map((part) => {
      const bytes = Uint8Array.from(atob(part.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
      return JSON.parse(new TextDecoder().decode(bytes));
    });
    return [
      element(
        "div",
        { class: "columns" },
        element("div", {}, element("h3", {}, "Header"), element("pre", {}, indented(header))),
        element("div", {}, element("h3", {}, "Claims"), element("pre", {}, indented(claims))),
      ),
      element("p", {}, lifetime(claims)),
    ];
  } catch {
    return [element("p", { class: "bad" }, "Three parts, but not base64url JSON.")];
  }
}

function lifetime(claims) {
  if (typeof claims.exp !== "number") return "It never ends: the gateway refuses such tokens.";
  const seconds = Math.round(claims.exp - Date.now() / 1000);
  return seconds > 0 ? `It is good for ${seconds} more seconds.` : `It ended ${-seconds} seconds ago.`;
}

// What the gateway counts

const families = {
  northgate_http_requests_total: ["Requests", ["route", "method", "code"]],
  northgate_auth_requests_total: ["Verdicts", ["route", "auth", "result"]],
  northgate_limit_decisions_total: ["Limits", ["limit", "route", "result"]],
  northgate_token_cache_requests_total: ["Kept verdicts", ["cache", "result"]],
  northgate_auth_server_requests_total: ["Calls to the issuer", ["issuer", "endpoint", "code"]],
  northgate_upstream_requests_total: ["Calls to services", ["upstream", "code"]],
};

let before = new Map();

async function metrics() {
  const answer = await fetch("/dev/metrics").catch(() => null);
  if (!answer?.ok) {
    show("metrics", element("p", {}, "The gateway's metrics cannot be read."));
    return;
  }
  const samples = parse(await answer.text());
  const now = new Map(samples.map((sample) => [sample.line, sample.value]));
  const tables = Object.entries(families).map(([family, [title, labels]]) => {
    const rows = samples.filter((sample) => sample.family === family && sample.value > 0).map((sample) => {
      const changed = before.size > 0 && before.get(sample.line) !== sample.value ? { class: "changed" } : {};
      const cells = labels.map((label) => element("td", {}, sample.labels[label] ?? ""));
      return element("tr", changed, ...cells, element("td", { class: "number" }, String(sample.value)));
    });
    const head = element("tr", {}, ...labels.map((label) => element("th", {}, label)), element("th", {}, ""));
    const nothing = element("tr", {}, element("td", { colspan: String(labels.length + 1) }, "nothing yet"));
    return element(
      "div",
      {},
      element("h3", {}, title),
      element("table", {}, element("thead", {}, head), element("tbody", {}, ...(rows.length > 0 ? rows : [nothing]))),
    );
  });
  before = now;
  show("metrics", element("div", { class: "columns" }, ...tables));
}

/** Samples of the Prometheus text format; label values here hold no quotes. */
function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const match = /^([a-z_]+)\{(.*)\} (\S+)$/.exec(line);
    if (match === null) continue;
    const labels = Object.fromEntries([...match[2].matchAll(/(\w+)="([^"]*)"/g)].map(([, name, value]) => [name, value]));
    samples.push({ family: match[1], labels, value: Number(match[3]), line: `${match[1]}{${match[2]}}` });
  }
  return samples;
}

// The configuration in use

async function configuration() {
  const answer = await fetch("/dev/config").catch(() => null);
  show("yaml", answer?.ok ? await answer.text() : "The file cannot be read.");
}

byId("token").addEventListener("input", (event) => show("decoded", ...decode(event.target.value)));
byId("sample").addEventListener("click", async () => {
  byId("token").value = (await freshTokens())?.signed ?? "";
  show("decoded", ...decode(byId("token").value));
});

await Promise.allSettled([session(), routes(), metrics(), configuration()]);
setInterval(() => document.hidden || metrics(), 2000);
