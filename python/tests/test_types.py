"""The stubs say what the module has, and a checker of types believes them."""

import inspect
import subprocess
import sys

import millrace


def mypy(*arguments):
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_stubs_are_what_the_module_has():
    code, text = mypy("mypy.stubtest", "millrace._millrace")
    assert code == 0, text


def test_a_checker_finds_a_wrong_call(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import millrace\n"
        'client = millrace.connect("node1:7070", deadline=5)\n'
        'first: bytes = client.read(client.stat("file"), 0, 10)\n'
        'client.read("file", "0")\n'
        "async def later() -> bytes:\n"
        '    other = await millrace.aconnect("node1:7070")\n'
        '    return (await other.read_many([("file", 0, 1)]))[0]\n'
    )
    code, text = mypy("mypy", "--strict", str(script))
    assert code == 1
    assert [line.split(":")[1] for line in text.splitlines() if ": error:" in line] == ["4"], text


def test_everything_has_a_docstring():
    for kind in (millrace.AsyncClient, millrace.Client, millrace.File, millrace.LoadReport, millrace.Upload):
        for name, member in vars(kind).items():
            if not name.startswith("_"):
                assert inspect.getdoc(member), f"{kind.__name__}.{name}"
        assert inspect.getdoc(kind)
