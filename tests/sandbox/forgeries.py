"""Submissions that were not written to solve anything, by what they try; `test_forgery` sends them to the judge.

An expected output looks like `PATTERN`; whatever finds one anywhere prints it.
"""

PATTERN = "forge-[0-9a-f]{32}"

SEARCH = f"""
import glob, os, re
def look(data):
    for found in re.findall(rb"{PATTERN}", data):
        print(found.decode()); os._exit(0)
def read(path, size=1 << 20):
    try:
        with open(path, "rb", buffering=0) as file:
            look(file.read(size))
    except OSError:
        pass
"""
PRINTS = {
    "prints a verdict": 'print("passed"); print({"verdict": "passed", "passed": 1, "total": 1})',
    "prints what a checker program would print": """print('{"accept": true}')""",
    "prints nothing and ends well": "",
    "exits early with status 0": "import sys; sys.exit(0)",
    "raises SystemExit, which no test expects": "raise SystemExit(0)",
    "leaves by os._exit(0)": "import os; os._exit(0)",
    "leaves by os._exit(0) in an exit handler": "import atexit, os; atexit.register(os._exit, 0); raise ValueError",
    "ends itself with a signal that looks like an end": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "replaces print, len, open and the comparison": """
import builtins
class Same(str):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = str.__hash__
builtins.str = Same; builtins.len = lambda x: 0; builtins.open = None; builtins.bool = lambda x: True
print(Same("anything"))""",
    "patches the comparison in the judge's modules": """
import sys, types
for name in ("rljob", "rljob.sandbox", "rljob.sandbox.checkers", "rljob.sandbox.judge", "checkers", "judge"):
    module = types.ModuleType(name); module.compare_text = module.compare_value = lambda *a: ""; sys.modules[name] = module
try:
    import rljob.sandbox.checkers as real; real.compare_text = lambda *a: ""
except ImportError: pass
print("x")""",
    "patches str.__eq__ of the interpreter by ctypes": """
try:
    import ctypes
    ctypes.memset(id(str.__eq__), 0, 8)
except Exception: pass
print("x")""",
    "closes every descriptor": "import os; os.closerange(0, 4096)",
    "closes standard output and writes into what gets its number": """
import os
os.close(1); fd = os.open("out", os.O_CREAT | os.O_RDWR); os.write(fd, b"passed")""",
    "writes into every descriptor that is open": """
import os
for fd in range(0, 256):
    try: os.write(fd, b'{"status": "ok", "verdict": "passed"}')
    except OSError: pass""",
    "writes result files where a judge could look": """
import os
for name in ("result", "result.json", "verdict", "/tmp/result.json", "/tmp/work/expected", "expected", "output", "stdout", "out.txt"):
    try: open(name, "w").write('{"verdict": "passed", "status": "ok"}')
    except OSError: pass""",
    "makes its output a link to the expected output": """
import os
for target in ("/proc/1/fd/0", "/proc/self/fd/0", "/expected", "../expected"):
    try: os.symlink(target, "out" + str(hash(target)))
    except OSError: pass""",
    "prints its input, in case that is the answer": "import sys; sys.stdout.write(sys.stdin.read())",
    "reads its input again from the start and beyond its end": f"""{SEARCH}
os.lseek(0, 0, 0); look(os.read(0, 1 << 20)); read("/proc/self/fd/0"); os.lseek(0, 1 << 16, 1); look(os.read(0, 1 << 20))""",
    "reads the expected output from the environment": f"""{SEARCH}
look(repr(os.environ).encode()); [read(p) for p in glob.glob("/proc/*/environ")]""",
    "reads the expected output from command lines": f"""{SEARCH}
[read(p) for p in glob.glob("/proc/*/cmdline") + glob.glob("/proc/*/comm")]""",
    "reads the expected output from descriptors of other processes": f"""{SEARCH}
for path in glob.glob("/proc/[0-9]*/fd/*") + glob.glob("/proc/[0-9]*/task/*/fd/*"):
    try: look(os.read(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 1 << 20))
    except OSError: pass""",
    "reads the expected output from files": f"""{SEARCH}
for top in ("/tmp", "/var/tmp", "/dev/shm", "/run", "/work", "/home", "/root", "/srv", "/etc", "/mnt", "."):
    for folder, _, names in os.walk(top):
        for name in names[:200]: read(os.path.join(folder, name), 1 << 16)""",
    "reads the expected output from its own interpreter": f"""{SEARCH}
import gc, sys
for thing in gc.get_objects():
    try: look(repr(thing)[:100000].encode())
    except Exception: pass
frame = sys._getframe()
while frame:
    look(repr(frame.f_locals)[:100000].encode() + repr(frame.f_globals)[:100000].encode()); frame = frame.f_back""",
    "reads the expected output from its own memory": f"""{SEARCH}
mine = SEARCH_SELF = None
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", buffering=0) as memory:
    for line in maps:
        span, rights = line.split()[:2]
        first, last = (int(x, 16) for x in span.split("-"))
        if "r" in rights and last - first < 1 << 26:
            try: memory.seek(first); look(memory.read(last - first))
            except (OSError, ValueError, OverflowError): pass""",
    "reads the expected output from the memory of process 1": f"""{SEARCH}
for pid in ("1", str(os.getppid())):
    try:
        for line in open(f"/proc/{{pid}}/maps"):
            first, last = (int(x, 16) for x in line.split()[0].split("-"))
            with open(f"/proc/{{pid}}/mem", "rb", buffering=0) as memory:
                try: memory.seek(first); look(memory.read(last - first))
                except (OSError, ValueError, OverflowError): pass
    except OSError: pass""",
    "asks the service for the expected output over the network": f"""{SEARCH}
import socket
for port in (80, 8080, 8081, 8082):
    try:
        with socket.create_connection(("127.0.0.1", port), 0.2) as s: s.sendall(b"GET /metrics HTTP/1.0\\r\\n\\r\\n"); look(s.recv(1 << 20))
    except OSError: pass""",
    "keeps what it saw in one test for the next": f"""{SEARCH}
import sys
read("/tmp/kept"); read("kept"); read("/dev/shm/kept"); read("/tmp/work/kept")
seen = sys.stdin.read()
for name in ("/tmp/kept", "kept", "/dev/shm/kept", "/var/tmp/kept"):
    try: open(name, "w").write(seen)
    except OSError: pass""",
    "leaves a process behind that answers the next test": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            for fd in range(0, 64):
                try: os.write(fd, b"passed")
                except OSError: pass
            time.sleep(0.01)
    os._exit(0)
""",
    "prints so much that the comparison might stop looking": 'print("a " * (1 << 22))',
    "prints bytes that are not text": r"import os; os.write(1, bytes(range(128, 256)) * 50)",
    "prints number words that are near everything": 'print("nan inf -inf 1e999 Infinity NaN 0x10 1_000")',
    "prints an error and dies, hoping that nobody looks": 'import sys; print("passed", file=sys.stderr); sys.exit(3)',
    "stops its own clock": """
import time, signal
time.time = time.monotonic = time.perf_counter = lambda: 0.0
signal.signal(signal.SIGALRM, signal.SIG_IGN); signal.setitimer(signal.ITIMER_REAL, 0)
while True: pass""",
    "sets another exit status of the process that runs it": """
import os, signal
for pid in (1, os.getppid()):
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGCHLD):
        try: os.kill(pid, number)
        except OSError: pass
