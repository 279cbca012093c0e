// The tutorial's chat window in Debian's Chromium, in two tabs: a question, an edit and the way back.
import puppeteer from "puppeteer-core";

const { page, chromium } = JSON.parse(process.argv[2]);
const args = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"];
const browser = await puppeteer.launch({ executablePath: chromium, args });
const errors = [];
const opened = async () => {
  const tab = await browser.newPage();
  tab.on("pageerror", (error) => errors.push(String(error).slice(0, 200)));
  tab.on("dialog", (dialog) => dialog.accept("uno."));
  await tab.goto(page);
  return tab;
};
const texts = (tab) => tab.$$eval(".user, .assistant", (all) => all.map((each) => each.textContent));
async function until(tab, expected) {
  const ends = Date.now() + 45_000;
  const ready = () => tab.evaluate(() => document.body.dataset.status === "ready");
  while (String(await texts(tab)) !== String(expected) || !(await ready())) {
    if (Date.now() > ends) throw new Error(`${await texts(tab)} is not ${expected}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
const click = (tab, text) =>
  tab.$$eval("button", (all, text) => all.find((each) => each.textContent === text).click(), text);

try {
  const [first, second] = [await opened(), await opened()];
  for (const question of ["one.", "two."]) {
    await first.type("input", question); // the second is typed ahead
    await first.keyboard.press("Enter");
  }
  const both = ["one.", "re: one.", "two.", "re: two."];
  for (const tab of [first, second]) await until(tab, both);
  await click(second, "Edit");
  for (const tab of [second, first]) await until(tab, ["uno.", "re: uno."]);
  await click(first, "Next version");
  for (const tab of [first, second]) await until(tab, both);
  await first.reload();
  await until(first, both);
  console.log(JSON.stringify({ errors }));
} finally {
  await browser.close();
}
