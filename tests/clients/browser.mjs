// A page in Debian's Chromium, from another origin than the Worker's: asks, waits, and tells what a user sees.
import puppeteer from "puppeteer-core";

const [page, json] = process.argv.slice(2);
const asked = JSON.parse(json);
const hash = new URLSearchParams({ url: asked.url, token: asked.token, chat: asked.chat });
const address = `${asked.pages}/${page}#${hash}`;
const browser = await puppeteer.launch({
  executablePath: asked.chromium,
  args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
});
const errors = [];

async function opened() {
  const tab = await browser.newPage();
  tab.on("pageerror", (error) => errors.push(String(error).slice(0, 200)));
  await tab.goto(address);
  await tab.waitForSelector("form");
  return tab;
}
const answers = (tab) => tab.$$eval(".assistant", (all) => all.map((each) => each.textContent));
const regenerate = (tab) => tab.evaluate(() => [...document.querySelectorAll("button")].at(-1).click());
const text = async (tab) => (await answers(tab)).join("");
const is = (tab, status) => tab.waitForFunction((s) => document.body.dataset.status === s, { timeout: 60_000 }, status);
async function until(condition) {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 20));
}
async function whole(tab) {
  await until(async () => (await text(tab)).length >= asked.length);
  await is(tab, "ready");
  return { text: await text(tab), bubbles: (await answers(tab)).length };
}

try {
  const tab = await opened();
  await tab.type("input", asked.question);
  await tab.keyboard.press("Enter");
  let said;
  if (asked.reload_after) {
    await until(async () => (await text(tab)).length > asked.reload_after);
    await tab.reload();
    said = await whole(tab);
  } else if (asked.stop_after) {
    await until(async () => (await text(tab)).length > asked.stop_after);
    await tab.click("button");
    await is(tab, "ready");
    await tab.reload();
    await until(async () => (await text(tab)).length > asked.stop_after);
    await is(tab, "ready");
    said = { text: await text(tab), bubbles: (await answers(tab)).length };
  } else if (asked.second_tab) {
    await until(async () => (await text(tab)).length > 20);
    const other = await opened();
    said = await whole(other);
    await tab.bringToFront();
    said.first = (await whole(tab)).text;
  } else if (asked.elsewhere) {
    await whole(tab);
    const other = await opened(); // which shows the old answer, and is left alone
    await whole(other);
    await tab.bringToFront();
    await regenerate(tab);
    await until(async () => (await text(tab)).endsWith(asked.regenerate));
    await is(tab, "ready");
    await other.bringToFront();
    await other.evaluate(() => document.dispatchEvent(new Event("visibilitychange"))); // without a window there is none
    await until(async () => (await text(other)).endsWith(asked.regenerate));
    await is(other, "ready");
    said = { text: await text(other), bubbles: (await answers(other)).length };
  } else if (asked.regenerate) {
    await whole(tab);
    await regenerate(tab);
    await until(async () => (await text(tab)).length > 20 && (await text(tab)).length < asked.length);
    await tab.reload(); // in the middle of the new answer
    await until(async () => (await text(tab)).endsWith(asked.regenerate));
    await is(tab, "ready");
    await tab.reload();
    await until(async () => (await text(tab)).endsWith(asked.regenerate));
    said = { text: await text(tab), bubbles: (await answers(tab)).length };
  } else {
    said = await whole(tab);
  }
  console.log(JSON.stringify({ ...said, errors }));
} finally {
  await browser.close();
}
process.exit(0);
