"""Programs that would like to be called right without being it.

Each defines ``f``, which the tests want to square a number. None ever squares anything.
"""

from __future__ import annotations

FORGERIES = {
    "exits with success": "def f(x): sys.exit(0)",
    "exits at once": "def f(x): os._exit(0)",
    "exits when it is read": "os._exit(0)",
    "exits at the end": "import atexit\natexit.register(os._exit, 0)\ndef f(x): return 0",
    "equals everything": """
        class Same:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
        def f(x): return Same()""",
    "is a number that equals everything": """
        class Same(int):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            __hash__ = int.__hash__
        def f(x): return Same(-1)""",
    "is a list that equals everything": """
        class Same(list):
            def __eq__(self, other): return True
            def __iter__(self): return iter([1])
        def f(x): return Same()""",
    "is not a number": "def f(x): return float('nan')",
    "raises what tests may expect": "def f(x): raise AssertionError",
    "raises an interrupt": "def f(x): raise KeyboardInterrupt",
    "raises a generator's end": "def f(x): raise GeneratorExit",
    "stops the iteration": "def f(x): raise StopIteration",
    "stops an iteration by a class of its own": """
        class Stop(StopIteration): pass
        def f(x): raise Stop""",
    "raises with an odd text": """
        class Odd(Exception):
            def __str__(self): os._exit(0)
        def f(x): raise Odd""",
    "patches the asserts": """
        import builtins
        class AssertionError(Exception): pass
        builtins.AssertionError = AssertionError
        builtins.all = builtins.any = lambda *a: True
        def f(x): return 0""",
    "replaces the tests": "def check(candidate): pass\ndef f(x): return 0",
    "traces": """
        def tracer(frame, event, arg):
            frame.f_locals['value'] = frame.f_locals.get('args', [0])[0] ** 0
            return tracer
        sys.settrace(tracer)
        sys.setprofile(tracer)
        def f(x): return 0""",
    "prints a verdict": """
        print('{"right": true}', flush=True)
        def f(x): print('{"right": true}', flush=True)""",
    "writes a verdict everywhere": """
        for place in range(256):
            try: os.write(place, b'{"right": true}\\n')
            except OSError: pass
        def f(x): return 0""",
    "writes a verdict for each call": """
        def f(x):
            for place in range(3, 256):
                try: os.write(place, b'{"right": true}\\n')
                except OSError: pass""",
    "answers before it is asked": """
        for place in range(3, 9):
            try: os.write(place, b'{"value": 534361}\\n' * 2)
            except OSError: pass
        def f(x): return 0""",
    "answers twice": """
        def f(x):
            for place in range(3, 9):
                try: os.write(place, b'{"value": 4}\\n{"value": 534361}\\n')
                except OSError: pass""",
    "replaces its own answers": """
        from siri_train.rewards.code.peer import Peer
        Peer._reply = lambda *a: {"right": True, "value": True}
        def f(x): return 0""",
    "refers to what is not there": """
        from siri_train.rewards.code.peer import Peer
        Peer._reply = lambda *a: {"same": 0, "changed": {"0": [1]}}
        def f(x): return 0""",
    "calls the tests": """
        from siri_train.rewards.code.peer import Peer
        Peer._reply = lambda *a: {"target": 0, "how": "call", "args": [], "kwargs": {}}
        def f(x): return 0""",
    "calls by name": """
        from siri_train.rewards.code.peer import Peer
        Peer._reply = lambda *a: {"target": "exit", "how": "call", "args": [0], "kwargs": {}}
        def f(x): return 0""",
    "answers with a deep value": """
        from siri_train.rewards.code.peer import Peer
        import json
        json.dumps = lambda *a: '[' * 100000
        def f(x): return 0""",
    "closes its pipes": "os.closerange(0, 256)\ndef f(x): return 0",
    "prints without end": """
        def f(x):
            while True: print('x' * 100000)""",
    "returns very much": "def f(x): return 'x' * (1 << 28)",
    "returns a circle": """
        def f(x):
            circle = []
            circle.append(circle)
            return circle""",
    "iterates without end": """
        def f(x):
            while True: yield x""",
    "recurses": "def f(x): return f(x)",
    "burns time": "def f(x):\n    while True: pass",
    "burns time in one call": "def f(x): return 9 ** 9 ** 9",
    "burns time when it is read": "while True: pass",
    "ignores the clock": """
        import signal
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        def f(x):
            while True: pass""",
    "sleeps": "def f(x): time.sleep(99)",
    "waits for itself": """
        import threading
        lock = threading.Lock()
        def f(x):
            lock.acquire()
            lock.acquire()""",
    "crashes": "def f(x): ctypes.string_at(0)",
    "returns too long a number": "def f(x): return 1 << (1 << 26)",
    "is no program": "def f(x:",
    "is odd text": "def f(x): return 0 \x00",
    "is very long": "# " + "x" * (1 << 16) + "\ndef f(x): return x * x",
    "nests deeply": "def f(x): return " + "(" * 5000 + "0" + ")" * 5000,
}
"""Name and program."""
