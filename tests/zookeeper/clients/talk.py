"""Talks to an interactive client: sends a line, waits until what comes back matches."""

import os
import re
import select
import subprocess
import sys
import time

SECONDS_MAX = 30


class Failure(Exception):
    """The client did not answer as it should."""


class Talk:
    """One run of an interactive client."""

    def __init__(self, command):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.unread = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def send(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def wait(self, pattern):
        """Uses up what comes until `pattern` matches; returns it. `^` and `$` are ends of lines."""
        give_up = time.monotonic() + SECONDS_MAX
        while True:
            match = re.search(pattern, self.unread, re.MULTILINE)
            if match:
                text, self.unread = self.unread[: match.end()], self.unread[match.end() :]
                return text
            output = self.process.stdout
            ready, _, _ = select.select([output], [], [], max(give_up - time.monotonic(), 0))
            part = os.read(output.fileno(), 65536) if ready else b""
            if not part:
                raise Failure(f"no {pattern!r} in {self.unread!r}")
            self.unread += part.decode(errors="replace")

    def ask(self, line, pattern):
        """Sends `line` and waits for its answer."""
        self.send(line)
        try:
            return self.wait(pattern)
        except Failure as failure:
            raise Failure(f"{line}: {failure}") from None

    def end(self, line):
        """Sends the last line; the client must end with 0."""
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.close()
        self.process.stdout.read()
        code = self.process.wait(SECONDS_MAX)
        if code != 0:
            raise Failure(f"{line}: ended with {code}")


def main(test):
    """Runs `test(address)` with the address that the command line names."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} HOST:PORT")
    try:
        test(sys.argv[1])
    except Failure as failure:
        sys.exit(f"FAIL {failure}")
