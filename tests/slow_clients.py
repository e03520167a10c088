"""Checks a reverse proxy in front of a running server: slow and greedy clients are cut off and do not fill the
disk, and signed deliveries still arrive. tests/deploy.sh starts both.

    tests/slow_clients.py nginx|caddy PROXY_PORT PROXY_PID WEBHOOK_SECRET ADMIN_TOKEN
"""

import asyncio
import hashlib
import hmac
import os
import ssl
import stat
import sys
import time
import uuid

PROXY, PORT, PID, SECRET, TOKEN = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
# The largest body of a delivery, which is form-encoded.
BODY_MAX = 40 * 1024 * 1024
# What a client that stalls may hold on the proxy's disk, in bytes.
TEMPORARY_MAX = 1024 * 1024
# GitHub's time limit for a delivery, in seconds.
DELIVERY_MAX = 10
# The time limits in nginx.conf and Caddyfile, and some time to act, in seconds.
HEADERS_MAX, BODY_STALL_MAX = 12, {"nginx": 12, "caddy": 32}[PROXY]
# The server's time limits for bodies, and some time to act, in seconds.
TRICKLE_MAX = 32
# After this time, a stalled client gives up, in seconds.
STALL_MAX = 45
# GitHub's address, and the first one of the strangers.
GITHUB, STRANGER = "127.0.0.1", 2

context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE


async def connect(address):
    return await asyncio.open_connection(
        "127.0.0.1", PORT, ssl=context, server_hostname="videos.example.org", local_addr=(address, 0))


