"""Pings at a steady rate, and how many of them stayed without an answer.

ping(8) counts an answer that is still on its way at the end as lost; this waits for the last ones.

Run as a program, in the network namespace to send from: pings.py ADDRESS SECONDS_BETWEEN. It stops at the end of its
standard input, and prints what it saw as JSON.
"""

import ipaddress
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from contextlib import contextmanager

import nodes

PATIENCE = 3  # seconds for the last answers


@contextmanager
def running(flows: list[tuple[str, str, str]], interval: float = 0.01):
    """Pings along flows (a name, the file of the network namespace to send from, an address) while the block runs.

    Yields a list that holds the results afterwards.
    """
    results: list[dict] = []
    started = [
        subprocess.Popen(["nsenter", f"--net={namespace}", "/usr/bin/python3", __file__, address, str(interval)],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"PATH": nodes.PATH})
        for _, namespace, address in flows
    ]
    try:
        # The path is there before anything is counted.
        for (name, _, _), process in zip(flows, started):
            if process.stdout.readline() != "first answer\n":
                raise RuntimeError(f"{name}: no answer to pings at all")
        yield results
    finally:
        for process in started:
            process.stdin.close()
        for (name, _, _), process in zip(flows, started):
            output = process.stdout.read()
            process.wait()
            if output:
                results.append({"flow": name, **json.loads(output)})


def describe(results: list[dict]) -> str:
    sent, lost = (sum(result[key] for result in results) for key in ("sent", "lost"))
    text = f"{lost} of {sent} pings lost on {len(results)} flows"
    return text + "".join(f"; {result['flow']}: {result['lost']}, at {result['when']}" for result in results if result["lost"])


def ping(address: str, interval: float) -> None:
    six = ipaddress.ip_address(address).version == 6
    request, answer, offset = (128, 129, 0) if six else (8, 0, 20)
    raw = (socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    icmp = socket.socket(*raw)
    icmp.connect((address, 0))
    icmp.setblocking(False)
    own = os.getpid() & 0xFFFF
    sent: dict[int, float] = {}
    answered: set[int] = set()

    def send(number: int) -> None:
        sent[number] = time.time()
        # The identifier and the upper half of the number tell our answers from others'.
        header = struct.pack("!BBHHHI", request, 0, 0, own, number & 0xFFFF, number)
        if not six:
            header = header[:2] + checksum(header) + header[4:]
        try:
            icmp.send(header)
        except OSError:
            pass  # no route at the moment: a ping without an answer

    def receive(until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            if not select.select([icmp], [], [], left)[0]:
                return
            try:
                packet = icmp.recv(2048)[offset:]
            except OSError:
                continue  # an ICMP error, reported on the socket
            if len(packet) >= 12 and packet[0] == answer and struct.unpack("!H", packet[4:6])[0] == own:
                answered.add(struct.unpack("!I", packet[8:12])[0])

    number, end = 0, time.monotonic() + 30
    while not answered and time.monotonic() < end:
        send(number)
        number += 1
        receive(time.monotonic() + 0.2)
    if not answered:
        return
    print("first answer", flush=True)
    sent.clear()
    answered.clear()
    next_time = time.monotonic()
    while not select.select([sys.stdin], [], [], 0)[0]:
        send(number)
        number += 1
        next_time += interval
        receive(next_time)
    end = time.monotonic() + PATIENCE
    while len(answered.intersection(sent)) < len(sent) and time.monotonic() < end:
        receive(time.monotonic() + 0.05)
    lost = sorted(set(sent) - answered)
    when = [time.strftime("%H:%M:%S", time.localtime(sent[number])) + f".{sent[number] % 1 * 1000:03.0f}" for number in lost]
    print(json.dumps({"sent": len(sent), "lost": len(lost), "when": when[:5]}))


def checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


if __name__ == "__main__":
    ping(sys.argv[1], float(sys.argv[2]))
