// GitHub's library with an empty handler: it verifies and parses, but stores nothing.
import { createServer } from "node:http";
import { Webhooks, createNodeMiddleware } from "@octokit/webhooks";

const webhooks = new Webhooks({ secret: process.argv[2] });
webhooks.on("push", () => {});
const middleware = createNodeMiddleware(webhooks, { path: "/webhooks/github" });
const server = createServer(middleware);
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
