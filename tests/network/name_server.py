"""A name server for one name, whose answers change while it runs (RFC 1035, UDP only)."""

import asyncio
import collections
import ipaddress
import socket
import struct

NAME = "api.test"

TYPE_A = 1
TYPE_AAAA = 28
RCODES = {"normal": 0, "empty": 0, "servfail": 2, "nxdomain": 3}


class NameServer(asyncio.DatagramProtocol):
    def __init__(self, addresses, ttl):
        self.addresses = list(addresses)
        self.ttl = ttl
        # A key of RCODES, or "silent".
        self.mode = "normal"
        # Seconds before each reply.
        self.delay = 0
        # Whether each reply begins with the next address.
        self.rotates = False
        self.queries = 0
        # Queries without a reply; a repetition has the same identifier and counts once.
        self.waiting = collections.Counter()
        self.most_waiting = 0

    @staticmethod
    async def start(address, addresses, ttl):
        """Listens on `address`, in the namespace of the calling thread."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.bind((address, 53))
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        _, server = await loop.create_datagram_endpoint(
            lambda: NameServer(addresses, ttl), sock=listener
        )
        return server

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, query, client):
        self.queries += 1
        if self.mode == "silent":
            return
        self.waiting[query] += 1
        self.most_waiting = max(self.most_waiting, len(self.waiting))
        asyncio.get_running_loop().call_later(self.delay, self.reply, query, client)

    def reply(self, query, client):
        self.waiting -= collections.Counter([query])
        if self.mode != "silent":
            self.transport.sendto(self.response(query), client)

    def response(self, query):
        identifier, flags = struct.unpack_from("!HH", query)
        name, end = read_name(query, 12)
        query_type, _ = struct.unpack_from("!HH", query, end)
        records = []
        rcode = RCODES[self.mode]
        if self.mode == "normal":
            if name == NAME:
                records = self.records(query_type)
            else:
                rcode = RCODES["nxdomain"]
        # Response, recursion available; opcode and RD as in the query.
        flags = 0x8080 | flags & 0x7900 | rcode
        head = struct.pack("!HHHHHH", identifier, flags, 1, len(records), 0, 0)
        return head + query[12 : end + 4] + b"".join(records)

    def records(self, query_type):
        versions = {TYPE_A: 4, TYPE_AAAA: 6}
        addresses = [ipaddress.ip_address(address) for address in self.addresses]
        wanted = [address for address in addresses if address.version == versions.get(query_type)]
        if self.rotates and query_type == TYPE_A:
            self.addresses = self.addresses[1:] + self.addresses[:1]
        # 0xC00C: the name of the question.
        return [
            struct.pack("!HHHIH", 0xC00C, query_type, 1, self.ttl, len(address.packed))
            + address.packed
            for address in wanted
        ]


def read_name(message, offset):
    """The name at `offset` in lower case, and the offset of its end."""
    labels = []
    while length := message[offset]:
        labels.append(message[offset + 1 : offset + 1 + length].decode().lower())
        offset += 1 + length
    return ".".join(labels), offset + 1
