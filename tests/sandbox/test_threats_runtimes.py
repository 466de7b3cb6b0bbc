"""Threats from Java and Rust, whose runtimes reach the kernel in ways of their own; one program for each. Go is in `test_go`."""

from typing import Final

import pytest
from tests.sandbox.sandbox import Sandbox, only, processes_of_runs
from tests.sandbox.test_threats_calls import CALLS, asked_for, assert_refused

from rljob.sandbox.pool import Program

ATTACKS: Final = {
    "a full disk": ("runtime_error", "disk_limit", "memory_limit"),
    "killing everything": ("ok", "runtime_error"),
    "doing nothing": ("wall_limit",),
    "a daemon": ("ok",),
    "reaching out": ("ok",),
}
"""What may become of each."""
JAVA = """
import java.io.*;
import java.net.*;
import java.nio.channels.*;
import java.nio.file.*;

public class Main {
    interface Attempt { void make() throws Exception; }

    static void refused(String what, Attempt attempt) {
        try { attempt.make(); } catch (Exception | Error e) { return; }
        System.out.println("ESCAPED " + what);
    }

    static int run(String... words) throws Exception {
        return new ProcessBuilder(words).redirectErrorStream(true).start().waitFor();
    }

    public static void main(String[] words) throws Exception {
        switch (words[0]) {
            case "a full disk" -> { var file = new FileOutputStream("big"); while (true) file.write(new byte[1 << 20]); }
            case "killing everything" -> {
                ProcessHandle.allProcesses().filter(p -> p.pid() != ProcessHandle.current().pid()).forEach(ProcessHandle::destroyForcibly);
                run("bash", "-c", "kill -9 1 -1");
            }
            case "doing nothing" -> Thread.sleep(60000);
            case "a daemon" -> new ProcessBuilder("setsid", "sleep", "60").start();
            case "reaching out" -> {
                for (String path : "/etc/shadow /proc/1/mem /proc/1/environ /proc/1/cmdline".split(" "))
                    refused(path, () -> Files.readAllBytes(Path.of(path)));
                for (String path : "/root/.ssh /home /sys /var/lib /proc/sys /proc/1/fd".split(" "))
                    refused(path, () -> Files.list(Path.of(path)).count());
                for (String path : "/usr/left /etc/left /left /proc/self/oom_score_adj".split(" "))
                    refused(path, () -> Files.writeString(Path.of(path), "0"));
                refused("an internet socket", () -> new ServerSocket(0));
                refused("a datagram socket", () -> new DatagramSocket());
                refused("a channel", () -> SocketChannel.open());
                refused("a unix socket", () -> ServerSocketChannel.open(StandardProtocolFamily.UNIX));
                refused("a name", () -> InetAddress.getByName("kubernetes.default.svc"));
                var sparse = new RandomAccessFile("sparse", "rw").getChannel();
                refused("a mapping", () -> sparse.map(FileChannel.MapMode.READ_WRITE, 0, 1 << 30));
                refused("namespaces", () -> { if (run("unshare", "-Ur", "true") != 0) throw new Exception(); });
                refused("mounts", () -> { if (run("mount", "-t", "tmpfs", "x", "/tmp") != 0) throw new Exception(); });
                for (String name : System.getenv().keySet()) if (name.startsWith("RLJOB")) System.out.println("ESCAPED " + name);
            }
        }
    }
}
"""
RUST = r"""
use std::io::{self, BufRead, Write};
use std::{env, fs, net, os::unix::net as unix, process::Command, thread, time::Duration};

extern "C" {
    fn kill(pid: i32, signal: i32) -> i32;
    fn syscall(number: i64, ...) -> i64;
}

fn refused<T, E>(what: &str, made: Result<T, E>) {
    if made.is_ok() { println!("ESCAPED {what}"); }
}

fn ran(words: &[&str]) -> Result<(), ()> {
    let done = Command::new(words[0]).args(&words[1..]).output();
    done.ok().filter(|output| output.status.success()).map(|_| ()).ok_or(())
}

fn main() {
    match env::args().nth(1).unwrap().as_str() {
        "a full disk" => { let mut file = fs::File::create("big").unwrap(); loop { file.write_all(&[0; 1 << 20]).unwrap(); } }
        "killing everything" => for pid in [-1, 1].into_iter().chain(3..3000).chain([0]) { unsafe { kill(pid, 9); } },
        "doing nothing" => thread::sleep(Duration::from_secs(60)),
        "a daemon" => { Command::new("setsid").args(["sleep", "60"]).spawn().unwrap(); }
        "reaching out" => {
            for path in ["/etc/shadow", "/proc/1/mem", "/proc/1/environ", "/proc/1/cmdline"] { refused(path, fs::read(path)); }
            for path in ["/root/.ssh", "/home", "/sys", "/var/lib", "/proc/sys", "/proc/1/fd"] { refused(path, fs::read_dir(path)); }
            for path in ["/usr/left", "/etc/left", "/left", "/proc/self/oom_score_adj"] { refused(path, fs::write(path, "0")); }
            refused("an internet socket", net::TcpListener::bind("127.0.0.1:0"));
            refused("a datagram socket", net::UdpSocket::bind("[::1]:0"));
            refused("a unix socket", unix::UnixListener::bind("left"));
            refused("a name", net::TcpStream::connect("kubernetes.default.svc:443"));
            refused("namespaces", ran(&["unshare", "-Ur", "true"]));
            refused("mounts", ran(&["mount", "-t", "tmpfs", "x", "/tmp"]));
            for (name, _) in env::vars() { if name.starts_with("RLJOB") { println!("ESCAPED {name}"); } }
        }
        _ => for line in io::stdin().lock().lines() {
            let mut a: Vec<i64> = line.unwrap().split(' ').map(|word| word.parse().unwrap()).collect();
            a.resize(7, 0);
            let result = unsafe { syscall(a[0], a[1], a[2], a[3], a[4], a[5], a[6]) };
            println!("{result} {}", io::Error::last_os_error().raw_os_error().unwrap());
        },
    }
}
"""
ATTACKERS: Final = {"java": JAVA, "rust": RUST}


@pytest.fixture(scope="module")
def attackers(shared_sandbox: Sandbox) -> dict[str, Program]:
    limits = {"cpu_seconds": 4, "wall_seconds": 20, "memory_mb": 128, "processes": 48, "disk_mb": 16}
    return {language: shared_sandbox.build(language, ATTACKERS[language], **limits) for language in only(*ATTACKERS)}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("language", only(*ATTACKERS))
def test_is_survived(sandbox: Sandbox, attackers: dict[str, Program], language: str, attack: str) -> None:
    result = sandbox.do(attackers[language].run(arguments=(attack,), wall_seconds=0.5 if attack == "doing nothing" else 20))
    assert result.status in ATTACKS[attack], result
    assert result.run is not None
    assert result.run.stdout == ""
    assert processes_of_runs(sandbox.pool) == 0


@pytest.mark.parametrize("language", only("rust"))
def test_forbidden_calls_are_refused(sandbox: Sandbox, attackers: dict[str, Program], language: str) -> None:
    result = sandbox.do(attackers[language].run(asked_for(CALLS), ("calls",)))
    assert result.run is not None
    assert_refused(CALLS, result.run.stdout)
