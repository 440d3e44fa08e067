"""Run a program as another release would be: with the next version of the wire's protocol.

python other_version.py FILE arguments...       a file
python other_version.py -m MODULE arguments...  a module
"""

from __future__ import annotations

import importlib.util
import runpy
import sys

import ranktap_wire


def main() -> None:
    spec = importlib.util.find_spec("ranktap_wire.messages")
    assert spec is not None and spec.origin is not None
    with open(spec.origin) as file:
        source = file.read()
    # In the source, because messages have it among their defaults.
    changed = source.replace("PROTOCOL: Final = 1\n", "PROTOCOL: Final = 2\n")
    assert changed != source
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    ranktap_wire.messages = module
    exec(compile(changed, spec.origin, "exec"), module.__dict__)
    del sys.argv[0]
    if sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
