const rows = [...document.querySelectorAll("article")];
const controls = ["set", "change", "text"].map(id => document.getElementById(id));
function show() {
  const [set, change, text] = controls.map(control => control.value.toLowerCase());
  let count = 0;
  for (const row of rows) {
    const fits = (!set || row.dataset.set.toLowerCase() === set) && (!change || row.dataset.change === change)
      && (!text || row.textContent.toLowerCase().includes(text));
    row.hidden = !fits;
    count += fits;
  }
  document.getElementById("count").textContent = `${count} of ${rows.length} shown`;
}
for (const control of controls) control.addEventListener("input", show);
document.querySelector("form").addEventListener("submit", event => event.preventDefault());
show();
