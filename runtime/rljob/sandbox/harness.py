"""Function calls in the sandbox: a main program that only calls and prints what comes back.

The harness reads the call from its standard input, keeps its standard output for itself, gives the submission standard error in its place,
and runs the submission only then. It knows no expected value and compares nothing, so that a submission that forges the harness's message
has merely given an answer: it is compared outside like any other. One process per call.
"""

import json
from dataclasses import dataclass

from rljob.wire.sandbox import CALLED, Call

_PYTHON = """\
import json, os, sys

def main():
    channel = os.dup(1)
    os.dup2(2, 1)
    write, leave, dumps = os.write, os._exit, json.dumps
    call = json.loads(sys.stdin.buffer.read())
    module = sys.modules["submission"] = type(sys)("submission")
    scope = module.__dict__
    with open("submission.py", encoding="utf-8") as file:
        exec(compile(file.read(), "submission.py", "exec"), scope)
    name, _, method = call["function"].partition(".")
    if name not in scope:
        sys.exit("the submission defines no " + name)
    target = getattr(scope[name](), method) if method else scope[name]
    said = dumps(target(*call["arguments"])).encode()
    while said:
        said = said[write(channel, said):]
    sys.stderr.flush()
    leave(0)

main()
"""

_JAVASCRIPT = """\
const fs = require("fs");
const write = fs.writeSync.bind(fs), leave = process.reallyExit.bind(process), text = JSON.stringify, finite = Number.isFinite;
const call = JSON.parse(fs.readFileSync(0, "utf8"));
process.stdout.write = process.stderr.write.bind(process.stderr);
console.log = console.info = console.debug = console.error.bind(console);
const number = (key, value) => { // JSON.stringify itself would write null
  if (typeof value === "number" && !finite(value)) throw new RangeError("returned " + value + ", which is no JSON");
  return value;
};
const [name, method] = call.function.split(".");
const make = new Function("require", "module", "exports",
  fs.readFileSync("submission.js", "utf8") + `\\n;return typeof ${name} === "undefined" ? module.exports.${name} : ${name};`);
const holder = { exports: {} };
const found = make(require, holder, holder.exports);
if (found === undefined) { console.error("the submission defines no " + name); process.exit(1); }
const target = method ? (made => made[method].bind(made))(new found()) : found;
Promise.resolve(target(...call.arguments)).then(value => {
  const said = Buffer.from(text(value === undefined ? null : value, number));
  for (let at = 0; at < said.length;) at += write(1, said, at);
  leave(0);
}).catch(error => { console.error(error); process.exit(1); });
"""


@dataclass(frozen=True)
class Harness:
    """Calls functions of submissions in one language."""

    main: str
    """The program that is run."""
    submission: str
    """Name of the submission's file beside it."""


HARNESSES = {language: Harness(main, CALLED[language]) for language, main in (("python", _PYTHON), ("javascript", _JAVASCRIPT))}
"""Language to its harness; in other languages tests cannot call functions."""


def call_text(call: Call) -> str:
    """What the harness reads from its standard input: the call without what is expected."""
    return json.dumps({"function": call.function, "arguments": call.arguments})
