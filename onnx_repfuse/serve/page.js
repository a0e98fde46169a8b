"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const SHOWN_MS = 400; // between two looks at the server while a run goes on
  let limits = { bytes: Infinity, seconds: 0 };
  let timer = 0;

  const size = (bytes) => {
    const units = ["B", "kB", "MB", "GB"];
    let power = 0;
    while (bytes >= 1000 && power < 3) { bytes /= 1000; power += 1; }
    return `${power ? bytes.toPrecision(3) : bytes} ${units[power]}`;
  };
  const time = (seconds) => (seconds < 120 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`);
  const trouble = (text) => { $("#trouble").textContent = text; };

  /* One request; raises an Error with the server's sentence. */
  const ask = async (method, path, body) => {
    let answer;
    try {
      answer = await fetch(path, { method, body });
    } catch {
      throw new Error("The server does not answer. Is 'onnx-repfuse serve' still running?");
    }
    if (answer.ok) return answer.headers.get("content-type") === "application/json" ? answer.json() : null;
    const { error } = await answer.json().catch(() => ({ error: `The server answered ${answer.status}.` }));
    throw new Error(error);
  };

  /* A file as a body, with progress, which fetch does not tell. */
  const send = (path, file, request, tell) => new Promise((resolve, reject) => {
    request.open("PUT", path);
    request.upload.onprogress = (event) => tell(event.loaded);
    request.onload = () => {
      if (request.status < 300) { resolve(); return; }
      let text = `The server answered ${request.status}.`;
      try { text = JSON.parse(request.responseText).error; } catch { /* no sentence came */ }
      reject(new Error(text));
    };
    request.onerror = request.onabort = () => reject(new Error("The upload broke off."));
    request.send(file);
  });

  /* The uploads that this page is sending: id -> bytes sent, bytes in all, names; `request` is the one under way. */
  const uploads = new Map();

  const begin = async (kind, settings, sides) => {
    const files = Object.entries(sides).flatMap(([side, list]) => list.map((file) => [side, file]));
    const total = files.reduce((sum, [, file]) => sum + file.size, 0);
    if (total > limits.bytes) {
      throw new Error(`${size(total)} is more than the server takes (${size(limits.bytes)}): start it with --max-size.`);
    }
    const { id } = await ask("POST", "jobs", JSON.stringify({ kind, settings }));
    const upload = { sent: 0, total, names: files.map(([, file]) => file.name), cancelled: false, request: null };
    uploads.set(id, upload);
    await refresh();
    $("#runs-title").focus(); // the button that had the focus is disabled by now
    let before = 0;
    try {
      for (const [side, file] of files) {
        upload.request = new XMLHttpRequest();
        const path = `jobs/${id}/files/${side}/${encodeURIComponent(file.name)}`;
        await send(path, file, upload.request, (loaded) => { upload.sent = before + loaded; });
        before += file.size;
      }
      await ask("POST", `jobs/${id}/start`);
    } catch (error) {
      if (upload.cancelled) return; // by the user, who knows
      ask("DELETE", `jobs/${id}`).catch(() => {});
      throw error;
    } finally {
      uploads.delete(id);
      refresh();
    }
  };

  const VERDICTS = { passed: "good", identical: "good", failed: "bad", error: "bad" };
  const state = (job) => {
    const upload = uploads.get(job.id);
    switch (job.state) {
      case "uploading": return upload ? `Sending ${size(upload.sent)} of ${size(upload.total)}` : "Receiving";
      case "waiting": return `Waiting for ${job.ahead} other ${job.ahead === 1 ? "run" : "runs"}`;
      case "running": {
        const { stage, done, total } = job.progress;
        const count = total ? `: ${done} of ${total}` : "";
        return `${stage ? stage[0].toUpperCase() + stage.slice(1) : "Starting"}${count} (${time(job.seconds)})`;
      }
      default: return job.answer.error || `Done in ${time(job.seconds)}`;
    }
  };

  const link = (parent, text, href, name, main) => {
    const element = document.createElement("a");
    element.className = main ? "button main" : "button";
    element.textContent = text;
    element.href = href;
    if (name !== null) element.download = name; else { element.target = "_blank"; element.rel = "noopener"; }
    parent.append(element);
  };

  /* The part of a run that is made once, when it has ended. */
  const finish = (item, job) => {
    const badge = $(".verdict", item);
    badge.textContent = job.answer.verdict;
    badge.classList.add(VERDICTS[job.answer.verdict] || "warn");
    badge.hidden = false;
    $("progress", item).hidden = true;
    $("#said").textContent = `${job.models.join(", ")}: ${job.answer.verdict}`;
    const links = $(".links", item);
    for (const [index, file] of job.files.entries()) {
      link(links, `Download ${file.name} (${size(file.bytes)})`, `jobs/${job.id}/files/${encodeURIComponent(file.name)}`, file.name, index === 0);
    }
    if (job.state !== "done") return;
    if (job.report) {
      link(links, "Report in a tab of its own", `jobs/${job.id}/report`, null, false);
      const details = $(".report", item);
      details.hidden = false;
      details.addEventListener("toggle", () => {
        if (!details.open || $("iframe", details)) return;
        const frame = document.createElement("iframe");
        frame.title = "Report";
        frame.src = `jobs/${job.id}/report`;
        details.append(frame);
      });
      details.open = true;
    }
    link(links, "JSON", `jobs/${job.id}/json`, "", false);
  };

  const show = (job) => {
    let item = document.getElementById(`run-${job.id}`);
    if (!item) {
      item = $("#run").content.firstElementChild.cloneNode(true);
      item.id = `run-${job.id}`;
      $(".remove", item).addEventListener("click", async () => {
        const upload = uploads.get(job.id);
        if (upload) {
          upload.cancelled = true;
          upload.request?.abort();
        }
        try { await ask("DELETE", `jobs/${job.id}`); } catch (error) { trouble(error.message); }
        refresh();
      });
      $("#runs").prepend(item);
    }
    const names = job.models.length ? job.models : (uploads.get(job.id) || { names: ["…"] }).names;
    $("h3", item).textContent = names.join(job.kind === "compare" ? " and " : ", ");
    const text = state(job);
    if ($(".state", item).textContent !== text) $(".state", item).textContent = text;
    const ended = job.state === "done" || job.state === "failed";
    $(".state", item).classList.toggle("bad", ended && Boolean(job.answer.error));
    $(".remove", item).textContent = ended ? "Remove" : "Cancel";
    const bar = $("progress", item);
    const upload = uploads.get(job.id);
    const [done, total] = upload ? [upload.sent, upload.total] : job.state === "running" ? [job.progress.done, job.progress.total] : [0, 0];
    if (total) { bar.max = total; bar.value = done; } else bar.removeAttribute("value");
    if (ended && item.dataset.ended === undefined) {
      item.dataset.ended = job.state;
      finish(item, job);
    }
    return !ended;
  };

  /* Look at the server, and again later while anything goes on. */
  const refresh = async () => {
    clearTimeout(timer);
    let answer;
    try {
      answer = await ask("GET", "jobs");
    } catch (error) {
      trouble(error.message);
      return;
    }
    clearTimeout(timer);
    limits = answer.limits;
    $("#limits").textContent = `A run may bring ${size(limits.bytes)} and take ${time(limits.seconds)}.`;
    const ids = new Set(answer.jobs.map((job) => `run-${job.id}`));
    for (const item of [...$("#runs").children]) if (!ids.has(item.id)) item.remove();
    $("#runs-title").hidden = answer.jobs.length === 0;
    const active = answer.jobs.map(show);
    if (active.some(Boolean) || uploads.size) timer = setTimeout(refresh, SHOWN_MS);
  };

  const settings = (form) => {
    const chosen = {};
    for (const input of form.querySelectorAll(".settings input")) {
      if (input.type === "checkbox") { if (input.checked) chosen[input.name] = true; }
      else if (input.value.trim()) chosen[input.name] = input.value.trim();
    }
    return chosen;
  };

  const isFolder = (entry) => entry !== null && entry.isDirectory;

  /* The files below an entry of what was dropped. A folder itself has no content to send. */
  const filesBelow = async (entry) => {
    if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
    const reader = entry.createReader();
    const inner = [];
    for (;;) { // a browser tells some entries at a time
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) break;
      inner.push(...some);
    }
    return (await Promise.all(inner.map(filesBelow))).flat();
  };

  for (const form of document.querySelectorAll("form")) {
    const zones = [...form.querySelectorAll(".drop")];
    const chosen = {};
    const update = () => {
      for (const zone of zones) $(".chosen", zone).textContent = (chosen[zone.dataset.side] || []).map((file) => file.name).join(", ");
      $("button", form).disabled = zones.some((zone) => !(chosen[zone.dataset.side] || []).length);
    };
    const take = (zone, list) => {
      const files = [...list];
      if (!files.length) return;
      trouble("");
      chosen[zone.dataset.side] = files;
      update();
    };
    for (const zone of zones) {
      const input = $("input", zone);
      input.setAttribute("aria-label", $("strong", zone).textContent);
      input.addEventListener("change", () => { take(zone, input.files); input.value = ""; });
      zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
      zone.addEventListener("dragleave", () => zone.classList.remove("over"));
      zone.addEventListener("drop", (event) => {
        event.preventDefault();
        zone.classList.remove("over");
        const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry());
        if (!entries.some(isFolder)) { take(zone, event.dataTransfer.files); return; }
        Promise.all(entries.filter(Boolean).map(filesBelow)).then(
          (files) => take(zone, files.flat()),
          (error) => trouble(`The folder cannot be read: ${error.message}`),
        );
      });
    }
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const sides = { ...chosen };
      for (const zone of zones) delete chosen[zone.dataset.side];
      update();
      try { await begin(form.id, settings(form), sides); } catch (error) { trouble(error.message); }
    });
  }

  for (const radio of document.querySelectorAll("input[name=kind]")) {
    radio.addEventListener("change", () => {
      for (const form of document.querySelectorAll("form")) form.hidden = form.id !== radio.value;
      trouble("");
    });
    if (radio.checked) radio.dispatchEvent(new Event("change")); // the browser remembers it over a reload
  }
  // A file that misses its place would replace the page.
  for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
  refresh();
})();
