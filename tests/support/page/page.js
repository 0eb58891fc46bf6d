// What the Persephone UI does with the API, and nothing else. Query: api = its address,
// pace = how many times faster than the UI it polls (1).
"use strict";

const query = new URLSearchParams(location.search);
const API = query.get("api");
const PACE = Number(query.get("pace") ?? 1);
const ENVIRONMENTS = ["dev", "stage", "prod"];
const FIGURES = [
  ["red", "rps"], ["red", "errorsPercent"], ["red", "p95DurationMs"],
  ["slo", "availability"], ["slo", "latencyP95Ms"],
];
const byId = (id) => document.getElementById(id);
let runId = localStorage.getItem("runId");

class AnswerError extends Error {
  constructor(message, status, body, requestId) {
    super(message);
    Object.assign(this, { status, body, requestId });
  }
}

async function request(method, path, body) {
  const answer = await fetch(API + path, { method, body, credentials: "include" });
  const isJson = (answer.headers.get("content-type") ?? "").includes("application/json");
  const content = isJson ? await answer.json() : await answer.text();
  if (!answer.ok) {
    const message = isJson ? content.message : `HTTP ${answer.status}`;
    throw new AnswerError(message, answer.status, content, answer.headers.get("x-request-id"));
  }
  return content;
}

// For tests: the outcome of one request as this page can see it.
async function ask(method, path) {
  try {
    return { status: 200, body: await request(method, path) };
  } catch (error) {
    if (!(error instanceof AnswerError)) return { blocked: true };
    const { status, message, body, requestId } = error;
    return { status, message, body, requestId };
  }
}

async function attempt(action) {
  try {
    byId("error").textContent = "";
    await action();
  } catch (error) {
    byId("error").textContent = error instanceof AnswerError ? error.message : `blocked: ${error}`;
  }
}

const ofRun = (path, more = "") => `${path}?runId=${encodeURIComponent(runId)}${more}`;

async function upload() {
  const form = new FormData();
  form.append("file", byId("file").files[0]);
  runId = (await request("POST", "/upload", form)).runId;
  localStorage.setItem("runId", runId);
  await showRun();
}

async function showRun() {
  byId("run").textContent = runId;
  showPreparation(await request("GET", ofRun("/prepare/status")));
  await refreshGpus();
  for (const environment of ENVIRONMENTS) await refreshDeployment(environment);
}

async function refreshGpus() {
  const gpus = await request("GET", ofRun("/prepare/gpus"));
  byId("gpu").replaceChildren(
    ...gpus.map(({ id, name, memoryGb }) =>
      new Option(memoryGb === undefined ? name : `${name}, ${memoryGb} GB`, id)),
  );
  byId("gpu").selectedIndex = gpus.length ? 0 : -1;
  byId("start").disabled = gpus.length === 0;
  byId("no-gpu").hidden = gpus.length > 0;
}

async function startPreparation() {
  const gpu = encodeURIComponent(byId("gpu").value);
  showPreparation(await request("POST", ofRun("/prepare/start", `&gpuId=${gpu}`)));
}

function showPreparation(status) {
  byId("prepare-phase").textContent = status.phase;
  byId("prepare-phase").title = status.updatedAt ?? "";
  // As the UI does, a step's name is its key in the list.
  for (const step of status.steps) {
    const id = `step-${step.name}`;
    const item = byId(id) ?? byId("steps").appendChild(document.createElement("li"));
    item.id = id;
    item.dataset.status = step.status;
    item.title = step.completedAt ?? "";
    const name = document.createElement("b");
    name.textContent = step.name;
    item.replaceChildren(name, ` ${step.status} ${step.message ?? ""}`);
  }
}

function layOutDeployments() {
  for (const environment of ENVIRONMENTS) {
    const row = byId("deploy").insertRow();
    row.id = `deployment-${environment}`;
    row.insertCell().textContent = environment;
    const buttons = row.insertCell();
    const actions = { deploy: startDeployment, refresh: refreshDeployment };
    for (const [name, action] of Object.entries(actions)) {
      const button = buttons.appendChild(document.createElement("button"));
      button.id = `${name}-${environment}`;
      button.textContent = name;
      button.onclick = () => attempt(() => action(environment));
    }
    for (const field of ["phase", "version", "message"]) row.insertCell().className = field;
  }
}

async function startDeployment(environment) {
  showDeployment(environment, await request("POST", ofRun("/deploy/start", `&env=${environment}`)));
}

async function refreshDeployment(environment) {
  showDeployment(environment, await request("GET", ofRun("/deploy/status", `&env=${environment}`)));
}

function showDeployment(asked, status) {
  const row = byId(`deployment-${asked}`);
  row.dataset.environment = status.environment;
  for (const field of ["phase", "version", "message"]) {
    row.querySelector(`.${field}`).textContent = status[field] ?? "";
  }
}

function showFigures(summary) {
  byId("monitor").replaceChildren();
  for (const [group, name] of FIGURES) {
    const row = byId("monitor").insertRow();
    row.insertCell().textContent = `${group}.${name}`;
    const cell = row.insertCell();
    cell.id = name;
    cell.textContent = summary[group][name].toFixed(2);
  }
  byId("monitor").title = summary.updatedAt ?? "";
}

function poll(seconds, path, show) {
  setInterval(async () => {
    if (!runId) return;
    try {
      show(await request("GET", ofRun(path)));
    } catch (error) {
      byId("error").textContent = error.message;
    }
  }, (seconds * 1000) / PACE);
}

layOutDeployments();
byId("upload").onclick = () => attempt(upload);
byId("gpus").onclick = () => attempt(refreshGpus);
byId("start").onclick = () => attempt(startPreparation);
poll(2, "/prepare/status", showPreparation);
poll(5, "/monitor/summary", showFigures);
if (runId) attempt(showRun);
