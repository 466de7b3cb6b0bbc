"""The parts of the isolation that can be looked at without a kernel: the filter, archives, cgroups' files, statuses."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rljob.api.errors import ConfigurationError, InfrastructureError
from rljob.sandbox import cgroups, languages, protections, requests
from rljob.sandbox.inside import archive, child, runner, seccomp, usage
from rljob.sandbox.inside.runner import Ended
from rljob.sandbox.languages import TABLE
from rljob.sandbox.slot import Ran
from rljob.wire.sandbox import Limits, RunRequest

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
X86_64 = 0xC000003E
PROGRAM = list(struct.iter_unpack("HBBI", seccomp.program()))
NAMESPACES = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)


def filtered(number: int, arguments: tuple[int, ...] = (), architecture: int = X86_64) -> int:
    """What the program decides, by an interpreter of classic BPF of our own."""
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, architecture, 0, *(*arguments, *(0,) * (6 - len(arguments))))
    accumulator = position = 0
    while True:
        operation, true, false, value = PROGRAM[position]
        position += 1
        if operation == 0x06:
            return int(value)
        if operation == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x05:
            position += value
        else:
            holds = accumulator == value if operation == 0x15 else accumulator >= value
            position += true if holds else false


@settings(deadline=None)
@given(st.integers(0, 600))
def test_the_filter_allows_what_the_table_says_and_nothing_else(number: int) -> None:
    conditional = {condition.number for condition in seccomp.CONDITIONAL.values()}
    if number in conditional:
        return
    expected = ALLOW if number in seccomp.ALLOWED.values() else EPERM if number < 424 else ENOSYS
    assert filtered(number) == expected


@settings(deadline=None)
@given(st.integers(601, 0x3FFFFFFF), st.integers(0x40000000, 0xFFFFFFFF))
def test_numbers_from_the_future_are_not_there_and_those_of_x32_kill(future: int, x32: int) -> None:
    assert filtered(future) == ENOSYS
    assert filtered(x32) == KILL


@settings(deadline=None)
@given(st.integers(0, 500), st.integers(0, 0xFFFFFFFF).filter(lambda value: value != X86_64))
def test_another_architecture_kills(number: int, architecture: int) -> None:
    assert filtered(number, architecture=architecture) == KILL


@settings(deadline=None)
@given(st.sampled_from(sorted(seccomp.CONDITIONAL)), st.integers(0, 0xFFFFFFFF))
def test_conditions_look_at_their_argument_alone(name: str, value: int) -> None:
    condition = seccomp.CONDITIONAL[name]
    arguments = tuple(value if index == condition.index else 0xDEAD for index in range(6))
    allowed = (value & condition.mask) in condition.values
    assert filtered(condition.number, arguments) == (ALLOW if allowed else condition.otherwise)


def test_threads_may_be_made_and_namespaces_not() -> None:
    threads = 0x3D0F00
    assert filtered(56, (threads,)) == ALLOW
    assert {filtered(56, (threads | flag,)) for flag in NAMESPACES} == {EPERM}
    assert filtered(435) == ENOSYS, "C libraries then fall back to clone"


@settings(deadline=None)
@given(st.dictionaries(st.text("abc/.é", min_size=1, max_size=12), st.binary(max_size=200), max_size=5))
def test_what_is_packed_is_what_is_unpacked(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    folder = tmp_path_factory.mktemp("pack")
    good = {name.strip("/.").replace("/", "_") or "x": content for name, content in files.items()}
    here = os.getcwd()
    os.chdir(folder)
    try:
        for name, content in good.items():
            Path(name).write_bytes(content)
        output = os.memfd_create("out")
        archive.pack(good, output, 10**6)
        assert {name: content for name, _, content in archive.unpack(archive.read(output))} == good
        os.close(output)
    finally:
        os.chdir(here)


def test_a_path_that_could_not_be_unpacked_is_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "/".join(["x" * 200] * 6)
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    output = os.memfd_create("out")
    with pytest.raises(archive.ArchiveError, match="a path has more than 1024 bytes"):
        archive.pack([name], output, 10**6)
    os.close(output)


@pytest.mark.parametrize(
    ("built", "lacks"),
    [
        ({"build/main": 0o755}, ""),
        ({"build/main": 0o644}, "the compiler made no program build/main: the code is a library, perhaps"),
        ({"build/other": 0o755}, "the compiler made no program build/main: the code is a library, perhaps"),
        ({}, "the compiler wrote nothing into build/"),
    ],
)
def test_what_was_built_is_a_program_if_it_has_its_name_and_can_be_executed(
    built: dict[str, int], lacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("build").mkdir()
    for name, mode in built.items():
        Path(name).touch(mode)
    output = os.memfd_create("out")
    archive.pack(built, output, 10**6)
    (language,) = (row for row in TABLE if row.name == "rust")
    assert requests.lacking(language, archive.read(output)) == lacks
    os.close(output)


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_bytes_that_are_no_archive_are_an_error_and_no_crash(data: bytes) -> None:
    try:
        list(archive.unpack(data))
    except archive.ArchiveError:
        pass


def files_of(folder: Path, **texts: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name.replace("_", ".", 1)).write_text(text)
    return folder


def test_cgroups_of_version_2_are_made_below_our_own(tmp_path: Path) -> None:
    own = files_of(tmp_path / "pod", cgroup_procs="", cgroup_controllers="cpu io memory pids", cgroup_subtree_control="")
    parent = files_of(own / "rljob-sandbox-7-1", cgroup_controllers="cpu memory pids", cgroup_subtree_control="")
    found = cgroups.delegated("7-1", tmp_path, "0::/pod\n")
    assert (found.version, found.parents) == ("v2", dict.fromkeys(("memory", "pids", "cpu"), parent))
    assert (own / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    assert (parent / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"


def test_limits_of_version_2_are_written_once(tmp_path: Path) -> None:
    folder = files_of(tmp_path / "slot", memory_events="low 0\noom 2\noom_kill 3\n", pids_events="max 4\n", cpu_stat="usage_usec 5\n")
    (folder / "pids.current").write_text("6\n")
    (folder / "memory.current").write_text("7\n")
    cgroup = cgroups.Cgroup("v2", dict.fromkeys(("memory", "pids", "cpu"), folder))
    cgroup.limit(1000, 10)
    cgroup.cores(1.5)
    written = {name: (folder / name).read_text() for name in ("memory.max", "memory.swap.max", "pids.max", "cpu.max")}
    assert written == {"memory.max": "1000", "memory.swap.max": "0", "pids.max": "10", "cpu.max": "150000 100000"}
    (folder / "memory.max").write_text("touched")
    cgroup.limit(1000, 10)
    assert (folder / "memory.max").read_text() == "touched"
    assert (cgroup.killed(), cgroup.refused(), cgroup.processes(), cgroup.memory_now()) == (3, 4, 6, 7)


def test_our_own_cgroup_says_how_many_were_killed_for_memory_also_where_none_can_be_made(tmp_path: Path) -> None:
    assert cgroups.killed_beside_us(tmp_path, "0::/pod\n") == 0
    files_of(tmp_path, memory_events="oom 9\noom_kill 7\n")
    assert cgroups.killed_beside_us(tmp_path, "0::/pod\n") == 7, "in a container the mount shows our own as its root"
    files_of(tmp_path / "memory" / "pod", memory_oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    assert cgroups.killed_beside_us(tmp_path, "4:memory:/pod\n0::/pod\n") == 5


def test_how_much_memory_is_left_is_what_the_machine_or_our_own_cgroup_still_gives(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 99999 kB\nMemAvailable:    2000 kB\n")

    def room(membership: str) -> int:
        return cgroups.room_beside_us(tmp_path, membership, meminfo)

    assert room("0::/pod\n") == 2000 * 1024
    files_of(tmp_path / "pod", memory_max="max", memory_current="1000", memory_stat="file 9\nactive_file 200\ninactive_file 100\n")
    assert room("0::/pod\n") == 2000 * 1024
    (tmp_path / "pod" / "memory.max").write_text("5000\n")
    assert room("0::/pod\n") == 5000 - 1000 + 300
    files_of(tmp_path / "memory", memory_limit_in_bytes="900", memory_usage_in_bytes="500")
    files_of(tmp_path / "memory", memory_stat="active_file 7\ninactive_file 7\ntotal_active_file 50\ntotal_inactive_file 0\n")
    assert room("4:memory:/elsewhere\n0::/pod\n") == 900 - 500 + 50


def test_clocks_that_cannot_be_set_back_are_no_protection() -> None:
    """As here: this process is in the machine's own namespace of clocks."""
    assert not runner._start_clocks_at_zero()


