
"use strict";
(() => {
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  // What works only with this script is hidden until it runs.
  all(".controls[hidden]").forEach((element) => { element.hidden = false; });

  // Light or dark, whatever the system says.
  const theme = one("#theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // Clusters in sheets, one of which is shown.
  const sheets = all(".sheet");
  const showSheet = (wanted) => {
    const number = clamp(wanted, 0, sheets.length - 1);
    sheets.forEach((sheet, index) => { sheet.hidden = index !== number; });
    all(".pager").forEach((pager) => {
      one(".where", pager).textContent = `Page ${number + 1} of ${sheets.length}`;
      one(".back", pager).disabled = number === 0;
      one(".on", pager).disabled = number === sheets.length - 1;
      one(".back", pager).onclick = () => showSheet(number - 1);
      one(".on", pager).onclick = () => { showSheet(number + 1); one("#clusters").scrollIntoView(); };
    });
  };
  const goTo = (identity) => {
    const target = document.getElementById(identity);
    if (!target) return false;
    const sheet = target.closest(".sheet");
    if (sheet && sheet.hidden) showSheet(sheets.indexOf(sheet));
    target.scrollIntoView();
    return true;
  };
  if (sheets.length) showSheet(0);
  const jump = one("#jump");
  if (jump) {
    jump.addEventListener("change", () => {
      const found = jump.value === "" || goTo(`cluster-${jump.value}`);
      one("#jumped").textContent = found ? "" : `There is no cluster ${jump.value} on this page.`;
    });
  }
  const follow = () => { if (location.hash.startsWith("#cluster-")) goTo(location.hash.slice(1)); };
  addEventListener("hashchange", follow);
  follow();

  // A cluster of the flow diagram through all epochs.
  const flow = one(".flow");
  if (flow) {
    const pick = (event) => {
      const identity = event.target.dataset && event.target.dataset.id;
      flow.classList.toggle("picking", identity !== undefined);
      all("[data-id]", flow).forEach((part) => part.classList.toggle("on", part.dataset.id === identity));
    };
    flow.addEventListener("pointerover", pick);
    flow.addEventListener("pointerleave", pick);
  }

  // The map: the image nearest to the pointer, and one group picked out.
  const block = one("#map-data");
  if (block) {
    const data = JSON.parse(block.textContent);
    const svg = one(".map svg"), tip = one("#tip"), ring = one(".ring"), frame = one(".map");
    const [picture, caption] = tip.children;
    const { side, shown, columns, src } = data.sprite;
    const rows = Math.ceil(data.cluster.length / columns);
    picture.style.width = picture.style.height = `${shown}px`;
    picture.style.backgroundImage = `url(${src})`;
    picture.style.backgroundSize = `${columns * shown}px ${rows * shown}px`;
    let current = -1;
    const describe = (index) => {
      const target = data.target ? `, class ${data.classes[data.target[index]]}` : "";
      return `${data.names[index]}: cluster ${data.cluster[index]}${target}`;
    };
    const show = (index) => {
      current = index;
      tip.hidden = ring.hidden = index < 0;
      ring.style.display = index < 0 ? "none" : "";
      if (index < 0) return;
      const scale = svg.clientWidth / svg.viewBox.baseVal.width;
      const x = data.xy[2 * index], y = data.xy[2 * index + 1];
      ring.setAttribute("cx", x);
      ring.setAttribute("cy", y);
      picture.style.backgroundPosition = `${-(index % columns) * shown}px ${-Math.floor(index / columns) * shown}px`;
      caption.textContent = describe(index);
      const left = x * scale + 14, top = y * scale + 14;
      tip.style.left = `${clamp(left, 0, Math.max(0, frame.clientWidth - tip.offsetWidth))}px`;
      tip.style.top = `${top + tip.offsetHeight > frame.clientHeight ? Math.max(0, top - tip.offsetHeight - 28) : top}px`;
    };
    const nearest = (event) => {
      const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
      const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
      let best = -1, least = (30 * scale) ** 2;
      for (let index = 0; index < data.cluster.length; index += 1) {
        const distance = (data.xy[2 * index] - x) ** 2 + (data.xy[2 * index + 1] - y) ** 2;
        if (distance < least) { least = distance; best = index; }
      }
      show(best);
    };
    svg.addEventListener("pointermove", nearest);
    svg.addEventListener("pointerdown", nearest);
    svg.addEventListener("pointerleave", () => show(-1));
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      show(clamp(current + step, 0, data.cluster.length - 1));
    });
    svg.addEventListener("blur", () => show(-1));

    const colouring = one("#colouring"), search = one("#pick");
    const groups = all("g.dots"), legends = all(".legend");
    const pick = (identity) => {
      groups.forEach((group) => {
        group.classList.toggle("picking", identity !== "");
        all("path", group).forEach((path) => path.classList.toggle("on", path.dataset.id === identity));
      });
      all(".legend button").forEach((button) => {
        button.setAttribute("aria-pressed", String(identity !== "" && button.dataset.id === identity));
      });
    };
    all(".legend button").forEach((button) => {
      button.addEventListener("click", () => pick(button.getAttribute("aria-pressed") === "true" ? "" : button.dataset.id));
    });
    const choose = () => {
      const wanted = colouring ? colouring.value : "cluster";
      groups.forEach((group) => { group.style.display = group.dataset.by === wanted ? "" : "none"; });
      legends.forEach((legend) => { legend.hidden = legend.dataset.by !== wanted; });
      search.parentElement.hidden = wanted !== "cluster";
      pick("");
    };
    if (colouring) colouring.addEventListener("change", choose);
    search.addEventListener("input", () => pick(search.value === "" ? "" : `c${search.value}`));
    choose();
  }
  document.documentElement.dataset.ready = "yes";
})();
