// What splatgen's pages do in the browser beside viser: colours of the system, the tab's title, files that are
// dropped, and buttons inside HTML, which speak through a text field of viser's that nobody sees.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  window.__VISER_EMBED_CONFIG__ = { darkMode: dark.matches };
  dark.addEventListener("change", () =>
    document.documentElement.setAttribute("data-mantine-color-scheme", dark.matches ? "dark" : "light"));

  const deeds = [];
  const labelled = (text) => {
    const label = [...document.querySelectorAll("label")].find((one) => one.textContent === text);
    return label && label.closest(".mantine-Flex-root");
  };
  const toPrompt = () => {
    const row = labelled("Prompt");
    if (row) row.querySelector("input").focus();
    return Boolean(row);
  };
  const field = () => labelled("deeds");
  const setter = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set;
  let counted = Date.now();
  setInterval(() => {
    const row = field();
    if (!row || !deeds.length) return;
    const input = row.querySelector("input"); // React reads the input's own setter, and its event
    const deed = deeds.shift();
    setter.call(input, `${(counted += 1)} ${deed}`);
    input.dispatchEvent(new Event("input", { bubbles: true }));
    if (/^(again|word) /.test(deed)) toPrompt(); // which they fill
  }, 120);

  // A list may be drawn anew between press and release: what was pressed counts, wherever it is by then.
  let pressed = null;
  const deedOf = (event) => {
    const button = event.target.closest && event.target.closest("[data-deed]");
    return button && `${button.dataset.deed} ${button.dataset.of || ""}`;
  };
  addEventListener("pointerdown", (event) => {
    const deed = event.button === 0 ? deedOf(event) : null;
    pressed = deed && { deed, x: event.clientX, y: event.clientY };
  });
  addEventListener("pointercancel", () => (pressed = null)); // a finger that scrolls
  addEventListener("pointerup", (event) => {
    if (pressed && Math.hypot(event.clientX - pressed.x, event.clientY - pressed.y) < 10) deeds.push(pressed.deed);
    pressed = null;
  });
  addEventListener("click", (event) => {
    const deed = event.detail === 0 ? deedOf(event) : null; // from a keyboard
    if (deed) deeds.push(deed);
  });

  const isTyping = (element) => /^(INPUT|TEXTAREA|SELECT)$/.test(element.tagName) || element.isContentEditable;
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && isTyping(event.target)) event.target.blur();
    if (event.key === "Enter" && event.target === document.body && toPrompt()) event.preventDefault();
  });

  const holdsFiles = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
  const mark = (on) => document.documentElement.classList.toggle("splatgen-drop", on);
  addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    mark(Boolean(document.querySelector("input[type=file]")));
  });
  addEventListener("dragleave", (event) => event.relatedTarget || mark(false));
  addEventListener("drop", (event) => {
    mark(false);
    if (!holdsFiles(event)) return;
    event.preventDefault(); // or the browser would leave the page for the file
    const input = document.querySelector("input[type=file]");
    if (!input || !event.dataTransfer.files.length) return;
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });

  // A phone shows the object first: its sheet of panels begins folded.
  let folded = innerWidth > 576;
  const settle = () => {
    const row = field();
    if (row) row.parentElement.style.display = "none";
    const named = document.querySelector("[data-title]");
    if (named && document.title !== named.dataset.title) document.title = named.dataset.title;
    const first = document.getElementById("splatgen-first");
    if (first && document.querySelector("#root canvas")) first.remove();
    const sheet = folded ? null : document.querySelector('[style*="position: fixed"][style*="bottom: 0px"]');
    const handle = sheet && sheet.querySelector('[style*="cursor: pointer"]');
    if (handle) {
      folded = true;
      handle.click();
    }
  };
  new MutationObserver(settle).observe(document, { childList: true, subtree: true });
  addEventListener("DOMContentLoaded", settle);
})();