def test_a_host_that_gives_no_cgroups_is_none(tmp_path: Path) -> None:
    assert cgroups.delegated("7-1", tmp_path, "0::/pod\n") == cgroups.NONE
    assert cgroups.delegated("7-1", tmp_path, "4:memory:/x\n3:pids:/x\n") == cgroups.NONE


def test_what_a_dead_service_left_is_removed(tmp_path: Path) -> None:
    own = files_of(tmp_path / "memory", cgroup_procs="")
    (own / "rljob-sandbox-999999999-1" / "slot-1").mkdir(parents=True)
    alive = own / f"rljob-sandbox-{os.getpid()}-9"
    alive.mkdir()
    found = cgroups.delegated("7-1", tmp_path, "4:memory:/\n")
    assert (found.version, found.parents) == ("v1", {"memory": own / "rljob-sandbox-7-1"})
    assert sorted(path.name for path in own.iterdir() if path.is_dir()) == sorted(("rljob-sandbox-7-1", alive.name))


def test_less_than_the_minimum_names_what_is_missing_and_what_to_do() -> None:
    everything = dict.fromkeys((*protections.NAMESPACES, *protections.OF_EVERY_SLOT), True)
    assert protections.missing(everything, "namespaces") == ""
    assert "cgroup_memory" in protections.missing(everything, "full")
    assert "wants net" in protections.missing(everything | {"net": False}, "namespaces")
    assert "hostUsers: false" in protections.missing(everything | {"user": False}, "namespaces")
    assert protections.missing(everything | {"user": False}, "namespaces", "crun") == ""


