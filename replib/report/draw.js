const dark = matchMedia("(prefers-color-scheme: dark)");
async function draw() {
  const options = { renderer: "canvas", actions: { export: true, source: false, compiled: false,
    editor: false }, theme: dark.matches ? "dark" : undefined,
    tooltip: { theme: dark.matches ? "dark" : "light" } };
  for (const place of document.querySelectorAll(".chart"))
  {
    const spec = JSON.parse(document.getElementById(place.dataset.spec).textContent);
    place.embedded?.finalize();  // drawn in the other colours before
    place.embedded = await vegaEmbed(place, spec, options);
    place.querySelector("summary").setAttribute("aria-label", "save chart");
  }
}
dark.addEventListener("change", draw);
draw();
