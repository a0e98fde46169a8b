"use strict";
(() => {
  const { shapes, pictures } = JSON.parse(document.getElementById("pictures").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const style = { Conv: "conv", ConvTranspose: "conv", Gemm: "conv", MatMul: "conv",
    BatchNormalization: "norm", InstanceNormalization: "norm", LayerNormalization: "norm",
    Add: "elem", Sub: "elem", Mul: "elem", Div: "elem", Sum: "elem", Neg: "elem", Mean: "elem" };

  const make = (parent, tag, attributes, text) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };

  const draw = (figure) => {
    const [shape, texts] = pictures[figure.dataset.picture];
    const p = shapes[shape];
    const title = figure.querySelector("figcaption").textContent;
    const label = `${title}: ${p.b.map((box) => box[4]).filter(Boolean).join(", ") || "nothing"}`;
    const svg = make(figure.querySelector(".scroll"), "svg", { width: p.w, height: p.h, viewBox: `0 0 ${p.w} ${p.h}`, role: "img",
      "aria-label": label });
    svg.style.minWidth = `${Math.round(p.w * 0.65)}px`;
    for (const d of p.e) make(svg, "path", { d, class: "arrow" });
    for (const d of p.a) make(svg, "path", { d, class: "head" });
    p.b.forEach(([x, y, w, h, op], place) => {
      const name = texts[2 * place + 1];
      const label = texts[2 * place] || (op ? "" : name);
      const g = make(svg, "g", {});
      make(g, "title", {}, op ? `${op} ${name}` : name);
      const kind = !op ? "edge" : Object.hasOwn(style, op) ? style[op] : "";
      make(g, "rect", { x, y, width: w, height: h, rx: op ? 5 : h / 2, class: kind });
      const cx = x + w / 2;
      if (op && label) {
        make(g, "text", { x: cx, y: y + 16, class: "op" }, op);
        make(g, "text", { x: cx, y: y + 30 }, label);
      } else {
        make(g, "text", { x: cx, y: y + h / 2, class: op ? "op lone" : "lone" }, op || label);
      }
    });
  };

  for (const details of document.querySelectorAll("details.fold")) {
    details.addEventListener("toggle", () => {
      if (!details.open) return;
      for (const figure of details.querySelectorAll("figure[data-picture]")) {
        if (!figure.querySelector("svg")) draw(figure);
      }
    });
  }

  for (const filter of document.querySelectorAll(".filter")) {
    const cards = [...document.getElementById(filter.dataset.list).children].map((card) => ({ card,
      text: card.textContent.toLowerCase(),
      inner: [...card.querySelectorAll("li")].map((item) => ({ item, text: item.textContent.toLowerCase() })),
      closed: card.querySelectorAll("details.group, details.more") }));
    const [input, select, count] = ["input", "select", "output"].map((tag) => filter.querySelector(tag));
    const apply = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const fits = ({ text }) => words.every((word) => text.includes(word));
      let [shown, total] = [0, 0];
      for (const one of cards) {
        one.card.hidden = !fits(one) || (!!select.value && one.card.dataset.kind !== select.value);
        const found = one.inner.filter(fits);
        // Where only the heading fits, everything below it is shown.
        for (const { item, text } of one.inner) item.hidden = found.length > 0 && !fits({ text });
        if (words.length && found.length && !one.card.hidden) for (const details of one.closed) details.open = true;
        const size = one.inner.length || 1;
        total += size;
        if (!one.card.hidden) shown += found.length || size;
      }
      count.textContent = shown === total ? `${total}` : `${shown} of ${total}`;
    };
    input.addEventListener("input", apply);
    select.addEventListener("change", apply);
    filter.hidden = false;
    apply();
  }

  const reveal = (id) => {
    const target = id && document.getElementById(id);
    if (!target) return;
    for (let at = target; at; at = at.parentElement) {
      if (at.tagName === "DETAILS") at.open = true;
      if (at.tagName === "LI") at.hidden = false;
    }
    target.scrollIntoView({ block: "nearest" });
  };
  const named = () => reveal(decodeURIComponent(location.hash.slice(1)));
  addEventListener("hashchange", named);

  const links = new Map();
  for (const link of document.querySelectorAll(".map a")) {
    const target = link.getAttribute("href");
    links.set(target, [...(links.get(target) || []), link]);
    const mark = (on) => () => links.get(target).forEach((one) => one.classList.toggle("hot", on));
    link.addEventListener("pointerenter", mark(true));
    link.addEventListener("pointerleave", mark(false));
    // A second click on the same fold changes no address.
    link.addEventListener("click", () => reveal(target.slice(1)));
  }

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details.group, details.more")].filter((one) => !one.open);
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of opened) one.open = false; });

  const first = document.querySelector("details.fold");
  if (first) for (const details of [first.closest("details.group"), first]) if (details) details.open = true;
  named();
  document.documentElement.dataset.ready = "yes";
})();
