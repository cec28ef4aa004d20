// Begin: the theme first, for everything else takes its colours.

async function start() {
  startTheme();
  if (typeof DecompressionStream === "undefined") {
    document.getElementById("too-old").hidden = false;
    return;
  }
  await Promise.all([startFigures(), startMaps(), startFeatures()]);
  document.body.dataset.ready = "yes";
}

start();
