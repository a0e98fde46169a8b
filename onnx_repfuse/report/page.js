"use strict";
(() => {
  const pictures = JSON.parse(document.getElementById("pictures").textContent);
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
    const p = pictures[figure.dataset.picture];
    const svg = make(figure.querySelector(".scroll"), "svg", { width: p.w, height: p.h, viewBox: `0 0 ${p.w} ${p.h}`, role: "img",
      "aria-label": figure.dataset.label });
    svg.style.minWidth = `${Math.round(p.w * 0.65)}px`;
    for (const d of p.e) make(svg, "path", { d, class: "arrow" });
    for (const d of p.a) make(svg, "path", { d, class: "head" });
    for (const [x, y, w, h, op, label, name] of p.n) {
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
    }
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
    const items = [...document.getElementById(filter.dataset.list).children];
    const texts = items.map((item) => item.textContent.toLowerCase());
    const [input, select, count] = ["input", "select", "output"].map((tag) => filter.querySelector(tag));
    const apply = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      items.forEach((item, index) => {
        const fits = words.every((word) => texts[index].includes(word)) &&
          (!select.value || item.dataset.kind === select.value);
        item.hidden = !fits;
        shown += fits;
      });
      count.textContent = shown === items.length ? `${items.length}` : `${shown} of ${items.length}`;
    };
    input.addEventListener("input", apply);
    select.addEventListener("change", apply);
    filter.hidden = false;
    apply();
  }

  const first = document.querySelector("details.fold");
  if (first) first.open = true;
  document.documentElement.dataset.ready = "yes";
})();
