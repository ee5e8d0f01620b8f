(async () => {
  const say = (text) => { document.getElementById("root").textContent = text; };
  try {
    const text = document.getElementById("packed").textContent;
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const { modules, css, config, entry } = JSON.parse(await new Response(unpacked).text());
    const at = (source, type) => URL.createObjectURL(new Blob([source], { type }));
    Object.defineProperty(window, "__MARIMO_MOUNT_CONFIG__", { value: Object.freeze(config) });
    const sheet = document.createElement("link");
    sheet.rel = "stylesheet";
    // marimo copies into its elements the sheets whose address ends so.
    sheet.href = at(css, "text/css") + "#/@marimo-team/inline.css";
    const styled = new Promise((done) => { sheet.onload = sheet.onerror = done; });
    document.head.append(sheet);
    const imports = {};
    for (const [name, source] of Object.entries(modules))
      imports["m/" + name] = at(source, "text/javascript");
    const map = document.createElement("script");
    map.type = "importmap";
    map.textContent = JSON.stringify({ imports });
    document.head.append(map);
    await styled;
    say("");
    await import("m/" + entry);
  } catch (error) {
    say("This page could not be opened: it needs a browser of 2023 or later. " + error);
    throw error;
  }
})();
