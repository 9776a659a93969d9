"""What QEMU's qemu-ga-client does with a guest (ping, sync, info, interfaces, name, system, time), on the
library that it is written on; and what an agent that runs nothing answers to the rest. Prints what it has seen."""

import random
import sys

from qemu.qmp.legacy import QEMUMonitorProtocol
from qemu.qmp.qmp_client import ExecuteError

agent = QEMUMonitorProtocol(sys.argv[1])
agent.connect(negotiate=False)
agent.settimeout(20)


def call(command, **arguments):
    return agent.cmd("guest-" + command, **arguments)


assert call("ping") == {}
number = random.randint(0, (1 << 32) - 1)
assert call("sync", id=number) == number
info = call("info")
commands = [it["name"] for it in info["supported_commands"] if it["enabled"]]
assert "guest-network-get-interfaces" in commands and "__io.flexvf_status" in commands
interfaces = {it["name"]: it for it in call("network-get-interfaces")}
loopback = interfaces["lo"]
assert loopback["statistics"]["rx-packets"] >= 0
assert call("get-host-name")["host-name"]
assert call("get-osinfo")["machine"] == "x86_64"
assert call("get-time") > 0
assert agent.cmd("__io.flexvf_status")["protocol"] == 1
for command in ["exec", "file-open", "shutdown"]:
    try:
        call(command, path="/bin/sh")
    except ExecuteError as error:
        assert error.error.error.class_ == "CommandNotFound", error
    else:
        sys.exit(command + " was not refused")
agent.close()
print("version", info["version"])
