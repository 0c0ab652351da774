"""A stand-in for the API on several addresses, each of which fails in its own way."""

import asyncio
import collections
import json
import random
import socket
import struct

PORT = 8000
# Seconds before each response, so that requests are in flight when a fault begins.
LATENCY = 0.05

IDENTITY = {
    "success": True,
    "employee": "5f1d7f0c9b0e4a0001a1b2c3",
    "customer": "5f1d7f0c9b0e4a0001d4e5f6",
    "accessLevel": "VIEWER",
}


class Address:
    """One address of the API."""

    def __init__(self, ip, network, posts):
        self.ip = ip
        self.network = network
        # "normal"; "reset" (after a request), "mute" (no response), "unavailable" (503), "flaky"
        # (some connections end, see `Connection.ends_by_chance`).
        self.mode = "normal"
        self.delay = LATENCY
        self.requests = 0
        # How often each POST arrived, by target; shared by all addresses.
        self.posts = posts
        self.connections = set()
        self.resets = 0
        self.server = None

    async def listen(self):
        with self.network.in_api():
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.ip, PORT))
        listener.listen(4096)
        self.server = await asyncio.start_server(self.serve, sock=listener)

    async def refuse(self):
        """Refuses new connections and resets open ones, like a process that was killed."""
        self.server.close()
        for connection in list(self.connections):
            connection.reset()

    def doom_connections(self):
        """Has each open connection be reset at its next request."""
        for connection in self.connections:
            connection.is_doomed = True

    async def serve(self, reader, writer):
        connection = Connection(self, reader, writer)
        self.connections.add(connection)
        try:
            while await connection.serve_one():
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.connections.discard(connection)
            writer.close()


class Connection:
    def __init__(self, address, reader, writer):
        self.address = address
        self.reader = reader
        self.writer = writer
        self.is_doomed = False

    def reset(self):
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()
        self.address.resets += 1

    async def serve_one(self):
        """Serves a request; whether the connection stays open."""
        method, target = await self.read_request()
        address = self.address
        address.requests += 1
        if method == "POST":
            address.posts[target] += 1
        if address.mode == "reset" or self.is_doomed:
            self.reset()
            return False
        if address.mode == "mute":
            await self.reader.read()
            return False
        if address.delay:
            await asyncio.sleep(address.delay)
        status, body = respond(target)
        if address.mode == "unavailable":
            error = {"message": "Unavailable", "code": "unavailable", "status": 503}
            status, body = "503 Service Unavailable", {"error": error}
        text = json.dumps(body)
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
        response = f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode()
        if address.mode == "flaky" and await self.ends_by_chance(response):
            return False
        self.writer.write(response)
        await self.writer.drain()
        return True

    async def ends_by_chance(self, response):
        """Ends one connection in three, at another moment each."""
        chance = random.random()
        if chance < 0.05:
            self.reset()
        elif chance < 0.1:
            # Within the response, which then counts as lost.
            self.writer.write(response[: len(response) // 2])
            await self.writer.drain()
            self.reset()
        elif chance < 0.2:
            # After the response, without notice (RFC 9112 section 9.6).
            self.writer.write(response)
            await self.writer.drain()
        elif chance < 0.33:
            # While the next request may be on its way.
            self.writer.write(response)
            await self.writer.drain()
            await asyncio.sleep(random.random() / 50)
            self.reset()
        else:
            return False
        return True

    async def read_request(self):
        """Method and target of a request that was received with its body."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request_line, *lines = head.split("\r\n")
        method, target, _ = request_line.split(" ")
        pairs = [line.partition(":") for line in lines]
        fields = {name.lower(): value.strip() for name, _, value in pairs}
        if fields.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                await self.reader.readexactly(size + 2)
            await self.reader.readuntil(b"\r\n")
        else:
            await self.reader.readexactly(int(fields.get("content-length", 0)))
        return method, target


def respond(target):
    path = target.partition("?")[0]
    if path == "/auth/validateToken":
        return "200 OK", IDENTITY
    segments = path.split("/")
    if segments[1] == "customer" and segments[-1] == "name":
        return "200 OK", {"_id": segments[2], "name": "Anders And & Co"}
    return "200 OK", {"success": True}


class Api:
    def __init__(self, network, ips):
        self.posts = collections.Counter()
        self.addresses = {ip: Address(ip, network, self.posts) for ip in ips}

    async def listen(self):
        for address in self.addresses.values():
            await address.listen()

    def busiest(self):
        """The address that received the most requests: the one in use, where one alone is."""
        return max(self.addresses.values(), key=lambda address: address.requests)
