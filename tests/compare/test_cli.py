"""The command: arguments, signals, disks, pipes and encodings. Little is trained here."""

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import jax
import pytest

from fnn.compare._cli import main, prepare_jax
from fnn.compare._commands import FILES, member_of
from fnn.compare._comparison import RENDERS, documented, write_report
from fnn.compare._plan import Settings, plan_of
from fnn.compare._protocol import results
from fnn.compare._store import Store
from tests.compare.made_up import result_of
from tests.comparison_document import comparison

ARGUMENTS = ["--rules", "adam", "--rates", "0.01", "0.1", "--trial-seeds", "1", "--seeds", "2"]
ARGUMENTS += ["--epochs", "2", "--batch-size", "512", "--hidden"]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """command(*arguments) -> (exit code, stdout, stderr), with made-up results of the first rule.

    ``meanwhile()`` is called when the first rule is done, before another piece of work begins. The
    picture is drawn only if it is asked for, as that takes longer than all the rest.
    """

    def run(*arguments, meanwhile=lambda: None, drawn=False):
        def done_already(plan, store, tell):
            run.plan = plan
            tell(0, 5, "adam by hand")
            yield [result_of(plan, plan.rules[0])]
            meanwhile()
            tell(5, 5, "the next rule")

        if not drawn:
            monkeypatch.setitem(RENDERS, "comparison.png", lambda *_: bytes(2000))
        monkeypatch.setattr("fnn.compare._cli.prepare_jax", lambda devices: None)
        monkeypatch.setattr("fnn.compare._commands.results", done_already)
        monkeypatch.setattr(sys, "argv", ["fnn", "compare", "--out", str(tmp_path), *arguments])
        with pytest.raises(SystemExit) as exit:
            main()
        return exit.value.code, *capsys.readouterr()

    return run


def files(folder):
    return {path.name for path in folder.iterdir()} - {"pieces"}


