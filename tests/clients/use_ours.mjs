// Our own client, in Node.
import { ChatTurnClient } from "../../clients/typescript/chatturn.js";

const asked = JSON.parse(process.argv[2]);
const turn = new ChatTurnClient({ url: asked.url, token: () => asked.token }).turn(asked.chat, 0);
const answer = await turn.ask(asked.question);
console.log(JSON.stringify({ text: answer.text, errors: [] }));
process.exit(0);
