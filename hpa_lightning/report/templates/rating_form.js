const form = document.getElementById("form");
const rater = document.getElementById("rater");
const place = "hpa-lightning-rating-" + form.dataset.form;
const answers = [...form.querySelectorAll(".answer")];
const scales = [...new Set([...form.querySelectorAll("fieldset")].map(field => field.dataset.scale))];

function shown() {
  let value = 0xcbf29ce484222325n;
  const add = unit => { value = ((value ^ BigInt(unit)) * 0x100000001b3n) & 0xffffffffffffffffn; };
  for (const text of form.querySelectorAll(".said")) {
    for (let at = 0; at < text.textContent.length; at++) add(text.textContent.charCodeAt(at));
    add(0);
  }
  return value.toString(16).padStart(16, "0");
}

function ratings() {
  const found = {};
  for (const answer of answers) {
    const item = answer.closest("article").dataset.item;
    const values = {};
    for (const scale of scales) {
      const chosen = answer.querySelector(`fieldset[data-scale="${scale}"] input:checked`);
      if (chosen) values[scale] = Number(chosen.value);
    }
    (found[item] = found[item] || []).push(values);
    answer.dataset.done = Object.keys(values).length === scales.length ? "yes" : "";
  }
  return found;
}

function exported() {
  return JSON.stringify({
    format: form.dataset.format, form: form.dataset.form, shown: shown(), rater: rater.value.trim(), ratings: ratings(),
  }, null, 1);
}

function keep() {
  try {
    localStorage.setItem(place, JSON.stringify({rater: rater.value, ratings: ratings()}));
  } catch (error) {
    document.getElementById("warning").hidden = false;
  }
  tell();
}

function tell() {
  const text = exported();
  const done = answers.filter(answer => answer.dataset.done).length;
  document.getElementById("progress").textContent = `${done} of ${answers.length} answers are rated on all scales.`;
  document.getElementById("text").textContent = text;
  return done;
}

function restore() {
  let kept = null;
  try {
    localStorage.setItem(place + "-test", "1");
    localStorage.removeItem(place + "-test");
    kept = JSON.parse(localStorage.getItem(place));
  } catch (error) {
    document.getElementById("warning").hidden = false;
  }
  if (!kept) return;
  rater.value = kept.rater || "";
  for (const [item, list] of Object.entries(kept.ratings || {})) {
    list.forEach((values, index) => {
      for (const [scale, value] of Object.entries(values)) {
        for (const input of document.getElementsByName(`${item}-${index + 1}-${scale}`)) {
          if (input.value === String(value)) input.checked = true;
        }
      }
    });
  }
}

document.getElementById("export").addEventListener("click", () => {
  const told = document.getElementById("told");
  if (!rater.value.trim()) {
    told.textContent = "Write your name first: the ratings of two people must not be taken for one.";
    rater.focus();
    return;
  }
  const missing = answers.length - tell();
  for (const answer of answers) answer.classList.toggle("missing", !answer.dataset.done);
  told.textContent = missing ? `${missing} answers are not rated on all scales; the file says so.` : "";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([exported()], {type: "application/json"}));
  link.download = `ratings-${rater.value.trim().replace(/[^\p{L}\p{N}_-]+/gu, "_")}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
form.addEventListener("change", keep);
rater.addEventListener("input", keep);
form.addEventListener("submit", event => event.preventDefault());
restore();
tell();