def test_root_gives_every_slot_users_of_its_own_and_others_have_none_to_give() -> None:
    everything = "         0          0 4294967295\n"
    given_away = [protections.host_ids(place, 0, everything) for place in range(64)]
    assert len({user for pair in given_away if pair for user in pair}) == 128
    assert protections.host_ids(0, 1000, everything) is None
    in_a_pod = protections.host_ids(3, 0, "0 100000 65536\n")
    assert in_a_pod is not None
    assert 0 < in_a_pod[0] < in_a_pod[1] < 65536


def test_root_without_users_to_give_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="ordinary user"):
        protections.host_ids(0, 0, "0 1000 1\n")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, "ok"),
        ({"status": 3}, "runtime_error"),
        ({"status": -11}, "runtime_error"),
        ({"status": -9, "killed": "wall"}, "wall_limit"),
        ({"status": -9, "killed": "cpu"}, "time_limit"),
        ({"status": -9, "killed": "memory"}, "memory_limit"),
        ({"status": -9, "killed": "output"}, "output_limit"),
        ({"status": -9, "killed": "processes"}, "process_limit"),
        ({"status": -24}, "time_limit"),
        ({"status": -25}, "disk_limit"),
        ({"cpu": 2.5}, "time_limit"),
        ({"status": 1, "full": True}, "disk_limit"),
        ({"status": 99, "trouble": "Traceback\nOSError: [Errno 28] No space left on device"}, "disk_limit"),
        ({"status": 99, "trouble": "Traceback\nMemoryError"}, "memory_limit"),
        ({"status": 99, "trouble": "Traceback\nOSError: [Errno 1] mount"}, "sandbox_error"),
    ],
)
def test_the_status_says_what_happened(fields: dict[str, object], status: str) -> None:
    ended = Ended(1, **fields)  # type: ignore[arg-type]
    output = requests.output(Ran(ended, b"", b"", False, b"", False, False), Limits(cpu_seconds=2))
    assert output.status == status
    assert (output.reason == "") == (status == "ok")


LIBRARY = 41 << 20


@pytest.mark.parametrize(
    ("fields", "stderr", "library", "status", "reason"),
    [
        (
            {"status": 99, "trouble": "Traceback\nOSError: [Errno 28] No space left on device"}, b"", LIBRARY, "disk_limit",
            "compile_limits.disk_mb, of the compiler: more than 40 MiB of files; 41 MiB is the library of go, which every build gets: "
            "raise disk_mb",
        ),
        (
            {"status": 1}, b"mkdir /tmp/go-build1: no space left on device", LIBRARY, "disk_limit",
            "compile_limits.disk_mb, of the compiler: more than 40 MiB of files; 41 MiB is the library of go, which every build gets: "
            "raise disk_mb",
        ),
        (
            {"status": -9, "killed": "memory"}, b"", LIBRARY, "memory_limit",
            "compile_limits.memory_mb, of the compiler: more than 64 MiB of memory; 41 MiB is the library of go, which every build gets: "
            "raise memory_mb",
        ),
        (
            {"status": 1}, b"final link failed: No space left on device", 0, "disk_limit",
            "compile_limits.disk_mb, of the compiler: more than 40 MiB of files",
        ),
        (
            {"status": 99, "trouble": "Traceback\nOSError: [Errno 28] No space left on device"}, b"", 0, "disk_limit",
            "compile_limits.disk_mb, of the compiler: its own files are more than 40 MiB of files",
        ),
        (
            {"status": -9, "killed": "wall"}, b"", LIBRARY, "wall_limit",
            "compile_limits.wall_seconds, of the compiler: not done after 6 s",
        ),
        (
            {"unfetched": "status -9"}, b"", LIBRARY, "disk_limit",
            "compile_limits.disk_mb, of the compiler: its files could not be fetched: status -9",
        ),
        ({"status": 1}, b"main.go:1: syntax error", LIBRARY, "compile_error", "the compiler ended with status 1"),
    ],
)  # fmt: skip
def test_a_compiler_that_met_a_limit_says_which_and_what_every_build_takes_of_it(
    fields: dict[str, object], stderr: bytes, library: int, status: str, reason: str
) -> None:
    ran = Ran(Ended(1, **fields), b"", stderr, False, b"", False, False)  # type: ignore[arg-type]
    asked = RunRequest(language="go", code="", compile_limits=Limits(memory_mb=64, disk_mb=40))
    (language,) = (row for row in TABLE if row.name == "go")
    output = requests.compiled(ran, asked, language, library)
    assert (output.status, output.reason) == (status, reason)


