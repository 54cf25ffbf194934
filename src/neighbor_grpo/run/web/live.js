// A page that goes on: messages of the server are put into their places.
{
  const body = document.getElementById("body"), line = document.getElementById("line"), places = {};
  const drawInto = (place, panels) => {
    if (places[place]) places[place].set(panels);
    else places[place] = drawCharts(document.getElementById(place), panels);
  };

  function showPage({ html, charts }) {
    const open = [...body.querySelectorAll("details")].map(one => one.open);
    body.innerHTML = html;
    const details = [...body.querySelectorAll("details")];
    if (details.length === open.length) details.forEach((one, n) => one.open = open[n]);
    for (const place in places) delete places[place];
    for (const [place, panels] of Object.entries(charts)) drawInto(place, panels);
  }

  function showPart({ place, html }) {
    const part = document.getElementById(place), words = part.querySelector("[type=search]")?.value;
    part.innerHTML = html;
    const field = part.querySelector("[type=search]");
    if (words && field) {
      field.value = words;
      field.dispatchEvent(new Event("input", { bubbles: true }));
    }
  }

  const kinds = {
    page: showPage,
    part: showPart,
    charts: ({ place, panels }) => drawInto(place, panels),
    points: ({ panels }) => places.curves.append(panels),
  };
  const source = new EventSource("events");
  source.onmessage = event => {
    const message = JSON.parse(event.data);
    kinds[message.kind](message);
  };
  source.onopen = () => line.textContent = "This page is live.";
  source.onerror = () => line.textContent = "The connection is lost: what follows is old. The page tries again.";
}
