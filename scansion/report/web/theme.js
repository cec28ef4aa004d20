// Light or dark: as the system says, unless the reader chose; plots follow.

const themeListeners = [];

function onThemeChange(listener) {
  themeListeners.push(listener);
}

/** The value of a custom property of style.css in the theme now shown. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function startTheme() {
  const button = document.getElementById("theme");
  const tell = () => {
    button.setAttribute("aria-label", isDark() ? "Switch to light colours" : "Switch to dark colours");
    button.title = button.getAttribute("aria-label");
    button.textContent = isDark() ? "☀" : "☾";
    for (const listener of themeListeners) listener();
  };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    tell();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tell);
  tell();
}