def test_the_command(command, tmp_path):
    out = tmp_path / "deep" / "out"
    code, said, error = command(*ARGUMENTS, "--out", str(out), drawn=True)
    assert (code, error) == (0, "")  # no bar where there is no terminal
    assert command.plan.problem.name == "digits"
    assert command.plan.points == {"adam": [{"learning_rate": 0.01}, {"learning_rate": 0.1}]}
    first, rule, *_ = said.splitlines()  # not wrapped
    assert first.startswith(
        "digits: 1 rule, 2 trials of each (learning_rate) from 1 seed, then 2 fresh seeds. 6 steps"
    )
    assert rule.startswith("A rule is better than another if ")
    assert "Best on the test rows: adam at learning_rate" in said
    assert said.splitlines()[-1].endswith("comparison.json, report: " + str(out / "report.html"))
    assert files(out) == set(FILES)
    document = json.loads((out / "comparison.json").read_text())
    assert document["command"].startswith("fnn compare --problem digits --rules adam --tune")
    assert document["findings"][0] in said
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_rules_of_ones_own_stand_beside_the_others(command, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import fnn\ndef mine(learning_rate):\n    return fnn.sgd(learning_rate)\n")
    command(str(path), *ARGUMENTS)
    assert [rule.name for rule in command.plan.rules] == ["adam", "mine"]
    assert command(str(path)[:-1], *ARGUMENTS)[0] == 2


def test_the_report_again(command, tmp_path):
    command(*ARGUMENTS)
    before = (tmp_path / "comparison.json").read_bytes()
    for name in FILES[1:]:
        (tmp_path / name).unlink()
    code, said, error = command("--render", str(tmp_path / "comparison.json"))
    assert (code, error) == (0, "")
    assert "Best on the test rows: adam" in said
    assert files(tmp_path) == set(FILES)
    assert (tmp_path / "comparison.json").read_bytes() == before
    again = f"fnn compare --replay {tmp_path / 'comparison.json'} adam 0.0?1? seed=0"
    assert re.search(again, (tmp_path / "report.html").read_text())
    code, said, error = command("--render", str(tmp_path / "none.json"))
    assert (code, said) == (2, "")
    assert error.endswith("none.json cannot be read: No such file or directory\n")


def test_reports_that_have_no_performance_profile(command, tmp_path):
    paths = [tmp_path / f"{name}.json" for name in ("digits", "again", "spirals", "other", "free")]
    for path, rules, problem, target in zip(
        paths,
        (["sgd"], ["sgd"], ["sgd", "adam"], ["adam"], ["sgd"]),
        ("digits", "digits", "spirals", "logistic", "beale"),
        (0.9, 0.9, 0.9, 0.9, None),
        strict=True,
    ):
        document = comparison(rules=rules, seeds=2, epochs=2)
        document["settings"]["target"] = target
        document["problem"]["name"] = problem
        path.write_text(json.dumps(document))
    digits, again, spirals, other, free = paths
    for wrong, sentence in (
        ((digits, again), f"{digits} and {again} are both on digits, expected another problem"),
        ((digits, free), f"{free} has no target, which a performance profile needs"),
        ((digits, spirals, other), f"no rule is in all of {digits}, {spirals}, {other}"),
    ):
        code, said, error = command("--render", *map(str, wrong))
        assert (code, said) == (2, "")
        assert error.startswith(f"fnn compare: --render: {sentence}")
        assert error.count("\n") == 1
    code, _, error = command("--render", str(digits), str(spirals))
    assert (code, error) == (0, "")
    page = (tmp_path / "report.html").read_text()
    assert "Performance profile over 2 problems" in page
    assert f"--replay {digits} sgd" in page


def test_an_unknown_reproduction_leaves_no_folder(command, tmp_path):
    assert command("--reproduce", "deepobs", "--out", str(tmp_path / "none"))[0] == 2
    assert not (tmp_path / "none").exists()


def test_a_reproduction_that_is_interrupted_says_so(command, monkeypatch):
    def reproduce(name, out, tell):
        signal.raise_signal(signal.SIGINT)
        tell("the next cell")
        pytest.fail("it went on")

    monkeypatch.setattr("fnn.compare._commands.reproduce", reproduce)
    said = (130, "", "fnn compare: interrupted; nothing was written\n")
    assert command("--reproduce", "wilson-overfit") == said


@pytest.mark.slow
def test_a_member_again(command, tmp_path):
    given = {"tune": ("learning_rate=0.01,0.1",), "trial_seeds": 1, "seeds": 2, "epochs": 2}
    plan = plan_of(Settings(("adam",), **given, batch_size=512, hidden=()))
    with jax.numpy_dtype_promotion("standard"):
        *_, done = results(plan, Store(), lambda done, total, text: None)
        write_report(documented(plan, done), tmp_path)
        for rate, seed in (("0.1", "seed=1"), ("0.01", "trial_seed=0")):
            file = str(tmp_path / "comparison.json")
            code, said, error = command("--replay", file, "adam", rate, seed)
            assert (code, error) == (0, "")
            assert said.startswith(f"adam at learning_rate={rate}, {seed}: accuracy ")
            assert "are the same, bit for bit" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "nothing came, expected a file and a rule"),
        (["out/comparison.json"], "out/comparison.json came, expected a file and a rule"),
        (["f", "adam", "fast"], "fast, expected a learning rate, name=value, seed=N"),
        (["f", "adam", "seed=-1"], "seed=-1, expected a whole number >= 0"),
        (["f", "adam", "b1=x"], "b1=x, expected a learning rate"),
    ],
)
def test_a_member_that_is_not_named(words, sentence):
    with pytest.raises(ValueError, match=sentence):
        member_of(words)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rules", "adm"], "unknown rule 'adm', expected a Python file or some of: sgd, .*; did you mean adam?"),
        (["--optimizers", "xyzzy"], "unknown rule 'xyzzy', expected a Python file or some of: sgd, .*"),
        (["--rules", "sgd", "sgd"], "a rule is named twice: sgd, sgd"),
        (["--rules"], "rules is empty, expected some of: sgd, .*"),
        (["--problem", "digit"], "unknown problem 'digit', .*; did you mean digits?"),
        (["--rates"], "rates is empty, expected at least one learning rate"),
        (["--rates", "-0.1"], "learning rate -0.1 is not a positive number"),
        (["--rates", "nan"], "learning rate nan is not a positive number"),
        (["--rates", "0.2", "0.1"], "learning rates [0.2, 0.1] are not in increasing order"),
        (["--epochs", "0"], "epochs is 0, expected at least 1"),
        (["--seeds", "0"], "seeds is 0, expected at least 1"),
        (["--hidden", "8", "0"], "a size in hidden is 0, expected at least 1"),
        (["--batch-size", "5000"], "batch_size 5000 exceeds the 1077 training rows"),
        (["--tune", "b9=0.1,0.2"], "--tune b9=0.1,0.2: sgd does not take b9, expected one of: .*"),
        (["--rules", "adam", "--tune", "b1=0.9..0.9"], "--tune b1=0.9..0.9: the range is empty, .*"),
        (["--reproduce", "deepobs"], "nothing to reproduce is called 'deepobs', .*"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_gets_one_sentence(arguments, sentence, command):
    code, said, error = command(*arguments)
    assert (code, said) == (2, "")
    pattern = re.escape(f"fnn compare: {sentence}\n").replace(r"\.\*", ".*")
    assert re.fullmatch(pattern, error), error


def test_a_target_that_nobody_reaches(command, tmp_path):
    code, said, error = command(*ARGUMENTS, "--target", "2")
    assert (code, error) == (2, "fnn compare: no run reached the target 2; the rest is written\n")
    assert "Best on the test rows" in said
    assert files(tmp_path) == set(FILES)
    assert command(*ARGUMENTS, "--target", "0.01")[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_done(command, tmp_path, number):
    before = signal.getsignal(number)
    arguments = ("--rules", "adam", "sgd", *ARGUMENTS[2:])
    code, said, error = command(*arguments, meanwhile=lambda: signal.raise_signal(number))
    assert code == 128 + number
    assert error == (
        "fnn compare: interrupted, 1 of 2 rules are done; the same command goes on there\n"
    )
    assert "Best on the test rows: adam" in said
    assert "Interrupted: 1 of 2 rules" in said
    assert files(tmp_path) == set(FILES)
    assert json.loads((tmp_path / "comparison.json").read_text())["interrupted"]
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_is_no_traceback_either(command):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    code, said, error = command(*ARGUMENTS, meanwhile=twice)
    assert code == 130
    assert error.startswith("fnn compare: interrupted, 1 of 1 rules are done")
    assert "Best on the test rows" in said


def test_ctrl_c_before_the_work(command, monkeypatch):
    monkeypatch.setattr("fnn.compare._cli.plan_of", lambda _: signal.raise_signal(signal.SIGINT))
    assert command(*ARGUMENTS) == (130, "", "")


def test_a_folder_that_cannot_be_written_is_found_before_the_work(command, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "comparison.png").mkdir(parents=True)
    for out, sentence in (
        (tmp_path / "file", "is a file, expected a folder"),
        (tmp_path / "file" / "below", "cannot be written to: Not a directory"),
        (tmp_path / "taken", "comparison.png is a folder, expected a regular file"),
        ("/proc/fnn", "cannot be written to: No such file or directory"),
    ):
        code, said, error = command(*ARGUMENTS, "--out", str(out), meanwhile=pytest.fail)
        assert (code, said) == (2, "")
        assert sentence in error
        assert error.count("\n") == 1


@pytest.fixture
def full_disk():
    """full_disk(): from now on no file may grow beyond 1,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_found_before_the_work(command, full_disk):
    full_disk()
    code, said, error = command(*ARGUMENTS, meanwhile=pytest.fail)
    assert (code, said) == (2, "")
    assert error.endswith("cannot be written to: File too large\n")


def test_a_disk_that_fills_up_meanwhile_does_not_cost_the_table(command, full_disk, tmp_path):
    (tmp_path / "comparison.json").write_text("of an earlier run")
    code, said, error = command(*ARGUMENTS, meanwhile=full_disk)
    assert code == 1
    assert "Best on the test rows" in said
    assert "Every number" not in said
    failed = [line.split(" could not be ")[1] for line in error.splitlines()]
    assert failed == ["written: File too large"] * len(FILES)
    assert files(tmp_path) == {"comparison.json"}
    assert (tmp_path / "comparison.json").read_text() == "of an earlier run"


def test_a_piece_that_cannot_be_written_ends_the_work_and_costs_nothing(command, tmp_path):
    def full():
        raise OSError(28, "No space left on device", str(tmp_path / "piece"))

    code, said, error = command(*ARGUMENTS, meanwhile=full)
    assert code == 1
    assert (
        error
        == f"fnn compare: {tmp_path / 'piece'} could not be written: No space left on device\n"
    )
    assert "Best on the test rows" in said


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_stdout_of_other_encodings(command, encoding, tmp_path, monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setenv("COLUMNS", "0")
    code, _, error = command(*ARGUMENTS, "--out", str(tmp_path / "größe Ω"))
    assert (code, error) == (0, "")
    said = stdout.buffer.getvalue().decode(encoding)
    assert re.search(r"adam at learning_rate 0\.1?0?1?, accuracy \d\d\.\d", said)
    assert ("größe Ω" in said) == (encoding == "utf-8")
    row = r"^\W*adam\W+0\.\d+\W+\d\d\.\d+ \[.*\].*(rounding|nothing)\W+\d+\.\d\W*$"
    assert re.search(row, said, re.MULTILINE)  # nothing is cut


@pytest.mark.parametrize(("device", "code"), [("a pipe that nobody reads", 0), ("/dev/full", 1)])
def test_a_stdout_that_cannot_be_written(command, device, code, tmp_path, monkeypatch):
    if device == "/dev/full":
        file = os.open(device, os.O_WRONLY)
    else:
        end, file = os.pipe()
        os.close(end)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(os.fdopen(file, "wb"), "utf-8"))
    done, _, error = command(*ARGUMENTS)
    assert done == code
    assert error.count("\n") == code
    assert files(tmp_path) == set(FILES)
    sys.stdout.close()  # has nothing left to complain about


@pytest.mark.parametrize("variable", ["JAX_NUM_CPU_DEVICES", "XLA_FLAGS", "neither"])
def test_the_users_number_of_devices_stays(variable, monkeypatch):
    asked = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: asked.append(name))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if variable != "neither":
        monkeypatch.setenv(variable, "1 --xla_force_host_platform_device_count=1")
    prepare_jax(devices=4)
    assert asked == (["jax_num_cpu_devices"] if variable == "neither" else [])


# --- the command in a process of its own --------------------------------------------------------


def start(*arguments, **environment):
    """A Python process; of the environment it has only what it is given."""
    environment = {"PATH": "", "COLUMNS": "80"} | environment
    command = [sys.executable, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment, **pipes)


def python(*arguments, **environment):
    with start(*arguments, **environment) as process:
        said, error = process.communicate(timeout=300)
    return process.returncode, said, error


def test_the_package_runs_as_the_command():
    code, _, error = python("-m", "fnn", "compare", "--seeds", "0")
    assert (code, error) == (2, "fnn compare: seeds is 0, expected at least 1\n")


@pytest.mark.slow  # compiles two programs
def test_the_command_in_a_process_of_its_own(tmp_path):
    """As little as can be trained, killed once, in an environment that says everything."""
    out, words = tmp_path / "out", "compare --rules sgd --rates 0.1 --seeds 2 --epochs 1 --hidden"
    arguments = ["-m", "fnn", *words.split(), "--out", str(out)]
    environment = {"HOME": str(tmp_path), "COLUMNS": "0", "PYTHONIOENCODING": "ascii"}
    environment["JAX_NUM_CPU_DEVICES"] = "1"
    first = out / "pieces" / "sgd" / "search_0.safetensors"
    with start(*arguments, **environment) as process:
        deadline = time.monotonic() + 300
        while not first.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    kept = first.read_bytes()
    code, said, error = python(*arguments, **environment)
    assert (code, error) == (0, "")
    assert first.read_bytes() == kept  # not trained again
    assert "Best on the test rows: sgd" in said
    assert files(out) == set(FILES)
    assert json.loads((out / "comparison.json").read_text())["device"]["count"] == 1
    cached = list((tmp_path / ".cache" / "fnn" / "programs").iterdir())
    assert len(cached) >= 2  # a program of each library
