"""A function of __main__ and one of a module, both redefined after the pool was made."""

import functools
import importlib
import sys
import tempfile
from pathlib import Path

import work

from poolwatch import Pool


def answer() -> str:
    return "old"


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "reloaded_module.py")
        file.write_text("def answer():\n    return 'module old'\n")
        sys.path.insert(0, directory)
        module = importlib.import_module("reloaded_module")
        with Pool(1) as pool:
            print(pool.apply(answer))

            def answer() -> str:
                return "new"

            print(pool.apply(answer))
            print(pool.apply(module.answer))
            file.write_text("def answer():\n    return 'module new'\n")
            importlib.invalidate_caches()
            importlib.reload(module)
            print(pool.apply(module.answer))
            print(pool.apply(functools.partial(module.answer)))
            print(pool.apply(work.call, (module.answer,)))