def test_memory_for_which_nobody_asked_is_not_more_than_there_is() -> None:
    little = Limits(memory_mb=128)
    fitted = requests.fitted(RunRequest(language="c", code="", limits=Limits(cpu_seconds=9)), little)
    assert (fitted.limits, fitted.compile_limits.memory_mb) == (Limits(cpu_seconds=9, memory_mb=128), 128)
    asked = RunRequest(language="c", code="", limits=Limits(memory_mb=256), compile_limits=Limits(memory_mb=512))
    assert requests.fitted(asked, little) == asked


def toolchains(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Of all languages there is one, and this says its version."""
    toolchain = languages.Toolchain({}, version=("/bin/sh", "-c", script))
    monkeypatch.setattr(languages, "TABLE", (languages.Language("ada", "main.adb", lambda: toolchain),))


def test_a_toolchain_that_does_not_answer_is_not_left_out_but_keeps_the_service_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    toolchains(monkeypatch, "exec sleep 9")
    monkeypatch.setattr(languages, "_PATIENCE", 0.3)
    with pytest.raises(InfrastructureError, match=r"`/bin/sh -c exec sleep 9` did not answer within 0.3 s: try again when"):
        languages.found()


def test_a_toolchain_that_is_broken_is_left_out_and_that_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    toolchains(monkeypatch, "echo no default toolchain >&2; exit 1")
    assert languages.found() == {}
    assert "does not work, and its language is left out: no default toolchain" in caplog.text


def test_a_built_file_that_names_a_file_too_short_as_its_interpreter_is_wrong_and_no_failure_of_ours(tmp_path: Path) -> None:
    """The kernel calls that an input/output error."""
    (tmp_path / "short").write_text("x")
    (tmp_path / "short").chmod(0o755)
    (tmp_path / "main.c").write_text("int main(void) { return 0; }")
    subprocess.run(["gcc", "-o", tmp_path / "main", tmp_path / "main.c", f"-Wl,-dynamic-linker,{tmp_path / 'short'}"], check=True)
    execute = (
        "import sys\nfrom rljob.sandbox.inside import child\nchild.WORK, child._LOADER = sys.argv[1], sys.argv[3]\n"
        "sys.exit(child.execute([sys.argv[2]], {}))"
    )

    def executed(loader: str) -> tuple[int, str]:
        command = [sys.executable, "-c", execute, str(tmp_path), str(tmp_path / "main"), loader]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stderr

    assert executed(child._LOADER) == (126, f"{tmp_path / 'main'}: Input/output error\n")
    # As if the machine's own loader could not be read either.
    status, said = executed("/proc/self/mem")
    assert (status, said.splitlines()[-1].startswith("OSError: [Errno 5]")) == (1, True)


@pytest.mark.parametrize(("memory", "forks", "status"), [(True, False, "memory_limit"), (False, True, "process_limit")])
def test_what_the_kernel_counted_explains_a_failure_and_never_a_success(memory: bool, forks: bool, status: str) -> None:
    assert requests.output(Ran(Ended(1, status=1), b"", b"", False, b"", memory, forks), Limits()).status == status
    assert requests.output(Ran(Ended(1, status=0), b"", b"", False, b"", memory, forks), Limits()).status == "ok"


@pytest.mark.parametrize(("exact", "counted"), [("Pss_Anon:\t 512 kB\nPss_Shmem:\t 512 kB\n", 1 << 20), ("", 3 << 20)])
def test_pages_that_processes_share_count_once_unless_one_does_not_show_them(
    exact: str, counted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that has executed a file which it may not read."""
    texts = {"status": "VmPTE:\t 0 kB\nRssAnon:\t 2048 kB\nRssShmem:\t 1024 kB\n", "smaps_rollup": exact}
    monkeypatch.setattr(usage, "_read", lambda pid, name: texts[name])
    assert not usage.exceeds(counted, [7], 0)
    assert usage.exceeds(counted - 1, [7], 0)