def head(method, path, length, *headers):
    lines = [f"{method} {path} HTTP/1.1", "Host: videos.example.org", f"Content-Length: {length}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def status(reader):
    line = await reader.readline()
    return int(line.split()[1]) if line else None


async def request(address, method, path, body=b"", *headers):
    reader, writer = await connect(address)
    writer.write(head(method, path, len(body), "Connection: close", *headers) + body)
    code = await status(reader)
    writer.close()
    return code


async def deliver(size):
    with open("fixtures/webhooks/push_added.json", "rb") as file:
        body = file.read().ljust(size)
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    return await asyncio.wait_for(request(
        GITHUB, "POST", "/webhooks/github", body, "Content-Type: application/json", "X-GitHub-Event: push",
        f"X-GitHub-Delivery: {uuid.uuid4()}", f"X-Hub-Signature-256: sha256={signature}"), DELIVERY_MAX)


async def stall(address, path, sent):
    """Announces the largest body, sends this many bytes of it, and waits for the end of the connection."""
    start = time.monotonic()
    try:
        reader, writer = await connect(address)
        writer.write(head("POST", path, BODY_MAX, "Content-Type: application/json"))
        for _ in range(sent // 65536):
            writer.write(bytes(65536))
            await writer.drain()
        await asyncio.wait_for(reader.read(), STALL_MAX)
    except (OSError, asyncio.TimeoutError):
        pass
    return time.monotonic() - start


async def trickle(address, path):
    """Announces a body of 60 kB and sends one byte of it per second until the connection ends."""
    start = time.monotonic()
    try:
        reader, writer = await connect(address)
        writer.write(head("POST", path, 60_000, "Content-Type: application/json"))
        end = asyncio.ensure_future(reader.read())
        while not end.done() and time.monotonic() - start < STALL_MAX:
            writer.write(b"x")
            await writer.drain()
            await asyncio.wait([end], timeout=1)
    except OSError:
        pass
    return time.monotonic() - start


async def stall_in_headers(address):
    start = time.monotonic()
    try:
        reader, writer = await connect(address)
        writer.write(b"GET / HTTP/1.1\r\nHost: videos.example.org\r\n")
        await asyncio.wait_for(reader.read(), STALL_MAX)
    except (OSError, asyncio.TimeoutError):
        pass
    return time.monotonic() - start


def temporary_bytes():
    """The size of the files that the proxy's processes have open for writing and that are already deleted."""
    with open(f"/proc/{PID}/task/{PID}/children") as file:
        processes = [PID, *map(int, file.read().split())]
    total = 0
    for process in processes:
        for entry in os.scandir(f"/proc/{process}/fd"):
            try:
                if os.readlink(entry.path).endswith(" (deleted)") and stat.S_ISREG(os.stat(entry.path).st_mode):
                    total += os.stat(entry.path).st_size
            except FileNotFoundError:
                pass
    return total


def expect(what, found, holds):
    print(f"   {what}: {found}")
    if not holds:
        sys.exit(f"{PROXY}: {what}: {found}")


async def main():
    addresses = [f"127.0.0.{STRANGER + n}" for n in range(8)]
    strangers = [asyncio.create_task(stall(address, path, BODY_MAX - 1024 * 1024))
                 for address in addresses for path in ("/webhooks/github", "/sign-in")]
    trickles = [asyncio.create_task(trickle(address, path))
                for address in addresses for path in ("/webhooks/github", "/sign-in")]
    silent = [asyncio.create_task(stall_in_headers(address)) for address in addresses for _ in range(25)]
    await asyncio.sleep(4)
    found = temporary_bytes()
    expect("bytes in temporary files of 16 slow clients", found, found <= TEMPORARY_MAX)
    codes = {await deliver(size) for size in (2_000, 30_000) for _ in range(20)}
    expect("deliveries of 2 kB and 30 kB meanwhile", codes, codes == {202})
    codes = await asyncio.gather(*(deliver(2_000) for _ in range(100)))
    expect("100 deliveries at once", set(codes), set(codes) == {202})
    longest = max(await asyncio.gather(*silent))
    expect("seconds until incomplete headers are cut off", round(longest), longest <= HEADERS_MAX)
    longest = max(await asyncio.gather(*strangers))
    expect("seconds until incomplete bodies are cut off", round(longest), longest <= BODY_STALL_MAX)
    longest = max(await asyncio.gather(*trickles))
    expect("seconds until bodies of one byte per second are cut off", round(longest), longest <= TRICKLE_MAX)

    form = "Content-Type: application/x-www-form-urlencoded"
    code = await request(GITHUB, "POST", "/sign-in", b"x" * 100_000, form)
    # Caddy 2.6 returns 502 if the body exceeds its limit, newer versions 413.
    # Caddy 2.6 returns 502 if a body exceeds its limit, newer versions 413.
    expect("a large body on another path", code, code in {"nginx": (413,), "caddy": (413, 502)}[PROXY])
    code = await request(GITHUB, "GET", "/metrics")
    expect("GET /metrics", code, code == 404)
    code = await request(GITHUB, "GET", "/readyz", b"", "X-Padding: " + "x" * 30_000)
    expect("headers of 30 kB", code, code in (400, 431))
    code = await request(GITHUB, "GET", "/readyz")
    expect("GET /readyz", code, code == 200)

    if PROXY == "nginx":
        flood = await asyncio.gather(*(request("127.0.0.2", "GET", "/healthz") for _ in range(1_000)))
        expect("1,000 requests at once from one address", set(flood), set(flood) == {200, 429})
        code = await deliver(2_000)
        expect("a delivery afterwards", code, code == 202)
    else:
        # The time limit for a request's body must not end responses that take longer.
        reader, writer = await connect(GITHUB)
        writer.write(head("GET", "/api/events", 0, f"Authorization: Bearer {TOKEN}"))
        expect("GET /api/events", code := await status(reader), code == 200)
        end = time.monotonic() + BODY_STALL_MAX + 5
        while (left := end - time.monotonic()) > 0:
            try:
                ended = not await asyncio.wait_for(reader.read(4096), left)
            except asyncio.TimeoutError:
                break
            expect("events", "the stream has ended", False) if ended else None


asyncio.run(main())