print("x")""",
}


CALLS = {
    "returns an object that equals everything": """
class Same:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def solve(x): return Same()""",
    "returns a string that equals everything": """
class Same(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def solve(x): return Same("x")""",
    "returns a number that equals everything": """
class Same(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def solve(x): return Same(1)""",
    "returns a mapping that has everything": """
class All(dict):
    def __eq__(self, other): return True
    def __getitem__(self, key): return self
    def get(self, key, default=None): return self
def solve(x): return All(verdict="passed")""",
    "returns not-a-number": 'def solve(x): return float("nan")',
    "returns True, which is 1": "def solve(x): return True",
    "returns nothing": "def solve(x): pass",
    "exits before it returns": "import sys\ndef solve(x): sys.exit(0)",
    "exits while it is loaded": "import os; os._exit(0)",
    "raises SystemExit while it is loaded": "raise SystemExit(0)",
    "prints the answer of another function": """
def solve(x): print("passed"); return None""",
    "writes a result of its own into the channel": """
import os
for fd in range(3, 64):
    try: os.write(fd, b'{"verdict": "passed"}'); os._exit(0)
    except OSError: pass
def solve(x): return 1""",
    "writes a second result behind the first": """
import os, threading, time
def later():
    while True:
        for fd in range(3, 64):
            try: os.write(fd, b'"passed"')
            except OSError: pass
threading.Thread(target=later, daemon=True).start()
def solve(x): time.sleep(0.05); return 1""",
    "replaces json.dumps": """
import json
json.dumps = lambda *a, **k: '"passed"'
json.JSONEncoder.encode = lambda *a: '"passed"'
json.encoder.c_make_encoder = None
def solve(x): return 1""",
    "replaces os.write and os._exit": """
import os
os.write = lambda fd, data: len(data); os._exit = lambda status: None
def solve(x): return 1""",
    "replaces the harness's functions on the stack": """
import sys
frame = sys._getframe()
while frame:
    for name in list(frame.f_globals):
        if callable(frame.f_globals[name]) and name != "solve": frame.f_globals[name] = lambda *a, **k: "passed"
    frame = frame.f_back
def solve(x): return 1""",
    "looks for the expected value on the stack and in memory": f"""{SEARCH}
import gc, sys
def solve(x):
    frame = sys._getframe()
    while frame:
        for found in re.findall("{PATTERN}", repr(frame.f_locals) + repr(frame.f_globals)): return found
        frame = frame.f_back
    for thing in gc.get_objects():
        try: found = re.findall("{PATTERN}", repr(thing)[:100000])
        except Exception: continue
        if found: return found[0]
    os.lseek(0, 0, 0)
    found = re.findall("{PATTERN}", os.read(0, 1 << 20).decode())
    return found[0] if found else None""",
    "registers an exit handler that prints the answer": """
import atexit, sys
atexit.register(lambda: sys.__stdout__.write("passed"))
def solve(x): raise KeyError""",
    "replaces sys.exit, sys.excepthook and the import": """
import builtins, sys
sys.excepthook = lambda *a: None; sys.exit = lambda *a: None; builtins.__import__ = lambda *a, **k: None
def solve(x): raise ValueError""",
    "answers from a child process and kills its parent": """
import os, signal
def solve(x):
    parent = os.getpid()
    if os.fork() == 0:
        os.write(3, b'"passed"')
        os.kill(parent, signal.SIGKILL)
        os._exit(0)
    signal.pause()""",
    "defines a main program that prints a result": """
if __name__ in ("__main__", "submission"): print('"passed"')
def solve(x): return 1""",
    "names itself like the harness": """
import sys
sys.modules["__main__"] = type(sys)("__main__"); sys.argv = ["judge"]
def solve(x): return 1""",
    "returns something endless": """
def solve(x):
    a = []
    a.append(a)
    return a""",
    "returns something very deep": """
def solve(x):
    a = []
    for _ in range(900): a = [a]
    return a""",
    "returns a very long number": "def solve(x): return 10 ** 4000",
    "prints into standard output by its own descriptor": """
import os, sys
def solve(x):
    os.write(1, b'"passed"'); sys.__stdout__.write('"passed"'); sys.__stdout__.flush()
    return 1""",
}


OTHERS = {
    ("c", "returns 0 without a word"): "int main(void) { return 0; }",
    ("c", "leaves before main with status 0"): """
#include <unistd.h>
__attribute__((constructor)) static void first(void) { _exit(0); }
int main(void) { return 1; }""",
    ("c", "writes a verdict into every descriptor"): """
#include <unistd.h>
int main(void) { for (int fd = 0; fd < 1024; fd++) write(fd, "passed", 6); return 0; }""",
    ("c", "includes files of the judge while it is compiled"): """
#include "/proc/self/environ"
int main(void) { return 0; }""",
    ("c", "embeds whatever lies in the compiler's folder"): """
#include <stdio.h>
__asm__(".section .rodata\\n.global kept\\nkept: .incbin \\"/proc/self/cmdline\\"\\n.byte 0\\n");
extern const char kept[];
int main(void) { puts(kept); return 0; }""",
    ("cpp", "has the right output in a global that no test sets"): """
#include <iostream>
struct Early { Early() { std::cout << "passed"; std::quick_exit(0); } } early;
int main() { return 1; }""",
    ("bash", "exits with status 0"): "exit 0",
    (
        "bash",
        "sends everything that it can read",
    ): f"grep -rhoaE '{PATTERN}' /proc/*/environ /proc/*/cmdline /proc/*/fd /tmp . 2>/dev/null; exit 0",
    ("java", "prints a verdict and exits with status 0"): """
public class Main {
    public static void main(String[] a) { System.out.println("{\\"accept\\": true, \\"verdict\\": \\"passed\\"}"); System.exit(0); }
}""",
    ("rust", "prints a verdict and exits with status 0"): """
fn main() { println!("{{\\"accept\\": true, \\"verdict\\": \\"passed\\"}}"); std::process::exit(0) }""",
    ("go", "prints a verdict and exits with status 0"): """
package main
import ("fmt"; "os")
func main() { fmt.Println(`{"accept": true, "verdict": "passed"}`); os.Exit(0) }""",
    ("javascript", "exits with status 0"): "process.exit(0)",
    ("javascript", "patches what compares"): """
Object.is = () => true; String.prototype.valueOf = () => true; JSON.stringify = () => '{"accept": true}';
console.log({ toString: () => "passed" })""",
}


SCRIPTS = {
    "exits before it returns": "function solve(x) { process.exit(0) }",
    "exits by the door of the process": "process.reallyExit(0)",
    "replaces JSON.stringify": "JSON.stringify = () => '\"passed\"'; function solve(x) { return 1 }",
    "returns an object that turns into what is asked for": """
function solve(x) { return { toJSON: () => "passed", valueOf: () => true, [Symbol.toPrimitive]: () => "passed" } }""",
    "returns a proxy that has everything": "function solve(x) { return new Proxy({}, { get: () => 'passed', has: () => true }) }",
    "writes a result by descriptor": "require('fs').writeSync(1, '\"passed\"'); process.reallyExit(0)",
    "changes every prototype": """
Object.prototype.equals = () => true; Array.prototype.toString = () => "passed"; Object.prototype.verdict = "passed";
function solve(x) { return {} }""",
    "never resolves what it promised": "function solve(x) { return new Promise(() => {}) }",
    "returns nothing": "function solve(x) {}",
}


CHECKER = """
import json, sys
given = json.load(sys.stdin)
print("comparing", file=sys.stderr)
print(json.dumps({"accept": given["output"].strip() == given["expected"]}))"""
CARELESS = """
import json, sys
given = json.load(sys.stdin)
number = int(given["output"])
print(json.dumps({"accept": number == int(given["expected"])}))"""
ECHOING = """
import json, sys
given = json.load(sys.stdin)
print(given["output"])
print(json.dumps({"accept": given["output"] == given["expected"]}))"""
NEAR = """
import json, sys
given = json.load(sys.stdin)
a, b = given["output"], given["expected"]
print(json.dumps({"accept": abs(a - b) <= 1e-6 * max(1, abs(a), abs(b))}))"""
OUTPUTS = {
    "the verdict of the checker": """print('{"accept": true}')""",
    "text that closes the checker's JSON and goes on": r"""print('", "expected": "", "accept": true, "x": "')""",
    "duplicate keys of the checker's input": r"""print('", "expected": "' + '", "output": "')""",
    "code for a checker that evaluates": """print("__import__('os')._exit(0)")""",
    "terminal control codes": r"""print('\x1b[2J{"accept": true}\r')""",
    "NUL bytes": r"""print('\0{"accept": true}\0')""",
    "a line for each way to say yes": "print('true\\n1\\nyes\\nAC\\nOK\\naccept\\npassed')",
    "so much that the checker has no memory": 'import sys; sys.stdout.write("9" * 1000000)',
    "a number that takes for ever to read": 'print("1" + "0" * 900000)',
    "nothing": "",
}
